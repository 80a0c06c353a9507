//! CONNECT and CONNACK: what a client asks for, and what it is told it gets.

use std::num::NonZeroU16;

use bytes::Bytes;

use super::codec::topic_grammar::{canonical, is_shared};
use super::codec::{ConnAck, ConnAckProperties, Connect, QoS, ReasonCode, Will};
use super::delayed::is_delayed;
use super::mountpoint::Mountpoint;
use super::publish_out::OutboundLimits;
use super::topic_rules::TopicRules;
use crate::auth::chain::Credentials;
use crate::auth::identity::Identity;
use crate::auth::scram::METHOD;
use crate::auth::secret::Secret;
use crate::sys::is_sys;

/// Subscriptions that the operator lets clients have. What is not is told in CONNACK, and refused filter by filter in SUBACK: the
/// standard has a code for it there too, and the others of the packet are good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Available {
    pub wildcards: bool,
    pub shared: bool,
    pub identifiers: bool,
}

impl Default for Available {
    fn default() -> Self {
        Available::ALL
    }
}

impl Available {
    pub const ALL: Available = Available {
        wildcards: true,
        shared: true,
        identifiers: true,
    };

    /// # Errors
    /// The reason code in SUBACK.
    pub fn takes(self, filter: &str, has_identifier: bool) -> Result<(), ReasonCode> {
        if self == Available::ALL {
            return Ok(());
        }
        if !self.identifiers && has_identifier {
            return Err(ReasonCode::SUBSCRIPTION_IDENTIFIERS_NOT_SUPPORTED);
        }
        if !self.shared && is_shared(&canonical(filter.to_owned())) {
            return Err(ReasonCode::SHARED_SUBSCRIPTIONS_NOT_SUPPORTED);
        }
        match !self.wildcards && filter.contains(['+', '#']) {
            true => Err(ReasonCode::WILDCARD_SUBSCRIPTIONS_NOT_SUPPORTED),
            false => Ok(()),
        }
    }
}

/// What the configuration says of every client.
#[derive(Clone, Debug)]
pub struct Policy {
    pub packet_size_max: u32,
    pub receive_maximum: u16,
    pub keep_alive_max: Option<u16>,
    pub session_expiry_max: u32,
    /// Topic aliases in each direction.
    pub topic_alias_max: u16,
    pub outbox_bytes_max: usize,
    pub outbox_messages_max: usize,
    /// Of the listener.
    pub mountpoint: Mountpoint,
    pub topic_rules: TopicRules,
    pub available: Available,
    /// Whether clients may prove who they are by SCRAM-SHA-256.
    pub scram: bool,
}

/// A CONNECT that was accepted so far.
#[derive(Debug)]
pub struct Accepted {
    pub client_id: Box<str>,
    /// The client sent none: it is told. [MQTT-3.1.3-7]
    pub assigned: bool,
    pub clean_start: bool,
    /// Session Expiry Interval as granted, in seconds; 0xFFFFFFFF never.
    pub expiry: u32,
    pub expiry_requested: u32,
    /// Seconds; none for a client that switched it off.
    pub keep_alive: Option<NonZeroU16>,
    pub keep_alive_imposed: bool,
    pub outbound: OutboundLimits,
    pub will: Option<Will>,
    pub credentials: Credentials,
    /// Authentication Data of CONNECT, where it names a method; then it is not asked for credentials.
    pub enhanced: Option<Bytes>,
    /// Who it is, and what CONNACK tells of it, once enhanced authentication is done.
    pub proven: Option<Proven>,
}

/// The end of an enhanced authentication.
#[derive(Debug)]
pub struct Proven {
    pub identity: Identity,
    pub data: Bytes,
}

/// Decides on a CONNECT. `fresh_id` is a client id that nobody uses.
///
/// # Errors
/// The reason code of the CONNACK that refuses it.
pub fn accept(
    connect: &mut Connect,
    policy: &Policy,
    fresh_id: impl FnOnce() -> String,
) -> Result<Accepted, ReasonCode> {
    let enhanced = match connect.properties.authentication_method.as_deref() {
        None => None,
        Some(METHOD) if policy.scram => Some(connect.properties.authentication_data.take().unwrap_or_default()),
        Some(_) => return Err(ReasonCode::BAD_AUTHENTICATION_METHOD), // [MQTT-4.12.0-1]
    };
    // A will has a delay of its own: Will Delay Interval.
    let is_no_topic = |topic: &str| is_sys(topic) || is_delayed(topic);
    if connect.will.as_ref().is_some_and(|will| is_no_topic(&will.topic)) {
        return Err(ReasonCode::TOPIC_NAME_INVALID);
    }
    if let Some(will) = &mut connect.will
        && let Some(mounted) = policy.mountpoint.topic(&will.topic)?
    {
        will.topic = mounted.to_string();
    }
    let assigned = connect.client_id.is_empty();
    let client_id = if assigned {
        fresh_id().into()
    } else {
        std::mem::take(&mut connect.client_id).into()
    };
    let expiry_requested = match (connect.version.is_v5(), connect.clean_start) {
        (true, _) => connect.properties.session_expiry_interval.unwrap_or(0),
        // Clean Session 1 in 3.x ends with the connection, 0 never.
        (false, true) => 0,
        (false, false) => u32::MAX,
    };
    let asked = connect.keep_alive_seconds;
    let granted = match policy.keep_alive_max {
        Some(max) if connect.version.is_v5() && (asked == 0 || asked > max) => max,
        _ => asked,
    };
    Ok(Accepted {
        client_id,
        assigned,
        clean_start: connect.clean_start,
        expiry: expiry_requested.min(policy.session_expiry_max),
        expiry_requested,
        keep_alive: NonZeroU16::new(granted),
        keep_alive_imposed: granted != asked,
        outbound: OutboundLimits {
            receive_maximum: connect
                .properties
                .receive_maximum
                .unwrap_or(DEFAULT_RECEIVE_MAXIMUM)
                .min(IN_FLIGHT_MAX),
            topic_alias_maximum: connect.properties.topic_alias_maximum.min(policy.topic_alias_max),
            bytes_max: policy.outbox_bytes_max,
            messages_max: policy.outbox_messages_max,
            mountpoint: policy.mountpoint.clone(),
        },
        will: connect.will.take(),
        credentials: Credentials {
            user_name: connect.user_name.take().map(Into::into),
            password: connect.password.take().map(|password| Secret::new(&password[..])),
        },
        enhanced,
        proven: None,
    })
}

/// The CONNACK of a session: what was granted. What is absent is available: QoS 2 and retained messages, unless no rule of
/// `[topics]` grants them anywhere; wildcards, subscription identifiers, shared subscriptions, unless they are switched off.
pub fn connack(accepted: &Accepted, session_present: bool, policy: &Policy) -> ConnAck {
    let offered = policy.topic_rules.offered();
    ConnAck {
        session_present,
        reason: ReasonCode::SUCCESS,
        properties: ConnAckProperties {
            session_expiry_interval: (accepted.expiry != accepted.expiry_requested).then_some(accepted.expiry),
            receive_maximum: Some(policy.receive_maximum),
            maximum_qos: (offered.qos_max != QoS::ExactlyOnce).then_some(offered.qos_max), // [MQTT-3.2.2-9]
            retain_available: (!offered.retain).then_some(false),
            wildcard_subscription_available: (!policy.available.wildcards).then_some(false),
            subscription_identifiers_available: (!policy.available.identifiers).then_some(false),
            shared_subscription_available: (!policy.available.shared).then_some(false),
            topic_alias_maximum: (policy.topic_alias_max > 0).then_some(policy.topic_alias_max),
            maximum_packet_size: Some(policy.packet_size_max),
            assigned_client_identifier: accepted.assigned.then(|| accepted.client_id.to_string()),
            server_keep_alive: accepted
                .keep_alive_imposed
                .then(|| accepted.keep_alive.map_or(0, NonZeroU16::get)),
            // [MQTT-4.12.0-5]
            authentication_method: accepted.proven.as_ref().map(|_| METHOD.to_owned()),
            authentication_data: accepted.proven.as_ref().map(|proven| proven.data.clone()),
            ..ConnAckProperties::default()
        },
    }
}

/// A CONNACK that refuses.
pub fn refusal(reason: ReasonCode, reason_string: Option<String>) -> ConnAck {
    ConnAck {
        session_present: false, // [MQTT-3.2.2-6]
        reason,
        properties: ConnAckProperties {
            reason_string,
            ..ConnAckProperties::default()
        },
    }
}

/// [MQTT-3.1.2-11.3]: absent means 65,535.
const DEFAULT_RECEIVE_MAXIMUM: u16 = 65_535;
/// More in flight to one client helps nobody: the pages that feed it are smaller.
const IN_FLIGHT_MAX: u16 = 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::codec::{ConnectProperties, Version, WillProperties};

    fn policy() -> Policy {
        Policy {
            packet_size_max: 1 << 20,
            receive_maximum: 100,
            keep_alive_max: Some(60),
            session_expiry_max: 1000,
            topic_alias_max: 8,
            outbox_bytes_max: 1 << 20,
            outbox_messages_max: 100,
            mountpoint: Mountpoint::default(),
            topic_rules: TopicRules::default(),
            available: Available::ALL,
            scram: true,
        }
    }

    fn connect(version: Version) -> Connect {
        Connect {
            version,
            clean_start: false,
            keep_alive_seconds: 30,
            client_id: "c".into(),
            will: None,
            user_name: None,
            password: None,
            properties: ConnectProperties::default(),
        }
    }

    fn accepted(mut connect: Connect) -> Result<Accepted, ReasonCode> {
        accept(&mut connect, &policy(), || "fresh".into())
    }

    #[test]
    fn session_expiry_follows_version_and_policy() {
        let expiry = |version, clean_start, asked| {
            let mut connect = connect(version);
            connect.clean_start = clean_start;
            connect.properties.session_expiry_interval = asked;
            accepted(connect).unwrap().expiry
        };
        assert_eq!(expiry(Version::V3_1_1, true, None), 0);
        assert_eq!(expiry(Version::V3_1_1, false, None), 1000);
        assert_eq!(expiry(Version::V5, false, None), 0);
        assert_eq!(expiry(Version::V5, true, Some(7)), 7);
    }

    #[test]
    fn wills_of_any_kind_are_taken_whole() {
        for qos in [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce] {
            let will = Will {
                topic: "w".into(),
                payload: bytes::Bytes::new(),
                qos,
                retain: true,
                properties: WillProperties {
                    delay_interval: 7,
                    ..WillProperties::default()
                },
            };
            let mut connect = connect(Version::V5);
            connect.will = Some(will.clone());
            assert_eq!(accepted(connect).unwrap().will, Some(will));
        }
    }

    #[test]
    fn topic_aliases_are_capped_both_ways() {
        for (asked, used) in [(0, 0), (3, 3), (100, 8)] {
            let mut connect = connect(Version::V5);
            connect.properties.topic_alias_maximum = asked;
            let accepted = accepted(connect).unwrap();
            assert_eq!(accepted.outbound.topic_alias_maximum, used);
            let told = connack(&accepted, false, &policy()).properties.topic_alias_maximum;
            assert_eq!(told, Some(8));
        }
        let none = Policy {
            topic_alias_max: 0,
            ..policy()
        };
        let accepted = accepted(connect(Version::V5)).unwrap();
        assert_eq!(connack(&accepted, false, &none).properties.topic_alias_maximum, None);
    }

    #[test]
    fn an_empty_client_id_is_assigned_and_told() {
        let mut connect = connect(Version::V5);
        connect.client_id = String::new();
        let ack = connack(&accepted(connect).unwrap(), false, &policy());
        assert_eq!(ack.properties.assigned_client_identifier.as_deref(), Some("fresh"));
    }

    #[test]
    fn keep_alive_is_granted_as_asked_or_replaced_and_told() {
        // (version, limit, asked) gives (granted, Server Keep Alive). 3.x has no way to be told. [MQTT-3.1.2-21]
        for (version, limit, asked, granted, told) in [
            (Version::V5, Some(60), 30, 30, None),
            (Version::V5, Some(60), 61, 60, Some(60)),
            (Version::V5, Some(60), 0, 60, Some(60)),
            (Version::V5, None, 0, 0, None),
            (Version::V5, None, u16::MAX, u16::MAX, None),
            (Version::V3_1_1, Some(60), 0, 0, None),
            (Version::V3_1_1, Some(60), 61, 61, None),
        ] {
            let policy = Policy {
                keep_alive_max: limit,
                ..policy()
            };
            let mut connect = connect(version);
            connect.keep_alive_seconds = asked;
            let accepted = accept(&mut connect, &policy, || "fresh".into()).unwrap();
            let case = format!("{version:?} {limit:?} {asked}");
            assert_eq!(accepted.keep_alive, NonZeroU16::new(granted), "{case}");
            let connack = connack(&accepted, false, &policy);
            assert_eq!(connack.properties.server_keep_alive, told, "{case}");
        }
    }
}
