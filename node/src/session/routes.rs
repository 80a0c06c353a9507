//! What one connection counts for in its node's routes: each filter once, and taken back once.
//!
//! ```text
//!   SUBSCRIBE ─▶ add ─▶ Cluster::count_routes … UNSUBSCRIBE, failure ─▶ take ─┐
//!                                             end of the connection ─▶ end ─┴▶ Cluster::remove_routes
//! ```
//!
//! The node's counts are of all its connections. Whoever takes back what it has not counted, or a second time, takes away the
//! route of another, who then misses what is published elsewhere (P4): a connection may end while its SUBSCRIBE is under way,
//! before its filters are counted, and before that fails. Durable sessions have their routes in the control plane, and count
//! for nothing here.

use std::cell::RefCell;
use std::collections::HashSet;

#[derive(Debug)]
pub struct Routes {
    /// None once the connection has ended.
    counted: RefCell<Option<HashSet<Box<str>>>>,
}

impl Default for Routes {
    fn default() -> Self {
        Routes {
            counted: RefCell::new(Some(HashSet::new())),
        }
    }
}

impl Routes {
    /// Those of `filters` that it did not count for yet: they are to be added now. None once the connection has ended: nobody
    /// would take them back.
    pub fn add(&self, filters: Vec<Box<str>>) -> Option<Vec<Box<str>>> {
        let mut counted = self.counted.borrow_mut();
        let counted = counted.as_mut()?;
        let new = filters.into_iter().filter(|filter| counted.insert(filter.clone()));
        Some(new.collect())
    }

    /// Those of `filters` that it counts for: they are to be taken back now.
    pub fn take(&self, filters: &[Box<str>]) -> Vec<Box<str>> {
        let mut counted = self.counted.borrow_mut();
        let Some(counted) = counted.as_mut() else {
            return Vec::new();
        };
        filters.iter().filter_map(|filter| counted.take(filter)).collect()
    }

    /// The connection has ended; all that are to be taken back.
    pub fn end(&self) -> Vec<Box<str>> {
        self.counted.take().into_iter().flatten().collect()
    }

    pub fn is_over(&self) -> bool {
        self.counted.borrow().is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filters(of: &[&str]) -> Vec<Box<str>> {
        of.iter().map(|filter| Box::from(*filter)).collect()
    }

    #[test]
    fn what_was_counted_is_taken_back_once() {
        let routes = Routes::default();
        assert_eq!(routes.add(filters(&["a", "b", "a"])), Some(filters(&["a", "b"])));
        assert_eq!(routes.add(filters(&["b", "c"])), Some(filters(&["c"])));
        assert_eq!(routes.take(&filters(&["b", "never"])), filters(&["b"]));
        assert!(routes.take(&filters(&["b"])).is_empty());
        let mut left = routes.end();
        left.sort();
        assert_eq!(left, filters(&["a", "c"]));
        assert!(routes.end().is_empty());
        // Its SUBSCRIBE fails only now.
        assert!(routes.take(&filters(&["a"])).is_empty());
    }

    #[test]
    fn a_connection_that_has_ended_counts_for_nothing() {
        let routes = Routes::default();
        assert!(!routes.is_over());
        routes.end();
        assert!(routes.is_over());
        assert_eq!(routes.add(filters(&["a"])), None);
    }
}
