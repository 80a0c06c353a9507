//! Who may begin a handshake with this node: anybody can send packets here, and a handshake costs more than they do.
//!
//! ```text
//!   Initial ─▶ many under way, and nothing shows that it comes from where it says? ─▶ Retry: costs no memory here
//!           ─▶ as many of this address as may, or of all together? ─▶ refused
//!           ─▶ a place, until the handshake is done
//! ```
//!
//! Sans-io. Invariant `bounded`: at most [`HANDSHAKES_MAX`] are under way, and [`OF_ADDRESS_MAX`] of one address, which has
//! shown that it is there once there are more than [`UNPROVEN_MAX`].

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Handshakes under way. Its lock guards nothing else.
#[derive(Debug, Default)]
pub(super) struct Gate(Mutex<UnderWay>);

#[derive(Debug, Default)]
struct UnderWay {
    all: usize,
    of: HashMap<IpAddr, usize>,
}

/// What is done with who knocks.
#[derive(Debug)]
pub(super) enum Knock {
    Enter(Place),
    /// It is to show first that packets reach it where it says that it is.
    Retry,
    Refuse(Refused),
}

/// Why nobody is let in, for the label `reason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// As many of this address are under way as may.
    Address,
    /// As many are under way as may.
    Crowd,
    /// It was let in, and is no peer.
    Handshake,
}

impl Refused {
    pub(super) const ALL: [Refused; 3] = [Refused::Address, Refused::Crowd, Refused::Handshake];

    pub(super) fn label(self) -> &'static str {
        match self {
            Refused::Address => "address",
            Refused::Crowd => "crowd",
            Refused::Handshake => "handshake",
        }
    }
}

/// Given back when dropped.
#[derive(Debug)]
pub(super) struct Place {
    gate: Arc<Gate>,
    source: IpAddr,
}

impl Gate {
    pub(super) fn knock(self: &Arc<Self>, address: IpAddr, is_proven: bool) -> Knock {
        let source = source(address);
        let mut under_way = self.locked();
        if !is_proven && under_way.all >= UNPROVEN_MAX {
            return Knock::Retry;
        }
        let of_source = under_way.of.get(&source).copied().unwrap_or_default();
        if of_source >= OF_ADDRESS_MAX {
            return Knock::Refuse(Refused::Address);
        }
        if under_way.all >= HANDSHAKES_MAX {
            return Knock::Refuse(Refused::Crowd);
        }
        under_way.all += 1;
        under_way.of.insert(source, of_source + 1);
        let gate = self.clone();
        Knock::Enter(Place { gate, source })
    }

    fn locked(&self) -> MutexGuard<'_, UnderWay> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut under_way = self.gate.locked();
        under_way.all -= 1;
        if let Some(of_source) = under_way.of.get_mut(&self.source) {
            *of_source -= 1;
            if *of_source == 0 {
                under_way.of.remove(&self.source);
            }
        }
    }
}

/// Who has one address of a /64 of IPv6 has all of it.
fn source(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => Ipv6Addr::from(u128::from(address) & (u128::MAX << 64)).into(),
    }
}

/// Nodes of a cluster dial two connections each, and may all start at once on one machine.
const UNPROVEN_MAX: usize = 64;
const OF_ADDRESS_MAX: usize = 128;
const HANDSHAKES_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    fn enter(gate: &Arc<Gate>, address: &str, is_proven: bool) -> Option<Place> {
        match gate.knock(address.parse().unwrap(), is_proven) {
            Knock::Enter(place) => Some(place),
            Knock::Retry | Knock::Refuse(_) => None,
        }
    }

    #[test]
    fn one_address_leaves_room_for_the_others_and_many_must_show_that_they_are_there() {
        let gate = Arc::new(Gate::default());
        let knock = |address: &str, is_proven| gate.knock(address.parse().unwrap(), is_proven);
        let mut places: Vec<Place> = (0..UNPROVEN_MAX)
            .filter_map(|_| enter(&gate, "10.0.0.1", false))
            .collect();
        assert_eq!(places.len(), UNPROVEN_MAX);
        assert!(matches!(knock("10.0.0.2", false), Knock::Retry), "whoever it is");
        places.extend((UNPROVEN_MAX..OF_ADDRESS_MAX).filter_map(|_| enter(&gate, "::ffff:10.0.0.1", true)));
        assert_eq!(places.len(), OF_ADDRESS_MAX);
        assert!(matches!(knock("10.0.0.1", true), Knock::Refuse(Refused::Address)));
        places.extend(enter(&gate, "10.0.0.2", true));
        places.extend((0..500).filter_map(|n| enter(&gate, &format!("2001:db8::{n:x}"), true)));
        assert_eq!(places.len(), HANDSHAKES_MAX);
        assert!(
            matches!(knock("10.0.0.3", true), Knock::Refuse(Refused::Crowd)),
            "as many as may"
        );
        drop(places);
        let under_way = gate.locked();
        assert_eq!((under_way.all, under_way.of.len()), (0, 0), "each place was given back");
    }
}
