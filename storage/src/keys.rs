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
//! | 16 | node | up, incarnation, start | meta |
//! | 17 | session | client id, epoch, owner, expiry, … | meta |
//! | 18 | session · filter | subscription options | meta |
//! | 19 | node · filter | (empty) the node has connected subscribers | meta |
//! | 20 | — | log time | meta |

use crate::ids::{NodeId, Offset, SessionId};

pub const MESSAGE: u8 = 1;
pub const REMAINING: u8 = 2;
pub const PENDING: u8 = 3;
pub const SENDER: u8 = 4;
pub const SHARD_HEAD: u8 = 5;
pub const NODE: u8 = 16;
pub const SESSION: u8 = 17;
pub const SUBSCRIPTION: u8 = 18;
pub const NODE_ROUTE: u8 = 19;
pub const META_HEAD: u8 = 20;

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

fn number_and_text(kind: u8, value: u64, text: &str) -> Vec<u8> {
    let mut key = number(kind, value).to_vec();
    key.extend_from_slice(text.as_bytes());
    key
}

/// All keys of a kind: `start..end`.
pub fn kind_range(kind: u8) -> ([u8; 1], [u8; 1]) {
    ([kind], [kind + 1])
}
