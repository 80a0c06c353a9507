//! Who may come in: connections of one address, by rate and by number; connections of one user.
//!
//! One table for the node, behind a short lock that guards nothing else: it is asked once per connection, never per packet.
//!
//! Invariants
//! - `bounded`: open connections bound the numbers; rates of addresses are kept for the most recent ones only.
//! - a place is given back once, when it is dropped.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Limit;
use super::rate::{Bucket, Moment, Rate};
use super::recent::Recent;
use crate::protocol::checks::{Check, on};

/// What is one source: an IPv4 address, or the 64 bits of an IPv6 network that one customer has to itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Source(IpAddr);

impl From<IpAddr> for Source {
    fn from(address: IpAddr) -> Self {
        Source(match address.to_canonical() {
            IpAddr::V4(address) => address.into(),
            IpAddr::V6(address) => Ipv6Addr::from(u128::from(address) & NETWORK).into(),
        })
    }
}

impl Source {
    /// Of IPv6, the network's.
    pub fn address(self) -> IpAddr {
        self.0
    }

    /// How many bits of it name the source.
    pub fn prefix(self) -> u8 {
        if self.0.is_ipv4() { 32 } else { 64 }
    }
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            IpAddr::V4(address) => address.fmt(f),
            IpAddr::V6(address) => write!(f, "{address}/64"),
        }
    }
}

/// What holds for the connections of one source, or of one user.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AdmissionLimits {
    pub source_rate: Option<Rate>,
    /// 0: no limit.
    pub source_connections_max: u32,
    /// 0: no limit.
    pub user_connections_max: u32,
}

/// Who is there.
#[derive(Debug)]
pub struct Admission(Mutex<Tables>);

#[derive(Debug)]
struct Tables {
    rates: Recent<Source, Bucket>,
    /// Open connections.
    sources: HashMap<Source, u32>,
    /// Connections of each client id of a user: one that takes its own session over is there twice for a while.
    users: HashMap<Box<str>, HashMap<Box<str>, u32>>,
}

/// A connection's place among those of its source; given back when dropped.
#[derive(Debug)]
#[must_use]
pub struct Place {
    admission: Arc<Admission>,
    source: Option<Source>,
}

/// A connection's place among those of its user; given back when dropped.
#[derive(Debug)]
#[must_use]
pub struct UserPlace {
    admission: Arc<Admission>,
    user: Box<str>,
    client_id: Box<str>,
}

impl Default for Admission {
    fn default() -> Self {
        Admission(Mutex::new(Tables {
            rates: Recent::new(RECENT_SOURCES),
            sources: HashMap::new(),
            users: HashMap::new(),
        }))
    }
}

impl Admission {
    /// A connection of `source` comes.
    ///
    /// # Errors
    /// The limit that it meets; the attempt is counted in the rate all the same, so that a source that does not stop stays
    /// out.
    pub fn enter(self: &Arc<Self>, source: Source, limits: &AdmissionLimits, now: Moment) -> Result<Place, Limit> {
        let mut place = self.enter_unknown();
        if limits.source_rate.is_none() && limits.source_connections_max == 0 {
            return Ok(place);
        }
        let mut tables = self.tables();
        if let Some(rate) = limits.source_rate {
            let bucket = tables.rates.touch(source);
            let is_over = bucket.free_at(rate, now).is_some();
            if is_over {
                return Err(Limit::AddressConnectionRate);
            }
            bucket.charge(rate, 1, now);
        }
        let max = limits.source_connections_max;
        let open = tables.sources.entry(source).or_default();
        if max > 0 && *open >= max {
            return Err(Limit::AddressConnections);
        }
        *open += 1;
        place.source = Some(source);
        Ok(place)
    }

    /// A connection without an address comes: no limit by address holds for it.
    pub fn enter_unknown(self: &Arc<Self>) -> Place {
        Place {
            admission: self.clone(),
            source: None,
        }
    }

    /// A client that has shown that it is `user` connects.
    ///
    /// # Errors
    /// The user has as many connections as may be, under other client ids.
    pub fn enter_user(
        self: &Arc<Self>,
        user: &str,
        client_id: &str,
        limits: &AdmissionLimits,
    ) -> Result<Option<UserPlace>, Limit> {
        let max = limits.user_connections_max as usize;
        if max == 0 {
            return Ok(None);
        }
        let mut tables = self.tables();
        let clients = tables.users.entry(user.into()).or_default();
        if on(Check::UserConnections) && !clients.contains_key(client_id) && clients.len() >= max {
            return Err(Limit::UserConnections);
        }
        *clients.entry(client_id.into()).or_default() += 1;
        Ok(Some(UserPlace {
            admission: self.clone(),
            user: user.into(),
            client_id: client_id.into(),
        }))
    }

    fn tables(&self) -> MutexGuard<'_, Tables> {
        // Counts are whole after every statement.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Some(source) = self.source else { return };
        let mut tables = self.admission.tables();
        if let Some(open) = tables.sources.get_mut(&source) {
            *open -= 1;
            if *open == 0 {
                tables.sources.remove(&source);
            }
        }
    }
}

impl Drop for UserPlace {
    fn drop(&mut self) {
        let mut tables = self.admission.tables();
        let Some(clients) = tables.users.get_mut(&self.user) else {
            return;
        };
        if let Some(connections) = clients.get_mut(&self.client_id) {
            *connections -= 1;
            if *connections == 0 {
                clients.remove(&self.client_id);
            }
        }
        if clients.is_empty() {
            tables.users.remove(&self.user);
        }
    }
}

/// The part of an IPv6 address that names its network.
const NETWORK: u128 = !(u64::MAX as u128);
/// A few megabytes. An attacker with more addresses than this is not stopped by what is counted by address.
const RECENT_SOURCES: usize = 50_000;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn source(text: &str) -> Source {
        text.parse::<IpAddr>().expect("an address").into()
    }

    #[test]
    fn a_source_is_an_address_or_a_network() {
        assert_eq!(source("::ffff:10.0.0.1"), source("10.0.0.1"));
        assert_ne!(source("10.0.0.1"), source("10.0.0.2"));
        assert_eq!(source("2001:db8::1"), source("2001:db8::ffff:1"));
        assert_ne!(source("2001:db8:0:1::1"), source("2001:db8::1"));
        assert_eq!(source("2001:db8::1").to_string(), "2001:db8::/64");
        assert_eq!(source("10.0.0.1").to_string(), "10.0.0.1");
    }

    #[test]
    fn places_are_bounded_and_given_back_once() {
        let admission = Arc::new(Admission::default());
        let limits = AdmissionLimits {
            source_connections_max: 2,
            ..AdmissionLimits::default()
        };
        let enter = |text| admission.enter(source(text), &limits, Moment(0));
        let (one, two) = (enter("10.0.0.1").expect("room"), enter("10.0.0.1").expect("room"));
        assert_eq!(enter("10.0.0.1").err(), Some(Limit::AddressConnections));
        let other = enter("10.0.0.2").expect("another source");
        drop(one);
        let three = enter("10.0.0.1").expect("room again");
        assert_eq!(enter("10.0.0.1").err(), Some(Limit::AddressConnections));
        drop((two, three, other));
        assert!(admission.tables().sources.is_empty());
        // What has no limit costs nothing.
        let free = admission.enter(source("10.0.0.1"), &AdmissionLimits::default(), Moment(0));
        assert!(free.is_ok_and(|place| place.source.is_none()) && admission.tables().sources.is_empty());
    }

    #[test]
    fn a_source_above_its_rate_waits_and_the_others_do_not() {
        let admission = Arc::new(Admission::default());
        let limits = AdmissionLimits {
            source_rate: Rate::new(2, Duration::from_secs(1)),
            ..AdmissionLimits::default()
        };
        let enter = |text, millis: u64| admission.enter(source(text), &limits, Moment(millis * 1_000_000)).err();
        assert_eq!([enter("10.0.0.1", 0), enter("10.0.0.1", 0)], [None, None]);
        assert_eq!(enter("10.0.0.1", 0), Some(Limit::AddressConnectionRate));
        assert_eq!(enter("10.0.0.1", 499), Some(Limit::AddressConnectionRate));
        assert_eq!(enter("10.0.0.2", 0), None);
        assert_eq!(enter("10.0.0.1", 500), None);
    }

    #[test]
    fn a_client_that_takes_its_own_session_over_needs_no_second_place() {
        let admission = Arc::new(Admission::default());
        let limits = AdmissionLimits {
            user_connections_max: 1,
            ..AdmissionLimits::default()
        };
        let enter = |user, client_id| admission.enter_user(user, client_id, &limits);
        let first = enter("alice", "a").expect("room");
        let again = enter("alice", "a").expect("the same client");
        assert_eq!(enter("alice", "b").err(), Some(Limit::UserConnections));
        drop(first);
        assert_eq!(enter("alice", "b").err(), Some(Limit::UserConnections), "one is there");
        let bob = enter("bob", "b").expect("another user");
        drop((again, bob));
        assert!(admission.tables().users.is_empty());
        assert!(enter("alice", "b").is_ok_and(|place| place.is_some()));
    }
}
