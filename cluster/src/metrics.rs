//! What the cluster part of a node counts.

use std::time::Duration;

use lontra_storage::ids::{GroupId, NodeId, ShardId};
use lontra_storage::shard::{DelayedSize, RetainedSize};
use prometheus::{
    Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    exponential_buckets,
};

/// Verbs for everything that happens here. Cheap to clone.
#[derive(Clone)]
pub struct ClusterMetrics {
    ephemeral_sent: IntCounterVec,
    ephemeral_received: IntCounterVec,
    leaders: IntGauge,
    term: IntGaugeVec,
    applied: IntGaugeVec,
    sender_queue: IntGaugeVec,
    batches_resent: IntCounter,
    barrier: Histogram,
    lease_valid: IntGauge,
    routes: IntGauge,
    sessions: IntGauge,
    node_downs: IntCounter,
    leader_transfers: IntCounter,
    leaderships_given_away: IntCounter,
    pages_read: IntCounterVec,
    wills_published: IntCounter,
    shared_assigned: IntCounterVec,
    shared_waiting: IntGaugeVec,
    queue_dropped: IntCounterVec,
    retained_messages: IntGauge,
    retained_bytes: IntGauge,
    delayed_messages: IntGauge,
    delayed_bytes: IntGauge,
    delayed_released: IntCounter,
    disk_free_bytes: IntGauge,
    disk_free_ratio: Gauge,
}

impl ClusterMetrics {
    /// # Panics
    /// A name is registered twice: a bug.
    pub fn new(registry: &Registry) -> Self {
        let metrics = ClusterMetrics {
            ephemeral_sent: counters(
                "lontra_link_ephemeral_frames_sent_total",
                "Ephemeral messages forwarded to a peer with a matching session.",
                "peer",
            ),
            ephemeral_received: counters(
                "lontra_link_ephemeral_frames_received_total",
                "Ephemeral messages that a peer forwarded to this node.",
                "peer",
            ),
            leaders: gauge("lontra_raft_leaders", "Shard groups that this node leads."),
            term: gauges(
                "lontra_raft_term",
                "Raft term of a group as this node sees it.",
                "group",
            ),
            applied: gauges(
                "lontra_raft_applied_index",
                "Last applied log index of a group.",
                "group",
            ),
            sender_queue: gauges(
                "lontra_publish_queue_operations",
                "Publishes and settlements that wait for a place in a batch.",
                "shard",
            ),
            batches_resent: counter(
                "lontra_publish_batches_resent_total",
                "Batches sent again: their shard had no leader, did not answer, or had them matched again.",
            ),
            barrier: histogram(
                "lontra_barrier_seconds",
                "From a committed change of the control plane until every Up node had applied it.",
            ),
            lease_valid: gauge("lontra_lease_valid", "1 while this node may serve clients."),
            routes: gauge("lontra_routes", "Topic filters in the route table."),
            sessions: gauge("lontra_sessions", "Sessions of the whole cluster, connected or not."),
            node_downs: counter(
                "lontra_node_downs_total",
                "Nodes that this node, leading meta, declared Down.",
            ),
            leader_transfers: counter(
                "lontra_raft_leader_transfers_total",
                "Leaderships that this node handed to another to spread them.",
            ),
            leaderships_given_away: counter(
                "lontra_raft_leaderships_given_away_total",
                "Leaderships that this node handed to another because its own log was not synced in time.",
            ),
            pages_read: counters(
                "lontra_queue_pages_read_total",
                "Pages of session queues read from storage, by where the replica was.",
                "source",
            ),
            wills_published: counter(
                "lontra_wills_published_total",
                "Wills that this node, leading meta, published.",
            ),
            shared_assigned: counters(
                "lontra_shared_assigned_total",
                "Messages of shared groups that this node, leading their shard, assigned, by the member's node.",
                "node",
            ),
            shared_waiting: gauges(
                "lontra_shared_waiting_messages",
                "Messages that wait for a member of their shared group, in the shards that this node leads.",
                "shard",
            ),
            queue_dropped: counters(
                "lontra_queue_dropped_total",
                "Messages that left queues of absent sessions because they expired or a limit was passed, and sessions \
                 that ended so.",
                "reason",
            ),
            retained_messages: gauge("lontra_retained_messages", "Retained messages of the whole cluster."),
            retained_bytes: gauge(
                "lontra_retained_bytes",
                "Topics, payloads and properties of all retained messages of the cluster.",
            ),
            delayed_messages: gauge(
                "lontra_delayed_messages",
                "Messages to $delayed/ that wait for their time, in the shards that this node leads.",
            ),
            delayed_bytes: gauge(
                "lontra_delayed_bytes",
                "Topics, payloads and properties of the messages that wait for their time, in the shards that this node \
                 leads.",
            ),
            delayed_released: counter(
                "lontra_delayed_released_total",
                "Messages to $delayed/ that this node, leading their shard, published when their time had come.",
            ),
            disk_free_bytes: gauge(
                "lontra_storage_free_bytes",
                "Bytes that are free on the file system of the data directory.",
            ),
            disk_free_ratio: Gauge::new(
                "lontra_storage_free_ratio",
                "The share of the file system of the data directory that is free; below storage.free_space_min publishes \
                 are refused.",
            )
            .expect("a valid metric name"),
        };
        metrics.register(registry);
        metrics
    }

    fn register(&self, registry: &Registry) {
        let collectors: [Box<dyn prometheus::core::Collector>; 26] = [
            Box::new(self.ephemeral_sent.clone()),
            Box::new(self.ephemeral_received.clone()),
            Box::new(self.leaders.clone()),
            Box::new(self.term.clone()),
            Box::new(self.applied.clone()),
            Box::new(self.sender_queue.clone()),
            Box::new(self.batches_resent.clone()),
            Box::new(self.barrier.clone()),
            Box::new(self.lease_valid.clone()),
            Box::new(self.routes.clone()),
            Box::new(self.sessions.clone()),
            Box::new(self.node_downs.clone()),
            Box::new(self.leader_transfers.clone()),
            Box::new(self.leaderships_given_away.clone()),
            Box::new(self.pages_read.clone()),
            Box::new(self.wills_published.clone()),
            Box::new(self.shared_assigned.clone()),
            Box::new(self.shared_waiting.clone()),
            Box::new(self.queue_dropped.clone()),
            Box::new(self.retained_messages.clone()),
            Box::new(self.retained_bytes.clone()),
            Box::new(self.delayed_messages.clone()),
            Box::new(self.delayed_bytes.clone()),
            Box::new(self.delayed_released.clone()),
            Box::new(self.disk_free_bytes.clone()),
            Box::new(self.disk_free_ratio.clone()),
        ];
        for collector in collectors {
            registry.register(collector).expect("metric names are unique");
        }
    }

    pub fn ephemeral_sent(&self, peer: NodeId) {
        self.ephemeral_sent.with_label_values(&[peer.to_string()]).inc();
    }

    pub fn ephemeral_received(&self, peer: NodeId) {
        self.ephemeral_received.with_label_values(&[peer.to_string()]).inc();
    }

    /// The peers are a closed set: their counters exist from the start.
    pub fn add_peer(&self, peer: NodeId) {
        let peer = [peer.to_string()];
        self.ephemeral_sent.with_label_values(&peer).inc_by(0);
        self.ephemeral_received.with_label_values(&peer).inc_by(0);
    }

    pub fn group(&self, group: GroupId, term: u64, applied: u64) {
        let group = [group.to_string()];
        self.term.with_label_values(&group).set(term as i64);
        self.applied.with_label_values(&group).set(applied as i64);
    }

    pub fn leaders(&self, count: usize) {
        self.leaders.set(count as i64);
    }

    pub fn sender_queue(&self, shard: ShardId, length: usize) {
        self.sender_queue
            .with_label_values(&[shard.0.to_string()])
            .set(length as i64);
    }

    pub fn batches_resent(&self, count: usize) {
        self.batches_resent.inc_by(count as u64);
    }

    pub fn barrier_reached(&self, elapsed: Duration) {
        self.barrier.observe(elapsed.as_secs_f64());
    }

    pub fn lease(&self, valid: bool) {
        self.lease_valid.set(valid as i64);
    }

    pub fn control_plane(&self, routes: usize, sessions: usize) {
        self.routes.set(routes as i64);
        self.sessions.set(sessions as i64);
    }

    pub fn node_down(&self) {
        self.node_downs.inc();
    }

    pub fn leader_transferred(&self) {
        self.leader_transfers.inc();
    }

    pub fn leadership_given_away(&self) {
        self.leaderships_given_away.inc();
    }

    pub fn will_published(&self) {
        self.wills_published.inc();
    }

    pub fn shared_assigned(&self, node: NodeId) {
        self.shared_assigned.with_label_values(&[node.to_string()]).inc();
    }

    pub fn shared_waiting(&self, shard: ShardId, messages: usize) {
        self.shared_waiting
            .with_label_values(&[shard.0.to_string()])
            .set(messages as i64);
    }

    /// `reason` is one of expired, session_ended, drop_oldest, drop_new.
    pub fn queue_dropped(&self, reason: &'static str, count: usize) {
        self.queue_dropped.with_label_values(&[reason]).inc_by(count as u64);
    }

    pub fn retained(&self, size: RetainedSize) {
        self.retained_messages.set(size.count as i64);
        self.retained_bytes.set(size.bytes as i64);
    }

    pub fn delayed(&self, size: DelayedSize) {
        self.delayed_messages.set(size.count as i64);
        self.delayed_bytes.set(size.bytes as i64);
    }

    pub fn delayed_released(&self) {
        self.delayed_released.inc();
    }

    pub fn disk(&self, available: u64, total: u64) {
        self.disk_free_bytes.set(i64::try_from(available).unwrap_or(i64::MAX));
        self.disk_free_ratio.set(available as f64 / total.max(1) as f64);
    }

    pub fn page_read(&self, local: bool) {
        self.pages_read
            .with_label_values(&[if local { "local" } else { "peer" }])
            .inc();
    }
}

fn counter(name: &str, help: &str) -> IntCounter {
    IntCounter::new(name, help).expect("a valid metric name")
}

fn counters(name: &str, help: &str, label: &str) -> IntCounterVec {
    IntCounterVec::new(Opts::new(name, help), &[label]).expect("a valid metric name")
}

fn gauge(name: &str, help: &str) -> IntGauge {
    IntGauge::new(name, help).expect("a valid metric name")
}

fn gauges(name: &str, help: &str, label: &str) -> IntGaugeVec {
    IntGaugeVec::new(Opts::new(name, help), &[label]).expect("a valid metric name")
}

fn histogram(name: &str, help: &str) -> Histogram {
    // 100 µs to 13 s.
    let buckets = exponential_buckets(0.0001, 2.0, 18).expect("valid buckets");
    Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets)).expect("a valid metric name")
}
