//! What a client may publish and read: the rules, and what they come down to for one client.
//!
//! ```text
//!   the identity's own ───▶ in their order, before all others (grants)
//!   auth.rules ───────────▶ in their order, the first that is about client, topic and action decides
//!   rules of the cluster ─▶ then: likewise
//!   auth.acl_file ─ user ─▶ then: its denials, then what it allows          (as Mosquitto does)
//!                 ─ pattern ▶ then: their denials, then what they allow
//!   nothing ──────────────▶ denied, once there is any rule or a file
//! ```
//!
//! Sans-io. Topics and filters are those of the cluster: a mountpoint is part of them.
//!
//! Invariants
//! - `deny-by-default`: what no rule allows is denied.
//! - a name that a client chose makes no other filter of a rule: with `+` or `#` in it (in our own rules also `/`) it has no
//!   part in rules with placeholders.

use std::sync::Arc;

use lontra_storage::topic::{matches, share_parts};

use super::acl_file::{AclFile, AclLine};
use super::cluster::ClusterAccess;
use super::filters::{covers, overlap};
use super::rule::{Actions, Effect, Rule, Subject, substitute};
use crate::protocol::checks::{Check, on};

/// All rules of a node.
#[derive(Clone, Debug, Default)]
pub struct Acl {
    pub rules: Vec<Rule>,
    /// What the cluster keeps: asked after `rules`, before `file`.
    pub cluster: Arc<ClusterAccess>,
    /// None: there is none, which is not the same as an empty one.
    pub file: Option<AclFile>,
}

/// What is about one client, in the order in which it is looked at; none: everything is allowed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Permissions(Option<Vec<Permission>>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Permission {
    effect: Effect,
    actions: Actions,
    filter: Box<str>,
}

impl Acl {
    pub fn is_enforced(&self) -> bool {
        !self.rules.is_empty() || self.file.is_some() || !self.cluster.rules().is_empty()
    }

    /// `own` are rules that came with the client's identity; none is not the same as an empty list.
    pub fn permissions(&self, subject: &Subject<'_>, own: Option<&[Rule]>) -> Permissions {
        if !self.is_enforced() && own.is_none() {
            return Permissions(None);
        }
        let mut list = Vec::new();
        let of_cluster = self.cluster.rules();
        let refused: &[char] = if on(Check::WildNames) { &['+', '#', '/'] } else { &[] };
        for rule in own
            .into_iter()
            .flatten()
            .chain(&self.rules)
            .chain(&*of_cluster)
            .filter(|rule| rule.is_about(subject))
        {
            let filter = substitute(&rule.filter, subject, refused);
            list.extend(filter.map(|filter| Permission {
                effect: rule.effect,
                actions: rule.actions,
                filter,
            }));
        }
        if let Some(file) = &self.file {
            let own = match subject.user {
                None => Some(&file.anonymous),
                Some(user) => file.users.get(user),
            };
            if let Some(lines) = own {
                add(&mut list, lines, |filter| Some(filter.into()));
            }
            let wild = |name: &str| on(Check::WildNames) && name.contains(['+', '#']);
            if !(subject.user.is_some_and(wild) || wild(subject.client_id)) {
                add(&mut list, &file.patterns, |filter| {
                    substitute(filter, subject, &['+', '#'])
                });
            }
        }
        Permissions(Some(list))
    }
}

/// Denials first, wherever they stand.
fn add(list: &mut Vec<Permission>, lines: &[AclLine], substituted: impl Fn(&str) -> Option<Box<str>>) {
    for effect in [Effect::Deny, Effect::Allow] {
        for line in lines.iter().filter(|line| line.effect == effect) {
            list.extend(substituted(&line.filter).map(|filter| Permission {
                effect,
                actions: line.actions,
                filter,
            }));
        }
    }
}

impl Permissions {
    /// Everything is allowed.
    pub fn all() -> Self {
        Permissions(None)
    }

    /// Everything is denied.
    pub fn none() -> Self {
        Permissions(Some(Vec::new()))
    }

    /// Nothing is denied to anybody.
    pub fn is_open(&self) -> bool {
        self.0.is_none()
    }

    pub fn may_publish(&self, topic: &str) -> bool {
        self.may(topic, |actions| actions.publish)
    }

    /// Whether a message on the topic may be delivered.
    pub fn may_read(&self, topic: &str) -> bool {
        self.may(topic, |actions| actions.subscribe)
    }

    fn may(&self, topic: &str, is_about: impl Fn(Actions) -> bool) -> bool {
        let Some(list) = &self.0 else { return true };
        let first = list
            .iter()
            .find(|permission| is_about(permission.actions) && matches(&permission.filter, topic));
        first.is_some_and(|permission| permission.effect == Effect::Allow)
    }

    /// Whether a subscription makes sense: there may be a topic of it that may be read. What may not is left out at
    /// delivery. A shared subscription must be readable as a whole: a message that its member may not read would be lost
    /// for the group. (P8)
    pub fn may_subscribe(&self, filter: &str) -> bool {
        let Some(list) = &self.0 else { return true };
        let mut shared = share_parts(filter).map(|(_, filter)| filter);
        let filter = shared.take_if(|_| !on(Check::SharedAsAWhole)).unwrap_or(filter);
        let list = list.iter().filter(|permission| permission.actions.subscribe);
        for Permission { effect, filter: of, .. } in list {
            match (shared, effect) {
                (None, Effect::Deny) if covers(of, filter) => return false,
                (None, Effect::Allow) if overlap(of, filter) => return true,
                (Some(filter), Effect::Deny) if overlap(of, filter) => return false,
                (Some(filter), Effect::Allow) if covers(of, filter) => return true,
                _ => {}
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acl(rules: &[&str], file: Option<&str>) -> Acl {
        Acl {
            rules: rules.iter().map(|rule| rule.parse().expect("a rule")).collect(),
            file: file.map(|text| AclFile::parse(text).expect("a file")),
            ..Acl::default()
        }
    }

    fn of<'a>(user: Option<&'a str>, client_id: &'a str) -> Subject<'a> {
        Subject {
            user,
            client_id,
            groups: &[],
            address: None,
        }
    }

    #[test]
    fn without_rules_everything_is_allowed_and_with_any_what_is_not_allowed_is_denied() {
        let open = acl(&[], None).permissions(&of(None, "c"), None);
        assert!(open.is_open() && open.may_publish("a") && open.may_read("$SYS/a") && open.may_subscribe("#"));
        let file = acl(&[], Some("")).permissions(&of(None, "c"), None);
        assert!(!file.may_publish("a") && !file.may_read("a") && !file.may_subscribe("a"));
        let one = acl(&["allow publish a"], None).permissions(&of(None, "c"), None);
        assert!(one.may_publish("a") && !one.may_publish("b") && !one.may_read("a"));
    }

    #[test]
    fn the_first_rule_that_is_about_it_decides() {
        let rules = [
            "deny user=bob publish a/secret",
            "allow publish,subscribe a/#",
            "deny subscribe #",
        ];
        let bob = acl(&rules, None).permissions(&of(Some("bob"), "c"), None);
        assert!(!bob.may_publish("a/secret") && bob.may_read("a/secret") && bob.may_publish("a/b"));
        let alice = acl(&rules, None).permissions(&of(Some("alice"), "c"), None);
        assert!(alice.may_publish("a/secret") && !alice.may_publish("b"));
    }

    #[test]
    fn the_configuration_comes_before_the_file() {
        let acl = acl(
            &["deny user=alice publish a/x", "allow user=bob publish b"],
            Some("user alice\ntopic a/#\nuser bob\ntopic deny b\ntopic read c"),
        );
        let alice = acl.permissions(&of(Some("alice"), "c"), None);
        assert!(alice.may_publish("a/y") && !alice.may_publish("a/x") && alice.may_read("a/x"));
        let bob = acl.permissions(&of(Some("bob"), "c"), None);
        assert!(bob.may_publish("b") && !bob.may_read("b") && bob.may_read("c"));
    }

    #[test]
    fn what_came_with_the_identity_comes_first_and_makes_denial_the_rule() {
        let own: Vec<Rule> = ["deny publish a/secret", "allow publish own/%u"]
            .map(|rule| rule.parse().expect("a rule"))
            .into();
        let alone = acl(&[], None).permissions(&of(Some("al"), "c"), Some(&own));
        assert!(alone.may_publish("own/al") && !alone.may_publish("a/b") && !alone.may_read("a/b"));
        let before = acl(&["allow publish a/#"], None).permissions(&of(Some("al"), "c"), Some(&own));
        assert!(before.may_publish("a/b") && !before.may_publish("a/secret") && before.may_publish("own/al"));
        let empty = acl(&[], None).permissions(&of(Some("al"), "c"), Some(&[]));
        assert!(!empty.is_open() && !empty.may_publish("a"));
        let wild = acl(&[], None).permissions(&of(Some("+"), "c"), Some(&own));
        assert!(!wild.may_publish("own/x"));
    }

    #[test]
    fn names_with_wildcards_or_levels_do_not_widen_rules() {
        let file = acl(&[], Some("pattern readwrite d/%c/#\npattern read u/%u"));
        let may = |user, client_id, topic: &str| file.permissions(&of(user, client_id), None).may_read(topic);
        assert!(may(None, "c", "d/c/x") && may(Some("al"), "c", "u/al"));
        assert!(!may(None, "+", "d/c/x") && !may(None, "#", "d/c/x") && !may(Some("+"), "c", "u/al"));
        assert!(!may(None, "c", "u/"), "without a user name");
        assert!(may(None, "c/x", "d/c/x/y"), "as Mosquitto: a slash makes levels");
        let rules = acl(&["allow subscribe d/%c/#"], None);
        assert!(!rules.permissions(&of(None, "c/x"), None).may_read("d/c/x/y"));
    }

    #[test]
    fn a_subscription_is_refused_where_nothing_of_it_can_be_read() {
        let acl = acl(
            &["deny subscribe a/secret/#", "allow subscribe a/#", "allow publish b"],
            None,
        );
        let alice = acl.permissions(&of(None, "c"), None);
        for good in ["a/#", "#", "+/x", "a/secret", "a/+", "$share/g/a/b", "$share/g/a/b/#"] {
            let expected = good != "a/secret";
            assert_eq!(alice.may_subscribe(good), expected, "{good}");
        }
        for bad in [
            "a/secret/x",
            "b",
            "$SYS/#",
            "b/#",
            "$share/g/#",
            "$share/g/a/#",
            "$share/g/a/+",
            "$share/g/b",
        ] {
            assert!(!alice.may_subscribe(bad), "{bad}");
        }
    }
}
