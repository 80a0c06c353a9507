//! Topic names and filters as the route table sees them. [MQTT-4.7]
//!
//! Grammar and UTF-8 are checked once at the edge (node's codec); here a filter is already well formed.

use crate::ids::ShardId;

/// Whether `filter` matches `topic`. Wildcards at the first level do not match names that begin with `$`.
/// [MQTT-4.7.2-1]
pub fn matches(filter: &str, topic: &str) -> bool {
    if topic.starts_with('$') && (filter.starts_with('+') || filter.starts_with('#')) {
        return false;
    }
    let mut filter_levels = filter.split('/');
    let mut topic_levels = topic.split('/');
    loop {
        match (filter_levels.next(), topic_levels.next()) {
            (Some("#"), _) => return true,
            (Some("+"), Some(_)) => {}
            (Some(expected), Some(level)) if expected == level => {}
            (None, None) => return true,
            _ => return false,
        }
    }
}

/// The Share Name and the Topic Filter of `$share/{name}/{filter}`; `None` for any other filter. [MQTT-4.8.2-1]
pub fn share_parts(filter: &str) -> Option<(&str, &str)> {
    let (name, filter) = filter.strip_prefix("$share/")?.split_once('/')?;
    let is_shared = !name.is_empty() && !name.contains(['+', '#']) && !filter.is_empty();
    is_shared.then_some((name, filter))
}

/// The shard in which a topic lives, for the life of the cluster: FNV-1a of the name, finished by a multiply-shift mix,
/// modulo the number of shards. Part of the data format (`readable-forever`).
pub fn shard_of(topic: &str, shards: u16) -> ShardId {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in topic.bytes() {
        hash = (hash ^ byte as u64).wrapping_mul(0x0000_0100_0000_01b3);
    }
    hash ^= hash >> 32;
    hash = hash.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    hash ^= hash >> 29;
    ShardId((hash % shards.max(1) as u64) as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_match_as_the_standard_says() {
        let check = |filter, topic, expected| assert_eq!(matches(filter, topic), expected, "{filter} on {topic}");
        check("sport/tennis/player1/#", "sport/tennis/player1", true);
        check("sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon", true);
        check("sport/#", "sport", true);
        check("#", "a/b", true);
        check("#", "/", true);
        check("sport/tennis/+", "sport/tennis/player1", true);
        check("sport/tennis/+", "sport/tennis/player1/ranking", false);
        check("sport/+", "sport", false);
        check("sport/+", "sport/", true);
        check("+/+", "/finance", true);
        check("/+", "/finance", true);
        check("+", "/finance", false);
        check("#", "$SYS/a", false);
        check("+/monitor", "$SYS/monitor", false);
        check("$SYS/#", "$SYS/monitor", true);
        check("$SYS/monitor/+", "$SYS/monitor/Clients", true);
        check("é/+", "é/", true);
        check("a/b", "a/b/c", false);
    }

    #[test]
    fn a_shared_filter_has_a_name_and_a_filter() {
        assert_eq!(share_parts("$share/g/a/+/#"), Some(("g", "a/+/#")));
        assert_eq!(share_parts("$share/é//"), Some(("é", "/")));
        assert_eq!(share_parts("$share/g/$SYS/#"), Some(("g", "$SYS/#")));
        for other in [
            "a/b",
            "$share",
            "$share/",
            "$share/g",
            "$share/g/",
            "$share//a",
            "$share/+/a",
            "$share/#/a",
            "a/$share/g/a",
            "$SHARE/g/a",
        ] {
            assert_eq!(share_parts(other), None, "{other}");
        }
    }

    #[test]
    fn the_shard_of_a_topic_never_changes() {
        let shards: Vec<u16> = ["", "a", "a/b", "sensors/17/temperature", "é"]
            .map(|t| shard_of(t, 12).0)
            .to_vec();
        assert_eq!(shards, GOLDEN_SHARDS, "golden: readable-forever");
        let mut counts = [0u32; 12];
        for n in 0..12_000 {
            counts[shard_of(&format!("sensors/{n}/temperature"), 12).0 as usize] += 1;
        }
        assert!(
            counts.iter().all(|count| (800..1200).contains(count)),
            "spread: {counts:?}"
        );
    }

    const GOLDEN_SHARDS: [u16; 5] = [3, 6, 8, 6, 8];
}
