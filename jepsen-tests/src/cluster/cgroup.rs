//! Limits of memory, CPU and disk operations of one node, by cgroups of version 1.
//!
//!     /sys/fs/cgroup/memory/lontra-jepsen-<pid of the harness>-n1/{cgroup.procs, memory.limit_in_bytes}
//!
//! Cgroups are no part of a namespace: an empty one stays when the harness is killed. Its name tells whose it was, and the
//! next harness removes those of processes that are gone.

use super::failure::Failure;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// The groups that this harness made; removed when this is dropped.
#[derive(Default)]
pub struct Groups(Mutex<Vec<PathBuf>>);

impl Groups {
    /// Moves the process into `node`'s group of `controller`, and sets `file` of it to `value`.
    ///
    /// # Errors
    /// `Unsupported`: the machine has no such controller.
    pub fn limit(&self, controller: &str, node: &str, pid: u32, file: &str, value: &str) -> Result<(), Failure> {
        sweep();
        let root = Path::new(ROOT).join(controller);
        if !root.join("cgroup.procs").exists() {
            return Err(Failure::unsupported(
                format!("a limit by cgroup {controller}"),
                "this machine has no such controller of version 1",
            ));
        }
        let group = group_of(controller, node);
        std::fs::create_dir_all(&group).map_err(Failure::io(group.display().to_string()))?;
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !known.contains(&group) {
            known.push(group.clone());
        }
        drop(known);
        let write = |file: &str, value: &str| {
            let path = group.join(file);
            std::fs::write(&path, value).map_err(Failure::io(path.display().to_string()))
        };
        write(file, value)?;
        write("cgroup.procs", &pid.to_string())
    }

    /// A file of `node`'s group; empty, if there is no group.
    pub fn read(&self, controller: &str, node: &str, file: &str) -> String {
        std::fs::read_to_string(group_of(controller, node).join(file)).unwrap_or_default()
    }

    /// Moves the process back to where everybody is.
    ///
    /// # Errors
    /// The process is gone, or the machine has no such controller.
    pub fn release(&self, controller: &str, pid: u32) -> Result<(), Failure> {
        let path = Path::new(ROOT).join(controller).join("cgroup.procs");
        std::fs::write(&path, pid.to_string()).map_err(Failure::io(path.display().to_string()))
    }
}

fn group_of(controller: &str, node: &str) -> PathBuf {
    let name = format!("{PREFIX}{}-{node}", std::process::id());
    Path::new(ROOT).join(controller).join(name)
}

impl Drop for Groups {
    fn drop(&mut self) {
        for group in self.0.get_mut().unwrap_or_else(PoisonError::into_inner) {
            // Fails while a process is in it; the next harness's sweep finds it.
            std::fs::remove_dir(group).ok();
        }
    }
}

/// Removes the groups of harnesses that are gone.
pub fn sweep() {
    for controller in ["memory", "cpu", "blkio"] {
        let root = Path::new(ROOT).join(controller);
        for entry in std::fs::read_dir(root).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
            if owner.is_some_and(|owner| !Path::new("/proc").join(owner).exists()) {
                std::fs::remove_dir(entry.path()).ok();
            }
        }
    }
}

const ROOT: &str = "/sys/fs/cgroup";
const PREFIX: &str = "lontra-jepsen-";
