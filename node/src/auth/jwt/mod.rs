//! JSON Web Tokens (RFC 7519, RFC 7515) as a proof of who a client is.
//!
//! ```text
//!   secret, PEM, JWK set by file ─▶ key ─┐
//!   JWK set by URL ─▶ remote ────────────┴─▶ Jwt ◀─ token (password or user name of CONNECT)
//!                                             └─▶ Identity: user, groups, rules, end
//! ```
//!
//! Signatures are checked where passwords are (`hashing`): bounded, and on no worker's thread.

pub mod key;
pub mod remote;
pub mod token;

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::runtime::Handle;

use self::key::{Fingerprint, Key};
use self::remote::RemoteKeys;
use self::token::{BadToken, Claims, Token};
use super::chain::Connecting;
use super::hashing::Hashing;
use super::identity::{Identity, Proof};
use crate::config::auth::Jwt as Settings;

/// What tokens are checked with.
#[derive(Debug)]
pub struct Jwt {
    pub settings: Arc<Settings>,
    /// Of the files.
    pub keys: Vec<Key>,
    pub remote: Option<Arc<RemoteKeys>>,
}

/// Why a token lets nobody in.
#[derive(Debug, PartialEq, Eq)]
pub enum NoIdentity {
    Bad(BadToken),
    /// The client id of CONNECT is not the one of the token.
    ClientId,
    /// The keys could not be fetched.
    NoKeys,
    Busy,
}

impl Jwt {
    /// None: what is shown is no token.
    ///
    /// # Errors
    /// It is one, and not good.
    pub async fn identify(
        &self,
        shown: &[u8],
        connecting: Connecting<'_>,
        hashing: &Hashing,
        runtime: &Handle,
    ) -> Option<Result<Identity, NoIdentity>> {
        let key_id = Token::parse(shown)?.key_id;
        Some(self.check(shown, key_id.as_deref(), connecting, hashing, runtime).await)
    }

    async fn check(
        &self,
        shown: &[u8],
        key_id: Option<&str>,
        connecting: Connecting<'_>,
        hashing: &Hashing,
        runtime: &Handle,
    ) -> Result<Identity, NoIdentity> {
        let (fetched, is_fresh) = match &self.remote {
            None => (Arc::default(), true),
            Some(remote) => remote.keys_for(key_id, runtime).await,
        };
        let keys: Vec<Key> = self.keys.iter().chain(fetched.iter()).cloned().collect();
        if keys.is_empty() {
            return Err(NoIdentity::NoKeys);
        }
        let (shown, settings, now) = (shown.to_vec(), self.settings.clone(), now());
        let check = hashing.run(connecting.address, runtime, move || {
            let token = Token::parse(&shown).ok_or(BadToken::Header)?;
            let signer = token.signed_by(&keys)?.fingerprint();
            Ok((signer, token.claims(&settings, now)?))
        });
        let (signer, claims) = match check.await.map_err(|_| NoIdentity::Busy)? {
            // The key may be one that could not be fetched.
            Err(BadToken::Signature) if !is_fresh => return Err(NoIdentity::NoKeys),
            checked => checked.map_err(NoIdentity::Bad)?,
        };
        if let Some(expected) = &claims.client_id
            && connecting.client_id != Some(expected)
        {
            return Err(NoIdentity::ClientId);
        }
        Ok(self.identity(signer, claims))
    }

    fn identity(&self, signer: Fingerprint, claims: Claims) -> Identity {
        Identity {
            groups: claims.groups,
            rules: claims.rules.map(Into::into),
            expires: Some(claims.expires),
            ..Identity::of(claims.user, Proof::Token(self.settings.clone(), signer))
        }
    }

    /// Whether a token that was good under `settings` by this key would be now.
    pub fn still_trusts(&self, settings: &Settings, signer: Fingerprint) -> bool {
        let fetched = self.remote.as_ref().map(|remote| remote.kept());
        let mut keys = self.keys.iter().chain(fetched.iter().flat_map(|keys| keys.iter()));
        *self.settings == *settings && keys.any(|key| key.fingerprint() == signer)
    }
}

/// In seconds since 1970.
fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
