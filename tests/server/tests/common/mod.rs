//! A small guest: memory, a ring, and a client of the vfio-user protocol that was not written
//! here.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ptdma::DmaAddr;
use ptdma::descriptor::{CommandWord, Descriptor};
use ptdma::regs::{QueueControl, Register};
use ptdma_model::ModelConfig;
use ptdma_server::server::{Server, ServerConfig};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};
use rustix::fs::MemfdFlags;
use tempfile::TempDir;
use vfio_bindings::bindings::vfio::{
    VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_DATA_EVENTFD, VFIO_PCI_BAR2_REGION_INDEX,
    VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_MSIX_IRQ_INDEX,
};
use vfio_user::Client;
use zerocopy::IntoBytes;

/// Bound on every wait; far more than any needs.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);
pub(crate) const PAGE: u64 = 4096;
pub(crate) const BAR2: u32 = VFIO_PCI_BAR2_REGION_INDEX;
pub(crate) const CONFIG: u32 = VFIO_PCI_CONFIG_REGION_INDEX;

/// Where guest memory is on the bus: nothing like its offset in the file.
pub(crate) const RAM_AT: u64 = 0x7_8000_0000;
pub(crate) const RAM_LEN: u64 = 4 << 20;
const RING_AT: u64 = RAM_AT;
const ENTRIES: u64 = 32;

pub(crate) fn memfd(len_bytes: u64) -> File {
    let file: File = rustix::fs::memfd_create("guest", MemfdFlags::CLOEXEC)
        .unwrap()
        .into();
    file.set_len(len_bytes).unwrap();
    file
}

pub(crate) fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < LIMIT, "waited too long: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

pub(crate) fn serve(functions: usize, model: ModelConfig) -> (Server, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&ServerConfig {
        socket_dir: dir.path().join("with a space"),
        functions,
        first_index: 0,
        model,
    })
    .unwrap();
    (server, dir)
}

pub(crate) fn sockets(server: &Server) -> Vec<PathBuf> {
    server.sockets().map(Path::to_owned).collect()
}

/// A client with memory mapped, bus master on and the queue set up.
pub(crate) struct Guest {
    pub(crate) client: Client,
    pub(crate) ram: File,
    next: u64,
    control: QueueControl,
}

impl Guest {
    pub(crate) fn new(socket: &Path) -> Self {
        let mut client = Client::new(socket).unwrap();
        let ram = memfd(RAM_LEN);
        client.dma_map(0, RAM_AT, RAM_LEN, ram.as_raw_fd()).unwrap();
        let mut guest = Self {
            client,
            ram,
            next: 0,
            control: QueueControl::empty(),
        };
        guest.bring_up();
        guest
    }

    pub(crate) fn bring_up(&mut self) {
        self.client.region_write(CONFIG, 4, &[0x06, 0]).unwrap();
        self.next = 0;
        let ring = DmaAddr::new(RING_AT);
        self.control = QueueControl::empty()
            .with_size(5)
            .with_base_high(ring.high());
        self.write(Register::Control, self.control.bits());
        self.write(Register::Tail, ring.low());
        self.write(Register::Head, ring.low());
    }

    pub(crate) fn read(&mut self, register: Register) -> u32 {
        let mut value = [0; 4];
        self.client
            .region_read(BAR2, register.offset() as u64, &mut value)
            .unwrap();
        u32::from_le_bytes(value)
    }

    pub(crate) fn write(&mut self, register: Register, value: u32) {
        self.client
            .region_write(BAR2, register.offset() as u64, &value.to_le_bytes())
            .unwrap();
    }

    pub(crate) fn interrupt(&mut self, enable: u32) -> File {
        let event: File = rustix::event::eventfd(0, EventfdFlags::NONBLOCK)
            .unwrap()
            .into();
        let flags = VFIO_IRQ_SET_ACTION_TRIGGER | VFIO_IRQ_SET_DATA_EVENTFD;
        self.client
            .set_irqs(VFIO_PCI_MSIX_IRQ_INDEX, flags, 0, 1, &[event.as_raw_fd()])
            .unwrap();
        self.write(Register::InterruptEnable, enable);
        event
    }

    /// Starts one copy between bus addresses.
    pub(crate) fn start(&mut self, src: u64, dst: u64, len_bytes: u32) {
        let descriptor = Descriptor::copy(
            CommandWord::COPY_IOC,
            DmaAddr::new(src),
            DmaAddr::new(dst),
            len_bytes,
        );
        self.ram
            .write_all_at(descriptor.as_bytes(), self.next * 32)
            .unwrap();
        self.next = (self.next + 1) % ENTRIES;
        let tail = DmaAddr::new(RING_AT + self.next * 32).low();
        self.write(Register::Tail, tail);
        self.write(Register::Control, (self.control | QueueControl::RUN).bits());
    }

    /// Waits for the engine to stop; the error code, 0 if there was none.
    pub(crate) fn finish(&mut self) -> u32 {
        until("engine", || {
            let c = QueueControl::from_bits_retain(self.read(Register::Control));
            c.contains(QueueControl::HALT) && !c.contains(QueueControl::RUN)
        });
        self.read(Register::Status)
    }

    /// After an error: on to the next descriptor.
    pub(crate) fn skip(&mut self) {
        let head = DmaAddr::new(RING_AT + self.next * 32).low();
        self.write(Register::Head, head);
    }

    pub(crate) fn copy(&mut self, src: u64, dst: u64, len_bytes: u32) -> u32 {
        self.start(src, dst, len_bytes);
        let code = self.finish();
        if code != 0 {
            self.skip();
        }
        code
    }

    pub(crate) fn put(&self, addr: u64, data: &[u8]) {
        self.ram.write_all_at(data, addr - RAM_AT).unwrap();
    }

    pub(crate) fn get(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.ram.read_exact_at(&mut data, addr - RAM_AT).unwrap();
        data
    }
}

/// Whether an event descriptor is signalled within the limit; takes its count.
pub(crate) fn signalled(event: &File, limit: Duration) -> bool {
    let timeout = Timespec::try_from(limit).unwrap();
    let mut fds = [PollFd::new(event, PollFlags::IN)];
    if rustix::event::poll(&mut fds, Some(&timeout)).unwrap() == 0 {
        return false;
    }
    rustix::io::read(event, &mut [0; 8]).unwrap() == 8
}
