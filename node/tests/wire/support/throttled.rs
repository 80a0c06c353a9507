//! A node that gets a part of one core only, by a cgroup of version 1 or 2, whichever this machine has.
//!
//!     /sys/fs/cgroup/cpu/lontra-test-<pid>/{cpu.cfs_quota_us, cgroup.procs}        version 1
//!     /sys/fs/cgroup/lontra-test-<pid>/{cpu.max, cgroup.procs}                     version 2
//!
//! Cgroups are no part of a namespace and outlive their processes: the group is removed once its process is elsewhere or gone.

use std::path::{Path, PathBuf};

/// At full speed again when this is dropped.
pub struct Throttled {
    pid: u32,
    group: PathBuf,
    /// Where the process was: the hierarchy's root, or its own group.
    home: PathBuf,
}

impl Throttled {
    /// From now on the process gets `percent` of a core. `None`, with the reason printed, where no such group can be made.
    pub fn to(pid: u32, percent: u32) -> Option<Throttled> {
        let quota = percent * PERIOD / 100;
        let (one, two) = (Path::new(ROOT).join("cpu"), Path::new(ROOT));
        let made = if one.join("cpu.cfs_quota_us").exists() || one.join("cgroup.procs").exists() {
            let period = ("cpu.cfs_period_us", PERIOD.to_string());
            make(pid, &one, "cpu", &[period, ("cpu.cfs_quota_us", quota.to_string())])
        } else {
            // Its children have the controller only if the root says so; it does on every machine that systemd runs.
            std::fs::write(two.join("cgroup.subtree_control"), "+cpu").ok();
            make(pid, two, "", &[("cpu.max", format!("{quota} {PERIOD}"))])
        };
        made.inspect_err(|why| println!("SKIPPED: no process can be throttled here: {why}"))
            .ok()
    }
}

fn make(pid: u32, root: &Path, controller: &str, limits: &[(&str, String)]) -> Result<Throttled, String> {
    let group = root.join(format!("lontra-test-{pid}"));
    let home = root.join(home_of(pid, controller)?.trim_start_matches('/'));
    std::fs::create_dir(&group).map_err(|error| format!("{}: {error}", group.display()))?;
    let throttled = Throttled { pid, group, home };
    let procs = ("cgroup.procs", pid.to_string());
    for (file, value) in limits.iter().chain([&procs]) {
        let path = throttled.group.join(file);
        std::fs::write(&path, value).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(throttled)
}

/// The group of the process below the root of the hierarchy, from `9:cpu,cpuacct:/path` or `0::/path`.
fn home_of(pid: u32, controller: &str) -> Result<String, String> {
    let path = format!("/proc/{pid}/cgroup");
    let groups = std::fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
    let home = groups.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, home) = (parts.next()?, parts.next()?);
        controllers
            .split(',')
            .any(|one| one == controller)
            .then(|| home.to_owned())
    });
    home.ok_or_else(|| format!("{path} has no {controller:?}"))
}

impl Drop for Throttled {
    fn drop(&mut self) {
        // Fails if the process is gone.
        std::fs::write(self.home.join("cgroup.procs"), self.pid.to_string()).ok();
        std::fs::remove_dir(&self.group).ok();
    }
}

const ROOT: &str = "/sys/fs/cgroup";
/// In microseconds.
const PERIOD: u32 = 100_000;
