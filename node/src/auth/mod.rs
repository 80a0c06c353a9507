//! Who a client is, and what it may do.
//!
//! ```text
//!   CONNECT ─▶ chain ─▶ Identity ─▶ Access ─┬─ PUBLISH, will ─▶ Authorized<T> ─▶ cluster
//!              │ password, hashing          ├─ SUBSCRIBE per filter
//!              └ (one per listener)         └─ each delivery, in publish_out
//!   files ───▶ Auth: users, rules           one for the node, replaced as a whole at SIGHUP
//!   meta ────▶ ClusterAccess: users, rules, bans       of the cluster, changed by its log
//! ```
//!
//! Decisions are sans-io; hashing alone leaves the worker's thread.
//!
//! Invariants
//! - `deny-by-default`: once there is any rule, what none allows is denied.
//! - `no-way-around`: only [`Authorized`] messages reach the cluster.
//! - secrets have no `Debug` that shows them, and are compared in constant time.

pub mod access;
pub mod acl;
pub mod acl_file;
pub mod authorized;
pub mod chain;
pub mod cluster;
pub mod command;
pub mod filters;
pub mod hashing;
pub mod identity;
pub mod mosquitto_password;
pub mod password;
pub mod password_file;
pub mod rule;
pub mod secret;

use std::io;
use std::path::{Path, PathBuf};

use self::acl::Acl;
use self::acl_file::{AclFile, AclFileError};
use self::hashing::Hashing;
use self::identity::{Identity, Proof};
use self::password_file::{PasswordFile, PasswordFileError};
use crate::config::Config;
use crate::config::auth::{DeniedPublish, Revocation};

pub use self::access::Access;
pub use self::authorized::Authorized;

/// Users and rules of a node.
#[derive(Debug)]
pub struct Auth {
    pub users: PasswordFile,
    pub acl: Acl,
    pub hashing: Hashing,
    pub denied_publish: DeniedPublish,
    pub revocation: Revocation,
}

/// Why there are no users, or no rules.
#[derive(Debug, thiserror::Error)]
pub enum AuthFileError {
    #[error("{key}: {path} cannot be read: {source}; check the path, its owner and mode", path = path.display())]
    Unreadable {
        key: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("auth.password_file: {path}: {source}", path = path.display())]
    Users { path: PathBuf, source: PasswordFileError },
    #[error("auth.acl_file: {path}: {source}", path = path.display())]
    Acl { path: PathBuf, source: AclFileError },
}

impl Auth {
    /// Nobody, and no rules.
    pub fn new(hashing: Hashing) -> Self {
        Auth {
            users: PasswordFile::default(),
            acl: Acl::default(),
            hashing,
            denied_publish: DeniedPublish::default(),
            revocation: Revocation::default(),
        }
    }

    /// Reads the files: blocks on the disk.
    ///
    /// # Errors
    /// The first file that cannot be used.
    pub fn load(config: &Config, hashing: Hashing) -> Result<Self, AuthFileError> {
        let auth = &config.auth;
        let mut loaded = Auth {
            denied_publish: auth.denied_publish,
            revocation: auth.revocation,
            ..Auth::new(hashing)
        };
        loaded.acl.rules.clone_from(&auth.rules);
        if let Some(text) = read("auth.password_file", &auth.password_file)? {
            loaded.users = PasswordFile::parse(&text).map_err(|source| AuthFileError::Users {
                path: auth.password_file.clone(),
                source,
            })?;
        }
        if let Some(text) = read("auth.acl_file", &auth.acl_file)? {
            let file = AclFile::parse(&text).map_err(|source| AuthFileError::Acl {
                path: auth.acl_file.clone(),
                source,
            })?;
            loaded.acl.file = Some(file);
        }
        Ok(loaded)
    }

    /// Whether what an identity rests on is still true.
    pub fn still_knows(&self, identity: &Identity) -> bool {
        match (&identity.proof, &identity.user) {
            (Proof::None, _) => true,
            (Proof::Password(user), Some(name)) => self
                .users
                .user(name)
                .is_some_and(|current| current.record == user.record && current.groups == user.groups),
            (Proof::Cluster(version), Some(name)) => self.acl.cluster.knows(name, *version),
            (Proof::Password(_) | Proof::Cluster(_), None) => false,
        }
    }
}

/// None where no file is named.
fn read(key: &'static str, path: &Path) -> Result<Option<String>, AuthFileError> {
    if path.as_os_str().is_empty() {
        return Ok(None);
    }
    let unreadable = |source| AuthFileError::Unreadable {
        key,
        path: path.to_owned(),
        source,
    };
    std::fs::read_to_string(path).map(Some).map_err(unreadable)
}
