//! What one connection may do: its identity, the permissions that follow from it, and the decisions made before.
//!
//! ```text
//!   may_publish(topic) ─▶ open? ─▶ cache ─▶ permissions          one worker's thread: nothing is shared, nothing waits
//! ```
//!
//! Invariants
//! - `bounded`: a cache holds at most so many topics, of bounded length; when it is full it begins anew.
//! - decisions are forgotten whenever permissions change.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::IpAddr;
use std::rc::Rc;

use bytes::Bytes;
use lontra_storage::command::{BanTarget, Subnet};

use super::acl::{Acl, Permissions};
use super::author::Author;
use super::authorized::Authorized;
use super::cluster::ClusterAccess;
use super::identity::Identity;
use super::rule::Subject;
use crate::protocol::checks::{Check, on};
use crate::rare::Rare;

/// Of one connection; shared with its outbound half.
#[derive(Debug)]
pub struct Access {
    pub identity: Identity,
    client_id: Box<str>,
    address: Option<IpAddr>,
    permissions: RefCell<Permissions>,
    publish: RefCell<Decisions>,
    read: RefCell<Decisions>,
}

/// What is to be published is not allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Denied;

impl Access {
    pub fn new(identity: Identity, client_id: &str, address: Option<IpAddr>, acl: &Acl) -> Rc<Self> {
        let access = Access {
            identity,
            client_id: client_id.into(),
            address,
            permissions: RefCell::default(),
            publish: RefCell::default(),
            read: RefCell::default(),
        };
        access.look_up(acl);
        Rc::new(access)
    }

    /// For whoever nothing is denied to.
    pub fn open() -> Rc<Self> {
        Access::new(Identity::anonymous(), "", None, &Acl::default())
    }

    /// Rules have changed.
    pub fn look_up(&self, acl: &Acl) {
        let subject = Subject {
            user: self.identity.user.as_deref(),
            client_id: &self.client_id,
            groups: &self.identity.groups,
            address: self.address,
        };
        *self.permissions.borrow_mut() = match self.identity.is_superuser {
            true => Permissions::all(),
            false => acl.permissions(&subject, self.identity.rules.as_deref()),
        };
        self.publish.take();
        self.read.take();
    }

    /// What its will is published by, when this connection has gone.
    pub fn author(&self) -> Bytes {
        Author::of(&self.identity, &self.client_id, self.address).encode()
    }

    /// Whether a ban of the cluster is about this connection.
    pub fn is_banned(&self, cluster: &ClusterAccess) -> bool {
        let user = self.identity.user.as_deref();
        cluster.ban_of(&self.client_id, user, self.address).is_some()
    }

    /// Whether a ban of `target` is about this connection.
    pub fn is_target(&self, target: &BanTarget) -> bool {
        match target {
            BanTarget::Client(client_id) => **client_id == *self.client_id,
            BanTarget::User(name) => self.identity.user.as_ref() == Some(name),
            BanTarget::Network(network) => self
                .address
                .is_some_and(|address| Subnet::around(address.to_canonical(), network.prefix()) == Some(*network)),
        }
    }

    /// Nothing is allowed any more.
    pub fn revoke(&self) {
        *self.permissions.borrow_mut() = Permissions::none();
        self.publish.take();
        self.read.take();
    }

    pub fn may_publish(&self, topic: &str) -> bool {
        let permissions = self.permissions.borrow();
        permissions.is_open()
            || self
                .publish
                .borrow_mut()
                .decide(topic, |topic| permissions.may_publish(topic))
    }

    /// Whether a message on the topic may be delivered.
    pub fn may_read(&self, topic: &str) -> bool {
        let permissions = self.permissions.borrow();
        !on(Check::ReadRules)
            || permissions.is_open()
            || self
                .read
                .borrow_mut()
                .decide(topic, |topic| permissions.may_read(topic))
    }

    pub fn may_subscribe(&self, filter: &str) -> bool {
        self.permissions.borrow().may_subscribe(filter)
    }

    /// As [`Access::authorize`].
    ///
    /// # Errors
    /// It may not.
    pub fn authorize_will<T>(&self, will: T, topic: impl FnOnce(&T) -> &str) -> Result<Authorized<T>, Denied> {
        match !on(Check::WillRules) || self.may_publish(topic(&will)) {
            true => Ok(Authorized::new(will)),
            false => Err(Denied),
        }
    }

    /// The only way to what may be published.
    ///
    /// # Errors
    /// It may not.
    pub fn authorize<T>(&self, published: T, topic: impl FnOnce(&T) -> &str) -> Result<Authorized<T>, Denied> {
        match !on(Check::PublishRules) || self.may_publish(topic(&published)) {
            true => Ok(Authorized::new(published)),
            false => Err(Denied),
        }
    }
}

/// By topic.
#[derive(Debug, Default)]
struct Decisions(Rare<HashMap<Box<str>, bool>>);

impl Decisions {
    fn decide(&mut self, topic: &str, decide: impl FnOnce(&str) -> bool) -> bool {
        if let Some(decision) = self.0.get().and_then(|decisions| decisions.get(topic)) {
            return *decision;
        }
        let decision = decide(topic);
        if topic.len() <= TOPIC_BYTES_MAX {
            let decisions = self.0.make();
            if decisions.len() >= DECISIONS_MAX {
                decisions.clear();
            }
            decisions.insert(topic.into(), decision);
        }
        decision
    }
}

/// With the longest topics, 32 KiB a connection and direction at the worst.
const DECISIONS_MAX: usize = 128;
const TOPIC_BYTES_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use std::hint::black_box;
    use std::time::Instant;

    use super::*;

    fn acl(rules: &[&str]) -> Acl {
        Acl {
            rules: rules.iter().map(|rule| rule.parse().expect("a rule")).collect(),
            ..Acl::default()
        }
    }

    fn access(rules: &[&str]) -> Rc<Access> {
        Access::new(Identity::anonymous(), "c", None, &acl(rules))
    }

    fn kept(access: &Access) -> usize {
        access.publish.borrow().0.get().map_or(0, HashMap::len)
    }

    #[test]
    fn decisions_are_those_of_the_permissions_and_change_with_them() {
        let access = access(&["allow publish a/%c", "allow subscribe b/#"]);
        for _ in 0..2 {
            assert!(access.may_publish("a/c") && !access.may_publish("b/x"));
            assert!(access.may_read("b/x") && !access.may_read("a/c"));
        }
        assert!(access.authorize("a/c", |topic| topic).is_ok());
        assert_eq!(access.authorize("b", |topic| topic).err(), Some(Denied));
        access.look_up(&acl(&["allow publish b/#"]));
        assert!(!access.may_publish("a/c") && access.may_publish("b/x") && !access.may_read("b/x"));
        access.look_up(&Acl::default());
        assert!(access.may_publish("a/c") && access.may_read("c"));
    }

    #[test]
    fn bounded_the_cache_begins_anew_when_it_is_full() {
        let access = access(&["allow publish a/#"]);
        for n in 0..1000 {
            assert!(access.may_publish(&format!("a/{n}")));
            assert!(kept(&access) <= DECISIONS_MAX);
        }
        let before = kept(&access);
        assert!(access.may_publish(&format!("a/{}", "x".repeat(TOPIC_BYTES_MAX))));
        assert_eq!(kept(&access), before, "long topics are not kept");
    }

    /// Prints what a decision costs: `cargo test -p lontra --lib warm_decision -- --nocapture`.
    #[test]
    fn a_warm_decision_is_cheap() {
        let rules: Vec<String> = (0..200).map(|n| format!("allow publish plant/{n}/#")).collect();
        let rules: Vec<&str> = rules.iter().map(String::as_str).collect();
        let access = access(&rules);
        let topics: Vec<String> = (0..16).map(|n| format!("plant/{n}/line/4/temperature")).collect();
        let measure = || {
            let started = Instant::now();
            for n in 0..ROUNDS {
                black_box(access.may_publish(black_box(&topics[n % topics.len()])));
            }
            started.elapsed().as_nanos() / ROUNDS as u128
        };
        // The best of several: a machine that does something else is no fault of ours.
        let best = (0..20).map(|_| measure()).min().expect("some");
        println!("authorisation of a PUBLISH, warm: {best} ns");
        // Without optimisation it is slower; a lookup that walked the rules would be beyond this too.
        assert!(best < 500, "{best} ns");
    }

    const ROUNDS: usize = 20_000;
}
