//! Lines on the control socket, and the names of machines on the command line: each has an answer,
//! and what is understood reads the same when it is written and read again.
#![no_main]

use std::str::FromStr;
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use ptdma_model::{Forks, ModelConfig};
use ptdma_server::control;
use ptdma_server::server::{Server, ServerConfig};

/// One server for all runs: what a line may do to it is little, and undone below.
fn server() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| {
        let socket_dir = std::env::temp_dir().join(format!("ptdma-fuzz-{}", std::process::id()));
        Server::start(&ServerConfig {
            socket_dir,
            functions: 2,
            first_index: 0,
            model: ModelConfig::default(),
        })
        .expect("a server")
    })
}

fuzz_target!(|data: &[u8]| {
    if let Ok(text) = std::str::from_utf8(data)
        && let Ok(forks) = Forks::from_str(text)
    {
        let again = Forks::from_str(&forks.to_string());
        assert_eq!(again, Ok(forks), "'{text}' became '{forks}'");
    }
    // The end of the server is tested elsewhere, and would be the end of this.
    if data.windows(4).any(|four| four == b"quit") {
        return;
    }
    for line in data.split(|byte| *byte == b'\n') {
        let (reply, ends) = control::answer(server(), line);
        assert!(!ends);
        if let Err(why) = reply {
            assert!(!why.is_empty(), "an error without a word");
        }
    }
    for function in server().functions() {
        function.model().clear_faults();
        function.set_machine(Forks::TODAY);
    }
});
