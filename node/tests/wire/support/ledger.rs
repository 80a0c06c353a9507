//! Conservation of messages, from what the nodes export: what entered the queues of sessions and groups has left them in
//! a way that has a name, or is still there.

use super::checker::{self, History, Outcome};
use super::cluster::{Cluster, http_get};
use super::metrics::Scrape;
use super::{START, eventually};
use std::collections::BTreeMap;

/// Of one shard, or of all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    pub enqueued: u64,
    pub queued: u64,
    pub left: BTreeMap<String, u64>,
}

/// Of a cluster as the tests make it.
const SHARDS: usize = 12;
const REPLICAS: usize = 3;

impl Ledger {
    pub fn left(&self, how: &str) -> u64 {
        self.left.get(how).copied().unwrap_or_default()
    }

    fn is_conserved(&self) -> bool {
        self.enqueued == self.queued + self.left.values().sum::<u64>()
    }

    fn add(&mut self, other: &Ledger) {
        self.enqueued += other.enqueued;
        self.queued += other.queued;
        for (how, count) in &other.left {
            *self.left.entry(how.clone()).or_default() += count;
        }
    }
}

/// What one node exports, by shard.
fn ledgers(scrape: &Scrape) -> BTreeMap<String, Ledger> {
    let mut ledgers = BTreeMap::<String, Ledger>::new();
    for (series, value) in &scrape.series {
        let Some((family, labels)) = series.split_once('{') else {
            continue;
        };
        let label = |name: &str| {
            let (_, rest) = labels.split_once(&format!("{name}=\"")).expect(name);
            rest.split('"').next().expect("a value").to_owned()
        };
        let value = *value as u64;
        match family {
            "lontra_queue_enqueued_total" => ledgers.entry(label("shard")).or_default().enqueued = value,
            "lontra_queue_messages" => ledgers.entry(label("shard")).or_default().queued = value,
            "lontra_queue_left_total" => {
                let ledger = ledgers.entry(label("shard")).or_default();
                ledger.left.insert(label("how"), value);
            }
            _ => {}
        }
    }
    ledgers
}

impl Cluster {
    /// The ledgers of all shards together, once the replicas of each agree, it is conserved, and what it calls queued are
    /// the rows that are there.
    pub async fn ledger(&self) -> Ledger {
        eventually("a conserved ledger that the replicas agree on", START, || async {
            let mut shards = BTreeMap::<String, Vec<Ledger>>::new();
            let scrapes = self.scrape_all().await;
            if scrapes.len() < self.nodes.len() {
                return None;
            }
            for (id, _, scrape) in scrapes {
                for (shard, ledger) in ledgers(&scrape) {
                    if !ledger.is_conserved() || ledger.queued != self.pending_rows(id, &shard).await? {
                        return None;
                    }
                    shards.entry(shard).or_default().push(ledger);
                }
            }
            let mut total = Ledger::default();
            for replicas in shards.values() {
                if replicas.len() != REPLICAS.min(self.nodes.len())
                    || replicas.iter().any(|ledger| *ledger != replicas[0])
                {
                    return None;
                }
                total.add(&replicas[0]);
            }
            (shards.len() == SHARDS).then_some(total)
        })
        .await
    }

    async fn pending_rows(&self, id: u64, shard: &str) -> Option<u64> {
        let path = format!("/api/v1/groups/shard-{shard}/keys");
        let (200, body) = http_get(&self.node(id).http, &path).await.ok()? else {
            return None;
        };
        let answer: serde_json::Value = serde_json::from_str(&body).ok()?;
        let kinds = answer["kinds"].as_object().expect("kinds");
        assert!(answer["rows"] == 0 || kinds.contains_key("shard_head"), "{answer}");
        Some(kinds.get("pending").map_or(0, |rows| rows.as_u64().expect("a number")))
    }
}

/// The history against the ledger: what was acknowledged entered the queue of every consumer that it matches, nothing
/// entered that was not sent, and nothing was dropped.
pub async fn assert_conserved(test: &str, history: &History, cluster: &Cluster) {
    let ledger = cluster.ledger().await;
    println!("{test}: {ledger:?}");
    let (mut least, mut most) = (0, 0);
    for message in history.producers.iter().flat_map(|producer| &producer.messages) {
        let is_for = |filters: &[String]| filters.iter().any(|filter| checker::matches(filter, &message.topic));
        let recipients = history
            .consumers
            .iter()
            .filter(|consumer| is_for(&consumer.filters))
            .count() as u64;
        if message.outcome == Outcome::Acknowledged {
            least += recipients;
        }
        most += recipients * u64::from(message.sends);
    }
    let delivered: usize = history.consumers.iter().map(|consumer| consumer.deliveries.len()).sum();
    assert!(
        (least..=most).contains(&ledger.enqueued),
        "{least} to {most} entries were published: {ledger:?}"
    );
    assert!(
        ledger.left("delivered") <= delivered as u64,
        "{delivered} were delivered: {ledger:?}"
    );
    assert_eq!(
        ledger.left.values().sum::<u64>(),
        ledger.left("delivered"),
        "nothing is dropped: {ledger:?}"
    );
}
