//! A trie over topic filters: one value per filter, found by topic name.
//!
//!     "a/+/c"   a ── + ── c •          lookups walk exact and `+` children, and collect `#` on the way
//!
//! Cost of a match: the filters that match, times their depth; not the number of filters.

use std::collections::HashMap;

/// Filters with a value each.
pub struct TopicTree<V> {
    root: Node<V>,
    filters: usize,
}

struct Node<V> {
    children: HashMap<Box<str>, Node<V>>,
    value: Option<V>,
}

impl<V> Default for Node<V> {
    fn default() -> Self {
        Node {
            children: HashMap::new(),
            value: None,
        }
    }
}

impl<V> Default for TopicTree<V> {
    fn default() -> Self {
        TopicTree {
            root: Node::default(),
            filters: 0,
        }
    }
}

impl<V> TopicTree<V> {
    /// Number of filters that have a value.
    pub fn len(&self) -> usize {
        self.filters
    }

    pub fn is_empty(&self) -> bool {
        self.filters == 0
    }

    /// The value of `filter`, made by default if it is new.
    pub fn entry(&mut self, filter: &str) -> &mut V
    where
        V: Default,
    {
        let mut node = &mut self.root;
        for level in filter.split('/') {
            if !node.children.contains_key(level) {
                node.children.insert(level.into(), Node::default());
            }
            node = node.children.get_mut(level).expect("inserted above");
        }
        if node.value.is_none() {
            self.filters += 1;
        }
        node.value.get_or_insert_with(V::default)
    }

    pub fn get(&self, filter: &str) -> Option<&V> {
        let mut node = &self.root;
        for level in filter.split('/') {
            node = node.children.get(level)?;
        }
        node.value.as_ref()
    }

    /// Changes the value of `filter`; it is removed, with branches that lead nowhere, when `change` answers false.
    pub fn update(&mut self, filter: &str, change: impl FnOnce(&mut V) -> bool) {
        let levels: Vec<&str> = filter.split('/').collect();
        if Self::update_below(&mut self.root, &levels, change) {
            self.filters -= 1;
        }
    }

    /// Whether a value was removed.
    fn update_below(node: &mut Node<V>, levels: &[&str], change: impl FnOnce(&mut V) -> bool) -> bool {
        let Some((level, rest)) = levels.split_first() else {
            let Some(value) = node.value.as_mut() else { return false };
            if change(value) {
                return false;
            }
            node.value = None;
            return true;
        };
        let Some(child) = node.children.get_mut(*level) else {
            return false;
        };
        let removed = Self::update_below(child, rest, change);
        if removed && child.value.is_none() && child.children.is_empty() {
            node.children.remove(*level);
        }
        removed
    }

    /// Calls `visit` with the value of every filter that matches `topic`, each once. [MQTT-4.7.2-1]
    pub fn matches<'a>(&'a self, topic: &str, visit: &mut impl FnMut(&'a V)) {
        let wildcards_at_root = !topic.starts_with('$');
        Self::match_below(&self.root, Some(topic), wildcards_at_root, visit);
    }

    fn match_below<'a>(node: &'a Node<V>, rest: Option<&str>, wildcards: bool, visit: &mut impl FnMut(&'a V)) {
        if wildcards && let Some(value) = node.children.get("#").and_then(|child| child.value.as_ref()) {
            visit(value);
        }
        let Some(rest) = rest else {
            if let Some(value) = &node.value {
                visit(value);
            }
            return;
        };
        let (level, rest) = match rest.split_once('/') {
            Some((level, rest)) => (level, Some(rest)),
            None => (rest, None),
        };
        if let Some(child) = node.children.get(level) {
            Self::match_below(child, rest, true, visit);
        }
        if wildcards && let Some(child) = node.children.get("+") {
            Self::match_below(child, rest, true, visit);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topic::matches;

    const FILTERS: [&str; 17] = [
        "#", "+", "+/+", "a", "a/#", "a/+", "a/b", "a/b/#", "a/+/c", "/", "/+", "+/b/#", "$SYS/#", "$SYS/+", "a//b",
        "é/+", "a/b/c/d",
    ];
    const TOPICS: [&str; 15] = [
        "a", "a/b", "a/b/c", "b", "/", "//", "/a", "$SYS/x", "$SYS", "a//b", "é/x", "é", "a/b/c/d", "x/b/y", "a/",
    ];

    #[test]
    fn the_tree_agrees_with_matching_each_filter() {
        let mut tree = TopicTree::<String>::default();
        for filter in FILTERS {
            *tree.entry(filter) = filter.to_string();
        }
        for topic in TOPICS {
            let mut found = Vec::new();
            tree.matches(topic, &mut |filter: &String| found.push(filter.as_str()));
            found.sort_unstable();
            let mut expected: Vec<&str> = FILTERS.into_iter().filter(|filter| matches(filter, topic)).collect();
            expected.sort_unstable();
            assert_eq!(found, expected, "{topic}");
        }
    }

    #[test]
    fn removal_leaves_no_branch_behind() {
        let mut tree = TopicTree::<u32>::default();
        for filter in FILTERS {
            *tree.entry(filter) = 1;
        }
        assert_eq!(tree.len(), FILTERS.len());
        for filter in FILTERS {
            tree.update(filter, |_| true);
            assert!(tree.get(filter).is_some());
            tree.update(filter, |_| false);
            assert!(tree.get(filter).is_none());
        }
        assert!(tree.is_empty());
        assert!(tree.root.children.is_empty());
    }
}
