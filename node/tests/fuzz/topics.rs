//! Topic matching: the tree and the function against a matcher that only follows the text of the standard, and the grammar
//! against one. An input is a Topic Name and Topic Filters, a line each.

use super::corpus;
use super::fuzzing::{Target, fuzz, outcome};
use lontra::protocol::codec::topic_grammar::{
    canonical, check_topic_filter, check_topic_name, check_utf8, split_shared,
};
use lontra_storage::topic;
use lontra_storage::topic_tree::TopicTree;
use std::collections::BTreeSet;

#[test]
fn topics() {
    let target = Target {
        name: "topics",
        corpus: &corpus("topics"),
        seeds: vec![
            b"a/b\n#\n+/b\na/+\na/b/#\n/a/b".to_vec(),
            b"$SYS/x\n#\n$SYS/#\n+/x\n$SYS/+".to_vec(),
            "é//\n+/+/+\né/#\n//\n$share/g/a/#".as_bytes().to_vec(),
        ],
        words: &[
            b"/",
            b"+",
            b"#",
            b"/#",
            b"/+",
            b"$",
            b"$share/",
            b"$share/g/",
            b"$queue/",
            b"$exclusive/",
            b"\n",
            b"\n#\n",
            "é".as_bytes(),
            b"\0",
        ],
        memory: (64 << 10, 512),
    };
    fuzz(target, |input| {
        let mut lines = input.split(|byte| *byte == b'\n').map(check_utf8);
        let Some(Ok(name)) = lines.next() else { return 0 };
        let named = check_topic_name(name).is_ok();
        assert_eq!(named, !name.is_empty() && !name.contains(['+', '#', '\0']), "{name:?}");
        let filters: BTreeSet<&str> = lines.flatten().take(12).collect();
        let mut tree = TopicTree::<String>::default();
        let mut right = BTreeSet::new();
        for filter in filters {
            let is_right = check_topic_filter(filter).is_ok();
            assert_eq!(is_right, is_filter(filter), "{filter:?}");
            if is_right {
                let filter = canonical(filter.to_owned());
                let plain = split_shared(&filter).map_or(&*filter, |(_, filter)| filter).to_owned();
                *tree.entry(&plain) = plain.clone();
                right.insert(plain);
            }
        }
        assert_eq!(tree.len(), right.len());
        if !named {
            return outcome((false, right.len()));
        }
        let mut found = BTreeSet::new();
        tree.matches(name, &mut |filter| {
            assert!(found.insert(&**filter), "{filter:?} twice for {name:?}")
        });
        let expected: BTreeSet<&str> = right
            .iter()
            .map(|filter| &**filter)
            .filter(|filter| matches(filter, name))
            .collect();
        assert_eq!(found, expected, "{name:?} in the tree of {right:?}");
        for filter in &right {
            assert_eq!(
                topic::matches(filter, name),
                expected.contains(&**filter),
                "{filter:?} on {name:?}"
            );
        }
        let matched = expected.len();
        for filter in &right {
            tree.update(filter, |_| false);
        }
        assert!(tree.is_empty());
        outcome((
            name.starts_with('$'),
            name.matches('/').count().min(6),
            right.len(),
            matched,
        ))
    });
}

/// Sections 4.7.1 to 4.7.3 and 4.8.2, level by level; `$queue/` is a shared subscription, `$exclusive/` none.
fn is_filter(filter: &str) -> bool {
    let levels: Vec<&str> = filter.split('/').collect();
    let plain = match levels[..] {
        ["$share", group, ref rest @ ..] => {
            let named = !group.is_empty() && !group.contains(['+', '#']);
            if !named || rest.is_empty() || rest == [""] {
                return false;
            }
            rest
        }
        ["$queue", ref rest @ ..] if !rest.is_empty() => {
            if rest == [""] {
                return false;
            }
            rest
        }
        ["$exclusive", ref rest @ ..] if !rest.is_empty() => {
            let is_special = matches!(rest, ["$share" | "$queue" | "$exclusive", _, ..]);
            if rest == [""] || is_special {
                return false;
            }
            rest
        }
        ref all => all,
    };
    let last = plain.len() - 1;
    let level_is_right = |(at, level): (usize, &&str)| match *level {
        "+" => true,
        "#" => at == last,
        other => !other.contains(['+', '#']),
    };
    !filter.is_empty() && !filter.contains('\0') && plain.iter().enumerate().all(level_is_right)
}

fn matches(filter: &str, name: &str) -> bool {
    fn levels(filter: &[&str], name: &[&str]) -> bool {
        match (filter, name) {
            (["#"], _) | ([], []) => true,
            (["+", filter @ ..], [_, name @ ..]) => levels(filter, name),
            ([one, filter @ ..], [other, name @ ..]) => one == other && levels(filter, name),
            _ => false,
        }
    }
    if name.starts_with('$') && filter.starts_with(['+', '#']) {
        return false;
    }
    levels(
        &filter.split('/').collect::<Vec<_>>(),
        &name.split('/').collect::<Vec<_>>(),
    )
}
