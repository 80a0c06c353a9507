//! `[auth]`: who may connect, and what clients may publish and read.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Config;
pub use super::auth_methods::{Http, Jwt, TokenPlace};
use super::listener::Listener;
use crate::auth::chain::ListenerAuth;
use crate::auth::identity::Method;
use crate::auth::rule::Rule;

/// `[auth]`. Equal on all nodes, but for paths.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Auth {
    /// Users and password hashes: of `lontra user`, or mosquitto_passwd's as it is. Read again at SIGHUP. Default empty:
    /// none.
    pub password_file: PathBuf,

    /// Whether the users that the cluster keeps (`lontra user add --node`) may connect to listeners that name no methods, after
    /// those of `password_file`. Default false: a listener that names `cluster` in its `authentication` asks them all the same.
    pub cluster_users: bool,

    /// Access rules in a file of Mosquitto's, as it is. Read again at SIGHUP. Default empty: none.
    pub acl_file: PathBuf,

    /// Access rules, of which the first that is about a client, a topic and an action decides; those of `acl_file` come
    /// after them. Default empty: with neither, everybody may publish and read everything; with any, what none allows
    /// is denied.
    pub rules: Vec<Rule>,

    /// Who may connect without showing who it is: `local` (nobody, but where no method is in force, whoever is on this
    /// machine), `never`, or `always`. Default `local`. A listener may say otherwise.
    pub anonymous: Anonymous,

    /// What a 3.x client, which cannot be told, meets when it may not publish: `disconnect`, or `acknowledge` (the message is
    /// dropped, and counted), as Mosquitto does. Default `disconnect`: an acknowledgement is not a lie. MQTT 5 clients are
    /// told (0x87).
    pub denied_publish: DeniedPublish,

    /// What a reload does to a client that is subscribed to what it may no longer read: `stop` (it gets nothing more of
    /// it) or `disconnect` (0x87). Default `stop`. A client whose user is gone or has another password is disconnected
    /// either way.
    pub revocation: Revocation,

    /// What of a client certificate is the user name, where a listener has the method `certificate`: `cn` (the Common
    /// Name), `dn` (the whole subject, RFC 4514), or the first Subject Alternative Name of a kind: `san-dns`, `san-email`,
    /// `san-uri`. Default `cn`.
    pub certificate_user: CertificateUser,

    /// Whether the client id must be the name in the certificate. Default false.
    pub certificate_client_id: bool,

    /// What client ids are allowed: `any`, `user` (the user name), or `user-prefix` (the user name, or what begins with it
    /// and `-` or `:`). Default `any`: whoever may connect may take over the session of any client id. An id that the node
    /// has assigned is allowed.
    pub client_id: ClientIds,

    /// `[auth.jwt]`
    pub jwt: Jwt,

    /// `[auth.http]`
    pub http: Http,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CertificateUser {
    #[default]
    Cn,
    Dn,
    SanDns,
    SanEmail,
    SanUri,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClientIds {
    #[default]
    Any,
    User,
    UserPrefix,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Anonymous {
    #[default]
    Local,
    Never,
    Always,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeniedPublish {
    Acknowledge,
    #[default]
    Disconnect,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Revocation {
    #[default]
    Stop,
    Disconnect,
}

impl Auth {
    /// Whether there is something to check against.
    pub fn has(&self, method: Method) -> bool {
        match method {
            // The listener's own authorities.
            Method::Certificate => true,
            Method::Jwt => self.jwt.is_configured(),
            Method::Password | Method::ScramSha256 => !self.password_file.as_os_str().is_empty(),
            Method::Cluster => self.cluster_users,
            Method::Http => self.http.is_configured(),
        }
    }

    /// Of a listener that names none. Certificates alone are asked for by name: where they only open the door to users
    /// with passwords, they are no names.
    pub fn methods(&self) -> Vec<Method> {
        let is_meant = |method: &Method| *method != Method::Certificate && self.has(*method);
        Method::ALL.into_iter().filter(is_meant).collect()
    }
}

impl Config {
    /// What a listener asks of its clients.
    pub fn listener_auth(&self, listener: &Listener) -> ListenerAuth {
        let methods = match &listener.authentication {
            Some(methods) => methods.clone(),
            None => self.auth.methods(),
        };
        let anonymous = match listener.anonymous.unwrap_or(self.auth.anonymous) {
            Anonymous::Always => true,
            Anonymous::Never => false,
            Anonymous::Local => methods.is_empty() && (listener.is_local() || listener.requires_certificates()),
        };
        ListenerAuth { methods, anonymous }
    }
}
