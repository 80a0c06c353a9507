//! The password hashes of mosquitto_passwd, as Mosquitto 1.6 to 2.0 write them.
//!
//! ```text
//!   $6$salt$hash              SHA-512(password ‖ salt)
//!   $7$iterations$salt$hash   PBKDF2-HMAC-SHA-512(password, salt, iterations)        salt and hash in Base64
//! ```
//!
//! `$6$` is one fast hash: whoever gets the file tries billions of passwords a second. It is read, never written.

use std::num::NonZeroU32;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::digest;
use ring::pbkdf2;

use super::secret::is_same;

/// One parsed hash.
#[derive(Clone, PartialEq, Eq)]
pub struct MosquittoHash {
    /// None: `$6$`.
    iterations: Option<NonZeroU32>,
    salt: Box<[u8]>,
    hash: Box<[u8]>,
}

impl MosquittoHash {
    /// None if it is not one.
    pub fn parse(text: &str) -> Option<Self> {
        let (iterations, rest) = match text.split_at_checked(3)? {
            ("$6$", rest) => (None, rest),
            ("$7$", rest) => {
                let (iterations, rest) = rest.split_once('$')?;
                let iterations: NonZeroU32 = iterations.parse().ok()?;
                // A typing error must not cost seconds per CONNECT.
                (Some(iterations).filter(|count| count.get() <= ITERATIONS_MAX), rest)
            }
            _ => return None,
        };
        if text.starts_with("$7$") && iterations.is_none() {
            return None;
        }
        let (salt, hash) = rest.split_once('$')?;
        let decode = |part: &str| STANDARD.decode(part).ok().map(Vec::into_boxed_slice);
        let (salt, hash) = (decode(salt)?, decode(hash)?);
        (!salt.is_empty() && hash.len() == digest::SHA512_OUTPUT_LEN).then_some(MosquittoHash {
            iterations,
            salt,
            hash,
        })
    }

    /// 0: `$6$`, one round of a fast hash.
    pub(super) fn iterations(&self) -> u32 {
        self.iterations.map_or(0, NonZeroU32::get)
    }

    pub(super) fn hash(&self) -> &[u8] {
        &self.hash
    }

    /// Whether it is of this password. Blocks: milliseconds at the usual 101 iterations.
    pub fn is_of(&self, password: &[u8]) -> bool {
        let mut computed = [0; digest::SHA512_OUTPUT_LEN];
        match self.iterations {
            None => {
                let mut context = digest::Context::new(&digest::SHA512);
                context.update(password);
                context.update(&self.salt);
                computed.copy_from_slice(context.finish().as_ref());
            }
            Some(iterations) => pbkdf2::derive(
                pbkdf2::PBKDF2_HMAC_SHA512,
                iterations,
                &self.salt,
                password,
                &mut computed,
            ),
        }
        is_same(&computed, &self.hash)
    }
}

const ITERATIONS_MAX: u32 = 10_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_hash_is_refused() {
        let zeros = STANDARD.encode([0; 64]);
        assert!(MosquittoHash::parse(&format!("$6$AAAA${zeros}")).is_some());
        assert!(MosquittoHash::parse(&format!("$7$101$AAAA${zeros}")).is_some());
        for text in [
            "",
            "$6",
            "plain",
            &format!("$5$AAAA${zeros}"),
            &format!("$6$${zeros}"),
            &format!("$6$AAAA$x{zeros}"),
            "$6$AAAA$AAAA",
            &format!("$7$0$AAAA${zeros}"),
            &format!("$7$4000000000$AAAA${zeros}"),
            &format!("$7$AAAA${zeros}"),
            "é",
        ] {
            assert!(MosquittoHash::parse(text).is_none(), "{text}");
        }
    }
}
