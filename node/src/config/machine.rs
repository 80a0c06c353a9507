//! What this process may use of its machine, and what is derived from that where the configuration says 0.
//!
//!     affinity, cgroup CPU quota ──▶ cores ───▶ node.workers
//!     MemTotal, cgroup limits ─────▶ memory ──▶ storage.cache_bytes, storage.write_buffer_bytes, limits.unfinished_bytes_max
//!
//! A container of 512 MiB on a machine of 64 GiB has 512 MiB. Looked at once, at the start: a limit that is changed later is
//! seen at the next one.

use std::path::Path;

use super::units::ByteSize;
use super::{Config, Storage};

/// Cores and memory that this process may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine {
    pub cores: usize,
    /// In bytes.
    pub memory: u64,
}

impl Machine {
    /// Of the running process. What cannot be read limits nothing.
    pub fn here() -> Self {
        let read = |path: &Path| std::fs::read_to_string(path).ok();
        let memory = memory(
            &read(Path::new("/proc/meminfo")).unwrap_or_default(),
            &read(Path::new("/proc/self/cgroup")).unwrap_or_default(),
            read,
        );
        Machine {
            // It knows affinity, and the CPU quota of both versions of cgroups.
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory: memory.unwrap_or(MEMORY_UNKNOWN),
        }
    }
}

impl Config {
    /// With each 0 that stands for "derive it" replaced: what a node runs with.
    pub fn resolved(&self, machine: &Machine) -> Config {
        let mut config = self.clone();
        if config.node.workers == 0 {
            config.node.workers = machine.cores.clamp(1, WORKERS_MAX) as u16;
        }
        let Storage {
            cache_bytes,
            write_buffer_bytes,
            ..
        } = &mut config.storage;
        derive(cache_bytes, machine.memory / 16, 16, 1024);
        derive(write_buffer_bytes, machine.memory / 64, 8, 64);
        derive(
            &mut config.limits.unfinished_bytes_max,
            machine.memory / 8,
            16,
            16 * 1024,
        );
        config
    }
}

/// In whole MiB, from `low` to `high` of them.
fn derive(size: &mut ByteSize, bytes: u64, low: u64, high: u64) {
    if size.bytes() == 0 {
        *size = ByteSize::mib((bytes >> 20).clamp(low, high));
    }
}

/// The least of MemTotal and the limits of the process's cgroup and of those above it.
fn memory(meminfo: &str, cgroups: &str, read: impl Fn(&Path) -> Option<String>) -> Option<u64> {
    let mut least = total(meminfo);
    for line in cgroups.lines() {
        // hierarchy:controllers:path
        let mut fields = line.splitn(3, ':');
        let (Some(hierarchy), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        let (root, file) = if hierarchy == "0" && controllers.is_empty() {
            ("/sys/fs/cgroup", "memory.max")
        } else if controllers.split(',').any(|controller| controller == "memory") {
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
        } else {
            continue;
        };
        let within = Path::new(root).join(path.trim_start_matches('/'));
        for directory in within.ancestors().take_while(|directory| directory.starts_with(root)) {
            let limit = read(&directory.join(file)).and_then(|text| limit(&text));
            least = [least, limit].into_iter().flatten().min();
        }
    }
    least
}

/// `max` is no limit.
fn limit(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// `MemTotal:       16316412 kB`
fn total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

/// The largest that `node.workers` may be.
const WORKERS_MAX: usize = 256;
/// Where nothing can be read: what gives the cache of 64 MiB that has proved to do.
const MEMORY_UNKNOWN: u64 = 1 << 30;

#[cfg(test)]
mod tests {
    use super::*;

    const MEMINFO: &str = "MemTotal:       16777216 kB\nMemFree:         1024 kB\n";
    const MIB: u64 = 1 << 20;

    fn check(cgroups: &str, files: &[(&str, &str)], expected: u64) {
        let read = |path: &Path| {
            let found = files.iter().find(|(name, _)| Path::new(name) == path);
            found.map(|(_, text)| (*text).to_owned())
        };
        assert_eq!(memory(MEMINFO, cgroups, read), Some(expected), "{cgroups} {files:?}");
    }

    #[test]
    fn without_a_limit_it_is_the_machines_memory() {
        check("", &[], 16384 * MIB);
        check("0::/\n", &[("/sys/fs/cgroup/memory.max", "max\n")], 16384 * MIB);
        check("garbage", &[], 16384 * MIB);
        // The largest multiple of a page stands for none in version 1.
        let none = "9223372036854771712\n";
        check(
            "9:memory:/\n",
            &[("/sys/fs/cgroup/memory/memory.limit_in_bytes", none)],
            16384 * MIB,
        );
        assert_eq!(memory("", "", |_| None), None);
    }

    #[test]
    fn the_lowest_limit_of_a_cgroup_and_of_those_above_it_holds() {
        let unit = "0::/system.slice/lontra.service\n";
        let own = ("/sys/fs/cgroup/system.slice/lontra.service/memory.max", "1073741824\n");
        let above = ("/sys/fs/cgroup/system.slice/memory.max", "536870912\n");
        check(unit, &[own], 1024 * MIB);
        check(unit, &[own, above], 512 * MIB);
        // A container sees its own limit at the root.
        check("0::/\n", &[("/sys/fs/cgroup/memory.max", "268435456")], 256 * MIB);
    }

    #[test]
    fn version_1_has_a_hierarchy_for_memory() {
        let cgroups = "12:cpu,cpuacct:/docker/abc\n9:memory:/docker/abc\n0::/init.scope\n";
        let own = ("/sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes", "2147483648\n");
        check(cgroups, &[own], 2048 * MIB);
        // Inside a container that path does not exist, and the root is the container's own.
        let root = ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "1073741824\n");
        check(cgroups, &[root], 1024 * MIB);
    }

    #[test]
    fn what_is_zero_is_derived_and_what_is_not_stays() {
        for (cores, memory, workers, cache, buffer, unfinished) in [
            (2, 128 * MIB, 2, 16, 8, 16),
            (2, 1024 * MIB, 2, 64, 16, 128),
            (8, 8192 * MIB, 8, 512, 64, 1024),
            (512, 1 << 40, 256, 1024, 64, 16_384),
        ] {
            let config = Config::default().resolved(&Machine { cores, memory });
            assert_eq!(config.node.workers, workers);
            assert_eq!(config.storage.cache_bytes, ByteSize::mib(cache));
            assert_eq!(config.storage.write_buffer_bytes, ByteSize::mib(buffer));
            assert_eq!(config.limits.unfinished_bytes_max, ByteSize::mib(unfinished));
        }
        let mut set = Config::default();
        set.node.workers = 3;
        set.storage.cache_bytes = ByteSize::mib(5);
        set.storage.write_buffer_bytes = ByteSize::mib(6);
        set.limits.unfinished_bytes_max = ByteSize::mib(7);
        let machine = Machine { cores: 1, memory: MIB };
        assert_eq!(set.resolved(&machine), set);
    }

    #[test]
    fn this_machine_has_cores_and_memory() {
        let Machine { cores, memory } = Machine::here();
        assert!(cores >= 1 && memory >= 16 * MIB, "{cores} {memory}");
    }
}
