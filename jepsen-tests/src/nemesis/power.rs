//! The power of disks: what was not synced is lost, with the process.
//!
//!     canary (never synced) ─▶ freeze ─▶ shutdown ioctl ─▶ SIGKILL ─▶ umount, mount (journal replay) ─▶ what is gone?
//!
//! The canary shows that something was lost at all: a cut that loses nothing proves nothing.

use super::family::Family;
use super::target::{Role, View};
use super::{Active, Begun, Nemesis, Trouble, Undo};
use crate::cluster::disk::{Disk, lost};
use crate::cluster::{Cluster, Failure};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

impl Nemesis {
    pub(super) async fn power(&mut self, family: Family, view: &View) -> Begun {
        let nodes = match family {
            Family::PowerAll => view.nodes.clone(),
            _ => {
                let role = *self.random.pick(&[Role::Any, Role::Leader, Role::MetaLeader]);
                vec![view.one(role, &mut self.random).ok_or(Trouble::Nobody)?]
            }
        };
        self.announce(family, "start", &nodes, view, json!({}));
        let outcome = cut_power(&self.cluster, &nodes).await?;
        Ok(Active {
            outcome,
            ..Active::new(family, nodes, Undo::Start)
        })
    }
}

/// Cuts the power of `nodes` at the same moment and mounts their disks again; they stay down. Answers what was lost.
pub(super) async fn cut_power(cluster: &Cluster, nodes: &[String]) -> Result<Value, Failure> {
    let disks: BTreeMap<&String, &Disk> = nodes
        .iter()
        .map(|node| Ok((node, cluster.disk(node)?)))
        .collect::<Result<_, Failure>>()?;
    for disk in disks.values() {
        let canary = disk.at().join(CANARY);
        std::fs::write(&canary, [0x5a; CANARY_BYTES]).map_err(Failure::io("a canary"))?;
    }
    // Nobody may be inside an fsync (`disk.rs`).
    for node in nodes {
        cluster.pause(node).await;
    }
    let before: BTreeMap<&String, _> = disks.iter().map(|(node, disk)| (*node, disk.sizes())).collect();
    for disk in disks.values() {
        disk.cut()?;
    }
    cluster.kill_all(nodes).await;
    let mut told = Map::new();
    for (node, disk) in &disks {
        let blocking = (*disk).clone();
        let mounted = tokio::task::spawn_blocking(move || {
            blocking.unmount()?;
            blocking.mount()
        });
        mounted.await.map_err(|error| Failure::Io {
            what: "mounting anew".into(),
            source: std::io::Error::other(error),
        })??;
        let gone = lost(&before[node], &disk.sizes());
        let canary = gone.get(&disk.at().join(CANARY)).copied().unwrap_or(0);
        let bytes: u64 = gone.values().sum();
        let files = gone.iter().take(FILES_TOLD).map(|(path, bytes)| {
            let path = path.strip_prefix(disk.at()).unwrap_or(path);
            (path.display().to_string(), json!(bytes))
        });
        let value = json!({
            "lost_bytes": bytes - canary,
            "canary_lost": canary > 0,
            "files": Value::Object(files.collect()),
        });
        told.insert((*node).clone(), value);
    }
    Ok(Value::Object(told))
}

const CANARY: &str = "canary";
const CANARY_BYTES: usize = 65_536;
const FILES_TOLD: usize = 10;
