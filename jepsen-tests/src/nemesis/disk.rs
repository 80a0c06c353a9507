//! Disks that fail or are full, under a node that runs.

use super::family::Family;
use super::target::{Role, View};
use super::{Active, Begun, Nemesis, Trouble, Undo};
use crate::cluster::Failure;
use crate::cluster::disk::BYTES;
use rustix::fs::{FallocateFlags, fallocate};
use serde_json::json;
use std::fs::File;
use std::time::Duration;

impl Nemesis {
    /// From now on the file system answers EIO, and forgets what was not synced: the node must end by itself, without
    /// acknowledging anything more.
    pub(super) async fn fsync_error(&mut self, view: &View) -> Begun {
        let node = view.one(Role::Any, &mut self.random).ok_or(Trouble::Nobody)?;
        let disk = self.cluster.disk(&node)?.clone();
        let nodes = vec![node.clone()];
        self.announce(Family::FsyncError, "start", &nodes, view, json!({}));
        // It must not be inside an fsync (`disk.rs` of the cluster): that could succeed for what is dropped.
        self.cluster.pause(&node).await;
        disk.cut()?;
        self.cluster.resume(&node).await;
        let ended = self.cluster.wait_ended(&node, ENDS).await;
        Ok(Active {
            outcome: json!({ "ended_by_itself": ended, "waited_ms": ENDS.as_millis() as u64 }),
            ..Active::new(Family::FsyncError, nodes, Undo::Remount)
        })
    }

    pub(super) async fn remount(&self, nodes: &[String]) -> Result<(), Failure> {
        self.cluster.kill_all(nodes).await;
        for node in nodes {
            let disk = self.cluster.disk(node)?.clone();
            let mounted = tokio::task::spawn_blocking(move || {
                disk.unmount()?;
                disk.mount()
            });
            mounted.await.map_err(|error| Failure::Io {
                what: "mounting anew".into(),
                source: std::io::Error::other(error),
            })??;
            self.cluster.start_node(node).await?;
        }
        Ok(())
    }

    /// To the last byte, or to within the broker's own reserve.
    pub(super) fn full_disk(&mut self, view: &View) -> Begun {
        let node = view.one(Role::Any, &mut self.random).ok_or(Trouble::Nobody)?;
        let left = *self.random.pick(&[0, BYTES / 25]);
        let disk = self.cluster.disk(&node)?;
        let fill = disk.free_bytes()?.saturating_sub(left);
        let nodes = vec![node];
        self.announce(Family::FullDisk, "start", &nodes, view, json!({ "left_bytes": left }));
        let file = File::create(disk.at().join(FILL)).map_err(Failure::io("a file that fills a disk"))?;
        // The node takes of it too meanwhile: what is not to be had is not there, which is what is wanted.
        fallocate(&file, FallocateFlags::empty(), 0, fill.max(1)).ok();
        let active = Active {
            outcome: json!({ "free_bytes": disk.free_bytes()? }),
            ..Active::new(Family::FullDisk, nodes, Undo::Room)
        };
        Ok(active)
    }

    /// Of the first node's disk; before there is room again.
    pub(super) fn free_now(&self, nodes: &[String]) -> Option<u64> {
        self.cluster.disk(nodes.first()?).ok()?.free_bytes().ok()
    }

    pub(super) fn make_room(&self, nodes: &[String]) -> Result<(), Failure> {
        for node in nodes {
            let fill = self.cluster.disk(node)?.at().join(FILL);
            // Not there: a power cut had it.
            std::fs::remove_file(fill).ok();
        }
        Ok(())
    }
}

const FILL: &str = "fill";
/// What a node may need to notice: its log is written many times a second.
const ENDS: Duration = Duration::from_secs(15);
