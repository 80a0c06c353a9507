//! `[auth.jwt]` and `[auth.http]`: tokens, and a server that is asked.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::units;

/// `[auth.jwt]`. Equal on all nodes, but for paths.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Jwt {
    /// Where a client has its token: `password` or `user-name`. Default `password`.
    pub from: TokenPlace,

    /// The secret of HS256, HS384 and HS512: the bytes of the file, without a newline at the end; at least 32, 48 or 64 of
    /// them. Read again at SIGHUP. Default empty: no token of these is good.
    pub secret_file: PathBuf,

    /// A public key in PEM (RSA, P-256, P-384, Ed25519). Read again at SIGHUP. Default empty: none.
    pub public_key_file: PathBuf,

    /// Public keys as a JWK set (RFC 7517). Read again at SIGHUP. Default empty: none.
    pub jwks_file: PathBuf,

    /// Where a JWK set is fetched: http or https. Default empty: nowhere.
    pub jwks_url: String,

    /// The authorities that the server of `jwks_url` must be signed by, in PEM. Default empty: those of the system.
    pub jwks_ca: PathBuf,

    /// How old a set from `jwks_url` may be. Default 10 min; bounds 10 s to 1 day. Longer: a key that was withdrawn is good
    /// for longer. Shorter: the server is asked more often.
    #[serde(with = "units::duration")]
    pub jwks_refresh: Duration,

    /// What `iss` must be. Default empty: anything.
    pub issuer: String,

    /// What `aud` must be, or have among others. Default empty: anything.
    pub audience: String,

    /// How far the clocks of issuer and node may be apart: for `exp`, `nbf` and `iat`. Default 1 s; bounds 0 to 5 min. Longer:
    /// a token is good for longer than it says.
    #[serde(with = "units::duration")]
    pub leeway: Duration,

    /// The claim that is the user name. Default `sub`. Here and below dots lead into objects: `realm_access.roles`.
    pub user_claim: String,

    /// The claim that lists the groups for access rules. Default `groups`; empty: none.
    pub groups_claim: String,

    /// The claim that the client id of CONNECT must be. Default empty: none.
    pub client_id_claim: String,

    /// The claim with access rules of this client, which are asked before all others. Default `acl`; empty: none.
    pub acl_claim: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TokenPlace {
    #[default]
    Password,
    UserName,
}

/// `[auth.http]`. Equal on all nodes, but for paths.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Http {
    /// Where it is asked who a client is: POST, http or https. Default empty: nowhere.
    pub url: String,

    /// The authorities that the server must be signed by, in PEM. Default empty: those of the system.
    pub ca: PathBuf,

    /// What is sent as `Authorization: Bearer`: the text of the file, without a newline at the end. Read again at SIGHUP.
    /// Default empty: nothing.
    pub secret_file: PathBuf,

    /// How long an answer may take; then the client is refused as if the node were not there. Default 5 s; bounds 100 ms to
    /// 30 s. Longer: clients wait longer for a server that is down. Shorter: a slow one keeps clients out.
    #[serde(with = "units::duration")]
    pub timeout: Duration,

    /// Requests under way at once, of this node. Default 64; bounds 1 to 1000. As many and 1000 more wait, within `timeout`;
    /// clients beyond are refused as busy. More: more load on the server in a storm. Fewer: clients come in more slowly.
    pub requests_max: u32,
}

impl Jwt {
    /// Whether there is a key.
    pub fn is_configured(&self) -> bool {
        let files = [&self.secret_file, &self.public_key_file, &self.jwks_file];
        !self.jwks_url.is_empty() || files.iter().any(|path| !path.as_os_str().is_empty())
    }

    /// Whether others than who is meant may make good tokens: whoever is on the way to a plain URL, or for whomever else a
    /// shared issuer signs.
    pub fn is_lax(&self) -> bool {
        let here = ["http://127.", "http://localhost:", "http://localhost/", "http://[::1]"];
        let is_plain = self.jwks_url.starts_with("http://") && !here.iter().any(|here| self.jwks_url.starts_with(here));
        let is_shared = !self.jwks_url.is_empty() && self.issuer.is_empty() && self.audience.is_empty();
        is_plain || is_shared
    }
}

impl Http {
    pub fn is_configured(&self) -> bool {
        !self.url.is_empty()
    }
}

impl Default for Jwt {
    fn default() -> Self {
        Jwt {
            from: TokenPlace::Password,
            secret_file: PathBuf::new(),
            public_key_file: PathBuf::new(),
            jwks_file: PathBuf::new(),
            jwks_url: String::new(),
            jwks_ca: PathBuf::new(),
            jwks_refresh: Duration::from_secs(600),
            issuer: String::new(),
            audience: String::new(),
            leeway: Duration::from_secs(1),
            user_claim: "sub".to_owned(),
            groups_claim: "groups".to_owned(),
            client_id_claim: String::new(),
            acl_claim: "acl".to_owned(),
        }
    }
}

impl Default for Http {
    fn default() -> Self {
        Http {
            url: String::new(),
            ca: PathBuf::new(),
            secret_file: PathBuf::new(),
            timeout: Duration::from_secs(5),
            requests_max: 64,
        }
    }
}
