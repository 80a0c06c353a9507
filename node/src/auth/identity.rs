//! Who a client is, and who says so.

use std::sync::Arc;

use lontra_storage::ids::MetaIndex;
use serde::{Deserialize, Serialize};

use super::jwt::key::Fingerprint;
use super::password_file::User;
use super::rule::Rule;
use crate::config::auth::{CertificateUser, Http, Jwt};

/// A way to find out who a client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// A name in the client's certificate, which TLS has verified.
    Certificate,
    /// A JSON Web Token (RFC 7519).
    Jwt,
    /// User name and password of CONNECT, against `auth.password_file`.
    Password,
    /// User name and password of CONNECT, against the users that the cluster keeps (`lontra user --node`).
    Cluster,
    /// A server is asked.
    Http,
    /// Enhanced authentication of MQTT 5, against `auth.password_file`. [MQTT-4.12]
    #[serde(rename = "scram-sha-256")]
    ScramSha256,
}

impl Method {
    /// In the order in which they are tried where a listener names none: what costs little first.
    pub const ALL: [Method; 6] = [
        Method::Certificate,
        Method::Jwt,
        Method::Password,
        Method::Cluster,
        Method::Http,
        Method::ScramSha256,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Method::Certificate => "certificate",
            Method::Jwt => "jwt",
            Method::Password => "password",
            Method::Cluster => "cluster",
            Method::Http => "http",
            Method::ScramSha256 => "scram-sha-256",
        }
    }

    /// What configures it.
    pub fn key(self) -> &'static str {
        match self {
            Method::Certificate => "tls.client_certificates",
            Method::Jwt => "a key of auth.jwt (secret_file, public_key_file, jwks_file or jwks_url)",
            Method::Password | Method::ScramSha256 => "auth.password_file",
            Method::Cluster => "auth.cluster_users",
            Method::Http => "auth.http.url",
        }
    }
}

/// Of one connection.
#[derive(Clone, Debug)]
pub struct Identity {
    /// None: nobody vouches for one. What a client says of itself is not believed.
    pub user: Option<Box<str>>,
    pub groups: Vec<Box<str>>,
    /// Of this connection alone; they are asked before all others. An empty list allows nothing by itself.
    pub rules: Option<Arc<[Rule]>>,
    /// Whether rules are not asked.
    pub is_superuser: bool,
    /// When it ends, in seconds since 1970.
    pub expires: Option<u64>,
    pub proof: Proof,
}

/// What the identity rests on, so that a reload can tell whether it still does.
#[derive(Clone, Debug)]
pub enum Proof {
    None,
    Password(Arc<User>),
    /// The entry of meta that made the user what it is.
    Cluster(MetaIndex),
    Certificate(CertificateUser),
    /// Under these settings, signed with this key.
    Token(Arc<Jwt>, Fingerprint),
    /// A server said so, under these settings.
    Http(Arc<Http>),
}

impl Identity {
    pub fn anonymous() -> Self {
        Identity {
            user: None,
            groups: Vec::new(),
            rules: None,
            is_superuser: false,
            expires: None,
            proof: Proof::None,
        }
    }

    /// Somebody, without groups, rules or an end.
    pub fn of(user: impl Into<Box<str>>, proof: Proof) -> Self {
        Identity {
            user: Some(user.into()),
            proof,
            ..Identity::anonymous()
        }
    }
}

/// Whether a name that others vouch for can be a user's: rules, logs and topics carry it.
pub fn is_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= super::password_file::NAME_MAX && !name.chars().any(char::is_control)
}
