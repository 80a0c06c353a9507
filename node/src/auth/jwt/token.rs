//! One token: its form, its signature, its claims. Sans-io: keys and the time are arguments.
//!
//! ```text
//!   header.payload.signature ─▶ Token::parse ─▶ signed_by(keys) ─▶ claims(settings, now) ─▶ Claims
//! ```
//!
//! Invariant: nothing of the payload is looked at before a key has signed it.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;

use super::key::{Algorithm, Key};
use crate::auth::grants;
use crate::auth::identity::is_name;
use crate::auth::rule::Rule;
use crate::config::auth::Jwt;
use crate::protocol::checks::{Check, on};

/// A text that has the form of a token; nothing of it is believed.
pub struct Token<'a> {
    algorithm: Option<Algorithm>,
    pub key_id: Option<String>,
    is_plain: bool,
    signed: &'a [u8],
    payload: &'a str,
    signature: Vec<u8>,
}

/// What a good token says.
#[derive(Debug)]
pub struct Claims {
    pub user: Box<str>,
    pub groups: Vec<Box<str>>,
    pub rules: Option<Vec<Rule>>,
    /// What the client id of CONNECT must be.
    pub client_id: Option<Box<str>>,
    /// In seconds since 1970, the leeway included.
    pub expires: u64,
}

/// Why a token lets nobody in. For the log, never for the client.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BadToken {
    #[error("its algorithm is none of those that are good, or its header asks for what is not understood")]
    Header,
    #[error("no key has signed it")]
    Signature,
    #[error("its payload is no JSON object")]
    Payload,
    #[error("it has expired, or does not say when it does (exp)")]
    Expired,
    #[error("it is not good yet (nbf, iat)")]
    Early,
    #[error("its issuer (iss) is another")]
    Issuer,
    #[error("it is for others (aud)")]
    Audience,
    #[error("its claim {0} is missing, or cannot be used")]
    Claim(String),
    #[error("its access rules cannot be used: {0}")]
    Rules(#[from] grants::NotGrants),
}

impl<'a> Token<'a> {
    /// None: it is something else, a password perhaps.
    pub fn parse(text: &'a [u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok().filter(|text| text.len() <= TOKEN_MAX)?;
        let (signed, signature) = text.rsplit_once('.')?;
        let (header, payload) = signed.split_once('.')?;
        let header: Value = serde_json::from_slice(&decode(header)?).ok()?;
        let algorithm = header.get("alg")?.as_str()?;
        let key_id = match header.get("kid") {
            None => None,
            Some(id) => Some(id.as_str()?.to_owned()),
        };
        Some(Token {
            algorithm: Algorithm::of(algorithm),
            key_id,
            // RFC 7515, section 4.1.11: what is critical must be understood, and nothing of it is.
            is_plain: header.get("crit").is_none(),
            signed: signed.as_bytes(),
            payload,
            signature: decode(signature)?,
        })
    }

    /// The key that has signed it. Takes up to a millisecond for each that it is tried with.
    ///
    /// # Errors
    /// None has.
    pub fn signed_by<'k>(&self, keys: impl IntoIterator<Item = &'k Key>) -> Result<&'k Key, BadToken> {
        let algorithm = self.algorithm.filter(|_| self.is_plain).ok_or(BadToken::Header)?;
        let mut keys = keys.into_iter().filter(|key| key.is_called(self.key_id.as_deref()));
        let signer =
            keys.find(|key| !on(Check::TokenSignature) || key.verifies(algorithm, self.signed, &self.signature));
        signer.ok_or(BadToken::Signature)
    }

    /// What it says, of one that is signed: who calls this has seen to that.
    ///
    /// # Errors
    /// It is not for us, or not for now.
    pub fn claims(&self, settings: &Jwt, now: u64) -> Result<Claims, BadToken> {
        let payload = decode(self.payload).ok_or(BadToken::Payload)?;
        let payload: Value = serde_json::from_slice(&payload).map_err(|_| BadToken::Payload)?;
        if !payload.is_object() {
            return Err(BadToken::Payload);
        }
        let (now, leeway) = (now as f64, settings.leeway.as_secs_f64());
        let time = |name: &str| match payload.get(name) {
            None => Ok(None),
            Some(time) => {
                let time = time.as_f64().filter(|time| (0.0..TIME_MAX).contains(time));
                time.map(Some).ok_or_else(|| BadToken::Claim(name.to_owned()))
            }
        };
        let expires = time("exp")?.ok_or(BadToken::Expired)? + leeway;
        if expires <= now {
            return Err(BadToken::Expired);
        }
        let is_early = |time: Option<f64>| time.is_some_and(|time| time > now + leeway);
        if is_early(time("nbf")?) || is_early(time("iat")?) {
            return Err(BadToken::Early);
        }
        let text = |name: &str| payload.get(name).and_then(Value::as_str);
        if !settings.issuer.is_empty() && text("iss") != Some(&settings.issuer) {
            return Err(BadToken::Issuer);
        }
        let is_for = |audience: &Value| match audience {
            Value::String(one) => *one == settings.audience,
            Value::Array(all) => all.iter().any(|one| one.as_str() == Some(&settings.audience)),
            _ => false,
        };
        if !settings.audience.is_empty() && !payload.get("aud").is_some_and(is_for) {
            return Err(BadToken::Audience);
        }
        let name = |claim_name: &str| {
            let name = claim(&payload, claim_name).and_then(Value::as_str);
            let name = name.filter(|name| is_name(name)).map(Box::<str>::from);
            name.ok_or_else(|| BadToken::Claim(claim_name.to_owned()))
        };
        let rules = match claim(&payload, &settings.acl_claim) {
            None => None,
            Some(rules) => Some(grants::parse(rules)?),
        };
        Ok(Claims {
            user: name(&settings.user_claim)?,
            groups: groups(&payload, &settings.groups_claim)?,
            rules,
            client_id: match settings.client_id_claim.is_empty() {
                true => None,
                false => Some(name(&settings.client_id_claim)?),
            },
            expires: expires.ceil() as u64,
        })
    }
}

/// The claim of this name; or, with dots, the one within objects.
fn claim<'v>(payload: &'v Value, name: &str) -> Option<&'v Value> {
    if name.is_empty() {
        return None;
    }
    payload
        .get(name)
        .or_else(|| name.split('.').try_fold(payload, |level, name| level.get(name)))
}

/// A list of texts, or one text.
fn groups(payload: &Value, name: &str) -> Result<Vec<Box<str>>, BadToken> {
    let bad = || BadToken::Claim(name.to_owned());
    let groups: Vec<&Value> = match claim(payload, name) {
        None => Vec::new(),
        Some(Value::Array(all)) => all.iter().collect(),
        Some(one) => vec![one],
    };
    if groups.len() > GROUPS_MAX {
        return Err(bad());
    }
    let group = |group: &&Value| group.as_str().filter(|group| is_name(group)).map(Into::into);
    groups.iter().map(|one| group(one).ok_or_else(bad)).collect()
}

fn decode(part: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(part).ok()
}

/// Tokens of identity providers have some KiB.
const TOKEN_MAX: usize = 16 * 1024;
const GROUPS_MAX: usize = 64;
/// The year 5138: a larger number is no time, but milliseconds, or a mistake.
const TIME_MAX: f64 = 1e11;

#[cfg(test)]
mod tests;
