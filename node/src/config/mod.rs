//! What an operator may set, with every default, bound and consequence.
//!
//!     defaults ◀── TOML file ◀── LONTRA__SECTION__KEY ──▶ check (bounds, rules, timing) ──▶ Config
//!
//! `load.rs` reads and names the origin of every mistake (file and line, or variable); `check.rs` holds the bounds and
//! the rules between keys; `timing.rs` the sum that keeps the promise P10; `units.rs` the values with a unit,
//! `web_origin.rs` those that name web pages, `network.rs` those that name networks; `listener.rs` has `[[listeners]]`,
//! `list_lines.rs` finds their lines, and those of the rules in `[topics]`; `topics.rs` has `[topics]`, `auth.rs` and `auth_methods.rs` `[auth]`, `limits.rs` `[limits]`;
//! `machine.rs` what is derived from cores
//! and memory; `show.rs` what `lontra
//! config show` prints. A `Config` that `Config::load` returned keeps all of them. Relative paths are relative to the working directory.
//!
//! The shipped example, `ops/deploy/lontra.toml`, has every key with its default; a test compares it with
//! `Config::default()`.
//!
//! Invariants
//! - `config-closed`: a key, section or variable that Lontra does not know is refused, never ignored.
//! - `config-origin`: a refusal names where the value came from, and the key.

pub mod auth;
mod auth_methods;
mod check;
pub mod limits;
mod list_lines;
pub mod listener;
mod load;
pub mod machine;
mod network;
mod show;
mod timing;
pub mod topics;
pub mod units;
mod web_origin;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use listener::{Listener, ListenerKind};
pub(crate) use load::environment;
pub use load::{ConfigError, Loaded, Origin, Source};
pub use machine::Machine;
pub use network::Network;
pub use show::show;
pub use timing::{LEASE_MARGIN, PAUSE_MAX, RESUME_LIMIT, Timing};
pub use units::{ByteSize, Percent, SessionExpiry};
pub use web_origin::WebOrigin;

/// The whole configuration of one node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub node: Node,
    pub cluster: Cluster,
    pub mqtt: Mqtt,
    pub queue: Queue,
    pub retained: Retained,
    pub limits: limits::Limits,
    pub shared: Shared,
    pub websocket: WebSocket,
    pub http: Http,
    pub storage: Storage,
    pub sys: Sys,
    pub topics: topics::Topics,
    pub log: Log,
    pub auth: auth::Auth,
    /// Where clients connect besides `mqtt.listen` and `websocket.listen`. Default empty; at most 64.
    pub listeners: Vec<Listener>,
}

/// `[node]`: this process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Node {
    /// The number of this node in its cluster: unique, and never given to another node, nor to this one after it lost
    /// its data. Default 1; bounds 1 to 65535. With `cluster.seeds` it must be the id of one of them.
    pub id: u64,

    /// Where everything that must survive is kept, and `lontra.pid`. Default `lontra-data`. Made if it is missing.
    /// On a slow disk every acknowledged durable publish waits for it; on a volatile one (tmpfs) nothing survives a
    /// power cut.
    pub data_dir: PathBuf,

    /// Threads that own client connections. Default 0: one per core that this process may use (its affinity and the CPU
    /// quota of its cgroup, rounded down, at least 1); bounds 0 to 256.
    /// More: a fan-out crosses more threads. Fewer: cores lie idle while clients wait.
    pub workers: u16,
}

/// `[cluster]`: the other nodes. Equal on all nodes, but for `listen` and `tls`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cluster {
    /// The name that certificates and data directories are bound to. Default `lontra`; 1 to 63 of `a-z`, `0-9` and `-`.
    /// Nodes of different names refuse each other.
    pub name: String,

    /// Where other nodes reach this one (QUIC, UDP). Default `127.0.0.1:17883`. It need not be loopback: links are
    /// mutually authenticated by `cluster.tls`. Unused by a single node.
    pub listen: SocketAddr,

    /// Over how many Raft groups the topics are spread; fixed when the cluster is formed. Default 12; bounds 1 to 64.
    /// More: smaller batches (each costs an fsync), and fewer messages in flight per session and shard (65535 /
    /// shards). Fewer: less of the load can be spread over nodes and cores.
    pub shards: u16,

    /// On how many nodes each shard is kept: 1, 3 or 5; default 3; capped by the number of nodes.
    /// More: more nodes may be lost, each publish costs more. 1: a lost node takes its messages with it.
    pub replication_factor: u16,

    /// All nodes of the cluster at its forming, this one included: `{ id = 1, address = "10.0.0.1:17883" }`. Default
    /// empty: a single node. At most 64; each id and each address once.
    pub seeds: Vec<Seed>,

    /// The certificates that nodes show each other. Required if there is more than one seed.
    pub tls: Tls,

    /// How often a Raft leader shows that it is there. Default 100 ms; bounds 10 ms to 1 s.
    /// Longer: elections must be longer too. Shorter: idle groups cost more.
    #[serde(with = "units::duration")]
    pub heartbeat: Duration,

    /// The longest time without a sign of the leader before a follower asks for votes; each draws its own between 3/5
    /// of this and this. Default 500 ms; bounds 5 heartbeats to 5 s (and the sum in `timing.rs`). Longer: publishing
    /// stands still longer after a crash. Shorter: a loaded machine loses leaders that are well.
    #[serde(with = "units::duration")]
    pub election: Duration,

    /// How long a node may serve after it last asked the meta leader. Default 2 s; bounds two elections to 10 s (and
    /// the sum in `timing.rs`). Longer: the sessions of a dead node wait longer. Shorter: a short pause of a machine
    /// stops its clients.
    #[serde(with = "units::duration")]
    pub lease: Duration,
}

/// One of `cluster.seeds`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seed {
    /// That node's `node.id`.
    pub id: u64,

    /// Where the other nodes reach it: `host:port`, a name or an IP address.
    pub address: String,
}

/// `[cluster.tls]`: PEM files. All three or none; made by `lontra cert`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tls {
    /// The certificate of the cluster's authority. Default empty.
    pub ca: PathBuf,

    /// This node's certificate, signed by `ca`, made out to `cluster.name` and `node.id`. Default empty.
    pub certificate: PathBuf,

    /// The private key of `certificate`. Default empty. Whoever can read it can join as this node.
    pub key: PathBuf,

    /// Certificates of nodes that the authority has taken back: a revocation list of each authority in `ca`. Default empty:
    /// none is.
    pub crl: PathBuf,
}

/// `[mqtt]`: clients over TCP, and what holds for clients of every transport.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Mqtt {
    /// Where MQTT clients connect. Default `127.0.0.1:1883`. Loopback only, until `[auth]` says who may connect.
    pub listen: SocketAddr,

    /// The largest packet taken from a client, told as Maximum Packet Size. Default 1 MiB; bounds 1 KiB to 256 MiB.
    /// Larger: one client takes more memory and makes others wait. Smaller: its publishes are refused with 0x95.
    pub packet_size_max: ByteSize,

    /// How long a new connection may take to send its CONNECT. Default 10 s; bounds 100 ms to 5 min.
    /// Longer: connections that say nothing hold a place. Shorter: clients on slow lines do not get in.
    #[serde(with = "units::duration")]
    pub connect_timeout: Duration,

    /// The longest Keep Alive granted, told as Server Keep Alive. Default 0 s: what the client asks for; bounds 0 s to
    /// 65535 s. Longer: a vanished client is noticed later. Shorter: idle clients ping more.
    #[serde(with = "units::duration")]
    pub keep_alive_max: Duration,

    /// QoS 1 and 2 publishes of one client that may be unacknowledged, told as Receive Maximum. Default 1024; bounds 1
    /// to 65535. More: more memory per busy client. Less: its throughput is bound by this over the time of one
    /// acknowledgement.
    pub receive_maximum: u16,

    /// The longest Session Expiry Interval granted. Default `"never"`: no limit.
    /// Longer: clients that never return cost disk. Shorter: a client that is away longer loses its messages (Session
    /// Present tells it).
    pub session_expiry_max: SessionExpiry,

    /// Topic aliases of one connection, in each direction; told as Topic Alias Maximum. Default 32; bounds 0 to 1024.
    /// More: more memory per client. Fewer: topics that repeat take more bytes on the wire. 0: none are used.
    pub topic_alias_max: u16,

    /// Bytes that wait for one connection to take them, on their way to its socket or as messages. Default 8 MiB; bounds
    /// `packet_size_max` to 1 GiB.
    /// More: slow clients take more memory. Less: bursts disconnect (ephemeral session, 0x97) or page from disk
    /// (durable).
    pub outbox_bytes_max: ByteSize,

    /// Messages that wait for one connection to take them. Default 10000; bounds 1 to 10000000. As `outbox_bytes_max`.
    pub outbox_messages_max: u32,

    /// How long a full outbox may delay the acknowledgement of an ephemeral QoS 1 publish before that subscriber is
    /// disconnected. Default 1 s; bounds 0 s to 10 s. Longer: one slow subscriber holds publishers. Shorter: more are
    /// let go.
    #[serde(with = "units::duration")]
    pub outbox_wait_max: Duration,

    /// Connections of this node, of all transports. Default 10000; bounds 1 to 1000000. Each needs a file descriptor.
    /// More: more memory. When it is reached, new connections are closed at once.
    pub connections_max: u32,

    /// Levels of a Topic Name or Topic Filter. Default 128; bounds 1 to 32768. More: matching such a topic takes
    /// longer.
    pub topic_levels_max: u16,

    /// Whether filters may have `+` and `#`, told as Wildcard Subscription Available. Default true. False: such a filter is
    /// refused in SUBACK (0xA2; 3.x: 0x80), and no client can make each message come to it.
    pub wildcard_subscriptions: bool,

    /// Whether `$share/` and `$queue/` may be subscribed to, told as Shared Subscription Available. Default true. False: 0x9E.
    pub shared_subscriptions: bool,

    /// Whether SUBSCRIBE may have a Subscription Identifier, told as Subscription Identifiers Available. Default true. False:
    /// 0xA1.
    pub subscription_identifiers: bool,
}

/// `[queue]`: what waits for a persistent session whose client is away. Each limit holds per session and shard, within
/// seconds; 0 is no limit. Beside them the disk watermark holds (`storage.free_space_min`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Queue {
    /// Messages. Default 0; bounds 0 to 10^12. Lower: absent clients lose more, as `policy` says.
    pub messages_max: u64,

    /// Topics, payloads and properties. Default 0; bounds 0 to 1 TiB. As `messages_max`.
    pub bytes_max: ByteSize,

    /// How long a message waits. Default 0 s; bounds 0 s to 10 years. Older ones are dropped, as expired.
    #[serde(with = "units::duration")]
    pub age_max: Duration,

    /// What happens beyond `messages_max` or `bytes_max`: `end-session` (Session Present tells the client), `drop-oldest`
    /// or `drop-new`. Default `end-session`: no client believes that it missed nothing.
    pub policy: QueuePolicy,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum QueuePolicy {
    EndSession,
    DropOldest,
    DropNew,
}

/// `[retained]`: retained messages of the whole cluster, spread over the shards; 0 is no limit. Equal on all nodes.
/// Beyond a limit a retained publish is refused with 0x97; removing is always possible.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Retained {
    /// Messages. Default 0; bounds 0 to 10^12. Each shard takes its part.
    pub messages_max: u64,

    /// Topics, payloads and properties. Default 0; bounds 0 to 1 TiB.
    pub bytes_max: ByteSize,
}

/// `[shared]`: shared subscriptions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Shared {
    /// Which member gets a message: `random`, `round-robin`, `sticky`, `local` (on the publisher's node), `hash-client-id`,
    /// `hash-topic` or `least-loaded`. Default `round-robin`. Equal on all nodes.
    pub strategy: SharedStrategy,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SharedStrategy {
    Random,
    RoundRobin,
    Sticky,
    Local,
    HashClientId,
    HashTopic,
    LeastLoaded,
}

/// `[websocket]`: MQTT over WebSocket at `/mqtt`: HTTP with upgrade.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WebSocket {
    /// Where WebSocket clients connect. Default `127.0.0.1:8083`. Loopback only, until `[auth]` says who may connect.
    pub listen: SocketAddr,

    /// Web pages that may connect, by the origin that browsers send for them: `https://host[:port]`, `loopback` (pages
    /// that this machine serves), `null` (files), `*` (all). Default `["loopback"]`. Clients that send no origin, as
    /// programs do, are not concerned. More: those pages may do what any client may, in every visitor's browser.
    pub origins: Vec<WebOrigin>,
}

/// `[http]`: operators: `/metrics`, `/health/live`, `/health/ready`, `/api/v1/status`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Http {
    /// Where operators and Prometheus connect. Default `127.0.0.1:18083`. On other addresses than
    /// loopback `/api` is not served before the cluster has a key.
    pub listen: SocketAddr,

    /// Who may read `/metrics` from another machine: `key`, whoever shows a key of the cluster, of any role; `open`, everybody.
    /// Default `key`. Whoever is on this machine may in any case.
    pub metrics: MetricsFor,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MetricsFor {
    #[default]
    Key,
    Open,
}

/// `[storage]`: the databases in `node.data_dir`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Storage {
    /// The share of the file system that stays free: below it, publishes are refused (0x97) until there is room again.
    /// Default 10 %; bounds 1 % to 50 %. More: less room for messages. Less: acknowledgements and cleanup may find no
    /// room.
    pub free_space_min: Percent,

    /// How often the tables are flushed and the logs behind them purged. Default 30 s; bounds 1 s to 1 h.
    /// Longer: a start after a crash replays more log, and the log takes more disk. Shorter: more is written to disk.
    #[serde(with = "units::duration")]
    pub checkpoint_interval: Duration,

    /// What RocksDB keeps of its tables in memory. Default 0 B: a sixteenth of the memory that this process may use
    /// (`machine.rs`), from 16 MiB to 1 GiB; bounds 1 MiB to 1 TiB. More: memory. Less: sessions that come back after long
    /// read their messages from disk.
    pub cache_bytes: ByteSize,

    /// One write buffer of RocksDB; at the worst seven are full at once. Default 0 B: a 64th of that memory, from 8 MiB to
    /// 64 MiB; bounds 1 MiB to 1 GiB. More: memory. Less: what would soon be purged is written to tables first.
    pub write_buffer_bytes: ByteSize,
}

/// `[sys]`: the topics under `$SYS`, by which a node tells its clients about itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sys {
    /// How often they are published to who subscribes to them. Default 10 s; bounds 1 s to 1 h, or 0 s: there are none.
    /// Longer: what is shown is older. Shorter: each subscriber takes about sixty small messages more often.
    #[serde(with = "units::duration")]
    pub interval: Duration,
}

/// `[log]`: to standard error.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// `error`, `warn`, `info`, `debug` or `trace`; parts of the program may differ: `info,lontra_cluster=debug`.
    /// Default `info`. `debug` and `trace` write for every packet.
    pub level: String,

    /// `text` for people, `json` for machines: one object per line. Default `text`.
    pub format: LogFormat,

    /// Where what administrators did is kept besides the log, one JSON object per line; made with mode 0600. Default empty:
    /// in the log only.
    pub audit_file: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    Text,
    Json,
}

impl Config {
    /// The configuration as one TOML document that `Config::load` reads back equal.
    pub fn effective_toml(&self) -> String {
        toml::to_string(self).expect("every field is a TOML value, and tables come last in each struct")
    }

    /// The waits that `cluster.heartbeat`, `election` and `lease` stand for.
    pub fn timing(&self) -> Timing {
        Timing {
            heartbeat: self.cluster.heartbeat,
            election: self.cluster.election,
            lease: self.cluster.lease,
        }
    }
}

impl Cluster {
    /// Nodes at the forming of the cluster; 1 if there are no seeds.
    pub fn node_count(&self) -> usize {
        self.seeds.len().max(1)
    }

    /// On how many nodes each shard is kept: `replication_factor`, but not more than there are nodes.
    pub fn replicas(&self) -> usize {
        usize::from(self.replication_factor).min(self.node_count())
    }

    /// The certificates, if they are configured.
    pub fn tls(&self) -> Option<&Tls> {
        (!self.tls.is_empty()).then_some(&self.tls)
    }
}

impl Tls {
    fn is_empty(&self) -> bool {
        [&self.ca, &self.certificate, &self.key, &self.crl]
            .iter()
            .all(|path| path.as_os_str().is_empty())
    }
}

/// The longest Keep Alive granted, in seconds; `None` = what the client asks for.
pub fn seconds_unless_none(keep_alive_max: Duration) -> Option<u16> {
    let seconds = u16::try_from(keep_alive_max.as_secs()).unwrap_or(u16::MAX);
    (seconds > 0).then_some(seconds)
}

impl Default for Node {
    fn default() -> Self {
        Self {
            id: 1,
            data_dir: "lontra-data".into(),
            workers: 0,
        }
    }
}

impl Default for Cluster {
    fn default() -> Self {
        Self {
            name: "lontra".to_owned(),
            listen: loopback(17883),
            shards: 12,
            replication_factor: 3,
            seeds: Vec::new(),
            tls: Tls::default(),
            heartbeat: Duration::from_millis(100),
            election: Duration::from_millis(500),
            lease: Duration::from_secs(2),
        }
    }
}

impl Default for Mqtt {
    fn default() -> Self {
        Self {
            listen: loopback(1883),
            packet_size_max: ByteSize::mib(1),
            connect_timeout: Duration::from_secs(10),
            keep_alive_max: Duration::ZERO,
            receive_maximum: 1024,
            session_expiry_max: SessionExpiry::NEVER,
            topic_alias_max: 32,
            outbox_bytes_max: ByteSize::mib(8),
            outbox_messages_max: 10_000,
            outbox_wait_max: Duration::from_secs(1),
            connections_max: 10_000,
            topic_levels_max: 128,
            wildcard_subscriptions: true,
            shared_subscriptions: true,
            subscription_identifiers: true,
        }
    }
}

impl Default for Queue {
    fn default() -> Self {
        Self {
            messages_max: 0,
            bytes_max: ByteSize::mib(0),
            age_max: Duration::ZERO,
            policy: QueuePolicy::EndSession,
        }
    }
}

impl Default for Retained {
    fn default() -> Self {
        Self {
            messages_max: 0,
            bytes_max: ByteSize::mib(0),
        }
    }
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            strategy: SharedStrategy::RoundRobin,
        }
    }
}

impl Default for WebSocket {
    fn default() -> Self {
        Self {
            listen: loopback(8083),
            origins: vec![WebOrigin::Loopback],
        }
    }
}

impl Default for Http {
    fn default() -> Self {
        Self {
            listen: loopback(18083),
            metrics: MetricsFor::default(),
        }
    }
}

impl Default for Storage {
    fn default() -> Self {
        Self {
            free_space_min: Percent(10),
            checkpoint_interval: Duration::from_secs(30),
            cache_bytes: ByteSize::mib(0),
            write_buffer_bytes: ByteSize::mib(0),
        }
    }
}

impl Default for Sys {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(10),
        }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self {
            level: "info".to_owned(),
            format: LogFormat::Text,
            audit_file: PathBuf::new(),
        }
    }
}

fn loopback(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

#[cfg(test)]
mod tests;
