//! Who left a will: written down when it is taken, asked again when it is due, perhaps by another node.
//!
//! ```text
//!   1, then JSON: {"client":"c","user":"al","groups":["g"],"address":"10.0.0.1","known":{"cluster":7}, …}
//! ```
//!
//! Invariants
//! - `readable-forever`: a release reads what those before wrote. What a later one wrote denies: it may say what this one does
//!   not understand.
//! - what changes after a CONNECT counts: bans, rules, and whether a user is still what it was. Groups of the CONNECT count,
//!   since a user of the cluster who gets others is not what it was.

use std::borrow::Cow;
use std::net::IpAddr;

use bytes::Bytes;
use lontra_storage::ids::MetaIndex;
use serde::{Deserialize, Serialize};

use super::Auth;
use super::identity::{Identity, Proof};
use super::rule::{Rule, Subject};

/// As it stands behind a will.
#[derive(Debug, Serialize, Deserialize)]
pub struct Author<'a> {
    client: Cow<'a, str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    user: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "<[_]>::is_empty")]
    groups: Cow<'a, [Box<str>]>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    address: Option<IpAddr>,
    /// Its own, which came with its identity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rules: Option<Cow<'a, [Rule]>>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    superuser: bool,
    known: Known,
}

/// Where its user name comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Known {
    /// It has none.
    Nobody,
    /// `auth.password_file`.
    File,
    /// The users of the cluster, made so by that entry of meta.
    Cluster(u64),
    /// A certificate, a token, a server: nobody here can take that back.
    Elsewhere,
}

impl<'a> Author<'a> {
    pub fn of(identity: &'a Identity, client_id: &'a str, address: Option<IpAddr>) -> Self {
        Author {
            client: client_id.into(),
            user: identity.user.as_deref().map(Cow::from),
            groups: Cow::from(&identity.groups),
            address,
            rules: identity.rules.as_deref().map(Cow::from),
            superuser: identity.is_superuser,
            known: match identity.proof {
                Proof::None => Known::Nobody,
                Proof::Password(_) => Known::File,
                Proof::Cluster(version) => Known::Cluster(version.0),
                Proof::Certificate(_) | Proof::Token(..) | Proof::Http(_) => Known::Elsewhere,
            },
        }
    }

    pub fn encode(&self) -> Bytes {
        let mut bytes = vec![VERSION];
        serde_json::to_writer(&mut bytes, self).expect("it has no map, and memory does not fail");
        bytes.into()
    }

    fn decode(bytes: &[u8]) -> Option<Author<'static>> {
        let (&VERSION, json) = bytes.split_first()? else {
            return None;
        };
        serde_json::from_slice(json).ok()
    }
}

impl Auth {
    /// Whether the author of a will, [encoded](Author::encode), may publish it by what holds now.
    pub fn may_publish_will(&self, author: &[u8], topic: &str) -> bool {
        // Of a release that did not say who: it was allowed at CONNECT.
        if author.is_empty() {
            return true;
        }
        let Some(author) = Author::decode(author) else {
            tracing::error!("a will's author is written as this version does not know: the will is denied");
            return false;
        };
        let (user, cluster) = (author.user.as_deref(), &self.acl.cluster);
        if cluster.ban_of(&author.client, user, author.address).is_some() {
            return false;
        }
        let is_known = match (author.known, user) {
            (Known::Cluster(version), Some(user)) => cluster.knows(user, MetaIndex(version)),
            // Each node has its own file. One without any knows nothing of who was taken out of another's.
            (Known::File, Some(user)) => self.users.is_empty() || self.users.user(user).is_some(),
            (Known::Cluster(_) | Known::File, None) => false,
            (Known::Nobody | Known::Elsewhere, _) => true,
        };
        let subject = Subject {
            user,
            client_id: &author.client,
            groups: &author.groups,
            address: author.address,
        };
        is_known
            && (author.superuser
                || self
                    .acl
                    .permissions(&subject, author.rules.as_deref())
                    .may_publish(topic))
    }
}

const VERSION: u8 = 1;

#[cfg(test)]
mod tests {
    use super::super::hashing::Hashing;
    use super::super::password_file::PasswordFile;
    use super::*;

    const USER: &str = "al:$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc";

    fn auth(users: &str, rules: &[&str]) -> Auth {
        let mut auth = Auth::new(Hashing::new(1, 0));
        auth.users = PasswordFile::parse(users).expect("good");
        auth.acl.rules = rules.iter().map(|rule| rule.parse().expect("a rule")).collect();
        auth
    }

    fn of_file() -> Bytes {
        let user = PasswordFile::parse(USER)
            .expect("good")
            .user("al")
            .expect("there")
            .clone();
        let identity = Identity {
            groups: vec!["g".into()],
            rules: Some(["deny publish x".parse().expect("a rule")].into()),
            ..Identity::of("al", Proof::Password(user))
        };
        Author::of(&identity, "c", Some([10, 0, 0, 1].into())).encode()
    }

    #[test]
    fn authors_are_pinned() {
        let check = |bytes: Bytes, golden: &[u8]| assert_eq!(bytes, golden, "golden: readable-forever");
        check(
            of_file(),
            b"\x01{\"client\":\"c\",\"user\":\"al\",\"groups\":[\"g\"],\"address\":\"10.0.0.1\",\
              \"rules\":[\"deny publish x\"],\"known\":\"file\"}",
        );
        check(
            Author::of(&Identity::of("bo", Proof::Cluster(MetaIndex(7))), "c", None).encode(),
            b"\x01{\"client\":\"c\",\"user\":\"bo\",\"known\":{\"cluster\":7}}",
        );
        check(
            Author::of(&Identity::anonymous(), "c", None).encode(),
            b"\x01{\"client\":\"c\",\"known\":\"nobody\"}",
        );
    }

    #[test]
    fn what_holds_now_decides_about_a_will() {
        let may = |auth: &Auth, topic| auth.may_publish_will(&of_file(), topic);
        let open = auth(USER, &["allow user=al group=g client=c address=10.0.0.0/8 publish #"]);
        assert!(may(&open, "w") && !may(&open, "x"), "its own rules come first");
        assert!(!may(&auth(USER, &["allow publish other"]), "w"));
        assert!(
            !may(&auth(&USER.replace("al:", "bo:"), &["allow publish #"]), "w"),
            "the user is gone"
        );
        assert!(may(&auth("", &["allow publish #"]), "w"), "this node has no file");
        let of_cluster = Author::of(&Identity::of("al", Proof::Cluster(MetaIndex(7))), "c", None).encode();
        assert!(!auth(USER, &[]).may_publish_will(&of_cluster, "w"), "another's user");
        assert!(auth("", &[]).may_publish_will(b"", "w"), "an older release did not say");
        for unknown in [&b"\x02{}"[..], b"\x01{", b"\x01{\"known\":\"nobody\"}"] {
            assert!(!auth("", &[]).may_publish_will(unknown, "w"));
        }
    }
}
