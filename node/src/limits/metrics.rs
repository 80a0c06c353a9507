//! What limits did, by the limit: a closed set of names.

use prometheus::{IntCounterVec, Opts, Registry};

use super::flapping::Subject;
use crate::protocol::codec::{ReasonCode, Violation};

/// A limit that a client met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    // Whoever meets these waits.
    ConnectionRate,
    ListenerConnectionRate,
    ClientMessages,
    ClientBytes,
    ListenerMessages,
    ListenerBytes,
    NodeMessages,
    NodeBytes,
    /// Of the durable publishes that a client has under way.
    PublishesWaiting,
    // Whoever meets these is refused.
    AddressConnectionRate,
    AddressConnections,
    FailedLogins,
    UserConnections,
    BannedClient,
    BannedAddress,
    BannedUser,
    OverRate,
    Subscriptions,
    FiltersPerPacket,
    UserProperties,
    PacketSize,
    Topic,
    Retained,
    UnfinishedBytes,
}

impl Limit {
    const HOLDING: [Limit; 9] = [
        Limit::ConnectionRate,
        Limit::ListenerConnectionRate,
        Limit::ClientMessages,
        Limit::ClientBytes,
        Limit::ListenerMessages,
        Limit::ListenerBytes,
        Limit::NodeMessages,
        Limit::NodeBytes,
        Limit::PublishesWaiting,
    ];
    const REFUSING: [Limit; 15] = [
        Limit::AddressConnectionRate,
        Limit::AddressConnections,
        Limit::FailedLogins,
        Limit::UserConnections,
        Limit::BannedClient,
        Limit::BannedAddress,
        Limit::BannedUser,
        Limit::OverRate,
        Limit::Subscriptions,
        Limit::FiltersPerPacket,
        Limit::UserProperties,
        Limit::PacketSize,
        Limit::Topic,
        Limit::Retained,
        Limit::UnfinishedBytes,
    ];

    fn name(self) -> &'static str {
        match self {
            Limit::ConnectionRate => "connection_rate",
            Limit::ListenerConnectionRate => "listener_connection_rate",
            Limit::ClientMessages => "client_messages",
            Limit::ClientBytes => "client_bytes",
            Limit::ListenerMessages => "listener_messages",
            Limit::ListenerBytes => "listener_bytes",
            Limit::NodeMessages => "node_messages",
            Limit::NodeBytes => "node_bytes",
            Limit::PublishesWaiting => "publishes_waiting",
            Limit::AddressConnectionRate => "address_connection_rate",
            Limit::AddressConnections => "address_connections",
            Limit::FailedLogins => "failed_logins",
            Limit::UserConnections => "user_connections",
            Limit::BannedClient => "banned_client",
            Limit::BannedAddress => "banned_address",
            Limit::BannedUser => "banned_user",
            Limit::OverRate => "over_rate",
            Limit::Subscriptions => "subscriptions",
            Limit::FiltersPerPacket => "filters_per_packet",
            Limit::UserProperties => "user_properties",
            Limit::PacketSize => "packet_size",
            Limit::Topic => "topic",
            Limit::Retained => "retained",
            Limit::UnfinishedBytes => "unfinished_bytes",
        }
    }

    /// The limit that a frame was above, if that is what is wrong with it.
    pub fn of(violation: &Violation) -> Option<Limit> {
        match (violation.reason, violation.statement) {
            (ReasonCode::PACKET_TOO_LARGE, _) => Some(Limit::PacketSize),
            (ReasonCode::QUOTA_EXCEEDED, "3.8.3") => Some(Limit::FiltersPerPacket),
            (ReasonCode::QUOTA_EXCEEDED, "2.2.2.2") => Some(Limit::UserProperties),
            (ReasonCode::TOPIC_NAME_INVALID, "3.3.2.1" | "3.1.3.3") => Some(Limit::Topic),
            _ => None,
        }
    }

    /// What a CONNECT is answered that meets it.
    pub fn connack_reason(self) -> ReasonCode {
        match self {
            Limit::AddressConnectionRate | Limit::FailedLogins => ReasonCode::CONNECTION_RATE_EXCEEDED,
            Limit::BannedClient | Limit::BannedAddress | Limit::BannedUser => ReasonCode::BANNED,
            _ => ReasonCode::QUOTA_EXCEEDED,
        }
    }
}

/// Counters; cheap to clone.
#[derive(Clone)]
pub struct LimitMetrics {
    holds: IntCounterVec,
    refusals: IntCounterVec,
    bans: IntCounterVec,
}

impl LimitMetrics {
    /// # Panics
    /// A name is registered twice: a bug.
    pub fn new(registry: &Registry) -> Self {
        let counters = |name: &str, help: &str, label: &str| {
            let counters = IntCounterVec::new(Opts::new(name, help), &[label]).expect("a valid metric name");
            let registered = registry.register(Box::new(counters.clone()));
            registered.expect("metric names are unique");
            counters
        };
        let metrics = LimitMetrics {
            holds: counters(
                "lontra_limit_holds_total",
                "Times that a client, or a listener's queue of connections, began to wait because of a rate.",
                "limit",
            ),
            refusals: counters(
                "lontra_limit_refusals_total",
                "What clients were refused because of a limit.",
                "limit",
            ),
            bans: counters(
                "lontra_flapping_bans_total",
                "Bans of who connected and went too often.",
                "subject",
            ),
        };
        for limit in Limit::HOLDING {
            metrics.holds.with_label_values(&[limit.name()]).inc_by(0);
        }
        for limit in Limit::REFUSING {
            metrics.refusals.with_label_values(&[limit.name()]).inc_by(0);
        }
        for subject in Subject::NAMES {
            metrics.bans.with_label_values(&[subject]).inc_by(0);
        }
        metrics
    }

    pub fn held(&self, limit: Limit) {
        debug_assert!(Limit::HOLDING.contains(&limit), "{limit:?}");
        self.holds.with_label_values(&[limit.name()]).inc();
    }

    pub fn refused(&self, limit: Limit, count: usize) {
        debug_assert!(Limit::REFUSING.contains(&limit), "{limit:?}");
        self.refusals.with_label_values(&[limit.name()]).inc_by(count as u64);
    }

    pub fn banned(&self, subject: &Subject) {
        self.bans.with_label_values(&[subject.name()]).inc();
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::protocol::codec::{Direction, Limits, Version, decode, frame_length};

    const LIMITS: Limits = Limits {
        packet_bytes: 100,
        control_packet_bytes: 100,
        filters_per_packet: 1,
        user_properties: 1,
        topic_bytes: 9,
        topic_levels: 2,
    };

    fn check(frame: &[u8], version: Option<Version>, expected: Option<Limit>) {
        let whole = frame_length(frame, &LIMITS, version);
        let decoded = whole.and_then(|_| {
            decode(
                Bytes::copy_from_slice(frame),
                version,
                Direction::ClientToServer,
                &LIMITS,
            )
        });
        assert_eq!(Limit::of(&decoded.expect_err("refused")), expected, "{frame:x?}");
    }

    #[test]
    fn every_limit_of_a_frame_is_told_by_its_name() {
        let v5 = Some(Version::V5);
        check(&[0x30, 0xff, 0xff, 0xff, 0x7f], v5, Some(Limit::PacketSize));
        check(
            &[0x30, 8, 0, 5, b'a', b'/', b'b', b'/', b'c', 0],
            v5,
            Some(Limit::Topic),
        );
        check(
            &[
                0x30, 13, 0, 10, b'a', b'a', b'a', b'a', b'a', b'a', b'a', b'a', b'a', b'a', 0,
            ],
            v5,
            Some(Limit::Topic),
        );
        let pair = [0x26, 0, 1, b'a', 0, 1, b'b'];
        let twice = [&[0x30, 18, 0, 1, b'a', 14][..], &pair, &pair].concat();
        check(&twice, v5, Some(Limit::UserProperties));
        // Of a SUBSCRIBE, SUBACK tells it.
        let two = [0xa2, 9, 0, 1, 0, 0, 1, b'a', 0, 1, b'b'];
        check(&two, v5, Some(Limit::FiltersPerPacket));
        let will = [
            &[0x10, 24, 0, 4, b'M', b'Q', b'T', b'T', 4, 6, 0, 60, 0, 1, b'c'][..],
            &[0, 5, b'a', b'/', b'b', b'/', b'c', 0, 2, b'x', b'x'],
        ]
        .concat();
        check(&will, None, Some(Limit::Topic));
        // What is wrong in itself met no limit.
        check(&[0x30, 6, 0, 3, b'a', b'/', b'+', 0], v5, None);
        check(&[0x82, 3, 0, 1, 0], v5, None);
    }
}
