//! CPU seconds and resident memory of a process, from /proc.

use std::fs;
use std::io;

use super::BenchError;

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// User and system, of all threads since the process began.
    pub cpu_seconds: f64,
    pub rss_bytes: u64,
}

impl Usage {
    /// What was used since, and the memory now.
    pub fn since(self, before: Usage) -> Usage {
        Usage {
            cpu_seconds: (self.cpu_seconds - before.cpu_seconds).max(0.0),
            rss_bytes: self.rss_bytes,
        }
    }
}

/// # Errors
/// There is no such process, or it belongs to someone else.
pub fn usage(pid: u32) -> Result<Usage, BenchError> {
    let read = |name: &str, parse: fn(&str) -> Option<u64>| {
        let file = format!("/proc/{pid}/{name}");
        let parsed = fs::read_to_string(&file)
            .and_then(|text| parse(&text).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData)));
        parsed.map_err(|source| BenchError::Process { pid, file, source })
    };
    Ok(Usage {
        cpu_seconds: read("stat", cpu_ticks)? as f64 / TICKS_PER_SECOND,
        rss_bytes: read("smaps_rollup", rss_kib)? * 1024,
    })
}

pub fn own_usage() -> Result<Usage, BenchError> {
    usage(std::process::id())
}

/// utime and stime, the 14th and 15th field; the 2nd is a name that may hold anything.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let (_, behind_name) = stat.rsplit_once(')')?;
    let mut fields = behind_name.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

/// VmRSS of `status` lags by some pages per thread; this is counted.
fn rss_kib(smaps_rollup: &str) -> Option<u64> {
    let line = smaps_rollup.lines().find_map(|line| line.strip_prefix("Rss:"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// USER_HZ: what Linux shows programs, whatever the kernel's own tick.
const TICKS_PER_SECOND: f64 = 100.0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_may_have_any_name() {
        let stat = "12 (a) b (c)) S 1 12 12 0 -1 4194304 100 0 0 0 345 55 0 0 20 0 1 0 100 1 1";
        assert_eq!(cpu_ticks(stat), Some(400));
        assert_eq!(rss_kib("00400000-7ff rollup\nRss:   1234 kB\nPss: 1 kB\n"), Some(1234));
        assert!(own_usage().expect("of this process").rss_bytes > 100_000);
    }
}
