//! The registry of one process, its text form, and the metrics of the process itself.
//!
//! Each crate's `metrics.rs` registers with the [`Registry`] made here; `GET /metrics` shows it.
//! The process is looked at when it is asked for, not on a timer.

use std::time::Instant;

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Counter, Gauge, Opts, Registry, TextEncoder};
use rustix::time::{ClockId, clock_gettime};

/// A registry that has the process's own metrics.
pub fn registry() -> Registry {
    let registry = Registry::new();
    let process = Process::start(Instant::now());
    registry
        .register(Box::new(process))
        .expect("a new registry has no name yet that could be taken");
    registry
}

/// What `GET /metrics` answers: Prometheus's text format.
///
/// # Errors
/// A family without a name or with mixed types: a mistake of whoever registered it.
pub fn text(registry: &Registry) -> Result<String, prometheus::Error> {
    TextEncoder::new().encode_to_string(&registry.gather())
}

/// The content type of [`text`].
pub const TEXT_TYPE: &str = prometheus::TEXT_FORMAT;

struct Process {
    started: Instant,
    resident: Gauge,
    open_fds: Gauge,
    cpu: Counter,
    uptime: Gauge,
}

impl Process {
    fn start(now: Instant) -> Self {
        Self {
            started: now,
            resident: gauge(
                "lontra_process_resident_bytes",
                "Memory of this process that is in RAM.",
            ),
            open_fds: gauge(
                "lontra_process_open_fds",
                "Open file descriptors: connections, links, files.",
            ),
            cpu: Counter::with_opts(Opts::new(
                "lontra_process_cpu_seconds_total",
                "CPU time, of all threads.",
            ))
            .expect("the name is well formed"),
            uptime: gauge("lontra_process_uptime_seconds", "Seconds since the process started."),
        }
    }

    fn look(&self) {
        if let Some(bytes) = resident_bytes() {
            self.resident.set(bytes);
        }
        if let Ok(fds) = std::fs::read_dir("/proc/self/fd") {
            self.open_fds.set(fds.count() as f64);
        }
        let cpu = clock_gettime(ClockId::ProcessCPUTime);
        let seconds = cpu.tv_sec as f64 + cpu.tv_nsec as f64 * 1e-9;
        // Two scrapes at once may read the clock in one order and arrive here in the other.
        self.cpu.inc_by((seconds - self.cpu.get()).max(0.0));
        self.uptime.set(self.started.elapsed().as_secs_f64());
    }
}

impl Collector for Process {
    fn desc(&self) -> Vec<&Desc> {
        [
            self.resident.desc(),
            self.open_fds.desc(),
            self.cpu.desc(),
            self.uptime.desc(),
        ]
        .concat()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.look();
        [
            self.resident.collect(),
            self.open_fds.collect(),
            self.cpu.collect(),
            self.uptime.collect(),
        ]
        .concat()
    }
}

fn gauge(name: &str, help: &str) -> Gauge {
    Gauge::with_opts(Opts::new(name, help)).expect("the name is well formed")
}

fn resident_bytes() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str, name: &str) -> f64 {
        let line = text
            .lines()
            .find(|line| line.starts_with(&format!("{name} ")))
            .expect("the metric is shown");
        line.rsplit_once(' ').unwrap().1.parse().unwrap()
    }

    #[test]
    fn every_process_metric_moves() {
        let registry = registry();
        let before = text(&registry).unwrap();

        // So much that other tests of this process, which free some meanwhile, do not matter.
        let files: Vec<_> = (0..256)
            .map(|_| std::fs::File::open("/proc/self/status").unwrap())
            .collect();
        let memory = vec![7u8; 64 << 20];
        let started = Instant::now();
        while clock_gettime(ClockId::ProcessCPUTime).tv_sec == 0 && started.elapsed().as_millis() < 30 {
            std::hint::black_box(&memory);
        }

        let after = text(&registry).unwrap();
        for name in [
            "lontra_process_resident_bytes",
            "lontra_process_open_fds",
            "lontra_process_cpu_seconds_total",
            "lontra_process_uptime_seconds",
        ] {
            assert!(
                value(&after, name) > value(&before, name),
                "{name} must move:\n{before}\n{after}"
            );
        }
        drop((files, memory));
    }

    #[test]
    fn metrics_of_other_crates_are_shown_with_help_and_type() {
        let registry = registry();
        let counter = prometheus::IntCounter::new("lontra_test_things_total", "Things.").unwrap();
        registry.register(Box::new(counter.clone())).unwrap();
        counter.inc();
        let text = text(&registry).unwrap();
        assert!(text.contains("# HELP lontra_test_things_total Things."), "{text}");
        assert!(
            text.contains("# TYPE lontra_test_things_total counter\nlontra_test_things_total 1\n"),
            "{text}"
        );
    }
}
