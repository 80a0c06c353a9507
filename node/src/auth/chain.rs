//! CONNECT against a listener's chain: the methods one after the other, until one knows the client.
//!
//! ```text
//!   no credentials ─▶ anonymous, where the listener lets them in; else 0x87
//!   credentials ────▶ method 1 ─ does not know ─▶ method 2 ─ … ─▶ nobody knows: 0x86
//!                        └─ knows: accepted, or refused for good
//! ```
//!
//! A listener without methods believes nobody: whoever may connect is anonymous, whatever name it gives.

use tokio::runtime::Handle;

use super::Auth;
use super::identity::{Identity, Method, Proof};
use super::password_file::PasswordFile;
use super::secret::Secret;
use crate::protocol::codec::ReasonCode;

/// What a listener asks of its clients.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListenerAuth {
    pub methods: Vec<Method>,
    /// Whether clients come in that show nothing.
    pub anonymous: bool,
}

/// What a client showed.
#[derive(Clone, Debug, Default)]
pub struct Credentials {
    pub user_name: Option<Box<str>>,
    pub password: Option<Secret>,
}

/// Why a client is not let in. A closed set, of which metrics tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// It shows nothing, and must.
    NoCredentials,
    /// No method knows it.
    UnknownUser,
    /// Its password is not the user's.
    BadCredentials,
    /// As many are being checked as may.
    Busy,
    /// Its client id, user or address is banned.
    Banned,
}

impl Refused {
    pub const ALL: [Refused; 5] = [
        Refused::NoCredentials,
        Refused::UnknownUser,
        Refused::BadCredentials,
        Refused::Busy,
        Refused::Banned,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Refused::NoCredentials => "no_credentials",
            Refused::UnknownUser => "unknown_user",
            Refused::BadCredentials => "bad_credentials",
            Refused::Busy => "busy",
            Refused::Banned => "banned",
        }
    }

    /// What the client is told: not whether a user name exists.
    pub fn reason(self) -> ReasonCode {
        match self {
            Refused::NoCredentials => ReasonCode::NOT_AUTHORIZED,
            Refused::UnknownUser | Refused::BadCredentials => ReasonCode::BAD_USER_NAME_OR_PASSWORD,
            Refused::Busy => ReasonCode::SERVER_BUSY,
            Refused::Banned => ReasonCode::BANNED,
        }
    }
}

impl ListenerAuth {
    /// Who the client is.
    ///
    /// # Errors
    /// It is not let in.
    pub async fn authenticate(
        &self,
        auth: &Auth,
        credentials: Credentials,
        runtime: &Handle,
    ) -> Result<Identity, Refused> {
        let shows_nothing = credentials.user_name.is_none() && credentials.password.is_none();
        if self.methods.is_empty() || shows_nothing {
            return match self.anonymous {
                true => Ok(Identity::anonymous()),
                false => Err(Refused::NoCredentials),
            };
        }
        for method in &self.methods {
            let known = match method {
                Method::Password => password(&auth.users, auth, &credentials, runtime).await?,
                Method::Cluster => cluster_password(auth, &credentials, runtime).await?,
            };
            if let Some(identity) = known {
                return Ok(identity);
            }
        }
        self.waste_time(auth, &credentials, runtime).await?;
        Err(Refused::UnknownUser)
    }

    /// One hash is checked, in vain, for a user that no method knows: how long it takes must not tell which names exist, nor
    /// which method knows them.
    async fn waste_time(&self, auth: &Auth, credentials: &Credentials, runtime: &Handle) -> Result<(), Refused> {
        let decoy = self.methods.iter().find_map(|method| match method {
            Method::Password => auth.users.decoy().map(|user| user.record.clone()),
            Method::Cluster => auth.acl.cluster.decoy(),
        });
        if let (Some(_), Some(password), Some(decoy)) = (&credentials.user_name, credentials.password.clone(), decoy) {
            let check = auth.hashing.run(runtime, move || decoy.is_of(&password));
            check.await.map_err(|_| Refused::Busy)?;
        }
        Ok(())
    }
}

/// None: the user is not known here.
async fn password(
    users: &PasswordFile,
    auth: &Auth,
    credentials: &Credentials,
    runtime: &Handle,
) -> Result<Option<Identity>, Refused> {
    let (Some(name), Some(password)) = (&credentials.user_name, credentials.password.clone()) else {
        return Ok(None);
    };
    let Some(user) = users.user(name).cloned() else {
        return Ok(None);
    };
    let checked = user.clone();
    let check = auth.hashing.run(runtime, move || checked.record.is_of(&password));
    match check.await.map_err(|_| Refused::Busy)? {
        false => Err(Refused::BadCredentials),
        true => Ok(Some(Identity {
            user: Some(name.clone()),
            groups: user.groups.clone(),
            proof: Proof::Password(user),
        })),
    }
}

/// As [`password`], of the users that the cluster keeps.
async fn cluster_password(
    auth: &Auth,
    credentials: &Credentials,
    runtime: &Handle,
) -> Result<Option<Identity>, Refused> {
    let (Some(name), Some(password)) = (&credentials.user_name, credentials.password.clone()) else {
        return Ok(None);
    };
    let Some((user, version)) = auth.acl.cluster.user(name) else {
        return Ok(None);
    };
    let checked = user.clone();
    let check = auth.hashing.run(runtime, move || checked.record.is_of(&password));
    match check.await.map_err(|_| Refused::Busy)? {
        false => Err(Refused::BadCredentials),
        true => Ok(Some(Identity {
            user: Some(name.clone()),
            groups: user.groups.clone(),
            proof: Proof::Cluster(version),
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
        let known = listener.authenticate(&auth, credentials, &runtime);
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
