//! Sockets and threads of all functions.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use anyhow::{Context, bail};
use parking_lot::Mutex;
use ptdma_model::{Counters, ModelConfig};
use rustix::event::{EventfdFlags, PollFd, PollFlags};
use serde::Serialize;

use crate::function::{Function, FunctionStatus};
use crate::session;

/// Most functions that one server has: as many as the machine of the published numbers.
pub const MAX_FUNCTIONS: usize = 16;

/// What to serve.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Folder of the sockets.
    pub socket_dir: PathBuf,
    /// Number of functions, 1 to [`MAX_FUNCTIONS`].
    pub functions: usize,
    /// Index of the first one.
    pub first_index: usize,
    /// The engine.
    pub model: ModelConfig,
}

/// State of all functions.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Each function.
    pub devices: Vec<FunctionStatus>,
    /// Sum of their counters.
    pub sum: Counters,
}

/// A thread that accepts connections, and how to end it.
#[derive(Debug)]
struct Acceptor {
    stop: Arc<OwnedFd>,
    current: Arc<Mutex<Option<UnixStream>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    socket: SocketFile,
}

/// All functions, each with its socket.
#[derive(Debug)]
pub struct Server {
    functions: Vec<Arc<Function>>,
    acceptors: Vec<Acceptor>,
}

impl Server {
    /// Makes the functions and starts to listen.
    ///
    /// # Errors
    ///
    /// If the number of functions is out of range, a socket cannot be made (or is in use), or the
    /// system has no threads to give.
    pub fn start(config: &ServerConfig) -> anyhow::Result<Self> {
        if !(1..=MAX_FUNCTIONS).contains(&config.functions) {
            bail!(
                "{} functions: choose 1 to {MAX_FUNCTIONS}",
                config.functions
            );
        }
        raise_descriptor_limit();
        std::fs::DirBuilder::new()
            .recursive(true)
            // A peer that reaches a socket can make the server use memory and time.
            .mode(0o700)
            .create(&config.socket_dir)
            .with_context(|| format!("making {}", config.socket_dir.display()))?;
        let mut server = Self {
            functions: Vec::new(),
            acceptors: Vec::new(),
        };
        for n in 0..config.functions {
            let index = config.first_index.saturating_add(n);
            let path = config.socket_dir.join(format!("ptdma{index}.sock"));
            let function = Function::new(index, config.model).context("starting an engine")?;
            let function = Arc::new(function);
            // On an error, dropping the server ends what was started.
            server
                .acceptors
                .push(Acceptor::start(Arc::clone(&function), &path)?);
            server.functions.push(function);
        }
        Ok(server)
    }

    /// The functions, in order.
    #[must_use]
    pub fn functions(&self) -> &[Arc<Function>] {
        &self.functions
    }

    /// Paths of the sockets, in order.
    pub fn sockets(&self) -> impl Iterator<Item = &Path> {
        self.acceptors.iter().map(|a| a.socket.path.as_path())
    }

    /// What happened so far.
    #[must_use]
    pub fn report(&self) -> Report {
        Report::new(self.functions.iter().map(|f| f.status()).collect())
    }

    /// What happened so far, and counts from zero again.
    #[must_use]
    pub fn take_report(&self) -> Report {
        Report::new(self.functions.iter().map(|f| f.take_status()).collect())
    }

    /// Disconnects all clients and stops all engines. Counters stay readable.
    pub fn stop(&self) {
        for acceptor in &self.acceptors {
            acceptor.request_stop();
        }
        for acceptor in &self.acceptors {
            acceptor.join();
        }
        for function in &self.functions {
            function.stop();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Report {
    fn new(devices: Vec<FunctionStatus>) -> Self {
        let mut sum = Counters::default();
        for device in &devices {
            sum += device.counters;
        }
        Self { devices, sum }
    }
}

impl Acceptor {
    fn start(function: Arc<Function>, path: &Path) -> anyhow::Result<Self> {
        let (listener, socket) = bind(path)?;
        let stop = rustix::event::eventfd(0, EventfdFlags::CLOEXEC).context("event descriptor")?;
        let stop = Arc::new(stop);
        let current = Arc::new(Mutex::new(None));
        let thread = std::thread::Builder::new()
            .name(format!("ptdma{}", function.index()))
            .spawn({
                let (stop, current) = (Arc::clone(&stop), Arc::clone(&current));
                move || {
                    if let Err(e) = accept_loop(&function, &listener, &stop, &current) {
                        log::error!("function {}: {e}", function.index());
                    }
                }
            })
            .context("starting a thread")?;
        Ok(Self {
            stop,
            current,
            thread: Mutex::new(Some(thread)),
            socket,
        })
    }

    fn request_stop(&self) {
        // An event descriptor that is full is readable, which is all that matters.
        let _full = rustix::io::write(&self.stop, &1u64.to_ne_bytes());
        if let Some(stream) = &*self.current.lock() {
            // An error means that it is closed already.
            let _closed = stream.shutdown(std::net::Shutdown::Both);
        }
    }

    fn join(&self) {
        let Some(thread) = self.thread.lock().take() else {
            return;
        };
        if thread.join().is_err() {
            log::error!("{}: its thread panicked", self.socket.path.display());
        }
        self.socket.remove();
    }
}

/// Serves one client after the other.
fn accept_loop(
    function: &Function,
    listener: &UnixListener,
    stop: &OwnedFd,
    current: &Mutex<Option<UnixStream>>,
) -> io::Result<()> {
    while wait(listener, stop)? {
        let (stream, _) = match listener.accept() {
            Ok(accepted) => accepted,
            // The client was gone before it was accepted, or descriptors are short for a moment.
            Err(e) => {
                log::warn!("function {}: accept: {e}", function.index());
                std::thread::sleep(std::time::Duration::from_millis(10));
                continue;
            }
        };
        *current.lock() = Some(stream.try_clone()?);
        // A stop that came before the line above did not see the stream.
        if stop_requested(stop)? {
            break;
        }
        function.connect();
        log::info!("function {}: client connected", function.index());
        match session::serve(function, stream) {
            Ok(()) => log::info!("function {}: client closed", function.index()),
            Err(e) => log::warn!("function {}: client lost: {e}", function.index()),
        }
        if let Some(stream) = current.lock().take() {
            let _closed = stream.shutdown(std::net::Shutdown::Both);
        }
        function.disconnect();
    }
    Ok(())
}

/// Waits for a client (true) or for the end (false).
fn wait(listener: &UnixListener, stop: &OwnedFd) -> io::Result<bool> {
    loop {
        let mut fds = [
            PollFd::new(stop, PollFlags::IN),
            PollFd::new(listener, PollFlags::IN),
        ];
        match rustix::event::poll(&mut fds, None) {
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
            Ok(_) => {
                let [stop, listener] = fds.map(|fd| !fd.revents().is_empty());
                if stop {
                    return Ok(false);
                }
                if listener {
                    return Ok(true);
                }
            }
        }
    }
}

fn stop_requested(stop: &OwnedFd) -> io::Result<bool> {
    let mut fds = [PollFd::new(stop, PollFlags::IN)];
    let now = rustix::event::Timespec::default();
    Ok(rustix::event::poll(&mut fds, Some(&now))? != 0)
}

/// The file of a socket that this process has made. Dropping it removes the file, unless another
/// one is in its place by then.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// Device and inode.
    identity: (u64, u64),
}

impl SocketFile {
    /// Removes the file.
    pub fn remove(&self) {
        let ours = std::fs::symlink_metadata(&self.path)
            .is_ok_and(|m| (m.dev(), m.ino()) == self.identity);
        if ours {
            let _gone = std::fs::remove_file(&self.path);
        }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        self.remove();
    }
}

/// Makes a socket. One left behind by a server that was killed is replaced; one that somebody
/// listens on is not, nor is anything that is no socket.
///
/// # Errors
///
/// If the path is taken or the socket cannot be made.
pub fn bind(path: &Path) -> anyhow::Result<(UnixListener, SocketFile)> {
    match std::fs::symlink_metadata(path) {
        Ok(there) if !there.file_type().is_socket() => {
            bail!("{} exists and is no socket", path.display());
        }
        Ok(_) => replace_stale(path)?,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(e).with_context(|| format!("looking at {}", path.display())),
    }
    let listener = UnixListener::bind(path).with_context(|| {
        format!(
            "binding {} (a socket's path has at most 107 bytes)",
            path.display()
        )
    })?;
    let made = std::fs::symlink_metadata(path)
        .with_context(|| format!("looking at {}", path.display()))?;
    let socket = SocketFile {
        path: path.to_owned(),
        identity: (made.dev(), made.ino()),
    };
    Ok((listener, socket))
}

/// Removes a socket that nobody listens on.
fn replace_stale(path: &Path) -> anyhow::Result<()> {
    match UnixStream::connect(path) {
        Ok(_) => bail!(
            "{} is in use: end the other server or choose another folder",
            path.display()
        ),
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).with_context(|| format!("replacing {}", path.display()))
        }
        // Whether somebody listens cannot be told, so it stays.
        Err(e) => Err(e).with_context(|| format!("connecting to {}", path.display())),
    }
}

/// Lets the process have as many descriptors as it may: clients send one with every map.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(e) = setrlimit(Resource::Nofile, limit) {
        log::warn!("raising the limit of open files: {e}");
    }
}
