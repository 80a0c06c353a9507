//! The table of stored keys: every key of a group, on this page.
//!
//! In the state database a key begins with `group (u32) · generation (u32)`; integers are big endian, so that keys sort
//! by number. Kinds are never reused (`readable-forever`); 0 is the group's `applied` row (`raft_state`).
//!
//! | kind | key after the prefix | value | group |
//! |---|---|---|---|
//! | 1 | offset | log time · encoded message | shard |
//! | 2 | offset | count of pending entries that remain (absolute) | shard |
//! | 3 | session · offset | QoS, flags, subscription identifiers as granted at the match | shard |
//! | 4 | node | incarnation · last sequence · replies of the last batches | shard |
//! | 5 | — | next offset · log time | shard |
//! | 6 | topic · offset | reserved: history by topic | shard |
//! | 7 | topic | the retained message: offset · log time · route version of its match · encoded message | shard |
//! | 8 | log time · topic | (empty) the retained message expires then | shard |
//! | 9 | session · Packet Identifier | offset: a QoS 2 PUBLISH received and not yet released | shard |
//! | 10 | session | the highest epoch that published QoS 2 | shard |
//! | 11 | session · epoch | log time: its will was appended | shard |
//! | 12 | session · filter | how far the replay of retained messages has come | shard |
//! | 13 | log time · id | encoded message: it is delayed until then | shard |
//! | 16 | node | up, incarnation, start | meta |
//! | 17 | session | client id, epoch, owner, expiry, … | meta |
//! | 18 | session · filter | subscription options | meta |
//! | 19 | node · filter | (empty) the node has connected subscribers | meta |
//! | 20 | — | log time | meta |
//! | 21 | shared group | Share Name, filter (members: kind 18) | meta |
//! | 22 | session · epoch | will, when it is due | meta |
//! | 23 | user name | password hash, groups | meta |
//! | 24 | — | access rules, in their order | meta |
//! | 25 | ban's target | end, reason, who set it | meta |
//! | 26 | key id | digest and role of a key of the admin API | meta |

use crate::ids::{DelayedId, NodeId, Offset, SessionEpoch, SessionId};
use crate::message::LogTime;

pub const MESSAGE: u8 = 1;
pub const REMAINING: u8 = 2;
pub const PENDING: u8 = 3;
pub const SENDER: u8 = 4;
pub const SHARD_HEAD: u8 = 5;
pub const RETAINED: u8 = 7;
pub const RETAINED_EXPIRY: u8 = 8;
pub const RECEIVED: u8 = 9;
pub const RECEIVED_EPOCH: u8 = 10;
pub const SHARD_WILL: u8 = 11;
pub const REPLAY: u8 = 12;
pub const DELAYED: u8 = 13;
pub const NODE: u8 = 16;
pub const SESSION: u8 = 17;
pub const SUBSCRIPTION: u8 = 18;
pub const NODE_ROUTE: u8 = 19;
pub const META_HEAD: u8 = 20;
pub const SHARE_GROUP: u8 = 21;
pub const WILL: u8 = 22;
pub const USER: u8 = 23;
pub const ACCESS_RULES: u8 = 24;
pub const BAN: u8 = 25;
pub const API_KEY: u8 = 26;

/// `kind · number`: messages, counts, senders, nodes, sessions.
pub fn number(kind: u8, number: u64) -> [u8; 9] {
    let mut key = [kind; 9];
    key[1..].copy_from_slice(&number.to_be_bytes());
    key
}

/// A message body.
pub fn message(offset: Offset) -> [u8; 9] {
    number(MESSAGE, offset.0)
}

/// How many pending entries a message still has.
pub fn remaining(offset: Offset) -> [u8; 9] {
    number(REMAINING, offset.0)
}

/// An entry of a session's queue.
pub fn pending(session: SessionId, offset: Offset) -> [u8; 17] {
    let mut key = [PENDING; 17];
    key[1..9].copy_from_slice(&session.0.to_be_bytes());
    key[9..].copy_from_slice(&offset.0.to_be_bytes());
    key
}

/// The offset in a key made by [`pending`].
pub fn offset_of_pending(key: &[u8]) -> Option<Offset> {
    let bytes: [u8; 8] = key.get(9..17)?.try_into().ok()?;
    Some(Offset(u64::from_be_bytes(bytes)))
}

/// A subscription of a durable session.
pub fn subscription(session: SessionId, filter: &str) -> Vec<u8> {
    number_and_text(SUBSCRIPTION, session.0, filter)
}

/// A filter for which a node has connected subscribers.
pub fn node_route(node: NodeId, filter: &str) -> Vec<u8> {
    number_and_text(NODE_ROUTE, node, filter)
}

/// The retained message of a topic.
pub fn retained(topic: &str) -> Vec<u8> {
    let mut key = Vec::with_capacity(1 + topic.len());
    key.push(RETAINED);
    key.extend_from_slice(topic.as_bytes());
    key
}

/// When the retained message of a topic expires.
pub fn retained_expiry(at: LogTime, topic: &str) -> Vec<u8> {
    number_and_text(RETAINED_EXPIRY, at.0, topic)
}

/// A QoS 2 PUBLISH that was received and not yet released.
pub fn received(session: SessionId, packet_id: u16) -> [u8; 11] {
    let mut key = [RECEIVED; 11];
    key[1..9].copy_from_slice(&session.0.to_be_bytes());
    key[9..].copy_from_slice(&packet_id.to_be_bytes());
    key
}

/// That the will of one connection of a session was appended to this shard.
pub fn shard_will(session: SessionId, epoch: SessionEpoch) -> [u8; 17] {
    session_and_epoch(SHARD_WILL, session, epoch)
}

/// The replay of retained messages to one subscription.
pub fn replay(session: SessionId, filter: &str) -> Vec<u8> {
    number_and_text(REPLAY, session.0, filter)
}

/// A message that is delayed until `due`.
pub fn delayed(due: LogTime, id: DelayedId) -> [u8; 17] {
    let mut key = [DELAYED; 17];
    key[1..9].copy_from_slice(&due.0.to_be_bytes());
    key[9..].copy_from_slice(&id.0.to_be_bytes());
    key
}

/// The scheduled will of one connection of a session.
pub fn will(session: SessionId, epoch: SessionEpoch) -> [u8; 17] {
    session_and_epoch(WILL, session, epoch)
}

/// `kind · name`: users, keys of the admin API, targets of bans.
pub fn named(kind: u8, name: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(1 + name.len());
    key.push(kind);
    key.extend_from_slice(name);
    key
}

fn session_and_epoch(kind: u8, session: SessionId, epoch: SessionEpoch) -> [u8; 17] {
    let mut key = [kind; 17];
    key[1..9].copy_from_slice(&session.0.to_be_bytes());
    key[9..].copy_from_slice(&epoch.0.to_be_bytes());
    key
}

fn number_and_text(kind: u8, value: u64, text: &str) -> Vec<u8> {
    let mut key = number(kind, value).to_vec();
    key.extend_from_slice(text.as_bytes());
    key
}

/// All keys of a kind: `start..end`.
pub fn kind_range(kind: u8) -> ([u8; 1], [u8; 1]) {
    ([kind], [kind + 1])
}

/// What a kind is called towards operators; `None` for one that this version does not know.
pub fn kind_name(kind: u8) -> Option<&'static str> {
    KIND_NAMES
        .iter()
        .find(|(known, _)| *known == kind)
        .map(|(_, name)| *name)
}

/// Names are part of the admin API: never reused, as the kinds.
const KIND_NAMES: &[(u8, &str)] = &[
    (MESSAGE, "message"),
    (REMAINING, "remaining"),
    (PENDING, "pending"),
    (SENDER, "sender"),
    (SHARD_HEAD, "shard_head"),
    (RETAINED, "retained"),
    (RETAINED_EXPIRY, "retained_expiry"),
    (RECEIVED, "received"),
    (RECEIVED_EPOCH, "received_epoch"),
    (SHARD_WILL, "shard_will"),
    (REPLAY, "replay"),
    (DELAYED, "delayed"),
    (NODE, "node"),
    (SESSION, "session"),
    (SUBSCRIPTION, "subscription"),
    (NODE_ROUTE, "node_route"),
    (META_HEAD, "meta_head"),
    (SHARE_GROUP, "share_group"),
    (WILL, "will"),
    (USER, "user"),
    (ACCESS_RULES, "access_rules"),
    (BAN, "ban"),
    (API_KEY, "api_key"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_a_name_of_its_own() {
        let constants = include_str!("keys.rs")
            .lines()
            .filter_map(|line| line.strip_prefix("pub const ")?.split_once(": u8 = "));
        let kinds: Vec<(&str, u8)> = constants
            .map(|(name, value)| (name, value.trim_end_matches(';').parse().expect("a number")))
            .collect();
        assert!(kinds.contains(&("META_HEAD", META_HEAD)), "the constants are found");
        for (constant, kind) in kinds {
            // A new kind needs a line in KIND_NAMES.
            assert_eq!(kind_name(kind), Some(&*constant.to_lowercase()), "{constant}");
        }
    }
}
