//! What a run is asked to be.

use crate::checker::{Profile, Requirement, back_quickly};
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
    /// How long faults are done; with `faults_min`, at most.
    pub faults: Duration,
    /// Ends with so many faults; fewer are too few.
    pub faults_min: Option<u64>,
    /// Turns true when the run is to come to its end in order, before its time.
    pub ending: Option<tokio::sync::watch::Receiver<bool>>,
    /// What limits of time are multiplied with: more than 1 where others share the machine.
    pub patience: f64,
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
            faults_min: None,
            ending: None,
            patience: 1.0,
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
        // A run that ends with its last fault may do so in a part of its time.
        let least = match self.faults_min {
            Some(_) => self.faults / 4,
            None => self.faults,
        };
        let mut profile = workload::profile(&self.workload, &self.nemeses, least);
        let at_least = self.faults_min.into_iter();
        profile
            .coverage
            .extend(at_least.map(|at_least| Requirement::Faults { family: None, at_least }));
        // One fault at a time is how P10 is asked.
        let is_judged = |family: &String| back_quickly::JUDGED.contains(&family.as_str());
        if self.in_turn && self.nemeses.iter().any(is_judged) {
            profile.coverage.push(Requirement::JudgedFaults { at_least: 1 });
        }
        let limits = &mut profile.limits;
        for limit in [
            &mut limits.heal,
            &mut limits.back,
            &mut limits.recovery,
            &mut limits.will,
        ] {
            *limit = limit.map(|seconds| seconds * self.patience);
        }
        profile
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
