//! What storage counts. A verb per event, so that call sites read as sentences.

use std::time::Duration;

use prometheus::{Histogram, HistogramOpts, IntCounter, IntGauge, Registry, exponential_buckets};

/// Clones count into the same metrics.
#[derive(Clone)]
pub struct StorageMetrics {
    fsync_seconds: Histogram,
    fsync_batch_entries: Histogram,
    fsync_batch_bytes: Histogram,
    appended_bytes: IntCounter,
    queue_bytes: IntGauge,
    checkpoint_seconds: Histogram,
    snapshots_sent: IntCounter,
    snapshots_installed: IntCounter,
}

impl StorageMetrics {
    /// # Panics
    /// `registry` already has storage metrics: one storage per registry.
    pub fn new(registry: &Registry) -> Self {
        StorageMetrics {
            fsync_seconds: histogram(
                registry,
                "lontra_storage_fsync_seconds",
                "Time of one fsync of the Raft logs of all groups.",
                // 50 µs to 13 s: a fast NVMe to a disk that is about to fail.
                (0.000_05, 2.0, 19),
            ),
            fsync_batch_entries: histogram(
                registry,
                "lontra_storage_fsync_batch_entries",
                "Log entries made durable by one fsync.",
                (1.0, 2.0, 13),
            ),
            fsync_batch_bytes: histogram(
                registry,
                "lontra_storage_fsync_batch_bytes",
                "Bytes of log entries made durable by one fsync.",
                (64.0, 4.0, 10),
            ),
            appended_bytes: counter(
                registry,
                "lontra_storage_appended_bytes_total",
                "Bytes of entries appended to the Raft logs of this node.",
            ),
            queue_bytes: gauge(
                registry,
                "lontra_storage_queue_bytes",
                "Bytes of entries that wait for the log writer; appends wait at 64 MiB.",
            ),
            checkpoint_seconds: histogram(
                registry,
                "lontra_storage_checkpoint_seconds",
                "Time of one flush of the tables of all groups.",
                (0.001, 2.0, 16),
            ),
            snapshots_sent: counter(
                registry,
                "lontra_storage_snapshots_sent_total",
                "Snapshots of a group read to their end for another node.",
            ),
            snapshots_installed: counter(
                registry,
                "lontra_storage_snapshots_installed_total",
                "Snapshots of a group installed on this node.",
            ),
        }
    }

    pub(crate) fn synced(&self, elapsed: Duration, entries: usize, bytes: usize) {
        self.fsync_seconds.observe(elapsed.as_secs_f64());
        if entries > 0 {
            self.fsync_batch_entries.observe(entries as f64);
            self.fsync_batch_bytes.observe(bytes as f64);
        }
    }

    pub(crate) fn queued(&self, bytes: usize) {
        self.queue_bytes.add(bytes as i64);
        self.appended_bytes.inc_by(bytes as u64);
    }

    pub(crate) fn dequeued(&self, bytes: usize) {
        self.queue_bytes.sub(bytes as i64);
    }

    pub(crate) fn checkpointed(&self, elapsed: Duration) {
        self.checkpoint_seconds.observe(elapsed.as_secs_f64());
    }

    pub(crate) fn snapshot_sent(&self) {
        self.snapshots_sent.inc();
    }

    pub(crate) fn snapshot_installed(&self) {
        self.snapshots_installed.inc();
    }
}

const VALID: &str = "the names and buckets of storage metrics are constants";
const ONCE: &str = "storage metrics are registered once per registry";

fn histogram(registry: &Registry, name: &str, help: &str, (start, factor, count): (f64, f64, usize)) -> Histogram {
    let buckets = exponential_buckets(start, factor, count).expect(VALID);
    let histogram = Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets)).expect(VALID);
    registry.register(Box::new(histogram.clone())).expect(ONCE);
    histogram
}

fn counter(registry: &Registry, name: &str, help: &str) -> IntCounter {
    let counter = IntCounter::new(name, help).expect(VALID);
    registry.register(Box::new(counter.clone())).expect(ONCE);
    counter
}

fn gauge(registry: &Registry, name: &str, help: &str) -> IntGauge {
    let gauge = IntGauge::new(name, help).expect(VALID);
    registry.register(Box::new(gauge.clone())).expect(ONCE);
    gauge
}
