//! Mosquitto's ACL files, as they are.
//!
//! ```text
//!   topic read public/#            before the first `user`: clients without a user name
//!   user alice
//!   topic readwrite plant/#        read, write, readwrite (where nothing is said) or deny
//!   pattern write sensors/%c/#     everybody
//! ```

use std::collections::BTreeMap;

use super::filters::is_filter;
use super::rule::{Actions, Effect};

/// What a file says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AclFile {
    pub anonymous: Vec<AclLine>,
    pub users: BTreeMap<Box<str>, Vec<AclLine>>,
    pub patterns: Vec<AclLine>,
}

/// A `topic` or `pattern`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AclLine {
    pub effect: Effect,
    pub actions: Actions,
    pub filter: Box<str>,
}

/// Why a file is none.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum AclFileError {
    #[error("line {line}: `{word}` is none of user, topic and pattern")]
    Word { line: usize, word: String },
    #[error("line {line}: `{word}` has nothing behind it")]
    Empty { line: usize, word: String },
    #[error("line {line}: `{word}` is none of read, write, readwrite and deny")]
    Access { line: usize, word: String },
    #[error("line {line}: `{filter}` is no topic filter")]
    Filter { line: usize, filter: String },
}

impl AclFile {
    /// # Errors
    /// The first line that is wrong.
    pub fn parse(text: &str) -> Result<Self, AclFileError> {
        let mut file = AclFile::default();
        let mut user: Option<Box<str>> = None;
        for (at, content) in text.lines().enumerate() {
            let (line, content) = (at + 1, content.trim());
            if content.is_empty() || content.starts_with('#') {
                continue;
            }
            let (word, rest) = content.split_once([' ', '\t']).unwrap_or((content, ""));
            let rest = rest.trim();
            let is_known = ["user", "topic", "pattern"].contains(&word);
            if is_known && rest.is_empty() {
                let word = word.to_owned();
                return Err(AclFileError::Empty { line, word });
            }
            match word {
                "user" => {
                    file.users.entry(rest.into()).or_default();
                    user = Some(rest.into());
                }
                "topic" => {
                    let lines = match &user {
                        None => &mut file.anonymous,
                        Some(user) => file.users.entry(user.clone()).or_default(),
                    };
                    lines.push(acl_line(line, rest)?);
                }
                "pattern" => file.patterns.push(acl_line(line, rest)?),
                word => {
                    let word = word.to_owned();
                    return Err(AclFileError::Word { line, word });
                }
            }
        }
        Ok(file)
    }
}

fn acl_line(line: usize, rest: &str) -> Result<AclLine, AclFileError> {
    let (effect, publish, subscribe, filter) = match rest.split_once([' ', '\t']) {
        None => (Effect::Allow, true, true, rest),
        Some((access, filter)) => {
            let (effect, publish, subscribe) = match access {
                "read" => (Effect::Allow, false, true),
                "write" => (Effect::Allow, true, false),
                "readwrite" => (Effect::Allow, true, true),
                "deny" => (Effect::Deny, true, true),
                other => {
                    let word = other.to_owned();
                    return Err(AclFileError::Access { line, word });
                }
            };
            (effect, publish, subscribe, filter.trim())
        }
    };
    match is_filter(filter) {
        true => Ok(AclLine {
            effect,
            actions: Actions { publish, subscribe },
            filter: filter.into(),
        }),
        false => Err(AclFileError::Filter {
            line,
            filter: filter.to_owned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_as_mosquitto_does() {
        let file = AclFile::parse(
            "# comment\ntopic read public/#\n\nuser alice\ntopic readwrite plant/a b\ntopic deny plant/secret\n\
             pattern write s/%c/#\nuser bob\nuser alice\n\ttopic\twrite\tx\r\n",
        )
        .expect("good");
        assert_eq!(file.anonymous.len(), 1);
        assert_eq!(
            file.users.keys().map(|user| &**user).collect::<Vec<_>>(),
            ["alice", "bob"]
        );
        let alice = &file.users["alice"];
        let filters: Vec<&str> = alice.iter().map(|line| &*line.filter).collect();
        assert_eq!(filters.len(), 3, "{filters:?}");
        assert_eq!(alice[1].effect, Effect::Deny);
        assert_eq!(&*file.patterns[0].filter, "s/%c/#");
    }

    #[test]
    fn a_bad_line_is_told_by_its_number() {
        let of = |text: &str| AclFile::parse(text).expect_err("bad").to_string();
        assert_eq!(of("\nusers a"), "line 2: `users` is none of user, topic and pattern");
        assert_eq!(of("topic"), "line 1: `topic` has nothing behind it");
        assert_eq!(
            of("topic reed a"),
            "line 1: `reed` is none of read, write, readwrite and deny"
        );
        assert_eq!(of("pattern read a/#/b"), "line 1: `a/#/b` is no topic filter");
    }
}
