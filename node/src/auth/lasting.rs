//! What outlives a reload, which makes everything else of `auth` anew.

use std::sync::{Arc, Mutex};

use super::hashing::Hashing;
use super::jwt::remote::KeptKeys;

/// One for the node; clones share it.
#[derive(Clone)]
pub struct Lasting {
    pub hashing: Hashing,
    /// Where signatures of tokens are checked, and passwords that operators set: who floods the node with passwords keeps
    /// neither out.
    pub signatures: Hashing,
    pub operators: Hashing,
    /// Keys that were fetched, and where; guards what is replaced in a moment.
    keys: Arc<Mutex<(String, Arc<KeptKeys>)>>,
}

impl Lasting {
    /// For a machine with so many cores.
    pub fn for_cores(cores: usize) -> Self {
        Lasting {
            hashing: Hashing::for_cores(cores),
            signatures: Hashing::for_cores(cores),
            operators: Hashing::new(1, OPERATORS_WAIT_MAX),
            keys: Arc::default(),
        }
    }

    /// What was fetched from this URL so far; of another one nothing is kept.
    pub fn kept_keys(&self, url: &str) -> Arc<KeptKeys> {
        let mut keys = self.keys.lock().expect("nothing panics under it");
        if keys.0 != url {
            *keys = (url.to_owned(), Arc::default());
        }
        keys.1.clone()
    }
}

const OPERATORS_WAIT_MAX: usize = 8;
