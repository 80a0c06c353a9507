//! Which filters changed lately: a match that is cached need not be made anew where none of them matches its topic.
//!
//! ```text
//!   entry 7: a/+    entry 8: c    entry 8: d/#         everything after `complete_since` is here
//! ```
//!
//! Memory only: it says nothing about what was before this state was loaded.
//!
//! Invariant `subscribe-visible`: whatever may have changed the match of a topic since an entry is told, or that it is not known.

use std::collections::VecDeque;

use crate::topic::{matches, share_parts};

#[derive(Debug, Default)]
pub(super) struct RouteChanges {
    /// Filters without their Share Names, by the entry that changed who is behind them; in order.
    filters: VecDeque<(u64, Box<str>)>,
    /// Every change of a later entry is among `filters`.
    complete_since: u64,
}

impl RouteChanges {
    /// Nothing is known of the entries up to `index`.
    pub fn all(&mut self, index: u64) {
        self.filters.clear();
        self.complete_since = index;
    }

    /// Who is behind `filter` has changed. `index` never goes back.
    pub fn filter(&mut self, index: u64, filter: &str) {
        let filter = share_parts(filter).map_or(filter, |(_, filter)| filter);
        if self.filters.len() >= FILTERS_MAX
            && let Some((forgotten, _)) = self.filters.pop_front()
        {
            self.complete_since = forgotten;
        }
        self.filters.push_back((index, filter.into()));
    }

    /// Each of `filters` has changed.
    pub fn each(&mut self, index: u64, filters: impl ExactSizeIterator<Item = impl AsRef<str>>) {
        match filters.len() > FILTERS_MAX {
            true => self.all(index),
            false => filters.for_each(|filter| self.filter(index, filter.as_ref())),
        }
    }

    /// Whether nothing that the entries after `since` changed matches `topic`; false if that is not known.
    pub fn spare(&self, topic: &str, since: u64) -> bool {
        since >= self.complete_since && {
            let later = self.filters.partition_point(|(index, _)| *index <= since);
            self.filters.range(later..).all(|(_, filter)| !matches(filter, topic))
        }
    }
}

/// To look through them costs as much as to match a topic or two anew.
const FILTERS_MAX: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_is_spared_by_what_does_not_match_it() {
        let mut changes = RouteChanges::default();
        changes.all(5);
        assert!(!changes.spare("a", 4), "what was before is not known");
        assert!(changes.spare("a", 5));
        changes.filter(6, "a/+");
        changes.filter(8, "$share/g/c/#");
        changes.filter(8, "d");
        let spared = |topic, since| changes.spare(topic, since);
        assert_eq!(
            (spared("a/b", 5), spared("a/b", 6), spared("a", 5)),
            (false, true, true)
        );
        assert_eq!((spared("c", 7), spared("d", 7), spared("d", 8)), (false, false, true));
    }

    #[test]
    fn what_is_forgotten_is_not_known() {
        let mut changes = RouteChanges::default();
        for index in 1..=FILTERS_MAX as u64 + 1 {
            changes.filter(index, "a");
        }
        assert!(!changes.spare("b", 0));
        assert!(changes.spare("b", 1) && !changes.spare("a", 1));
        let many: Vec<Box<str>> = vec!["a".into(); FILTERS_MAX + 1];
        changes.each(100, many.iter());
        assert!(!changes.spare("b", 99) && changes.spare("b", 100));
        // All of one entry: not even that is whole.
        for _ in 0..=FILTERS_MAX {
            changes.filter(101, "a");
        }
        assert!(!changes.spare("b", 100) && changes.spare("a", 101));
    }
}
