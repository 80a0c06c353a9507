//! Password hashes: Argon2id of our own, and those of mosquitto_passwd.
//!
//! ```text
//!   $argon2id$v=19$m=…,t=…,p=…$salt$hash     PHC string: what `lontra user` writes
//!   $6$…, $7$…                               mosquitto_password
//!   SCRAM-SHA-256$…                          scram: what `lontra user --scram` writes
//! ```
//!
//! Everything here takes milliseconds to hundreds of them: never on a worker's thread (`hashing`).

use std::fmt;

use argon2::password_hash::{PasswordHashString, PasswordHasher, PasswordVerifier, SaltString};
use argon2::{Algorithm, Argon2, Params, Version};
use ring::rand::{SecureRandom, SystemRandom};

use super::mosquitto_password::MosquittoHash;
use super::scram::{self, ScramRecord};
use super::secret::Secret;

/// What is kept of a password.
#[derive(Clone, PartialEq, Eq)]
pub enum PasswordRecord {
    Argon2(PasswordHashString),
    Mosquitto(MosquittoHash),
    Scram(ScramRecord),
}

/// What it costs to check a password against a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cost(u8, [u32; 3]);

/// Why a text is no password hash.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BadHash {
    #[error(
        "it is none of $argon2id$… (lontra user hash), SCRAM-SHA-256$… (lontra user hash --scram), $7$… and $6$… \
         (mosquitto_passwd); plain passwords are not read"
    )]
    Unknown,
    #[error("its Argon2 parameters ask for more than {MEMORY_KIB_MAX} KiB, {PASSES_MAX} passes or {LANES_MAX} lanes")]
    TooCostly,
}

impl PasswordRecord {
    /// # Errors
    /// It is no hash, or one that would cost too much to check.
    pub fn parse(text: &str) -> Result<Self, BadHash> {
        if let Some(hash) = MosquittoHash::parse(text) {
            return Ok(PasswordRecord::Mosquitto(hash));
        }
        if let Some(record) = ScramRecord::parse(text) {
            return Ok(PasswordRecord::Scram(record));
        }
        let hash = PasswordHashString::new(text).map_err(|_| BadHash::Unknown)?;
        let parsed = hash.password_hash();
        let is_whole = parsed.salt.is_some() && parsed.hash.is_some();
        if Algorithm::try_from(parsed.algorithm) != Ok(Algorithm::Argon2id) || !is_whole {
            return Err(BadHash::Unknown);
        }
        let params = Params::try_from(&parsed).map_err(|_| BadHash::Unknown)?;
        if params.m_cost() > MEMORY_KIB_MAX || params.t_cost() > PASSES_MAX || params.p_cost() > LANES_MAX {
            return Err(BadHash::TooCostly);
        }
        Ok(PasswordRecord::Argon2(hash))
    }

    /// Records with equal costs take equally long to check: the kind, and its parameters.
    pub fn cost(&self) -> Cost {
        match self {
            PasswordRecord::Mosquitto(hash) => Cost(0, [hash.iterations(), 0, 0]),
            PasswordRecord::Scram(record) => Cost(1, [record.iterations(), 0, 0]),
            PasswordRecord::Argon2(hash) => {
                let params = Params::try_from(&hash.password_hash()).unwrap_or_default();
                Cost(2, [params.m_cost(), params.t_cost(), params.p_cost()])
            }
        }
    }

    /// What nobody has who has not the record.
    pub(super) fn secret(&self) -> &[u8] {
        match self {
            PasswordRecord::Argon2(hash) => hash.as_bytes(),
            PasswordRecord::Mosquitto(hash) => hash.hash(),
            PasswordRecord::Scram(record) => record.text().as_bytes(),
        }
    }

    /// A fresh hash of a password, with a salt of its own.
    pub fn make(password: &Secret) -> Self {
        let mut salt = [0; SALT_BYTES];
        SystemRandom::new()
            .fill(&mut salt)
            .expect("the system gives random bytes");
        let salt = SaltString::encode_b64(&salt).expect("16 bytes are a salt");
        let hash = argon2().hash_password(password.expose(), &salt);
        PasswordRecord::Argon2(hash.expect("the parameters are good").into())
    }

    /// As [`PasswordRecord::make`], for SCRAM.
    pub fn make_scram(password: &Secret) -> Self {
        let mut salt = [0; scram::SALT_BYTES];
        SystemRandom::new()
            .fill(&mut salt)
            .expect("the system gives random bytes");
        PasswordRecord::Scram(ScramRecord::make(password, &salt))
    }

    /// What SCRAM needs.
    pub fn scram(&self) -> Option<&ScramRecord> {
        match self {
            PasswordRecord::Scram(record) => Some(record),
            PasswordRecord::Argon2(_) | PasswordRecord::Mosquitto(_) => None,
        }
    }

    /// Whether it is of this password. Blocks.
    pub fn is_of(&self, password: &Secret) -> bool {
        match self {
            PasswordRecord::Argon2(hash) => argon2()
                .verify_password(password.expose(), &hash.password_hash())
                .is_ok(),
            PasswordRecord::Mosquitto(hash) => hash.is_of(password.expose()),
            PasswordRecord::Scram(record) => record.is_of(password),
        }
    }

    /// As it stands in a file; none of what was read from Mosquitto's, which is never written.
    pub fn text(&self) -> Option<&str> {
        match self {
            PasswordRecord::Argon2(hash) => Some(hash.as_str()),
            PasswordRecord::Mosquitto(_) => None,
            PasswordRecord::Scram(record) => Some(record.text()),
        }
    }
}

impl fmt::Debug for PasswordRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

/// OWASP's first choice for Argon2id: 19 MiB, two passes, one lane.
fn argon2() -> Argon2<'static> {
    let params = Params::new(19 * 1024, 2, 1, None).expect("within Argon2's bounds");
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
}

const SALT_BYTES: usize = 16;
/// Times the hashes at once (`hashing`): what an attacker's CONNECTs can take of the machine.
const MEMORY_KIB_MAX: u32 = 256 * 1024;
const PASSES_MAX: u32 = 16;
const LANES_MAX: u32 = 8;

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(text: &str) -> Secret {
        Secret::new(text.as_bytes())
    }

    #[test]
    fn a_hash_is_of_its_password_alone_and_reads_back() {
        let record = PasswordRecord::make(&secret("pässword"));
        let text = record.text().expect("ours");
        assert!(text.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{text}");
        let read = PasswordRecord::parse(text).expect("ours");
        assert_eq!(read, record);
        assert!(read.is_of(&secret("pässword")));
        assert!(!read.is_of(&secret("pässworD")) && !read.is_of(&secret("")));
        assert_ne!(
            PasswordRecord::make(&secret("pässword")),
            record,
            "each has its own salt"
        );
        assert_eq!(format!("{record:?}"), "…");
    }

    #[test]
    fn argon2_of_others_is_read_and_what_is_none_or_costs_too_much_is_refused() {
        // From the Argon2 reference implementation: `echo -n password | argon2 somesalt -id -t 2 -m 16 -p 1`.
        let theirs = "$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc";
        let record = PasswordRecord::parse(theirs).expect("a hash");
        assert!(record.is_of(&secret("password")) && !record.is_of(&secret("passwort")));
        for (text, why) in [
            ("", BadHash::Unknown),
            ("password", BadHash::Unknown),
            ("$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHQ", BadHash::Unknown),
            (&theirs.replace("argon2id", "argon2i"), BadHash::Unknown),
            (&theirs.replace("argon2id", "scrypt"), BadHash::Unknown),
            (&theirs.replace("m=65536", "m=4000000"), BadHash::TooCostly),
            (&theirs.replace("t=2", "t=99"), BadHash::TooCostly),
        ] {
            assert_eq!(PasswordRecord::parse(text), Err(why), "{text}");
        }
    }
}
