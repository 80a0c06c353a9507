//! The Prometheus text exposition, parsed.

use super::cluster::{Cluster, http_get};
use std::collections::BTreeMap;

/// One scrape of one node or, added up, of several.
#[derive(Clone, Debug, Default)]
pub struct Scrape {
    /// Family name → type, from the `# TYPE` lines.
    pub families: BTreeMap<String, String>,
    /// Series as written (`name{label="value"}`) → value.
    pub series: BTreeMap<String, f64>,
}

impl Scrape {
    pub fn parse(text: &str) -> Scrape {
        let mut scrape = Scrape::default();
        for line in text.lines() {
            if let Some(described) = line.strip_prefix("# TYPE ") {
                let (name, kind) = described.split_once(' ').unwrap_or_else(|| panic!("{line}"));
                scrape.families.insert(name.into(), kind.into());
            } else if !line.starts_with('#') && !line.is_empty() {
                let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line}"));
                scrape
                    .series
                    .insert(series.into(), value.parse().unwrap_or_else(|_| panic!("{line}")));
            }
        }
        scrape
    }

    /// The sum of all series of a counter or gauge; of a histogram the number of observations.
    pub fn sum(&self, family: &str) -> f64 {
        self.sum_where(family, "")
    }

    /// As [`Scrape::sum`], of the series whose labels contain `label` (`peer="2"`).
    pub fn sum_where(&self, family: &str, label: &str) -> f64 {
        let count = format!("{family}_count");
        let of_family = |series: &str| {
            let name = series.split('{').next().unwrap_or_default();
            (name == family || name == count) && series.contains(label)
        };
        self.series
            .iter()
            .filter(|(series, _)| of_family(series))
            .map(|(_, value)| value)
            .sum()
    }

    /// Adds another node's scrape, series by series.
    pub fn add(&mut self, other: Scrape) {
        self.families.extend(other.families);
        for (series, value) in other.series {
            *self.series.entry(series).or_default() += value;
        }
    }
}

impl Cluster {
    /// `/metrics` of one node.
    pub async fn metrics(&self, id: u64) -> Scrape {
        let (code, body) = http_get(&self.node(id).http, "/metrics").await.expect("/metrics");
        assert_eq!(code, 200, "/metrics: {body}");
        Scrape::parse(&body)
    }

    /// `/metrics` of every node that answers, with its id and process id.
    pub async fn scrape_all(&self) -> Vec<(u64, u32, Scrape)> {
        let mut scrapes = Vec::new();
        for id in self.up() {
            let Some(pid) = self.pid(id) else { continue };
            // One that was just killed or has just started does not answer.
            if let Ok((200, body)) = http_get(&self.node(id).http, "/metrics").await {
                scrapes.push((id, pid, Scrape::parse(&body)));
            }
        }
        scrapes
    }

    /// `/metrics` of all running nodes, added up.
    pub async fn all_metrics(&self) -> Scrape {
        let mut total = Scrape::default();
        for id in self.up() {
            total.add(self.metrics(id).await);
        }
        total
    }
}
