//! Connections of the HTTP port: how many there may be, so that whoever opens many and says little keeps nobody from `/health`.
//!
//! Sans-io. Invariant `bounded`: at most [`ALL_MAX`], and [`OF_ADDRESS_MAX`] of one address (of one /64 of IPv6). This machine
//! is let in beside all others: it is asked whether it is alive.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Its lock guards nothing else.
#[derive(Debug, Default)]
pub(crate) struct Places(Mutex<Taken>);

#[derive(Debug, Default)]
struct Taken {
    /// But those of this machine.
    all: usize,
    of: HashMap<IpAddr, usize>,
}

/// Given back when dropped.
#[derive(Debug)]
pub(crate) struct Place {
    places: Arc<Places>,
    source: IpAddr,
}

impl Places {
    /// None: there are as many as may be.
    pub(crate) fn enter(self: &Arc<Self>, address: IpAddr) -> Option<Place> {
        let source = source(address);
        let mut taken = self.locked();
        let of_source = taken.of.get(&source).copied().unwrap_or_default();
        let is_full = !source.is_loopback() && taken.all >= ALL_MAX;
        if is_full || of_source >= OF_ADDRESS_MAX {
            return None;
        }
        taken.all += usize::from(!source.is_loopback());
        taken.of.insert(source, of_source + 1);
        let places = self.clone();
        Some(Place { places, source })
    }

    fn locked(&self) -> MutexGuard<'_, Taken> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.locked();
        taken.all -= usize::from(!self.source.is_loopback());
        if let Some(of_source) = taken.of.get_mut(&self.source) {
            *of_source -= 1;
            if *of_source == 0 {
                taken.of.remove(&self.source);
            }
        }
    }
}

/// Who has one address of a /64 of IPv6 has all of it.
fn source(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(Ipv6Addr::LOCALHOST) => Ipv6Addr::LOCALHOST.into(),
        IpAddr::V6(address) => Ipv6Addr::from(u128::from(address) & (u128::MAX << 64)).into(),
    }
}

/// More than any dashboard, or a proxy, opens at once.
pub(crate) const OF_ADDRESS_MAX: usize = 128;
const ALL_MAX: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_takes_all_places_and_this_machine_has_its_own() {
        let places = Arc::new(Places::default());
        let enter = |address: &str| places.enter(address.parse().unwrap());
        let mut taken: Vec<Place> = (0..OF_ADDRESS_MAX).filter_map(|_| enter("10.0.0.1")).collect();
        assert_eq!(taken.len(), OF_ADDRESS_MAX);
        assert!(enter("10.0.0.1").is_none() && enter("::ffff:10.0.0.1").is_none());
        taken.extend((0..ALL_MAX).filter_map(|n| enter(&format!("2001:db8::{n:x}"))));
        assert_eq!(taken.len(), 2 * OF_ADDRESS_MAX, "one network is one source");
        taken.extend((0..ALL_MAX).filter_map(|n| enter(&format!("10.1.{}.{}", n / 250, n % 250))));
        assert_eq!(taken.len(), ALL_MAX);
        assert!(enter("10.0.0.9").is_none());
        for here in ["127.0.0.1", "::1"] {
            taken.push(enter(here).expect("its own"));
        }
        drop(taken);
        let left = places.locked();
        assert_eq!((left.all, left.of.len()), (0, 0));
    }
}
