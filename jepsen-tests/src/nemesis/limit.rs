//! Too little of something for one node, by cgroups: disk operations, memory, CPU.

use super::family::Family;
use super::target::{Role, View};
use super::{Active, Begun, Nemesis, Trouble, Undo};
use crate::cluster::cgroup::Groups;
use crate::cluster::{Cluster, Failure};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Instant;

/// A limit and what lifts it.
pub(super) struct Limit {
    controller: &'static str,
    file: &'static str,
    value: String,
    unlimited: String,
    since: Instant,
    /// The counters of the group when it began: a group outlives its limits.
    before: BTreeMap<String, u64>,
    /// Of operations a second, where they are what is limited.
    operations: Option<u64>,
}

impl Limit {
    /// How often the limit was felt, and what the group counted meanwhile.
    pub(super) fn effect(&self, cluster: &Cluster, nodes: &[String]) -> (u64, Value) {
        let Some((groups, node)) = cluster.root().ok().map(|root| &root.groups).zip(nodes.first()) else {
            return (0, Value::Null);
        };
        let now = counters(groups, self.controller, node);
        let grown: BTreeMap<&str, u64> = now
            .iter()
            .map(|(name, count)| {
                let before = self.before.get(name).copied().unwrap_or(0);
                (name.as_str(), count.saturating_sub(before))
            })
            .collect();
        let seconds = self.since.elapsed().as_secs_f64();
        let bit = match self.operations {
            // Nobody counts who waited: as many as may be in most of the time is what a limit looks like.
            Some(a_second) => {
                let operations = grown["operations"];
                let busy = operations as f64 >= BUSY * a_second as f64 * seconds;
                if busy { operations } else { 0 }
            }
            None => BITES.iter().filter_map(|name| grown.get(name)).sum(),
        };
        let seconds = (seconds * 10.0).round() / 10.0;
        (
            bit,
            json!({ "limit": self.value, "seconds": seconds, "counted": grown }),
        )
    }
}

/// What a group counts, by names that do not change with the controller.
fn counters(groups: &Groups, controller: &str, node: &str) -> BTreeMap<String, u64> {
    let line = |file: &str, word: &str| {
        let text = groups.read(controller, node, file);
        let lines = text.lines().filter_map(|line| line.rsplit_once(' '));
        let counts = lines.filter(|(name, _)| name.ends_with(word));
        counts
            .filter_map(|(_, count)| count.trim().parse::<u64>().ok())
            .sum::<u64>()
    };
    let one = |file: &str| groups.read(controller, node, file).trim().parse().unwrap_or(0);
    let counted = match controller {
        "cpu" => vec![
            ("periods", line("cpu.stat", "nr_periods")),
            ("throttled", line("cpu.stat", "nr_throttled")),
            ("throttled_ms", line("cpu.stat", "throttled_time") / 1_000_000),
        ],
        "memory" => vec![
            ("reached", one("memory.failcnt")),
            ("oom_kills", line("memory.oom_control", "oom_kill")),
        ],
        _ => vec![("operations", line("blkio.throttle.io_serviced", "Write"))],
    };
    counted
        .into_iter()
        .map(|(name, count)| (name.to_owned(), count))
        .collect()
}

/// Counters that grow when somebody had to wait, or was refused.
const BITES: [&str; 3] = ["throttled", "reached", "oom_kills"];
/// Of the operations that a limit allows.
const BUSY: f64 = 0.6;

impl Nemesis {
    pub(super) fn limit(&mut self, family: Family, view: &View) -> Begun {
        let node = view.one(Role::Any, &mut self.random).ok_or(Trouble::Nobody)?;
        let limit = |controller, file, value: String, unlimited: &str| Limit {
            controller,
            file,
            value,
            unlimited: unlimited.to_owned(),
            since: Instant::now(),
            before: BTreeMap::new(),
            operations: None,
        };
        let mut limit = match family {
            Family::SlowDisk => {
                let device = self.device(&node)?;
                // fdatasync waits for its turn in the process that called it, so that version 1 counts it.
                // A busy node syncs more often.
                let operations = *self.random.pick(&[5, 10, 20]);
                Limit {
                    operations: Some(operations),
                    ..limit(
                        "blkio",
                        "blkio.throttle.write_iops_device",
                        format!("{device} {operations}"),
                        &format!("{device} 0"),
                    )
                }
            }
            // What it has already does not count: this much more, its part of the page cache included. A log of some
            // hundred messages a second, and tables that are flushed, take that in a second or two.
            Family::MemoryLimit => {
                let bytes = *self.random.pick(&[1_u64 << 20, 2 << 20]);
                limit("memory", "memory.limit_in_bytes", bytes.to_string(), "-1")
            }
            // Of the 100,000 of a period.
            _ => {
                let quota = *self.random.pick(&["5000", "10000", "20000"]);
                limit("cpu", "cpu.cfs_quota_us", quota.to_owned(), "-1")
            }
        };
        let pid = self.cluster.pid(&node).ok_or(Trouble::Nobody)?;
        let value = json!({ "controller": limit.controller, "limit": limit.value });
        let nodes = vec![node];
        self.announce(family, "start", &nodes, view, value);
        let groups = &self.cluster.root()?.groups;
        limit.before = counters(groups, limit.controller, &nodes[0]);
        groups.limit(limit.controller, &nodes[0], pid, limit.file, &limit.value)?;
        limit.since = Instant::now();
        Ok(Active::new(family, nodes, Undo::Limit(limit)))
    }

    pub(super) async fn unlimit(&self, nodes: &[String], limit: &Limit) -> Result<(), Failure> {
        let groups = &self.cluster.root()?.groups;
        for node in nodes {
            // A process that ended meanwhile (of too little memory) has left the group; the next one was never in it.
            let pid = self.cluster.pid(node).unwrap_or_default();
            let lifted = groups.limit(limit.controller, node, pid, limit.file, &limit.unlimited);
            match self.cluster.running(node) {
                true => lifted.and_then(|()| groups.release(limit.controller, pid))?,
                false => self.cluster.start_node(node).await?,
            }
        }
        Ok(())
    }

    /// `major:minor` of the loop device under a node's files.
    fn device(&self, node: &str) -> Result<String, Failure> {
        let disk = self.cluster.disk(node)?;
        let stat = rustix::fs::stat(disk.at()).map_err(|error| Failure::io("a node's disk")(error.into()))?;
        Ok(format!(
            "{}:{}",
            rustix::fs::major(stat.st_dev),
            rustix::fs::minor(stat.st_dev)
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_of_a_group_that_is_not_there_are_zero() {
        let groups = Groups::default();
        for controller in ["cpu", "memory", "blkio"] {
            let counted = counters(&groups, controller, "nobody");
            assert!(
                !counted.is_empty() && counted.values().all(|count| *count == 0),
                "{counted:?}"
            );
        }
    }
}
