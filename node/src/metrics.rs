//! What a node counts about its clients.

use std::time::Duration;

use prometheus::{
    Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, exponential_buckets,
};

use crate::auth::chain::Refused;
use crate::auth::identity::Identity;
use crate::config::ListenerKind;
use crate::gateway::tls::handshake::HandshakeFailure;
use crate::limits::LimitMetrics;
use crate::protocol::codec::ReasonCode;

/// Why a message did not reach a client that matched it. A closed set: a reason for every drop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drop {
    /// QoS 0, and the client does not read fast enough.
    OutboxFull,
    /// Its Message Expiry Interval passed before it was first sent. [MQTT-3.3.2-5]
    Expired,
    /// Larger than the client's Maximum Packet Size. [MQTT-3.1.2-24]
    TooLarge,
    /// The worker's queue was full; durable sessions read it from storage instead.
    WorkerFull,
    /// The client may not read its topic.
    NotAuthorized,
}

impl Drop {
    const ALL: [Drop; 5] = [
        Drop::OutboxFull,
        Drop::Expired,
        Drop::TooLarge,
        Drop::WorkerFull,
        Drop::NotAuthorized,
    ];

    fn name(self) -> &'static str {
        match self {
            Drop::OutboxFull => "outbox_full",
            Drop::Expired => "expired",
            Drop::TooLarge => "packet_too_large",
            Drop::WorkerFull => "worker_full",
            Drop::NotAuthorized => "not_authorized",
        }
    }
}

/// What a client was not allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeniedAction {
    Publish,
    Subscribe,
    /// Its CONNECT was refused for it.
    Will,
}

impl DeniedAction {
    const ALL: [DeniedAction; 3] = [DeniedAction::Publish, DeniedAction::Subscribe, DeniedAction::Will];

    fn name(self) -> &'static str {
        match self {
            DeniedAction::Publish => "publish",
            DeniedAction::Subscribe => "subscribe",
            DeniedAction::Will => "will",
        }
    }
}

/// Why a connection never became a client's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// `mqtt.connections_max` is reached, or the listener's own.
    ConnectionsMax,
    /// It ended before anything that looks like a CONNECT.
    NoConnect,
    /// Its time ended before anything that looks like a CONNECT.
    ConnectTimeout,
    /// It met a limit of `[limits]` before its TLS handshake; `lontra_limit_refusals_total` tells which.
    Limit,
    /// The kernel gave no socket: descriptors or memory.
    AcceptFailed,
    /// It has no PROXY header where one is due, or comes from nobody who may send one.
    Proxy,
    /// Its TLS handshake failed.
    Tls,
}

impl Refusal {
    const ALL: [Refusal; 7] = [
        Refusal::ConnectionsMax,
        Refusal::NoConnect,
        Refusal::ConnectTimeout,
        Refusal::Limit,
        Refusal::AcceptFailed,
        Refusal::Proxy,
        Refusal::Tls,
    ];

    fn name(self) -> &'static str {
        match self {
            Refusal::ConnectionsMax => "connections_max",
            Refusal::NoConnect => "no_connect",
            Refusal::ConnectTimeout => "connect_timeout",
            Refusal::Limit => "limit",
            Refusal::AcceptFailed => "accept_failed",
            Refusal::Proxy => "proxy",
            Refusal::Tls => "tls",
        }
    }
}

/// Why an HTTP request did not become a WebSocket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpgradeRefusal {
    Path,
    Method,
    NoUpgrade,
    Version,
    Key,
    Body,
    Origin,
    Subprotocol,
    /// What came is no HTTP, or not in time.
    NoRequest,
}

impl UpgradeRefusal {
    const ALL: [UpgradeRefusal; 9] = [
        UpgradeRefusal::Path,
        UpgradeRefusal::Method,
        UpgradeRefusal::NoUpgrade,
        UpgradeRefusal::Version,
        UpgradeRefusal::Key,
        UpgradeRefusal::Body,
        UpgradeRefusal::Origin,
        UpgradeRefusal::Subprotocol,
        UpgradeRefusal::NoRequest,
    ];

    fn name(self) -> &'static str {
        match self {
            UpgradeRefusal::Path => "path",
            UpgradeRefusal::Method => "method",
            UpgradeRefusal::NoUpgrade => "no_upgrade",
            UpgradeRefusal::Version => "version",
            UpgradeRefusal::Key => "key",
            UpgradeRefusal::Body => "body",
            UpgradeRefusal::Origin => "origin",
            UpgradeRefusal::Subprotocol => "subprotocol",
            UpgradeRefusal::NoRequest => "no_request",
        }
    }
}

/// What `$SYS` topics tell of this node's clients, since it started; gauges as they are now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    pub packets_received: u64,
    pub packets_sent: u64,
    pub publishes_received: u64,
    pub publishes_sent: u64,
    pub publishes_dropped: u64,
    pub bytes_received: u64,
    pub bytes_sent: u64,
    pub sockets: u64,
    pub connections: i64,
    pub subscriptions: i64,
}

/// Verbs for everything that happens to clients. Cheap to clone.
#[derive(Clone)]
pub struct NodeMetrics {
    connections: IntGauge,
    connects: IntCounterVec,
    disconnects: IntCounterVec,
    /// By QoS.
    received: IntCounterVec,
    sent: IntCounterVec,
    /// The counters of those: finding one by its label costs more than the rest of counting.
    received_at: [IntCounter; 3],
    sent_at: [IntCounter; 3],
    dropped: IntCounterVec,
    publish_ack: Histogram,
    subscriptions: IntGauge,
    worker_queue: IntGauge,
    publish_refused: IntCounterVec,
    subscriptions_refused: IntCounterVec,
    publishes_waiting: IntGauge,
    accepted: IntCounter,
    connections_refused: IntCounterVec,
    upgrades_refused: IntCounterVec,
    packets_received: IntCounter,
    packets_sent: IntCounter,
    bytes_received: IntCounter,
    bytes_sent: IntCounter,
    config_reloads: IntCounterVec,
    listener_connections: IntGaugeVec,
    handshakes: IntCounterVec,
    handshake_seconds: Histogram,
    authentications: IntCounterVec,
    denied: IntCounterVec,
    pub limits: LimitMetrics,
}

impl NodeMetrics {
    /// # Panics
    /// A name is registered twice: a bug.
    pub fn new(registry: &Registry) -> Self {
        let counters = |name: &str, help: &str, label: &str| {
            IntCounterVec::new(Opts::new(name, help), &[label]).expect("a valid metric name")
        };
        let counter = |name: &str, help: &str| IntCounter::new(name, help).expect("a valid metric name");
        let gauge = |name: &str, help: &str| IntGauge::new(name, help).expect("a valid metric name");
        // 50 µs to 26 s.
        let buckets = exponential_buckets(0.00005, 2.0, 20).expect("valid buckets");
        let publish_ack =
            HistogramOpts::new("lontra_publish_ack_seconds", "From a PUBLISH to its PUBACK.").buckets(buckets);
        let handshake = HistogramOpts::new(
            "lontra_tls_handshake_seconds",
            "Successful TLS handshakes of clients, from the client's first byte.",
        );
        let handshake = handshake.buckets(exponential_buckets(0.0005, 2.0, 16).expect("valid buckets"));
        let by_kind = Opts::new(
            "lontra_listener_connections",
            "Network connections of clients that are open, by the kind of their listener.",
        );
        let received = counters("lontra_messages_received_total", "PUBLISH packets from clients.", "qos");
        let sent = counters("lontra_messages_sent_total", "PUBLISH packets to clients.", "qos");
        let metrics = NodeMetrics {
            received_at: QOS_LABELS.map(|qos| received.with_label_values(&[qos])),
            sent_at: QOS_LABELS.map(|qos| sent.with_label_values(&[qos])),
            limits: LimitMetrics::new(registry),
            listener_connections: IntGaugeVec::new(by_kind, &["kind"]).expect("a valid metric name"),
            handshakes: counters(
                "lontra_tls_handshakes_total",
                "TLS handshakes of clients, by result: full, resumed, or how they failed.",
                "result",
            ),
            handshake_seconds: Histogram::with_opts(handshake).expect("a valid metric name"),
            authentications: counters(
                "lontra_authentications_total",
                "CONNECT packets by who the client is: accepted, anonymous, or why it was refused.",
                "result",
            ),
            denied: counters(
                "lontra_authorization_denied_total",
                "What clients were not allowed: publishes, filters of subscriptions, wills.",
                "action",
            ),
            connections: gauge(
                "lontra_connections",
                "Network connections of clients, accepted and not yet closed.",
            ),
            connects: counters(
                "lontra_connects_total",
                "CONNECT packets answered, by reason code.",
                "reason",
            ),
            disconnects: counters(
                "lontra_disconnects_total",
                "Connections ended, by the reason code that tells why.",
                "reason",
            ),
            received,
            sent,
            dropped: counters(
                "lontra_messages_dropped_total",
                "Messages that a matching client did not get, by reason.",
                "reason",
            ),
            publish_ack: Histogram::with_opts(publish_ack).expect("a valid metric name"),
            subscriptions: gauge("lontra_subscriptions", "Subscriptions of connected clients."),
            worker_queue: gauge(
                "lontra_worker_queue_bytes",
                "Bytes of messages on their way from the cluster to this node's workers.",
            ),
            publish_refused: counters(
                "lontra_publishes_refused_total",
                "PUBLISH packets that were not stored and not acknowledged with success, by reason code.",
                "reason",
            ),
            publishes_waiting: gauge(
                "lontra_publishes_waiting_bytes",
                "Bytes of publishes that this node's clients have under way to their shards, or to full outboxes.",
            ),
            subscriptions_refused: counters(
                "lontra_subscriptions_refused_total",
                "Topic Filters of SUBSCRIBE and UNSUBSCRIBE that were refused, by reason code.",
                "reason",
            ),
            accepted: counter(
                "lontra_connections_accepted_total",
                "Network connections of clients that were accepted.",
            ),
            connections_refused: counters(
                "lontra_connections_refused_total",
                "Network connections that ended before a CONNECT, by reason.",
                "reason",
            ),
            upgrades_refused: counters(
                "lontra_websocket_upgrades_refused_total",
                "HTTP requests that did not become a WebSocket, by reason.",
                "reason",
            ),
            packets_received: counter(
                "lontra_packets_received_total",
                "MQTT packets from clients, of any type.",
            ),
            packets_sent: counter("lontra_packets_sent_total", "MQTT packets to clients, of any type."),
            bytes_received: counter("lontra_bytes_received_total", "Bytes of MQTT from clients."),
            bytes_sent: counter("lontra_bytes_sent_total", "Bytes of MQTT to clients."),
            config_reloads: counters(
                "lontra_config_reloads_total",
                "SIGHUPs answered: the configuration was read and applied, or refused as a whole.",
                "result",
            ),
        };
        for result in [RELOAD_APPLIED, RELOAD_REFUSED] {
            metrics.config_reloads.with_label_values(&[result]).inc_by(0);
        }
        let refused = Refused::ALL.map(Refused::name);
        for result in [AUTHENTICATED, ANONYMOUS].into_iter().chain(refused) {
            metrics.authentications.with_label_values(&[result]).inc_by(0);
        }
        for action in DeniedAction::ALL {
            metrics.denied.with_label_values(&[action.name()]).inc_by(0);
        }
        for kind in ListenerKind::ALL {
            metrics.listener_connections.with_label_values(&[kind.name()]).set(0);
        }
        let failures = HandshakeFailure::ALL.map(HandshakeFailure::name);
        for result in [HANDSHAKE_FULL, HANDSHAKE_RESUMED].into_iter().chain(failures) {
            metrics.handshakes.with_label_values(&[result]).inc_by(0);
        }
        for reason in Drop::ALL {
            metrics.dropped.with_label_values(&[reason.name()]).inc_by(0);
        }
        for reason in Refusal::ALL {
            metrics
                .connections_refused
                .with_label_values(&[reason.name()])
                .inc_by(0);
        }
        for reason in UpgradeRefusal::ALL {
            metrics.upgrades_refused.with_label_values(&[reason.name()]).inc_by(0);
        }
        let collectors: [Box<dyn prometheus::core::Collector>; 25] = [
            Box::new(metrics.connections.clone()),
            Box::new(metrics.connects.clone()),
            Box::new(metrics.disconnects.clone()),
            Box::new(metrics.received.clone()),
            Box::new(metrics.sent.clone()),
            Box::new(metrics.dropped.clone()),
            Box::new(metrics.publish_ack.clone()),
            Box::new(metrics.subscriptions.clone()),
            Box::new(metrics.worker_queue.clone()),
            Box::new(metrics.publish_refused.clone()),
            Box::new(metrics.subscriptions_refused.clone()),
            Box::new(metrics.publishes_waiting.clone()),
            Box::new(metrics.accepted.clone()),
            Box::new(metrics.connections_refused.clone()),
            Box::new(metrics.upgrades_refused.clone()),
            Box::new(metrics.packets_received.clone()),
            Box::new(metrics.packets_sent.clone()),
            Box::new(metrics.bytes_received.clone()),
            Box::new(metrics.bytes_sent.clone()),
            Box::new(metrics.config_reloads.clone()),
            Box::new(metrics.listener_connections.clone()),
            Box::new(metrics.handshakes.clone()),
            Box::new(metrics.handshake_seconds.clone()),
            Box::new(metrics.authentications.clone()),
            Box::new(metrics.denied.clone()),
        ];
        for collector in collectors {
            registry.register(collector).expect("metric names are unique");
        }
        metrics
    }

    pub fn connection_opened(&self, kind: ListenerKind) {
        self.accepted.inc();
        self.connections.inc();
        self.listener_connections.with_label_values(&[kind.name()]).inc();
    }

    pub fn connection_closed(&self, kind: ListenerKind) {
        self.connections.dec();
        self.listener_connections.with_label_values(&[kind.name()]).dec();
    }

    pub fn handshake_done(&self, is_resumed: bool, elapsed: Duration) {
        let result = if is_resumed { HANDSHAKE_RESUMED } else { HANDSHAKE_FULL };
        self.handshakes.with_label_values(&[result]).inc();
        self.handshake_seconds.observe(elapsed.as_secs_f64());
    }

    pub fn handshake_failed(&self, failure: HandshakeFailure) {
        self.handshakes.with_label_values(&[failure.name()]).inc();
    }

    /// Whether the client is somebody, or why it was refused.
    pub fn authenticated(&self, result: &Result<Identity, Refused>) {
        let result = match result {
            Ok(identity) if identity.user.is_some() => AUTHENTICATED,
            Ok(_) => ANONYMOUS,
            Err(refused) => refused.name(),
        };
        self.authentications.with_label_values(&[result]).inc();
    }

    pub fn denied(&self, action: DeniedAction) {
        self.denied.with_label_values(&[action.name()]).inc();
    }

    pub fn open_connections(&self) -> i64 {
        self.connections.get()
    }

    pub fn connection_refused(&self, reason: Refusal) {
        self.connections_refused.with_label_values(&[reason.name()]).inc();
    }

    pub fn upgrade_refused(&self, reason: UpgradeRefusal) {
        self.upgrades_refused.with_label_values(&[reason.name()]).inc();
    }

    pub fn received(&self, packets: u64) {
        self.packets_received.inc_by(packets);
    }

    pub fn received_bytes(&self, bytes: usize) {
        self.bytes_received.inc_by(bytes as u64);
    }

    /// What is on its way to a socket: whole packets.
    pub fn sent(&self, packets: u64, bytes: usize) {
        self.packets_sent.inc_by(packets);
        self.bytes_sent.inc_by(bytes as u64);
    }

    pub fn totals(&self) -> Totals {
        let all = |counters: &IntCounterVec, labels: &[&str]| -> u64 {
            let each = labels.iter().map(|label| counters.with_label_values(&[*label]).get());
            each.sum()
        };
        let drops = Drop::ALL.map(Drop::name);
        Totals {
            packets_received: self.packets_received.get(),
            packets_sent: self.packets_sent.get(),
            publishes_received: all(&self.received, &QOS_LABELS),
            publishes_sent: all(&self.sent, &QOS_LABELS),
            publishes_dropped: all(&self.dropped, &drops),
            bytes_received: self.bytes_received.get(),
            bytes_sent: self.bytes_sent.get(),
            sockets: self.accepted.get(),
            connections: self.connections.get(),
            subscriptions: self.subscriptions.get(),
        }
    }

    pub fn connect_answered(&self, reason: ReasonCode) {
        self.connects.with_label_values(&[reason_label(reason)]).inc();
    }

    pub fn disconnected(&self, reason: ReasonCode) {
        self.disconnects.with_label_values(&[reason_label(reason)]).inc();
    }

    pub fn message_received(&self, qos: u8) {
        self.received_at[usize::from(qos.min(2))].inc();
    }

    pub fn messages_sent(&self, qos: u8, count: u64) {
        self.sent_at[usize::from(qos.min(2))].inc_by(count);
    }

    pub fn dropped(&self, reason: Drop, count: u64) {
        self.dropped.with_label_values(&[reason.name()]).inc_by(count);
    }

    pub fn publish_acknowledged(&self, elapsed: Duration) {
        self.publish_ack.observe(elapsed.as_secs_f64());
    }

    pub fn publish_refused(&self, reason: ReasonCode) {
        self.publish_refused.with_label_values(&[reason_label(reason)]).inc();
    }

    pub fn publishes_waiting(&self, by: i64) {
        self.publishes_waiting.add(by);
    }

    /// One Topic Filter.
    pub fn subscription_refused(&self, reason: ReasonCode) {
        self.subscriptions_refused
            .with_label_values(&[reason_label(reason)])
            .inc();
    }

    pub fn subscriptions_changed(&self, by: i64) {
        self.subscriptions.add(by);
    }

    pub fn config_reloaded(&self, applied: bool) {
        let result = if applied { RELOAD_APPLIED } else { RELOAD_REFUSED };
        self.config_reloads.with_label_values(&[result]).inc();
    }

    pub fn worker_queue(&self, by: i64) {
        self.worker_queue.add(by);
    }
}

const AUTHENTICATED: &str = "accepted";
const ANONYMOUS: &str = "anonymous";
const HANDSHAKE_FULL: &str = "full";
const HANDSHAKE_RESUMED: &str = "resumed";
const RELOAD_APPLIED: &str = "applied";
const RELOAD_REFUSED: &str = "refused";

const QOS_LABELS: [&str; 3] = ["0", "1", "2"];

fn reason_label(reason: ReasonCode) -> &'static str {
    reason.name().unwrap_or("other")
}
