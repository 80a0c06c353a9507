//! Topic Filters against Topic Filters: what a rule means for a subscription. [MQTT-4.7]
//!
//! Both are well formed. `$` as everywhere: a wildcard at the first level matches no name that begins with it.
//! [MQTT-4.7.2-1]

/// Whether `outer` matches every topic that `inner` matches.
pub fn covers(outer: &str, inner: &str) -> bool {
    if begins_with_wildcard(outer) && inner.starts_with('$') {
        return false;
    }
    // The same, since every topic has a first level; further down `a/#` matches `a` too.
    let inner = if inner == "#" { "+/#" } else { inner };
    let (mut outer, mut inner) = (outer.split('/'), inner.split('/'));
    loop {
        match (outer.next(), inner.next()) {
            (Some("#"), _) | (None, None) => return true,
            (Some("+"), Some(level)) if level != "#" => {}
            (Some(one), Some(other)) if one == other && one != "+" => {}
            _ => return false,
        }
    }
}

/// Whether there can be a topic that both match.
pub fn overlap(one: &str, other: &str) -> bool {
    if begins_with_wildcard(one) && other.starts_with('$') || begins_with_wildcard(other) && one.starts_with('$') {
        return false;
    }
    let (mut one, mut other) = (one.split('/'), other.split('/'));
    loop {
        match (one.next(), other.next()) {
            (Some("#"), _) | (_, Some("#")) | (None, None) => return true,
            (Some("+"), Some(_)) | (Some(_), Some("+")) => {}
            (Some(level), Some(same)) if level == same => {}
            _ => return false,
        }
    }
}

fn begins_with_wildcard(filter: &str) -> bool {
    filter.starts_with(['+', '#'])
}

/// Whether a text can be a Topic Filter. [MQTT-4.7.1-1] [MQTT-4.7.1-2]
pub fn is_filter(filter: &str) -> bool {
    let mut levels = filter.split('/').peekable();
    let mut is_good = !filter.is_empty() && filter.len() <= 65_535 && !filter.contains('\0');
    while let Some(level) = levels.next() {
        is_good &= match level {
            "+" => true,
            "#" => levels.peek().is_none(),
            level => !level.contains(['+', '#']),
        };
    }
    is_good
}

#[cfg(test)]
mod tests {
    use lontra_storage::topic::matches;

    use super::*;

    /// All filters and topics of up to three levels over a small alphabet.
    fn all(levels: &[&str]) -> Vec<String> {
        let mut all: Vec<String> = Vec::new();
        for a in levels {
            all.push((*a).into());
            for b in levels {
                all.push(format!("{a}/{b}"));
                all.extend(levels.iter().map(|c| format!("{a}/{b}/{c}")));
            }
        }
        all
    }

    #[test]
    fn covering_and_overlapping_are_what_matching_says_of_every_topic() {
        let mut filters = all(&["a", "b", "+", "#", "$s"]);
        filters.retain(|filter| is_filter(filter));
        let mut topics = all(&["a", "b", "c", "$s", ""]);
        topics.extend(["a/b/c/d", "a/a/a/a", "b/b/b/b", "$s/a/b/c", "c/c/c/c"].map(String::from));
        topics.retain(|topic| !topic.is_empty());
        assert!(filters.len() > 60, "{}", filters.len());
        for one in &filters {
            for other in &filters {
                let of = |filter: &String| -> Vec<&String> {
                    topics.iter().filter(|topic| matches(filter, topic)).collect()
                };
                let (ones, others) = (of(one), of(other));
                let overlapping = ones.iter().any(|topic| others.contains(topic));
                assert_eq!(overlap(one, other), overlapping, "{one} and {other}");
                let covering = others.iter().all(|topic| ones.contains(topic));
                assert_eq!(covers(one, other), covering, "{one} of {other}");
            }
        }
    }

    #[test]
    fn filters_are_told_from_other_texts() {
        for good in ["a", "/", "#", "+", "a/+/#", "$SYS/#", "a b/é"] {
            assert!(is_filter(good), "{good}");
        }
        for bad in ["", "a#", "#/a", "a+", "+a/b", "a/#/b", "a\0"] {
            assert!(!is_filter(bad), "{bad:?}");
        }
    }
}
