//! CONNECT against a listener's chain: the methods one after the other, until one knows the client.
//!
//! ```text
//!   a certificate, if the listener asks it for a name ─▶ method `certificate`, whatever else is shown
//!   no credentials ─▶ anonymous, where the listener lets them in; else 0x87
//!   credentials ────▶ method 1 ─ does not know ─▶ method 2 ─ … ─▶ nobody knows: 0x86
//!                        └─ knows: accepted, or refused for good
//! ```
//!
//! A listener without methods believes nobody: whoever may connect is anonymous, whatever name it gives.

use std::net::IpAddr;

use tokio::runtime::Handle;

use super::Auth;
use super::certificate;
use super::client_id;
use super::decoys::Decoys;
use super::hook::{NoVerdict, Question, Verdict};
use super::identity::{Identity, Method, Proof};
use super::jwt::{Jwt, NoIdentity};
use super::password_file::PasswordFile;
use super::scram::Failed;
use super::secret::Secret;
use crate::config::auth::{CertificateUser, TokenPlace};
use crate::protocol::checks::{Check, on};
use crate::protocol::codec::ReasonCode;

/// What a listener asks of its clients.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListenerAuth {
    pub methods: Vec<Method>,
    /// Whether clients come in that show nothing.
    pub anonymous: bool,
}

/// What a client showed in CONNECT.
#[derive(Clone, Debug, Default)]
pub struct Credentials {
    pub user_name: Option<Box<str>>,
    pub password: Option<Secret>,
}

/// What is known of it besides.
#[derive(Clone, Copy, Debug, Default)]
pub struct Connecting<'a> {
    /// None: the node has assigned one.
    pub client_id: Option<&'a str>,
    pub address: Option<IpAddr>,
    /// In DER; TLS has verified it.
    pub certificate: Option<&'a [u8]>,
    pub listener: &'a str,
}

/// Why a client is not let in. A closed set, of which metrics tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// It shows nothing, and must.
    NoCredentials,
    /// No method knows it.
    UnknownUser,
    /// Its password is not the user's; SCRAM has failed; a server has said no.
    BadCredentials,
    /// Its token is not good, or not any more.
    BadToken,
    /// Its client id is not one for its user.
    ClientId,
    /// As many are being checked as may.
    Busy,
    /// Its client id, user or address is banned.
    Banned,
    /// A server that knows it does not answer.
    Unavailable,
}

impl Refused {
    pub const ALL: [Refused; 8] = [
        Refused::NoCredentials,
        Refused::UnknownUser,
        Refused::BadCredentials,
        Refused::BadToken,
        Refused::ClientId,
        Refused::Busy,
        Refused::Banned,
        Refused::Unavailable,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Refused::NoCredentials => "no_credentials",
            Refused::UnknownUser => "unknown_user",
            Refused::BadCredentials => "bad_credentials",
            Refused::BadToken => "bad_token",
            Refused::ClientId => "client_id",
            Refused::Busy => "busy",
            Refused::Banned => "banned",
            Refused::Unavailable => "unavailable",
        }
    }

    /// What the client is told: not whether a user name exists.
    pub fn reason(self) -> ReasonCode {
        match self {
            Refused::NoCredentials => ReasonCode::NOT_AUTHORIZED,
            Refused::UnknownUser | Refused::BadCredentials | Refused::BadToken => ReasonCode::BAD_USER_NAME_OR_PASSWORD,
            Refused::ClientId => ReasonCode::CLIENT_IDENTIFIER_NOT_VALID,
            Refused::Busy => ReasonCode::SERVER_BUSY,
            Refused::Banned => ReasonCode::BANNED,
            Refused::Unavailable => ReasonCode::SERVER_UNAVAILABLE,
        }
    }
}

impl From<Failed> for Refused {
    fn from(failed: Failed) -> Self {
        match failed {
            Failed::UnknownUser => Refused::UnknownUser,
            Failed::Malformed | Failed::Unsupported | Failed::Wrong => Refused::BadCredentials,
        }
    }
}

impl ListenerAuth {
    /// Whether clients may prove who they are by SCRAM. [MQTT-4.12.0-1]
    pub fn offers_scram(&self) -> bool {
        self.methods.contains(&Method::ScramSha256)
    }

    /// Who the client is.
    ///
    /// # Errors
    /// It is not let in.
    pub async fn authenticate(
        &self,
        auth: &Auth,
        credentials: Credentials,
        connecting: Connecting<'_>,
        runtime: &Handle,
    ) -> Result<Identity, Refused> {
        let identity = self.identify(auth, credentials, connecting, runtime).await?;
        check_client_id(auth, &identity, connecting.client_id)?;
        Ok(identity)
    }

    async fn identify(
        &self,
        auth: &Auth,
        credentials: Credentials,
        connecting: Connecting<'_>,
        runtime: &Handle,
    ) -> Result<Identity, Refused> {
        let named = connecting
            .certificate
            .filter(|_| self.methods.contains(&Method::Certificate));
        let shows_nothing = credentials.user_name.is_none() && credentials.password.is_none() && named.is_none();
        if self.methods.is_empty() || shows_nothing {
            return match self.anonymous || !on(Check::Anonymous) {
                true => Ok(Identity::anonymous()),
                false => Err(Refused::NoCredentials),
            };
        }
        for method in &self.methods {
            let known = match method {
                Method::Certificate => named.and_then(|der| of_certificate(der, auth.certificate_user)),
                Method::Jwt => match &auth.jwt {
                    Some(jwt) => token(jwt, auth, &credentials, connecting, runtime).await?,
                    None => None,
                },
                Method::Password => password(&auth.users, auth, &credentials, connecting.address, runtime).await?,
                Method::Cluster => cluster_password(auth, &credentials, connecting.address, runtime).await?,
                Method::Http => hook(auth, &credentials, connecting, runtime).await?,
                // It begins with an Authentication Method, and does not come here.
                Method::ScramSha256 => None,
            };
            if let Some(identity) = known {
                return Ok(identity);
            }
        }
        self.waste_time(auth, &credentials, connecting.address, runtime).await?;
        Err(Refused::UnknownUser)
    }

    /// One hash is checked, in vain, for a user that no method knows: how long it takes must not tell which names exist, nor
    /// which method knows them.
    async fn waste_time(
        &self,
        auth: &Auth,
        credentials: &Credentials,
        address: Option<IpAddr>,
        runtime: &Handle,
    ) -> Result<(), Refused> {
        let (Some(name), Some(password)) = (&credentials.user_name, credentials.password.clone()) else {
            return Ok(());
        };
        let of_cluster = auth.acl.cluster.decoys();
        let sets = self.methods.iter().filter_map(|method| match method {
            Method::Password => Some(auth.users.decoys()),
            Method::Cluster => Some(&*of_cluster),
            Method::Certificate | Method::Jwt | Method::Http | Method::ScramSha256 => None,
        });
        let sets: Vec<&Decoys> = sets.collect();
        if let Some(decoy) = Decoys::record(&sets, name).cloned() {
            let check = auth.hashing.run(address, runtime, move || decoy.is_of(&password));
            check.await.map_err(|_| Refused::Busy)?;
        }
        Ok(())
    }
}

/// `client_id`: none, where the node has assigned one.
///
/// # Errors
/// The client may not have this id.
pub fn check_client_id(auth: &Auth, identity: &Identity, client_id: Option<&str>) -> Result<(), Refused> {
    let Some(client_id) = client_id else { return Ok(()) };
    let user = identity.user.as_deref();
    let must_be_the_certificates = auth.certificate_client_id && matches!(identity.proof, Proof::Certificate(_));
    let is_allowed = client_id::is_allowed(auth.client_id, client_id, user)
        && (!must_be_the_certificates || user == Some(client_id));
    (is_allowed || !on(Check::ClientIdOfUser))
        .then_some(())
        .ok_or(Refused::ClientId)
}

/// None: the certificate has no such name. What CONNECT says is not looked at.
fn of_certificate(der: &[u8], which: CertificateUser) -> Option<Identity> {
    let name = certificate::user_name(der, which)?;
    Some(Identity::of(name, Proof::Certificate(which)))
}

/// None: what is shown is no token.
async fn token(
    jwt: &Jwt,
    auth: &Auth,
    credentials: &Credentials,
    connecting: Connecting<'_>,
    runtime: &Handle,
) -> Result<Option<Identity>, Refused> {
    let shown = match jwt.settings.from {
        TokenPlace::Password => credentials.password.as_ref().map(Secret::expose),
        TokenPlace::UserName => credentials.user_name.as_ref().map(|name| name.as_bytes()),
    };
    let Some(shown) = shown else { return Ok(None) };
    let checked = jwt.identify(shown, connecting, &auth.signatures, runtime).await;
    checked.transpose().map_err(|why| match why {
        NoIdentity::Bad(why) => {
            tracing::debug!(%why, "a token is not good");
            Refused::BadToken
        }
        NoIdentity::ClientId => Refused::ClientId,
        NoIdentity::NoKeys => Refused::Unavailable,
        NoIdentity::Busy => Refused::Busy,
    })
}

/// None: the server says that others may know the client.
async fn hook(
    auth: &Auth,
    credentials: &Credentials,
    connecting: Connecting<'_>,
    runtime: &Handle,
) -> Result<Option<Identity>, Refused> {
    let Some(hook) = &auth.hook else { return Ok(None) };
    let name = |which| {
        connecting
            .certificate
            .and_then(|der| certificate::user_name(der, which))
    };
    // JSON has text only.
    let password = match credentials.password.as_ref().map(Secret::expose) {
        None => None,
        Some(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) => Some(text.to_owned()),
            Err(_) => return Ok(None),
        },
    };
    let question = Question {
        clientid: connecting.client_id.unwrap_or_default().into(),
        username: credentials.user_name.clone(),
        password,
        peerhost: connecting.address.map(|address| address.to_string()),
        listener: connecting.listener.to_owned(),
        cert_common_name: name(CertificateUser::Cn),
        cert_subject: name(CertificateUser::Dn),
    };
    match hook.ask(question, runtime).await {
        Ok(Verdict::Allow(identity)) => Ok(Some(identity)),
        Ok(Verdict::Deny) if on(Check::HookDenies) => Err(Refused::BadCredentials),
        Ok(Verdict::Deny) => Ok(Some(Identity::anonymous())),
        Ok(Verdict::Ignore) => Ok(None),
        Err(NoVerdict::Unavailable) => Err(Refused::Unavailable),
        Err(NoVerdict::Busy) => Err(Refused::Busy),
    }
}

/// None: the user is not known here.
async fn password(
    users: &PasswordFile,
    auth: &Auth,
    credentials: &Credentials,
    address: Option<IpAddr>,
    runtime: &Handle,
) -> Result<Option<Identity>, Refused> {
    let (Some(name), Some(password)) = (&credentials.user_name, credentials.password.clone()) else {
        return Ok(None);
    };
    let Some(user) = users.user(name).cloned() else {
        return Ok(None);
    };
    let checked = user.clone();
    let check = auth
        .hashing
        .run(address, runtime, move || checked.record.is_of(&password));
    match check.await.map_err(|_| Refused::Busy)? {
        false if on(Check::Password) => Err(Refused::BadCredentials),
        _ => Ok(Some(Identity {
            groups: user.groups.clone(),
            ..Identity::of(name.clone(), Proof::Password(user))
        })),
    }
}

/// As [`password`], of the users that the cluster keeps.
async fn cluster_password(
    auth: &Auth,
    credentials: &Credentials,
    address: Option<IpAddr>,
    runtime: &Handle,
) -> Result<Option<Identity>, Refused> {
    let (Some(name), Some(password)) = (&credentials.user_name, credentials.password.clone()) else {
        return Ok(None);
    };
    let Some((user, version)) = auth.acl.cluster.user(name) else {
        return Ok(None);
    };
    let checked = user.clone();
    let check = auth
        .hashing
        .run(address, runtime, move || checked.record.is_of(&password));
    match check.await.map_err(|_| Refused::Busy)? {
        false => Err(Refused::BadCredentials),
        true => Ok(Some(Identity {
            groups: user.groups.clone(),
            ..Identity::of(name.clone(), Proof::Cluster(version))
        })),
    }
}

#[cfg(test)]
mod tests {
    use super::super::hashing::Hashing;
    use super::super::password::PasswordRecord;
    use super::*;

    fn auth(users: &[(&str, &str)]) -> Auth {
        let line = |(name, password): &(&str, &str)| {
            let record = PasswordRecord::make(&Secret::new(password.as_bytes()));
            format!("{name}:{}:staff\n", record.text().expect("ours"))
        };
        let text: String = users.iter().map(line).collect();
        Auth {
            users: PasswordFile::parse(&text).expect("good"),
            ..Auth::new(Hashing::new(1, 0))
        }
    }

    fn credentials(user_name: Option<&str>, password: Option<&str>) -> Credentials {
        Credentials {
            user_name: user_name.map(Into::into),
            password: password.map(|password| Secret::new(password.as_bytes())),
        }
    }

    async fn user(
        listener: (&[Method], bool),
        user_name: Option<&str>,
        password: Option<&str>,
    ) -> Result<Option<String>, Refused> {
        let listener = ListenerAuth {
            methods: listener.0.to_vec(),
            anonymous: listener.1,
        };
        let auth = auth(&[("alice", "wonder")]);
        let (runtime, credentials) = (Handle::current(), credentials(user_name, password));
        let known = listener.authenticate(&auth, credentials, Connecting::default(), &runtime);
        known.await.map(|identity| identity.user.map(String::from))
    }

    #[tokio::test]
    async fn a_chain_lets_in_whom_it_knows_and_tells_others_apart_only_in_metrics() {
        let chain: (&[Method], bool) = (&[Method::Password], false);
        let alice = Ok(Some("alice".to_owned()));
        assert_eq!(user(chain, Some("alice"), Some("wonder")).await, alice);
        assert_eq!(
            user(chain, Some("alice"), Some("Wonder")).await,
            Err(Refused::BadCredentials)
        );
        assert_eq!(
            user(chain, Some("bob"), Some("wonder")).await,
            Err(Refused::UnknownUser)
        );
        assert_eq!(user(chain, Some("alice"), None).await, Err(Refused::UnknownUser));
        assert_eq!(user(chain, None, Some("wonder")).await, Err(Refused::UnknownUser));
        assert_eq!(user(chain, None, None).await, Err(Refused::NoCredentials));
        assert_eq!(Refused::BadCredentials.reason(), Refused::UnknownUser.reason());
    }

    #[tokio::test]
    async fn anonymous_clients_come_in_where_they_may_under_no_name() {
        let both: (&[Method], bool) = (&[Method::Password], true);
        assert_eq!(user(both, None, None).await, Ok(None));
        assert_eq!(user(both, Some("alice"), Some("x")).await, Err(Refused::BadCredentials));
        assert_eq!(
            user((&[], true), Some("alice"), Some("x")).await,
            Ok(None),
            "nobody vouches for it"
        );
        assert_eq!(
            user((&[], false), Some("alice"), None).await,
            Err(Refused::NoCredentials)
        );
    }
}
