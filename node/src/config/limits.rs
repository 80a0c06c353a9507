//! `[limits]`: what one client, one address, one user, and all of them together may do to this node.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::check::{Checked, range, size, time};
use super::units::{self, ByteSize};

/// `[limits]`. Each holds on its node: a cluster of three lets three times as much through. 0 is no limit, unless it says
/// otherwise; all rates are off by default. For connections accepted from then on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Connections per second that this node accepts; those above it wait in the system's queue. Default 0; bounds 0 to
    /// 1000000. Lower: clients that lost another node come in later. Higher: a storm of handshakes takes more of the cores.
    pub connection_rate: u32,

    /// Connections per second from one address, or one /64 network of IPv6; those above it are refused (0x9F; 3.x: 3).
    /// Default 0; bounds 0 to 1000000. Lower: sites behind one address get in slowly.
    pub address_connection_rate: u32,

    /// Open connections of one address, or one /64 network of IPv6; more are refused (0x97; 3.x: 3). Default 0; bounds 0
    /// to 1000000.
    pub address_connections_max: u32,

    /// How often in `flapping_window` clients of one address, or one /64 network of IPv6, may show credentials that are wrong;
    /// then nobody from there is asked for any until the window is over (0x9F; 3.x: 3). Default 0; bounds 0 to 1000000.
    /// Lower: a site behind one address waits for its one device with an old password.
    pub failed_logins_address_max: u32,

    /// Connections of one user under different client ids; more are refused (0x97; 3.x: 3). Default 0; bounds 0 to 1000000.
    pub user_connections_max: u32,

    /// PUBLISH packets per second from one client; one above it is not read from until it is below. Default 0; bounds 0 to
    /// 10000000.
    pub client_message_rate: u32,

    /// Bytes of MQTT per second from one client. Default 0 B; bounds 0 to 1 TiB. As `client_message_rate`.
    pub client_byte_rate: ByteSize,

    /// PUBLISH packets per second from all clients of this node; above it nobody is read from. Default 0; bounds 0 to
    /// 10000000. Lower: honest clients wait for the loud ones.
    pub message_rate: u32,

    /// Bytes of MQTT per second from all clients of this node. Default 0 B; bounds 0 to 1 TiB. As `message_rate`.
    pub byte_rate: ByteSize,

    /// How long an unused rate is saved up: with 10 per second and 2 s, 20 may come at once. Default 1 s; bounds 0 s to
    /// 10 min. Longer: bursts pass. Shorter: clients that send in bursts wait.
    #[serde(with = "units::duration")]
    pub burst: Duration,

    /// How long a client may be at its own rate without a break before it is disconnected (0x96). Default 0 s: for ever, it
    /// is only held back; bounds 0 s to 1 d.
    #[serde(with = "units::duration")]
    pub over_rate_max: Duration,

    /// Subscriptions of one session; more are refused one by one in SUBACK (0x97). Default 0; bounds 0 to 10000000. More: a
    /// client takes more memory on every node.
    pub subscriptions_max: u32,

    /// Topic Filters in one SUBSCRIBE, where more are refused, each (0x97); or UNSUBSCRIBE, where more end the connection
    /// (0x97). Default 1000; bounds 1 to 100000.
    pub filters_per_packet_max: u32,

    /// User Properties in one packet (and as many in its will); more end the connection (0x97). Default 128; bounds 0 to
    /// 65535. More: one packet costs more to check.
    pub user_properties_max: u32,

    /// Bytes that have come of packets that are not whole yet, or not handed in, of all clients together: above, those that
    /// have gone longest without a whole packet are disconnected (0x97). Default 0 B: an eighth of the memory; bounds 0 B, or
    /// 1 MiB to 1 TiB. Less: many clients on slow lines that send large packets do not get them done.
    pub unfinished_bytes_max: ByteSize,
    /// The largest packet taken that is no PUBLISH: CONNECT with its will, SUBSCRIBE, AUTH; above it 0x95. Default 256 KiB;
    /// bounds 1 KiB to 256 MiB; `packet_size_max` holds beside it. Larger: one SUBSCRIBE costs more memory at once. Smaller:
    /// clients with long wills or tokens do not get in.
    pub control_packet_size_max: ByteSize,

    /// Bytes of a Topic Name or Topic Filter: 0x90, and 0x8F in SUBACK. Default 65535; bounds 1 to 65535.
    pub topic_bytes_max: u32,

    /// How often in `flapping_window` a connection of one client id may end before the client id is banned. Default 0: it is
    /// not looked at; bounds 0 to 1000000. Lower: clients on bad lines are banned.
    pub flapping_client_max: u32,

    /// As `flapping_client_max`, of one address, or one /64 network of IPv6.
    pub flapping_address_max: u32,

    /// As `flapping_client_max`, of one user.
    pub flapping_user_max: u32,

    /// Default 1 min; bounds 1 s to 1 d.
    #[serde(with = "units::duration")]
    pub flapping_window: Duration,

    /// How long a ban lasts (0x8A; 3.x: 5). Default 5 min; bounds 1 s to 1 d.
    #[serde(with = "units::duration")]
    pub flapping_ban: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            connection_rate: 0,
            address_connection_rate: 0,
            address_connections_max: 0,
            failed_logins_address_max: 0,
            user_connections_max: 0,
            client_message_rate: 0,
            client_byte_rate: ByteSize::mib(0),
            message_rate: 0,
            byte_rate: ByteSize::mib(0),
            burst: Duration::from_secs(1),
            over_rate_max: Duration::ZERO,
            subscriptions_max: 0,
            filters_per_packet_max: 1_000,
            user_properties_max: 128,
            unfinished_bytes_max: ByteSize::mib(0),
            control_packet_size_max: ByteSize::kib(256),
            topic_bytes_max: 65_535,
            flapping_client_max: 0,
            flapping_address_max: 0,
            flapping_user_max: 0,
            flapping_window: Duration::from_secs(60),
            flapping_ban: Duration::from_secs(300),
        }
    }
}

impl Limits {
    pub(super) fn check(&self) -> Checked {
        for (key, value) in [
            ("limits.connection_rate", self.connection_rate),
            ("limits.address_connection_rate", self.address_connection_rate),
            ("limits.address_connections_max", self.address_connections_max),
            ("limits.failed_logins_address_max", self.failed_logins_address_max),
            ("limits.user_connections_max", self.user_connections_max),
            ("limits.flapping_client_max", self.flapping_client_max),
            ("limits.flapping_address_max", self.flapping_address_max),
            ("limits.flapping_user_max", self.flapping_user_max),
        ] {
            range(key, value, 0, 1_000_000)?;
        }
        rates(
            "limits.client_message_rate",
            self.client_message_rate,
            "limits.client_byte_rate",
            self.client_byte_rate,
        )?;
        rates(
            "limits.message_rate",
            self.message_rate,
            "limits.byte_rate",
            self.byte_rate,
        )?;
        let (none, second, day) = (Duration::ZERO, Duration::from_secs(1), Duration::from_secs(24 * 3600));
        time("limits.burst", self.burst, none, Duration::from_secs(600))?;
        time("limits.over_rate_max", self.over_rate_max, none, day)?;
        range("limits.subscriptions_max", self.subscriptions_max, 0, 10_000_000)?;
        range("limits.filters_per_packet_max", self.filters_per_packet_max, 1, 100_000)?;
        range("limits.user_properties_max", self.user_properties_max, 0, 65_535)?;
        if self.unfinished_bytes_max.bytes() != 0 {
            size(
                "limits.unfinished_bytes_max",
                self.unfinished_bytes_max,
                ByteSize::mib(1),
                ByteSize::gib(1024),
            )?;
        }
        size(
            "limits.control_packet_size_max",
            self.control_packet_size_max,
            ByteSize::kib(1),
            ByteSize::mib(256),
        )?;
        range("limits.topic_bytes_max", self.topic_bytes_max, 1, 65_535)?;
        time("limits.flapping_window", self.flapping_window, second, day)?;
        time("limits.flapping_ban", self.flapping_ban, second, day)
    }
}

/// Bounds of a rate of messages and one of bytes.
pub(super) fn rates(
    message_key: impl Into<std::borrow::Cow<'static, str>>,
    messages: u32,
    byte_key: impl Into<std::borrow::Cow<'static, str>>,
    bytes: ByteSize,
) -> Checked {
    range(message_key, messages, 0, 10_000_000)?;
    size(byte_key, bytes, ByteSize::mib(0), ByteSize::gib(1024))
}
