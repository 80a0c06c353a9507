//! The ledgers of this node's shards for Prometheus. Each scrape is made anew from one copy per shard, so that what is
//! conserved adds up in every scrape.

use std::sync::Arc;

use lontra_storage::command::Left;
use lontra_storage::ids::ShardId;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntCounterVec, IntGaugeVec, Opts};

use crate::delivery::ShardView;

pub(crate) struct LedgerCollector {
    /// Of the shards that this node holds.
    pub views: Vec<(ShardId, Arc<ShardView>)>,
    /// Without a value: what is collected is described as these are.
    pub families: Families,
}

impl Collector for LedgerCollector {
    fn desc(&self) -> Vec<&Desc> {
        let Families { enqueued, left, queued } = &self.families;
        [enqueued.desc(), left.desc(), queued.desc()].concat()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let Families { enqueued, left, queued } = Families::default();
        for (shard, view) in &self.views {
            let (shard, ledger) = (shard.0.to_string(), view.ledger());
            enqueued.with_label_values(&[&shard]).inc_by(ledger.enqueued);
            queued.with_label_values(&[&shard]).set(ledger.queued as i64);
            for how in Left::ALL {
                left.with_label_values(&[shard.as_str(), how.name()])
                    .inc_by(ledger.left(how));
            }
        }
        [enqueued.collect(), left.collect(), queued.collect()].concat()
    }
}

pub(crate) struct Families {
    enqueued: IntCounterVec,
    left: IntCounterVec,
    queued: IntGaugeVec,
}

impl Default for Families {
    fn default() -> Self {
        let enqueued = Opts::new(
            "lontra_queue_enqueued_total",
            "Messages that entered queues of sessions and shared groups in a shard that this node holds, since the cluster \
             was formed: equal to lontra_queue_messages and all of lontra_queue_left_total together.",
        );
        let left = Opts::new(
            "lontra_queue_left_total",
            "Messages that left queues in a shard that this node holds, since the cluster was formed, by how: delivered (the \
             client answered, with an error too; QoS 0: it was sent), or why not.",
        );
        let queued = Opts::new(
            "lontra_queue_messages",
            "Messages in queues of sessions and shared groups, in a shard that this node holds.",
        );
        Families {
            enqueued: IntCounterVec::new(enqueued, &["shard"]).expect("a valid metric name"),
            left: IntCounterVec::new(left, &["shard", "how"]).expect("a valid metric name"),
            queued: IntGaugeVec::new(queued, &["shard"]).expect("a valid metric name"),
        }
    }
}
