//! A child that ends with its parent, however the parent ends.
//!
//!     lontra dev ── pipe (only `dev` holds this end) ──▶ standard input of `lontra serve`
//!
//! When the parent is gone, the pipe ends, and the child stops as on SIGTERM. Only where the environment asks for it:
//! at a terminal, or with standard input closed, a node goes on.

use std::io::Read;

use rustix::process::{Signal, getpid, kill_process};

/// What `lontra dev` sets for its children, to `1`.
pub const VARIABLE: &str = "LONTRA_STOP_ON_STDIN_EOF";

/// Starts watching, if the environment asks for it.
pub fn watch() {
    if std::env::var_os(VARIABLE).is_none_or(|value| value != "1") {
        return;
    }
    let watching = std::thread::Builder::new().name("lontra-parent".to_owned()).spawn(|| {
        wait_for_eof(std::io::stdin().lock());
        tracing::info!("the parent process is gone: stopping");
        if let Err(error) = kill_process(getpid(), Signal::TERM) {
            tracing::error!(%error, "cannot stop with the parent process");
        }
    });
    if let Err(error) = watching {
        tracing::error!(%error, "cannot watch the parent process: this node will not stop with it");
    }
}

fn wait_for_eof(mut input: impl Read) {
    let mut buffer = [0; 64];
    loop {
        match input.read(&mut buffer) {
            Ok(0) => return,
            Err(error) if error.kind() != std::io::ErrorKind::Interrupted => return,
            Ok(_) | Err(_) => {}
        }
    }
}
