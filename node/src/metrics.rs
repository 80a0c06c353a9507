//! What a node counts about its clients.

use std::time::Duration;

use prometheus::{Histogram, HistogramOpts, IntCounterVec, IntGauge, Opts, Registry, exponential_buckets};

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
}

impl Drop {
    const ALL: [Drop; 4] = [Drop::OutboxFull, Drop::Expired, Drop::TooLarge, Drop::WorkerFull];

    fn name(self) -> &'static str {
        match self {
            Drop::OutboxFull => "outbox_full",
            Drop::Expired => "expired",
            Drop::TooLarge => "packet_too_large",
            Drop::WorkerFull => "worker_full",
        }
    }
}

/// Verbs for everything that happens to clients. Cheap to clone.
#[derive(Clone)]
pub struct NodeMetrics {
    connections: IntGauge,
    connects: IntCounterVec,
    disconnects: IntCounterVec,
    received: IntCounterVec,
    sent: IntCounterVec,
    dropped: IntCounterVec,
    publish_ack: Histogram,
    subscriptions: IntGauge,
    worker_queue: IntGauge,
    publish_refused: IntCounterVec,
}

impl NodeMetrics {
    /// # Panics
    /// A name is registered twice: a bug.
    pub fn new(registry: &Registry) -> Self {
        let counters = |name: &str, help: &str, label: &str| {
            IntCounterVec::new(Opts::new(name, help), &[label]).expect("a valid metric name")
        };
        let gauge = |name: &str, help: &str| IntGauge::new(name, help).expect("a valid metric name");
        // 50 µs to 26 s.
        let buckets = exponential_buckets(0.00005, 2.0, 20).expect("valid buckets");
        let publish_ack =
            HistogramOpts::new("lontra_publish_ack_seconds", "From a PUBLISH to its PUBACK.").buckets(buckets);
        let metrics = NodeMetrics {
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
            received: counters("lontra_messages_received_total", "PUBLISH packets from clients.", "qos"),
            sent: counters("lontra_messages_sent_total", "PUBLISH packets to clients.", "qos"),
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
        };
        for qos in ["0", "1", "2"] {
            metrics.received.with_label_values(&[qos]).inc_by(0);
            metrics.sent.with_label_values(&[qos]).inc_by(0);
        }
        for reason in Drop::ALL {
            metrics.dropped.with_label_values(&[reason.name()]).inc_by(0);
        }
        let collectors: [Box<dyn prometheus::core::Collector>; 10] = [
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
        ];
        for collector in collectors {
            registry.register(collector).expect("metric names are unique");
        }
        metrics
    }

    pub fn connection_opened(&self) {
        self.connections.inc();
    }

    pub fn connection_closed(&self) {
        self.connections.dec();
    }

    pub fn open_connections(&self) -> i64 {
        self.connections.get()
    }

    pub fn connect_answered(&self, reason: ReasonCode) {
        self.connects.with_label_values(&[reason_label(reason)]).inc();
    }

    pub fn disconnected(&self, reason: ReasonCode) {
        self.disconnects.with_label_values(&[reason_label(reason)]).inc();
    }

    pub fn message_received(&self, qos: u8) {
        self.received.with_label_values(&[qos_label(qos)]).inc();
    }

    pub fn message_sent(&self, qos: u8) {
        self.sent.with_label_values(&[qos_label(qos)]).inc();
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

    pub fn subscriptions_changed(&self, by: i64) {
        self.subscriptions.add(by);
    }

    pub fn worker_queue(&self, by: i64) {
        self.worker_queue.add(by);
    }
}

fn qos_label(qos: u8) -> &'static str {
    match qos {
        0 => "0",
        1 => "1",
        _ => "2",
    }
}

fn reason_label(reason: ReasonCode) -> &'static str {
    reason.name().unwrap_or("other")
}
