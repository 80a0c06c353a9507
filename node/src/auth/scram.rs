//! SCRAM-SHA-256 (RFC 5802, RFC 7677), the server's side, as enhanced authentication of MQTT 5 carries it. [MQTT-4.12]
//!
//! ```text
//!   client-first ─▶ begin ─▶ server-first       n,,n=alice,r=…                r=…,s=salt,i=iterations
//!   client-final ─▶ finish ─▶ server-final      c=biws,r=…,p=proof            v=signature
//! ```
//!
//! Sans-io: the nonce is an argument. No step hashes a password: what a node keeps proves the client, and itself, and is no
//! password; so it runs where it is called.
//!
//! Invariants
//! - a user that does not exist gets a challenge like any other, the same one each time, and fails like a wrong proof.
//! - proofs are compared in constant time.

use std::fmt;
use std::num::NonZeroU32;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::{digest, hmac, pbkdf2};

use super::identity::{Identity, Proof};
use super::password_file::{PasswordFile, User};
use super::secret::{Secret, is_same};
use crate::protocol::checks::{Check, on};

/// As MQTT's Authentication Method names it.
pub const METHOD: &str = "SCRAM-SHA-256";

type Hash = [u8; digest::SHA256_OUTPUT_LEN];

/// What is kept of a password: `SCRAM-SHA-256$iterations:salt$stored-key:server-key`, as PostgreSQL writes it.
#[derive(Clone, PartialEq, Eq)]
pub struct ScramRecord {
    iterations: NonZeroU32,
    salt: Box<[u8]>,
    stored_key: Hash,
    server_key: Hash,
    text: Box<str>,
}

/// Between the challenge and its answer.
pub struct Exchange {
    /// None: there is no such user, and none will be let in.
    user: Option<(Box<str>, Arc<User>)>,
    record: ScramRecord,
    nonce: String,
    /// What the answer must repeat of how the client began.
    binding: String,
    /// What was said so far, as both sign it.
    said: String,
}

/// Why nobody comes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failed {
    /// It is not SCRAM.
    Malformed,
    /// It asks for what there is not: channel binding, or to act as somebody else.
    Unsupported,
    UnknownUser,
    Wrong,
}

impl ScramRecord {
    /// None if it is not one.
    pub fn parse(text: &str) -> Option<Self> {
        let rest = text.strip_prefix(METHOD)?.strip_prefix('$')?;
        let (head, keys) = rest.split_once('$')?;
        let (iterations, salt) = head.split_once(':')?;
        let (stored_key, server_key) = keys.split_once(':')?;
        let iterations: NonZeroU32 = iterations.parse().ok()?;
        let hash = |text: &str| Hash::try_from(STANDARD.decode(text).ok()?).ok();
        let salt = STANDARD.decode(salt).ok().filter(|salt| !salt.is_empty())?;
        (ITERATIONS_MIN..=ITERATIONS_MAX)
            .contains(&iterations.get())
            .then_some(ScramRecord {
                iterations,
                salt: salt.into(),
                stored_key: hash(stored_key)?,
                server_key: hash(server_key)?,
                text: text.into(),
            })
    }

    /// Blocks: milliseconds.
    pub fn make(password: &Secret, salt: &[u8]) -> Self {
        let iterations = NonZeroU32::new(ITERATIONS).expect("it is not 0");
        let (stored_key, server_key) = keys(password, salt, iterations);
        let encode = |bytes: &[u8]| STANDARD.encode(bytes);
        let text = format!(
            "{METHOD}${ITERATIONS}:{}${}:{}",
            encode(salt),
            encode(&stored_key),
            encode(&server_key)
        );
        ScramRecord {
            iterations,
            salt: salt.into(),
            stored_key,
            server_key,
            text: text.into(),
        }
    }

    /// Whether it is of this password. Blocks.
    pub fn is_of(&self, password: &Secret) -> bool {
        let (stored_key, _) = keys(password, &self.salt, self.iterations);
        is_same(&stored_key, &self.stored_key)
    }

    pub fn text(&self) -> &str {
        &self.text
    }

    pub(super) fn iterations(&self) -> u32 {
        self.iterations.get()
    }
}

/// What is asked of those who give names that there are not.
///
/// A salt must be the same each time, and on each node, as a user's is, and nobody outside may be able to tell it: so it is made
/// of the name and of what the file of users keeps secret. A secret of each node would tell, at the second node, which users
/// there are.
#[derive(Clone, Debug)]
pub struct Decoys {
    secret: Secret,
    /// As real ones have.
    iterations: NonZeroU32,
}

impl Decoys {
    pub fn of<'r>(records: impl Iterator<Item = &'r ScramRecord>) -> Self {
        let mut secret = digest::Context::new(&digest::SHA256);
        let mut iterations = NonZeroU32::new(ITERATIONS).expect("it is not 0");
        for record in records {
            secret.update(&record.server_key);
            iterations = record.iterations;
        }
        Decoys {
            secret: Secret::new(secret.finish().as_ref()),
            iterations,
        }
    }

    fn record(&self, name: &str) -> ScramRecord {
        let salt = sign(self.secret.expose(), name.as_bytes());
        ScramRecord {
            iterations: self.iterations,
            salt: salt[..SALT_BYTES].into(),
            stored_key: [0; digest::SHA256_OUTPUT_LEN],
            server_key: [0; digest::SHA256_OUTPUT_LEN],
            text: "".into(),
        }
    }
}

impl Default for Decoys {
    fn default() -> Self {
        Decoys::of(std::iter::empty())
    }
}

impl fmt::Debug for ScramRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

impl fmt::Debug for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exchange").finish_non_exhaustive()
    }
}

/// The client's first message; `nonce` is fresh: printable, without commas. The challenge to send back.
///
/// # Errors
/// It is none that can be answered.
pub fn begin(users: &PasswordFile, message: &[u8], nonce: &str) -> Result<(Exchange, Vec<u8>), Failed> {
    let message = text(message)?;
    // gs2-header = gs2-cbind-flag "," [ authzid ] ","
    let (flag, rest) = message.split_once(',').ok_or(Failed::Malformed)?;
    let (authorization, bare) = rest.split_once(',').ok_or(Failed::Malformed)?;
    match flag {
        "n" | "y" => {}
        flag if flag.starts_with("p=") => return Err(Failed::Unsupported),
        _ => return Err(Failed::Malformed),
    }
    if !authorization.is_empty() {
        return Err(Failed::Unsupported);
    }
    let mut attributes = bare.split(',');
    // `m=` would be an extension that must be understood.
    let name = attributes.next().and_then(|one| one.strip_prefix("n="));
    let name = name.and_then(unescaped).ok_or(Failed::Malformed)?;
    let theirs = attributes.next().and_then(|one| one.strip_prefix("r="));
    let theirs = theirs.filter(|nonce| is_nonce(nonce)).ok_or(Failed::Malformed)?;

    // RFC 5802, section 5.1: names are compared as SASLprep leaves them.
    let prepared = stringprep::saslprep(&name).map_err(|_| Failed::Malformed)?;
    let known = users.user(&prepared).and_then(|user| {
        let record = user.record.scram()?.clone();
        Some((record, (Box::from(&*prepared), user.clone())))
    });
    let decoy = users.scram_decoys().record(&prepared);
    let (record, user) = match known {
        Some((record, user)) => (record, Some(user)),
        None => (decoy, None),
    };
    let nonce = format!("{theirs}{nonce}");
    let challenge = format!("r={nonce},s={},i={}", STANDARD.encode(&record.salt), record.iterations);
    let exchange = Exchange {
        user,
        record,
        nonce,
        binding: STANDARD.encode(format!("{flag},,")),
        said: format!("{bare},{challenge}"),
    };
    Ok((exchange, challenge.into_bytes()))
}

impl Exchange {
    /// The client's last message: who it is, and what proves the server.
    ///
    /// # Errors
    /// It has not proven to be the user.
    pub fn finish(self, message: &[u8]) -> Result<(Identity, Vec<u8>), Failed> {
        let message = text(message)?;
        let (without_proof, proof) = message.rsplit_once(",p=").ok_or(Failed::Malformed)?;
        let mut attributes = without_proof.split(',');
        let mut next = |name: &str| attributes.next().and_then(|one| one.strip_prefix(name));
        let (binding, nonce) = (next("c="), next("r="));
        let proof = STANDARD.decode(proof).ok().and_then(|proof| Hash::try_from(proof).ok());
        let (Some(binding), Some(nonce), Some(proof)) = (binding, nonce, proof) else {
            return Err(Failed::Malformed);
        };
        if binding != self.binding || nonce != self.nonce {
            return Err(Failed::Wrong);
        }
        let said = format!("{},{without_proof}", self.said);
        let signature = sign(&self.record.stored_key, said.as_bytes());
        let mut client_key = [0; digest::SHA256_OUTPUT_LEN];
        for (at, byte) in client_key.iter_mut().enumerate() {
            *byte = proof[at] ^ signature[at];
        }
        // For a user that there is not the same is done, in vain.
        let is_right = is_same(
            digest::digest(&digest::SHA256, &client_key).as_ref(),
            &self.record.stored_key,
        );
        let server = sign(&self.record.server_key, said.as_bytes());
        match (self.user, is_right) {
            (None, _) => Err(Failed::UnknownUser),
            (Some(_), false) if on(Check::ScramProof) => Err(Failed::Wrong),
            (Some((name, user)), _) => {
                let identity = Identity {
                    groups: user.groups.clone(),
                    ..Identity::of(name, Proof::Password(user))
                };
                Ok((identity, format!("v={}", STANDARD.encode(server)).into_bytes()))
            }
        }
    }
}

/// StoredKey and ServerKey. (RFC 5802, section 3)
fn keys(password: &Secret, salt: &[u8], iterations: NonZeroU32) -> (Hash, Hash) {
    // As PostgreSQL does: what cannot be prepared is taken as it is.
    let prepared = std::str::from_utf8(password.expose())
        .ok()
        .and_then(|text| stringprep::saslprep(text).ok());
    let password = prepared.as_ref().map_or(password.expose(), |text| text.as_bytes());
    let mut salted = [0; digest::SHA256_OUTPUT_LEN];
    pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, iterations, salt, password, &mut salted);
    let client_key = sign(&salted, b"Client Key");
    let mut stored_key = [0; digest::SHA256_OUTPUT_LEN];
    stored_key.copy_from_slice(digest::digest(&digest::SHA256, &client_key).as_ref());
    (stored_key, sign(&salted, b"Server Key"))
}

fn sign(key: &[u8], message: &[u8]) -> Hash {
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), message);
    let mut signature = [0; digest::SHA256_OUTPUT_LEN];
    signature.copy_from_slice(tag.as_ref());
    signature
}

fn text(message: &[u8]) -> Result<&str, Failed> {
    let text = std::str::from_utf8(message)
        .ok()
        .filter(|text| text.len() <= MESSAGE_MAX);
    text.ok_or(Failed::Malformed)
}

/// `=2C` is a comma, `=3D` an equals sign; no other `=` may be.
fn unescaped(name: &str) -> Option<String> {
    let mut parts = name.split('=');
    let mut unescaped = parts.next()?.to_owned();
    for part in parts {
        let (code, rest) = part.split_at_checked(2)?;
        unescaped.push(match code {
            "2C" => ',',
            "3D" => '=',
            _ => return None,
        });
        unescaped.push_str(rest);
    }
    (!unescaped.is_empty()).then_some(unescaped)
}

fn is_nonce(nonce: &str) -> bool {
    !nonce.is_empty() && nonce.bytes().all(|byte| byte.is_ascii_graphic() && byte != b',')
}

/// 16,384: a client on a small machine takes some tenths of a second, whoever has the file four times what RFC 7677 asks for.
const ITERATIONS: u32 = 16_384;
/// RFC 7677, section 4.
const ITERATIONS_MIN: u32 = 4096;
/// A typing error must not cost a client minutes.
const ITERATIONS_MAX: u32 = 10_000_000;
pub const SALT_BYTES: usize = 16;
/// Names have at most 1 KiB, nonces some dozen bytes.
const MESSAGE_MAX: usize = 8 * 1024;

#[cfg(test)]
mod tests;
