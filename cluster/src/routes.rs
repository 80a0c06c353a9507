//! Matching a publish: once, on the node that received it; the result travels as data.
//!
//! A shared group is a recipient like a session, as long as one of its members takes the message at QoS 1 or 2; what its
//! members take at QoS 0 only is given to a connected one at once ([`TopicMatch::given`]).
//!
//! A worker keeps its own cache of matches by topic. A cached match is used only while nothing that changed since it was made
//! matches its topic, so that "applied" means visible to the next match (`subscribe-visible`), and who subscribes again and
//! again makes no match cold but those of its own filters.

use std::collections::HashMap;
use std::sync::Arc;

use lontra_storage::ids::{NodeId, SessionId, ShardId};
use lontra_storage::message::{Recipient, Role};
use lontra_storage::meta::{GroupMember, Matched, MatchedSession, MetaView};

use crate::local::Member;
use crate::shard_map::ShardMap;

/// Everybody that a topic matches, at one route version.
#[derive(Debug)]
pub struct TopicMatch {
    pub topic: Box<str>,
    pub shard: ShardId,
    pub matched: Matched,
    /// Whether the recipients do not depend on who publishes.
    any_no_local: bool,
    /// Recipients of a QoS 1 publish that is not retained, when nobody asked for No Local: shared by all publishes.
    shared: Arc<[Recipient]>,
}

impl TopicMatch {
    pub fn new(topic: &str, shard: ShardId, matched: Matched) -> Self {
        // [MQTT-3.8.3-4]: no member of a group has No Local.
        let any_no_local = matched
            .sessions
            .iter()
            .any(|session| session.subscriptions.iter().any(|options| options.no_local));
        let shared = recipients(&matched, 1, false, SessionId(0));
        TopicMatch {
            topic: topic.into(),
            shard,
            matched,
            any_no_local,
            shared: shared.into(),
        }
    }

    /// Durable sessions and shared groups that get a publish at QoS 1 or 2, with what each was granted.
    pub fn recipients(&self, qos: u8, retain: bool, publisher: SessionId) -> Arc<[Recipient]> {
        if qos == 1 && !retain && !self.any_no_local {
            return self.shared.clone();
        }
        recipients(&self.matched, qos, retain, publisher).into()
    }

    /// Nodes with connected sessions that may get a publish of `qos` on the ephemeral path. `subscribe-visible`: a node
    /// without a matching session is not among them.
    pub fn nodes(&self, qos: u8) -> Vec<NodeId> {
        let mut nodes = self.matched.nodes.clone();
        for session in &self.matched.sessions {
            let Some(owner) = session.owner else { continue };
            if effective_qos(session, qos) == 0 && !nodes.contains(&owner) {
                nodes.push(owner);
            }
        }
        nodes
    }
}

impl TopicMatch {
    /// Members of shared groups that a publish is given to at QoS 0, one of each group that wants it so; each on the
    /// node that serves it. [MQTT-4.8.2-3]
    pub fn given(&self, qos: u8, pick: impl Fn(&[&GroupMember]) -> usize) -> Vec<(NodeId, Member)> {
        let mut given = Vec::new();
        for group in self.matched.groups.iter().filter(|group| group.qos.min(qos) == 0) {
            let connected: Vec<&GroupMember> = group.members.iter().filter(|member| member.owner.is_some()).collect();
            let Some(member) = connected.get(pick(&connected)) else {
                continue;
            };
            if let Some(node) = member.owner {
                let member = Member {
                    session: member.session,
                    subscription_identifier: member.options.identifier,
                };
                given.push((node, member));
            }
        }
        given
    }
}

fn effective_qos(session: &MatchedSession, qos: u8) -> u8 {
    session
        .subscriptions
        .iter()
        .map(|options| options.qos.min(qos))
        .max()
        .unwrap_or(0)
}

fn recipients(matched: &Matched, qos: u8, retain: bool, publisher: SessionId) -> Vec<Recipient> {
    let mut recipients = Vec::new();
    for session in &matched.sessions {
        // No Local [MQTT-3.8.3-3] takes out the subscription, not the session.
        let heard = session
            .subscriptions
            .iter()
            .filter(|options| !(options.no_local && session.session == publisher));
        let mut recipient = Recipient {
            session: session.session,
            qos: 0,
            retain: false,
            subscription_identifiers: Vec::new(),
            role: Role::Session,
        };
        let mut has_queue = false;
        for options in heard {
            has_queue |= options.qos > 0;
            recipient.qos = recipient.qos.max(options.qos.min(qos));
            recipient.retain |= retain && options.retain_as_published;
            recipient.subscription_identifiers.extend(options.identifier);
        }
        // P5: retained at QoS 0 it takes its place in the queue too, or it would overtake an older value that waits there.
        if recipient.qos > 0 || (retain && has_queue) {
            recipients.push(recipient);
        }
    }
    for group in matched.groups.iter().filter(|group| group.qos.min(qos) > 0) {
        recipients.push(Recipient {
            session: group.group,
            qos: group.qos.min(qos),
            retain: false,
            subscription_identifiers: Vec::new(),
            role: Role::Group,
        });
    }
    recipients
}

/// A worker's cache of matches by topic.
pub struct RouteCache {
    view: MetaView,
    shards: ShardMap,
    entries: HashMap<Box<str>, Cached>,
}

struct Cached {
    matched: Arc<TopicMatch>,
    /// It is the match as of this route version, or was found unchanged at it.
    version: u64,
}

impl RouteCache {
    pub fn new(view: MetaView, shards: ShardMap) -> Self {
        RouteCache {
            view,
            shards,
            entries: HashMap::new(),
        }
    }

    /// The match of `topic` as of every meta entry applied so far, and the route version as of which it stands: that of the
    /// match itself may be an earlier one.
    pub fn lookup(&mut self, topic: &str) -> (Arc<TopicMatch>, u64) {
        let state = self.view.read();
        let version = state.route_version();
        if let Some(cached) = self.entries.get_mut(topic)
            && state.is_unchanged(topic, cached.version)
        {
            cached.version = version;
            return (cached.matched.clone(), version);
        }
        let matched = Arc::new(TopicMatch::new(
            topic,
            self.shards.shard_of(topic),
            state.match_topic(topic),
        ));
        drop(state);
        if topic.len() <= CACHED_TOPIC_MAX {
            if self.entries.len() >= CACHE_MAX {
                self.entries.clear();
            }
            let cached = Cached {
                matched: matched.clone(),
                version,
            };
            self.entries.insert(topic.into(), cached);
        }
        (matched, version)
    }
}

/// Topics per worker; beyond, the cache starts anew (a match costs microseconds).
const CACHE_MAX: usize = 65_536;
/// Bytes of a topic: with topics of 64 KiB, which a client may make up as it likes, a full cache would be 4 GiB.
const CACHED_TOPIC_MAX: usize = 512;

#[cfg(test)]
mod tests {
    use lontra_storage::meta::SubscriptionOptions;

    use super::*;

    fn options(qos: u8, no_local: bool, retain_as_published: bool, identifier: u32) -> SubscriptionOptions {
        SubscriptionOptions {
            qos,
            no_local,
            retain_as_published,
            retain_handling: 0,
            identifier: Some(identifier),
            exclusive: false,
        }
    }

    fn session(session: u64, owner: Option<NodeId>, subscriptions: Vec<SubscriptionOptions>) -> MatchedSession {
        MatchedSession {
            session: SessionId(session),
            owner,
            subscriptions,
        }
    }

    fn topic_match(sessions: Vec<MatchedSession>, nodes: Vec<NodeId>) -> TopicMatch {
        TopicMatch::new(
            "t",
            ShardId(0),
            Matched {
                route_version: 1,
                sessions,
                nodes,
                groups: vec![],
            },
        )
    }

    #[test]
    fn overlapping_subscriptions_give_one_recipient_with_all_identifiers() {
        let both = topic_match(
            vec![session(
                1,
                None,
                vec![options(0, false, true, 5), options(2, false, false, 6)],
            )],
            vec![],
        );
        let recipients = both.recipients(1, true, SessionId(9));
        assert_eq!(recipients.len(), 1);
        assert_eq!(recipients[0].qos, 1);
        assert!(recipients[0].retain);
        assert_eq!(recipients[0].subscription_identifiers, [5, 6]);
    }

    #[test]
    fn retained_at_qos_0_waits_behind_older_values() {
        let queued = topic_match(vec![session(1, None, vec![options(1, false, false, 1)])], vec![]);
        assert!(queued.recipients(0, false, SessionId(9)).is_empty());
        let recipients = queued.recipients(0, true, SessionId(9));
        assert_eq!(recipients.len(), 1);
        assert_eq!(recipients[0].qos, 0);
        // What is subscribed at QoS 0 has no queue: it comes from the shard as it is applied.
        let plain = topic_match(vec![session(1, None, vec![options(0, false, false, 1)])], vec![]);
        assert!(plain.recipients(0, true, SessionId(9)).is_empty());
    }

    #[test]
    fn no_local_leaves_out_the_publisher_only() {
        let one = topic_match(vec![session(1, None, vec![options(1, true, false, 1)])], vec![]);
        assert!(one.recipients(1, false, SessionId(1)).is_empty());
        assert_eq!(one.recipients(1, false, SessionId(2)).len(), 1);
    }

    #[test]
    fn only_nodes_with_a_matching_connected_session_are_named() {
        let mixed = topic_match(
            vec![
                session(1, Some(1), vec![options(1, false, false, 1)]),
                session(2, Some(2), vec![options(0, false, false, 1)]),
                session(3, None, vec![options(0, false, false, 1)]),
            ],
            vec![3],
        );
        assert_eq!(
            mixed.nodes(0),
            [3, 1, 2],
            "QoS 0 reaches connected durable sessions too"
        );
        assert_eq!(
            mixed.nodes(1),
            [3, 2],
            "a durable QoS 1 recipient gets it from its shard"
        );
    }
}
