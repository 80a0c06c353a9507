//! A file of users: one line each, ours and mosquitto_passwd's alike.
//!
//! ```text
//!   # comment
//!   alice:$argon2id$v=19$…:ops,readers      name, hash, and groups for access rules (none in Mosquitto's)
//!   bob:$7$101$…$…
//!   carol:SCRAM-SHA-256$16384:…$…:…:ops     PostgreSQL's form
//! ```
//!
//! All or nothing: a line that is none refuses the file, by its number; its text, which may hold a password, is not shown.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use super::decoys;
use super::password::{BadHash, PasswordRecord};
use super::scram::{self, Decoys};

/// The users of a file.
#[derive(Clone, Debug, Default)]
pub struct PasswordFile {
    users: BTreeMap<Box<str>, Arc<User>>,
    decoys: decoys::Decoys,
    scram_decoys: Decoys,
}

/// One user.
#[derive(Clone, PartialEq, Eq)]
pub struct User {
    pub record: PasswordRecord,
    pub groups: Vec<Box<str>>,
}

/// Why a file holds no users.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PasswordFileError {
    #[error("line {line}: it is not name:hash")]
    NotAUser { line: usize },
    #[error("line {line}: the name is empty, longer than {NAME_MAX} bytes, or has control characters")]
    BadName { line: usize },
    #[error("line {line}: the user `{name}` is on line {first} already")]
    Twice { line: usize, first: usize, name: String },
    #[error("line {line}: the password hash of `{name}` cannot be used: {source}")]
    BadHash { line: usize, name: String, source: BadHash },
    #[error("line {line}: a group of `{name}` is empty")]
    BadGroup { line: usize, name: String },
}

impl PasswordFile {
    /// # Errors
    /// The first line that is wrong.
    pub fn parse(text: &str) -> Result<Self, PasswordFileError> {
        let mut users = BTreeMap::<Box<str>, Arc<User>>::new();
        let mut lines = BTreeMap::<&str, usize>::new();
        for (at, content) in text.lines().enumerate() {
            let (line, content) = (at + 1, content.trim_end());
            if content.is_empty() || content.starts_with('#') {
                continue;
            }
            let (name, rest) = content.split_once(':').ok_or(PasswordFileError::NotAUser { line })?;
            if !is_user_name(name) {
                return Err(PasswordFileError::BadName { line });
            }
            let (hash, groups) = hash_and_groups(rest);
            let named = || name.to_owned();
            if let Some(first) = lines.insert(name, line) {
                let name = named();
                return Err(PasswordFileError::Twice { line, first, name });
            }
            let record = PasswordRecord::parse(hash).map_err(|source| PasswordFileError::BadHash {
                line,
                name: named(),
                source,
            })?;
            let groups: Vec<Box<str>> = match groups {
                "" => Vec::new(),
                groups => groups.split(',').map(|group| group.trim().into()).collect(),
            };
            if groups.iter().any(|group| group.is_empty()) {
                return Err(PasswordFileError::BadGroup { line, name: named() });
            }
            users.insert(name.into(), Arc::new(User { record, groups }));
        }
        let scram_decoys = Decoys::of(users.values().filter_map(|user| user.record.scram()));
        let decoys = decoys::Decoys::of(users.values().map(|user| &user.record));
        Ok(PasswordFile {
            users,
            decoys,
            scram_decoys,
        })
    }

    pub fn user(&self, name: &str) -> Option<&Arc<User>> {
        self.users.get(name)
    }

    /// Whose hash is checked, in vain, for a user that there is none of: how long it takes must not tell which names exist.
    pub fn decoys(&self) -> &decoys::Decoys {
        &self.decoys
    }

    /// In the order of their names.
    pub fn names(&self) -> impl Iterator<Item = (&str, &User)> {
        self.users.iter().map(|(name, user)| (&**name, &**user))
    }

    /// As [`PasswordFile::decoys`], for SCRAM.
    pub fn scram_decoys(&self) -> &Decoys {
        &self.scram_decoys
    }

    pub fn len(&self) -> usize {
        self.users.len()
    }

    pub fn is_empty(&self) -> bool {
        self.users.is_empty()
    }
}

/// What stands behind a name. SCRAM's records have two colons of their own.
fn hash_and_groups(rest: &str) -> (&str, &str) {
    let own = if rest.starts_with(scram::METHOD) { 2 } else { 0 };
    match rest.match_indices(':').nth(own) {
        Some((at, _)) => (&rest[..at], &rest[at + 1..]),
        None => (rest, ""),
    }
}

/// What a line can begin with.
pub fn is_user_name(name: &str) -> bool {
    let is_good = |c: char| c != ':' && !c.is_control();
    !name.is_empty() && name.len() <= NAME_MAX && !name.starts_with('#') && name.chars().all(is_good)
}

impl fmt::Debug for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("User")
            .field("groups", &self.groups)
            .finish_non_exhaustive()
    }
}

/// A user name of MQTT has up to 65,535 bytes; nobody types one of these.
pub const NAME_MAX: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc";

    #[test]
    fn users_have_hashes_and_groups() {
        let text = format!("# users\n\nalice:{HASH}\r\nbob smith:{HASH}:ops, readers\n");
        let file = PasswordFile::parse(&text).expect("good");
        assert_eq!(file.len(), 2);
        let groups = |name: &str| file.user(name).map(|user| user.groups.join("+"));
        assert_eq!(groups("alice").as_deref(), Some(""));
        assert_eq!(groups("bob smith").as_deref(), Some("ops+readers"));
        assert_eq!(groups("bob"), None);
        assert_eq!(file.decoys().users(), 2);
        assert!(!format!("{file:?}").contains("argon2"), "hashes are not printed");
    }

    #[test]
    fn a_bad_line_is_told_by_its_number_without_what_may_be_a_password() {
        for (line, error) in [
            ("alice", "line 2: it is not name:hash"),
            (":x", "line 2: the name is empty"),
            ("alice:secret", "line 2: the password hash of `alice` cannot be used"),
            (&format!("bob:{HASH}"), "line 2: the user `bob` is on line 1 already"),
            (&format!("alice:{HASH}:a,"), "line 2: a group of `alice` is empty"),
        ] {
            let refused = PasswordFile::parse(&format!("bob:{HASH}\n{line}\n")).expect_err("bad");
            let told = refused.to_string();
            assert!(told.starts_with(error), "{told}");
            assert!(!told.contains("secret"), "{told}");
        }
    }
}
