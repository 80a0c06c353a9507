//! The end of a storage: set once, seen by all.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::watch;

/// Clones share the same outcome.
#[derive(Clone)]
pub(crate) struct Failure {
    message: Arc<watch::Sender<Option<String>>>,
    closed: Arc<AtomicBool>,
}

impl Failure {
    pub fn new() -> Failure {
        Failure {
            message: Arc::new(watch::Sender::new(None)),
            closed: Arc::default(),
        }
    }

    /// The first message stays.
    pub fn fail(&self, message: &str) {
        let first = self.message.send_if_modified(|current| {
            let first = current.is_none();
            if first {
                *current = Some(message.to_owned());
            }
            first
        });
        if first {
            tracing::error!(reason = message, "storage has failed; this node must stop");
        }
    }

    /// Nothing more is written, without an error: the node stops.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    pub fn message(&self) -> Option<String> {
        self.message.borrow().clone()
    }

    pub fn subscribe(&self) -> watch::Receiver<Option<String>> {
        self.message.subscribe()
    }

    pub fn result(&self) -> io::Result<()> {
        match self.message() {
            None if self.is_closed() => Err(self.error()),
            None => Ok(()),
            Some(_) => Err(self.error()),
        }
    }

    /// What is answered to those who come after the end.
    pub fn error(&self) -> io::Error {
        match self.message() {
            Some(message) => io::Error::other(message),
            None => io::Error::new(io::ErrorKind::BrokenPipe, "storage is closed"),
        }
    }
}
