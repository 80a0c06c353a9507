//! Who a client is, and what it may do.
//!
//! ```text
//!   CONNECT ─▶ chain ─▶ Identity ─▶ Access ─┬─ PUBLISH, will ─▶ Authorized<T> ─▶ cluster
//!              │ certificate, jwt,          ├─ SUBSCRIBE per filter
//!              │ password, hook             └─ each delivery, in publish_out
//!              └ (one per listener); scram, where CONNECT names it as its Authentication Method
//!   files ───▶ Auth: users, rules           one for the node, replaced as a whole at SIGHUP
//!   meta ────▶ ClusterAccess: users, rules, bans       of the cluster, changed by its log
//! ```
//!
//! Decisions are sans-io; hashing, signatures and questions to servers leave the worker's thread.
//!
//! Invariants
//! - `deny-by-default`: once there is any rule, what none allows is denied.
//! - `no-way-around`: only [`Authorized`] messages reach the cluster, by [`CheckedPublisher`].
//! - secrets have no `Debug` that shows them, and are compared in constant time.

pub mod access;
pub mod acl;
pub mod acl_file;
pub mod author;
pub mod authorized;
pub mod certificate;
pub mod chain;
pub mod client_id;
pub mod cluster;
pub mod command;
pub mod decoys;
pub mod filters;
pub mod grants;
pub mod hashing;
pub mod hook;
pub mod http_client;
pub mod identity;
pub mod jwt;
pub mod lasting;
pub mod mosquitto_password;
pub mod password;
pub mod password_file;
mod publisher;
pub mod rule;
pub mod scram;
pub mod secret;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hyper::header::HeaderValue;

use self::acl::Acl;
use self::acl_file::{AclFile, AclFileError};
use self::hashing::Hashing;
use self::hook::Hook;
use self::http_client::HttpClient;
use self::identity::{Identity, Proof};
use self::jwt::Jwt;
use self::jwt::key::{Key, NoKey, key_set};
use self::jwt::remote::RemoteKeys;
use self::lasting::Lasting;
use self::password_file::{PasswordFile, PasswordFileError};
use crate::client::tls::TlsOptionsError;
use crate::config::Config;
use crate::config::auth::{
    CertificateUser, ClientIds, DeniedPublish, Http as HttpSettings, Jwt as JwtSettings, Revocation,
};

pub use self::access::Access;
pub use self::authorized::Authorized;
pub use self::publisher::CheckedPublisher;

/// Users and rules of a node.
#[derive(Debug)]
pub struct Auth {
    pub users: PasswordFile,
    pub acl: Acl,
    pub hashing: Hashing,
    /// Of tokens.
    pub signatures: Hashing,
    pub denied_publish: DeniedPublish,
    pub revocation: Revocation,
    pub certificate_user: CertificateUser,
    pub certificate_client_id: bool,
    pub client_id: ClientIds,
    pub jwt: Option<Jwt>,
    pub hook: Option<Arc<Hook>>,
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
    #[error("{key}: {path} cannot be used: {source}", path = path.display())]
    Key {
        key: &'static str,
        path: PathBuf,
        source: NoKey,
    },
    #[error("{key}: https cannot be used: {source}")]
    Authorities { key: &'static str, source: TlsOptionsError },
    #[error("auth.http.secret_file: {path} holds no text that an HTTP header can carry", path = path.display())]
    HookSecret { path: PathBuf },
}

impl Auth {
    /// Nobody, and no rules.
    pub fn new(hashing: Hashing) -> Self {
        Auth {
            users: PasswordFile::default(),
            acl: Acl::default(),
            signatures: hashing.clone(),
            hashing,
            denied_publish: DeniedPublish::default(),
            revocation: Revocation::default(),
            certificate_user: CertificateUser::default(),
            certificate_client_id: false,
            client_id: ClientIds::default(),
            jwt: None,
            hook: None,
        }
    }

    /// Reads the files: blocks on the disk.
    ///
    /// # Errors
    /// The first file that cannot be used.
    pub fn load(config: &Config, lasting: &Lasting) -> Result<Self, AuthFileError> {
        let auth = &config.auth;
        let mut loaded = Auth {
            denied_publish: auth.denied_publish,
            revocation: auth.revocation,
            certificate_user: auth.certificate_user,
            certificate_client_id: auth.certificate_client_id,
            client_id: auth.client_id,
            jwt: jwt(&auth.jwt, lasting)?,
            hook: hook(&auth.http)?,
            signatures: lasting.signatures.clone(),
            ..Auth::new(lasting.hashing.clone())
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
            (Proof::Certificate(which), _) => *which == self.certificate_user,
            (Proof::Token(settings, signer), _) => {
                let jwt = self.jwt.as_ref();
                jwt.is_some_and(|jwt| jwt.still_trusts(settings, *signer))
            }
            (Proof::Http(settings), _) => {
                let hook = self.hook.as_ref();
                hook.is_some_and(|hook| hook.settings == *settings)
            }
        }
    }
}

fn jwt(settings: &JwtSettings, lasting: &Lasting) -> Result<Option<Jwt>, AuthFileError> {
    if !settings.is_configured() {
        return Ok(None);
    }
    let mut keys = Vec::new();
    type Parse = fn(&[u8]) -> Result<Vec<Key>, NoKey>;
    let files: [(&'static str, &Path, Parse); 3] = [
        ("auth.jwt.secret_file", &settings.secret_file, |text| {
            Key::secret(text).map(|key| vec![key])
        }),
        ("auth.jwt.public_key_file", &settings.public_key_file, |text| {
            Key::from_pem(text).map(|key| vec![key])
        }),
        ("auth.jwt.jwks_file", &settings.jwks_file, key_set),
    ];
    for (key, path, parse) in files {
        let Some(text) = read_bytes(key, path)? else { continue };
        let path = path.to_owned();
        keys.extend(parse(&text).map_err(|source| AuthFileError::Key { key, path, source })?);
    }
    let url = &settings.jwks_url;
    let remote = match url.is_empty() {
        true => None,
        false => {
            let client = HttpClient::new(url, &settings.jwks_ca).map_err(|source| AuthFileError::Authorities {
                key: "auth.jwt.jwks_ca",
                source,
            })?;
            let kept = lasting.kept_keys(url);
            Some(Arc::new(RemoteKeys::new(client, url, settings.jwks_refresh, kept)))
        }
    };
    Ok(Some(Jwt {
        settings: Arc::new(settings.clone()),
        keys,
        remote,
    }))
}

fn hook(settings: &HttpSettings) -> Result<Option<Arc<Hook>>, AuthFileError> {
    if !settings.is_configured() {
        return Ok(None);
    }
    let client = HttpClient::new(&settings.url, &settings.ca).map_err(|source| AuthFileError::Authorities {
        key: "auth.http.ca",
        source,
    })?;
    let authorization = match read("auth.http.secret_file", &settings.secret_file)? {
        None => None,
        Some(secret) => {
            let value = HeaderValue::from_str(&format!("Bearer {}", secret.trim_end_matches(['\r', '\n'])));
            let mut value = value.map_err(|_| AuthFileError::HookSecret {
                path: settings.secret_file.clone(),
            })?;
            // It is not shown where headers are.
            value.set_sensitive(true);
            Some(value)
        }
    };
    Ok(Some(Arc::new(Hook::new(settings.clone(), client, authorization))))
}

/// None where no file is named.
fn read(key: &'static str, path: &Path) -> Result<Option<String>, AuthFileError> {
    let Some(bytes) = read_bytes(key, path)? else {
        return Ok(None);
    };
    String::from_utf8(bytes)
        .map(Some)
        .map_err(|error| AuthFileError::Unreadable {
            key,
            path: path.to_owned(),
            source: io::Error::new(io::ErrorKind::InvalidData, error),
        })
}

fn read_bytes(key: &'static str, path: &Path) -> Result<Option<Vec<u8>>, AuthFileError> {
    if path.as_os_str().is_empty() {
        return Ok(None);
    }
    std::fs::read(path)
        .map(Some)
        .map_err(|source| AuthFileError::Unreadable {
            key,
            path: path.to_owned(),
            source,
        })
}
