//! Topic Filters, matched by code of the harness's own.

use std::borrow::Cow;

/// A filter as subscribed, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter<'a> {
    /// Share Name of `$share/name/…`.
    pub share: Option<&'a str>,
    /// The filter without the share prefix.
    pub levels: &'a str,
}

impl<'a> Filter<'a> {
    pub fn new(filter: &'a str) -> Filter<'a> {
        let shared = filter.strip_prefix("$share/").and_then(|rest| rest.split_once('/'));
        match shared {
            Some((share, levels)) => Filter {
                share: Some(share),
                levels,
            },
            None => Filter {
                share: None,
                levels: filter,
            },
        }
    }

    pub fn is_wild(&self) -> bool {
        self.levels.contains(['+', '#'])
    }

    pub fn matches(&self, topic: &str) -> bool {
        matches(self.levels, topic)
    }

    /// Who shares the queue: name and filter. None for an ordinary subscription.
    pub fn group(&self) -> Option<Cow<'a, str>> {
        self.share.map(|share| Cow::Owned(format!("{share}/{}", self.levels)))
    }
}

/// Whether `topic` matches `filter`, which has no share prefix. [MQTT-4.7.1-2] [MQTT-4.7.1-3] [MQTT-4.7.2-1]
pub fn matches(filter: &str, topic: &str) -> bool {
    if topic.starts_with('$') && filter.starts_with(['+', '#']) {
        return false;
    }
    let mut levels = topic.split('/');
    for wanted in filter.split('/') {
        if wanted == "#" {
            return true;
        }
        match levels.next() {
            Some(level) if wanted == "+" || wanted == level => {}
            _ => return false,
        }
    }
    levels.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_match_as_the_standard_says() {
        for (filter, topic, expected) in [
            ("a/b", "a/b", true),
            ("a/b", "a/b/c", false),
            ("a/+", "a/b", true),
            ("a/+", "a/", true),
            ("a/+", "a", false),
            ("a/#", "a", true),
            ("a/#", "a/b/c", true),
            ("#", "a/b", true),
            ("#", "$SYS/x", false),
            ("+/x", "$SYS/x", false),
            ("$SYS/#", "$SYS/x", true),
            ("+/+", "/x", true),
            ("+", "/x", false),
        ] {
            assert_eq!(matches(filter, topic), expected, "{filter} {topic}");
        }
    }

    #[test]
    fn a_share_prefix_is_taken_off() {
        let filter = Filter::new("$share/g/a/+");
        assert_eq!((filter.share, filter.levels), (Some("g"), "a/+"));
        assert!(filter.matches("a/b"));
        assert_eq!(Filter::new("a/b").group(), None);
    }
}
