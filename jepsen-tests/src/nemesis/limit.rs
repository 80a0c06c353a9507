//! Too little of something for one node, by cgroups: disk operations, memory, CPU.

use super::family::Family;
use super::target::{Role, View};
use super::{Active, Begun, Nemesis, Trouble, Undo};
use crate::cluster::Failure;
use serde_json::json;

/// A limit and what lifts it.
pub(super) struct Limit {
    controller: &'static str,
    file: &'static str,
    value: String,
    unlimited: String,
}

impl Nemesis {
    pub(super) fn limit(&mut self, family: Family, view: &View) -> Begun {
        let node = view.one(Role::Any, &mut self.random).ok_or(Trouble::Nobody)?;
        let limit = match family {
            Family::SlowDisk => {
                let device = self.device(&node)?;
                // fdatasync waits for its turn in the process that called it, so that version 1 counts it.
                let operations = self.random.pick(&[10, 20, 50]);
                Limit {
                    controller: "blkio",
                    file: "blkio.throttle.write_iops_device",
                    value: format!("{device} {operations}"),
                    unlimited: format!("{device} 0"),
                }
            }
            Family::MemoryLimit => Limit {
                controller: "memory",
                file: "memory.limit_in_bytes",
                // What it has already does not count: this much more, its part of the page cache included.
                value: (*self.random.pick(&[8_u64 << 20, 32 << 20])).to_string(),
                unlimited: "-1".to_owned(),
            },
            _ => Limit {
                controller: "cpu",
                file: "cpu.cfs_quota_us",
                // Of the 100,000 of a period.
                value: self.random.pick(&["10000", "20000"]).to_string(),
                unlimited: "-1".to_owned(),
            },
        };
        let pid = self.cluster.pid(&node).ok_or(Trouble::Nobody)?;
        let value = json!({ "controller": limit.controller, "limit": limit.value });
        let nodes = vec![node];
        self.announce(family, "start", &nodes, view, value);
        let groups = &self.cluster.root()?.groups;
        groups.limit(limit.controller, &nodes[0], pid, limit.file, &limit.value)?;
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
