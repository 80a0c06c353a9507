//! Keys of the admin API: how they look, what is kept of them, whose one is.
//!
//! ```text
//!   lontra_0123456789abcdef_SECRET        shown once; kept: id ─▶ SHA-256 of the whole, role, label
//! ```
//!
//! The secret is 256 random bits, so that a plain digest cannot be turned back.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use lontra_ops::guard::{Caller, Known, Role};
use lontra_storage::command::{Hidden, KeyRole};
use lontra_storage::meta::AccessState;
use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom, SystemRandom};

use crate::auth::secret::{Secret, is_same};

/// A key that is about to be kept.
pub struct NewKey {
    pub id: String,
    pub token: Secret,
    pub digest: Hidden,
}

impl NewKey {
    /// A random one.
    pub fn make() -> NewKey {
        let mut random = [0; ID_BYTES + SECRET_BYTES];
        SystemRandom::new()
            .fill(&mut random)
            .expect("the system gives random bytes");
        let (id, secret) = random.split_at(ID_BYTES);
        let id: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
        let token = format!("{PREFIX}{id}_{}", URL_SAFE_NO_PAD.encode(secret));
        NewKey {
            id,
            digest: Hidden::new(digest_of(&token)),
            token: Secret::new(token.into_bytes()),
        }
    }
}

/// Whose key is shown. While there is none, whoever is on this machine may do everything, if this node would know of keys
/// (`is_current`: it has a lease); otherwise what changes nothing of who may do what.
pub fn known(access: &AccessState, token: Option<&str>, is_current: bool) -> Known {
    if access.keys().next().is_none() {
        return Known::NoKeys(if is_current { Role::Admin } else { Role::Operate });
    }
    let shown = token.and_then(|token| Some((token, id_of(token)?)));
    let Some((token, id)) = shown else { return Known::Nobody };
    let key = access.key(id);
    // Compared also where there is none: ids are not to be found out by time.
    let kept = key.map_or(&NO_DIGEST[..], |key| key.digest.expose());
    match (is_same(kept, &digest_of(token)), key) {
        (true, Some(key)) => Known::Caller(Caller {
            key: Some(id.to_owned()),
            role: role(key.role),
        }),
        _ => Known::Nobody,
    }
}

pub fn role(kept: KeyRole) -> Role {
    match kept {
        KeyRole::Read => Role::Read,
        KeyRole::Operate => Role::Operate,
        KeyRole::Admin => Role::Admin,
    }
}

/// By its name.
pub fn role_named(name: &str) -> Option<KeyRole> {
    KeyRole::ALL.into_iter().find(|kept| role(*kept).name() == name)
}

fn id_of(token: &str) -> Option<&str> {
    let (id, _) = token.strip_prefix(PREFIX)?.split_once('_')?;
    Some(id)
}

fn digest_of(token: &str) -> Vec<u8> {
    digest(&SHA256, token.as_bytes()).as_ref().to_vec()
}

const PREFIX: &str = "lontra_";
const ID_BYTES: usize = 8;
const SECRET_BYTES: usize = 32;
const NO_DIGEST: [u8; 32] = [0; 32];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_long_its_own_and_kept_as_a_digest() {
        let (one, other) = (NewKey::make(), NewKey::make());
        let token = |key: &NewKey| String::from_utf8(key.token.expose().to_vec()).expect("text");
        assert_eq!(token(&one).len(), 7 + 16 + 1 + 43);
        assert_eq!(id_of(&token(&one)), Some(&*one.id));
        assert!(one.id != other.id && token(&one) != token(&other));
        assert_eq!(one.digest.expose(), digest_of(&token(&one)));
        assert!(!format!("{:?} {:?}", one.token, one.digest).contains(&one.id));
    }

    #[test]
    fn without_keys_a_node_that_may_not_know_of_them_lets_nobody_administer() {
        let none = AccessState::default();
        assert_eq!(known(&none, None, true), Known::NoKeys(Role::Admin));
        assert_eq!(known(&none, None, false), Known::NoKeys(Role::Operate));
        assert_eq!(known(&none, Some("lontra_a_b"), true), Known::NoKeys(Role::Admin));
    }

    #[test]
    fn roles_have_their_names() {
        for kept in KeyRole::ALL {
            assert_eq!(role_named(role(kept).name()), Some(kept));
        }
        assert_eq!(role_named("root"), None);
    }
}
