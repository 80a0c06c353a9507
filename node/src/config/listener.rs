//! `[[listeners]]`: where clients connect besides `mqtt.listen` and `websocket.listen`, each with limits of its own.
//!
//!     mqtt.listen, websocket.listen ─▶ two listeners named `mqtt` and `ws` ─┐
//!     [[listeners]] ───────────────────────────────────────────────────────┴─▶ Config::all_listeners, in this order

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::auth::Anonymous;
use super::network::Network;
use super::units::{self, ByteSize, FileMode, SessionExpiry};
use super::{Config, loopback};
use crate::auth::identity::Method;

/// One of `[[listeners]]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listener {
    /// Unique, also among `mqtt` and `ws`, which are `mqtt.listen` and `websocket.listen`: 1 to 32 of `a-z`, `0-9`
    /// and `-`. It is in logs, and tells a reload which listener is meant.
    pub name: String,

    /// `mqtt`, `mqtts` (over TLS), `ws`, `wss` (over TLS) or `unix`.
    pub kind: ListenerKind,

    /// `address:port`, IPv6 in brackets; of kind `unix` a path with at least one `/`. `[::]` takes IPv4 too, where the
    /// system's `net.ipv6.bindv6only` is 0, its default. Loopback only, unless it is said who may connect:
    /// by `[auth]`, by `tls.client_certificates = "required"`, or by `anonymous = "always"`.
    pub listen: ListenAddress,

    /// Connections of this listener, over all workers; `mqtt.connections_max` holds beside it. Default 0: no limit of
    /// its own; bounds 0 to 1000000. When it is reached, new connections are closed at once.
    #[serde(default)]
    pub connections_max: u32,

    /// Connections per second of this listener, as `limits.connection_rate`, which holds beside it. Default 0: no limit;
    /// bounds 0 to 1000000.
    #[serde(default)]
    pub connection_rate: u32,

    /// PUBLISH packets per second of this listener's clients together, as `limits.message_rate`. Default 0: no limit; bounds
    /// 0 to 10000000.
    #[serde(default)]
    pub message_rate: u32,

    /// Bytes of MQTT per second of this listener's clients together. Default 0 B: no limit; bounds 0 to 1 TiB.
    #[serde(default)]
    pub byte_rate: ByteSize,

    /// As `mqtt.packet_size_max`, for this listener. Default: that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packet_size_max: Option<ByteSize>,

    /// As `mqtt.connect_timeout`, for this listener: everything before CONNECT included. Default: that.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "units::optional_duration")]
    pub connect_timeout: Option<Duration>,

    /// As `mqtt.keep_alive_max`, for this listener: `"0s"` is what the client asks for. Default: that.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "units::optional_duration")]
    pub keep_alive_max: Option<Duration>,

    /// As `mqtt.receive_maximum`, for this listener. Default: that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receive_maximum: Option<u16>,

    /// As `mqtt.session_expiry_max`, for this listener. Default: that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_expiry_max: Option<SessionExpiry>,

    /// As `mqtt.topic_alias_max`, for this listener. Default: that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topic_alias_max: Option<u16>,

    /// What stands before each topic and filter of this listener's clients, in the cluster; they do not see it. Ends
    /// with `/`. Default empty. `$SYS` is not concerned. It keeps topics apart, not client ids.
    #[serde(default)]
    pub mountpoint: String,

    /// Where the HTTP server of `ws` and `wss` has MQTT. Default `/mqtt`.
    #[serde(default = "mqtt_path")]
    pub path: String,

    /// Permissions of the socket of kind `unix`, in octal. Default `"0660"`. Wider: more users of this machine connect.
    #[serde(default)]
    pub mode: FileMode,

    /// Whether each connection begins with a header of the PROXY protocol (version 1 or 2), which tells the client's
    /// address. Default false. Then only `trusted_proxies` may connect.
    #[serde(default)]
    pub proxy_protocol: bool,

    /// Networks of proxies that are believed what they say of the client's address: in a PROXY header, or in
    /// `X-Forwarded-For` (`ws`, `wss`). Default empty: none.
    #[serde(default)]
    pub trusted_proxies: Vec<Network>,

    /// The ways in which clients show who they are, in the order in which they are tried: `certificate`, `jwt`, `password`,
    /// `http`; and `scram-sha-256`, which a client of MQTT 5 asks for. Default: those that `[auth]` has something for, but
    /// `certificate`. `[]`: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authentication: Option<Vec<Method>>,

    /// As `auth.anonymous`, for this listener. Default: that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub anonymous: Option<Anonymous>,

    /// Of `mqtts` and `wss`.
    #[serde(default)]
    pub tls: ListenerTls,
}

/// `tls` of a listener: PEM files, read again at SIGHUP.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ListenerTls {
    /// The server's certificate, with those between it and its authority. Required.
    pub certificate: PathBuf,

    /// Its private key. Required.
    pub key: PathBuf,

    /// The oldest version of TLS that is spoken: `"1.2"` or `"1.3"`. Default `"1.2"`.
    pub version_min: TlsVersion,

    /// Whether clients show a certificate: `off`, `optional` or `required`. Default `off`.
    pub client_certificates: ClientCertificates,

    /// The authorities that client certificates must be signed by. Required unless they are `off`.
    pub client_ca: PathBuf,

    /// Revoked client certificates: a CRL of each authority in their chains. Default empty: none is revoked.
    pub client_crl: PathBuf,

    /// How long a handshake may take. Default 5 s; bounds 100 ms to 1 min. `connect_timeout` holds beside it.
    #[serde(with = "units::duration")]
    pub handshake_timeout: Duration,

    /// Handshakes under way, of each worker; beyond, the one that is under way longest is given up. Default 1000;
    /// bounds 1 to 100000. More: more memory in a storm. Fewer: clients on slow lines lose to it.
    pub handshakes_max: u32,

    /// Further certificates, each for other names: a client that asks for a name (SNI) is shown the first one that is
    /// for it, and else `certificate`. Default empty.
    pub sni: Vec<SniCertificate>,
}

/// One of `tls.sni`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SniCertificate {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ListenerKind {
    Mqtt,
    Mqtts,
    Ws,
    Wss,
    Unix,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClientCertificates {
    Off,
    Optional,
    Required,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TlsVersion {
    #[serde(rename = "1.2")]
    V1_2,
    #[serde(rename = "1.3")]
    V1_3,
}

/// `127.0.0.1:1883`, `[::]:1883`, `/run/lontra/mqtt.sock`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenAddress {
    Ip(SocketAddr),
    Path(PathBuf),
}

/// Bytes of a socket's path: `sun_path` of unix(7), without its end.
pub const SOCKET_PATH_MAX: usize = 107;

/// Why a text names no place to listen at.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is neither address:port, like \"127.0.0.1:8883\" or \"[::1]:8883\", nor a path with a /")]
pub struct NotAListenAddress(String);

impl ListenerKind {
    pub const ALL: [ListenerKind; 5] = [
        ListenerKind::Mqtt,
        ListenerKind::Mqtts,
        ListenerKind::Ws,
        ListenerKind::Wss,
        ListenerKind::Unix,
    ];

    pub fn name(self) -> &'static str {
        match self {
            ListenerKind::Mqtt => "mqtt",
            ListenerKind::Mqtts => "mqtts",
            ListenerKind::Ws => "ws",
            ListenerKind::Wss => "wss",
            ListenerKind::Unix => "unix",
        }
    }

    pub fn is_tls(self) -> bool {
        matches!(self, ListenerKind::Mqtts | ListenerKind::Wss)
    }

    /// HTTP with upgrade comes before MQTT.
    pub fn is_websocket(self) -> bool {
        matches!(self, ListenerKind::Ws | ListenerKind::Wss)
    }
}

impl fmt::Display for ListenerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Listener {
    /// With nothing but what must be said.
    pub fn new(name: &str, kind: ListenerKind, listen: ListenAddress) -> Self {
        Listener {
            name: name.to_owned(),
            kind,
            listen,
            connections_max: 0,
            connection_rate: 0,
            message_rate: 0,
            byte_rate: ByteSize::default(),
            packet_size_max: None,
            connect_timeout: None,
            keep_alive_max: None,
            receive_maximum: None,
            session_expiry_max: None,
            topic_alias_max: None,
            mountpoint: String::new(),
            path: mqtt_path(),
            mode: FileMode::default(),
            proxy_protocol: false,
            trusted_proxies: Vec::new(),
            authentication: None,
            anonymous: None,
            tls: ListenerTls::default(),
        }
    }

    /// Whether both are the same socket: what else differs can change while it is open.
    pub fn is_same_socket(&self, other: &Listener) -> bool {
        (&self.name, self.kind, &self.listen, self.mode) == (&other.name, other.kind, &other.listen, other.mode)
    }

    /// Whether only this machine reaches it.
    pub fn is_local(&self) -> bool {
        self.listen.ip().is_none_or(|address| address.ip().is_loopback())
    }

    /// Whether nobody is served who does not show a good certificate.
    pub fn requires_certificates(&self) -> bool {
        self.kind.is_tls() && self.tls.client_certificates == ClientCertificates::Required
    }
}

impl Config {
    /// All places where clients connect: `mqtt.listen`, `websocket.listen`, then `[[listeners]]`.
    pub fn all_listeners(&self) -> Vec<Listener> {
        let of = |name, kind, listen| Listener::new(name, kind, ListenAddress::Ip(listen));
        let mut all = vec![
            of(DEFAULT_NAMES[0], ListenerKind::Mqtt, self.mqtt.listen),
            of(DEFAULT_NAMES[1], ListenerKind::Ws, self.websocket.listen),
        ];
        all.extend(self.listeners.iter().cloned());
        all
    }
}

impl Default for ListenerTls {
    fn default() -> Self {
        ListenerTls {
            certificate: PathBuf::new(),
            key: PathBuf::new(),
            version_min: TlsVersion::V1_2,
            client_certificates: ClientCertificates::Off,
            client_ca: PathBuf::new(),
            client_crl: PathBuf::new(),
            handshake_timeout: Duration::from_secs(5),
            handshakes_max: 1000,
            sni: Vec::new(),
        }
    }
}

impl ListenAddress {
    pub fn ip(&self) -> Option<SocketAddr> {
        match self {
            ListenAddress::Ip(address) => Some(*address),
            ListenAddress::Path(_) => None,
        }
    }

    pub fn path(&self) -> Option<&Path> {
        match self {
            ListenAddress::Ip(_) => None,
            ListenAddress::Path(path) => Some(path),
        }
    }
}

impl FromStr for ListenAddress {
    type Err = NotAListenAddress;

    fn from_str(text: &str) -> Result<Self, NotAListenAddress> {
        match text.parse() {
            Ok(address) => Ok(ListenAddress::Ip(address)),
            Err(_) if text.contains('/') && !text.contains('\0') => Ok(ListenAddress::Path(text.into())),
            Err(_) => Err(NotAListenAddress(text.to_owned())),
        }
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ListenAddress::Ip(address) => address.fmt(f),
            ListenAddress::Path(path) => path.display().fmt(f),
        }
    }
}

impl Serialize for ListenAddress {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ListenAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

fn mqtt_path() -> String {
    "/mqtt".to_owned()
}

/// Of `mqtt.listen` and `websocket.listen`.
pub const DEFAULT_NAMES: [&str; 2] = ["mqtt", "ws"];

/// A listener with every key, for whoever needs to know which there are.
pub(super) fn with_every_key() -> Listener {
    Listener {
        packet_size_max: Some(ByteSize::mib(1)),
        connect_timeout: Some(Duration::from_secs(10)),
        keep_alive_max: Some(Duration::ZERO),
        receive_maximum: Some(1024),
        session_expiry_max: Some(SessionExpiry::NEVER),
        topic_alias_max: Some(32),
        authentication: Some(Vec::new()),
        anonymous: Some(Anonymous::default()),
        ..Listener::new("name", ListenerKind::Mqtt, ListenAddress::Ip(loopback(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_to_listen_read_and_print() {
        for text in ["127.0.0.1:1883", "[::]:8883", "[::1]:1", "/run/lontra/mqtt.sock", "./x"] {
            let address: ListenAddress = text.parse().expect("a place");
            assert_eq!(address.to_string(), text);
            assert_eq!(address.path().is_some(), !text.contains(':'), "{text}");
        }
        for text in ["", "localhost:1883", ":::1883", "socket", "::1:1883"] {
            assert!(text.parse::<ListenAddress>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_two_of_old_come_first() {
        let mut config = Config::default();
        let unix = Listener::new("here", ListenerKind::Unix, ListenAddress::Path("/x".into()));
        config.listeners.push(unix.clone());
        let all = config.all_listeners();
        assert_eq!(
            all.iter().map(|one| &*one.name).collect::<Vec<_>>(),
            ["mqtt", "ws", "here"]
        );
        assert_eq!(all[0].listen.ip(), Some(config.mqtt.listen));
        assert!(all[2].is_same_socket(&unix) && !all[2].is_same_socket(&all[1]));
    }
}
