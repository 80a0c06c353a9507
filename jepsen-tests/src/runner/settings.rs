//! What a run is asked to be.

use crate::checker::Profile;
use crate::cluster::{BackEnd, REPLICATION_FACTOR};
use crate::proxy::Lie;
use crate::workload;
use std::path::PathBuf;
use std::time::Duration;

#[derive(Clone, Debug)]
pub struct Settings {
    pub binary: PathBuf,
    pub workload: String,
    /// Families of faults; none: a quiet run.
    pub nemeses: Vec<String>,
    /// One fault at a time, the families in turn: each has the cluster to itself.
    pub in_turn: bool,
    pub nodes: usize,
    /// Of each shard; none: on all nodes. With fewer, nodes follow shards that they have no replica of.
    pub replicas: Option<usize>,
    pub baseline: Duration,
    pub faults: Duration,
    pub seed: u64,
    /// Messages a second, in total.
    pub rate: u32,
    pub back_end: BackEnd,
    /// The bug on purpose that the nodes are told to have.
    pub bug: Option<String>,
    /// A proxy before each node that lies once in so many occasions.
    pub lie: Option<(Lie, u64)>,
    /// Client ids and topics begin with it.
    pub prefix: String,
    pub dir: PathBuf,
}

impl Settings {
    pub fn new(binary: PathBuf, workload: &str, dir: PathBuf) -> Settings {
        Settings {
            binary,
            workload: workload.into(),
            nemeses: Vec::new(),
            in_turn: false,
            nodes: 3,
            replicas: None,
            baseline: Duration::from_secs(3),
            faults: Duration::from_secs(20),
            seed: 1,
            rate: 300,
            back_end: BackEnd::Plain,
            bug: None,
            lie: None,
            prefix: "r".into(),
            dir,
        }
    }

    pub fn environment(&self) -> Vec<(String, String)> {
        let bug = self.bug.iter().map(|bug| ("LONTRA_TEST_BUG".to_owned(), bug.clone()));
        let replicas = self
            .replicas
            .map(|count| (REPLICATION_FACTOR.to_owned(), count.to_string()));
        bug.chain(replicas).collect()
    }

    /// What its verdict needs.
    pub fn profile(&self) -> Profile {
        workload::profile(&self.workload, &self.nemeses, self.faults)
    }

    pub fn back_end_name(&self) -> &'static str {
        match self.back_end {
            BackEnd::Root => "root",
            BackEnd::Plain => "plain",
        }
    }

    /// As a cell of the matrix is named.
    pub fn cell(&self) -> String {
        let nemeses = match self.nemeses.is_empty() {
            true => "none".to_owned(),
            false => self.nemeses.join("+"),
        };
        let replicas = self.replicas.map_or(String::new(), |count| format!("r{count}"));
        format!("{}-{nemeses}-{}{replicas}", self.workload, self.nodes)
    }
}
