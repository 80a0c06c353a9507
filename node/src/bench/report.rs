//! What a run says of itself: a table for people, JSON for scripts.

use std::fmt::Write;

use hdrhistogram::Histogram;
use serde::Serialize;
use serde_json::{Value, json};

use super::process::Usage;
use crate::protocol::codec::Version;

#[derive(Debug)]
pub struct Report {
    pub scenario: &'static str,
    pub brokers: Vec<String>,
    pub version: Version,
    pub transport: &'static str,
    pub qos: u8,
    pub is_persistent: bool,
    pub publishers: usize,
    pub subscribers: usize,
    pub payload_bytes: u32,
    pub window: Option<u16>,
    pub rate: Option<f64>,
    /// Of the measured interval, as are the histograms (nanoseconds), CPU seconds and `measured`.
    pub seconds: f64,
    /// Messages delivered within it.
    pub measured: u64,
    /// Of the whole run.
    pub counts: Counts,
    /// Why the first of the broken connections broke.
    pub first_end: Option<String>,
    /// Why persistent sessions could not be ended.
    pub left_behind: Option<String>,
    pub latency: Histogram<u64>,
    pub acknowledge: Histogram<u64>,
    pub send_delay: Histogram<u64>,
    pub bench: Usage,
    pub processes: Vec<Process>,
}

/// sent × subscribers of each = delivered + lost, refused and unanswered ones left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    pub sent: u64,
    pub acknowledged: u64,
    pub delivered: u64,
    pub lost: u64,
    pub duplicates: u64,
    pub out_of_order: u64,
    pub refused: u64,
    pub unanswered: u64,
    pub foreign: u64,
    pub disconnected: u64,
}

#[derive(Clone, Copy, Debug)]
pub struct Process {
    pub pid: u32,
    pub used: Usage,
}

impl Report {
    /// Whether everything sent came, once, in order.
    pub fn as_sent(&self) -> bool {
        let counts = &self.counts;
        counts.lost + counts.duplicates + counts.out_of_order == 0
            && counts.refused + counts.unanswered + counts.foreign + counts.disconnected == 0
    }

    pub fn print(&self, as_json: bool) -> String {
        if as_json { self.json().to_string() } else { self.table() }
    }

    fn json(&self) -> Value {
        json!({
            "scenario": self.scenario,
            "brokers": self.brokers,
            "version": version(self.version),
            "transport": self.transport,
            "qos": self.qos,
            "persistent": self.is_persistent,
            "publishers": self.publishers,
            "subscribers": self.subscribers,
            "payload_bytes": self.payload_bytes,
            "window": self.window,
            "rate": self.rate,
            "seconds": self.seconds,
            "delivered_per_second": self.per_second(),
            "counts": self.counts,
            "as_sent": self.as_sent(),
            "first_end": self.first_end,
            "left_behind": self.left_behind,
            "latency_us": distribution(&self.latency),
            "acknowledge_us": distribution(&self.acknowledge),
            "send_delay_us": distribution(&self.send_delay),
            "bench": usage(self.bench),
            "processes": self.processes.iter().map(process).collect::<Vec<_>>(),
            "cpu_us_per_delivered": self.cpu_us_per_delivered(),
        })
    }

    fn table(&self) -> String {
        let counts = &self.counts;
        let load = match (self.window, self.rate) {
            (_, Some(rate)) => format!("{rate} messages/s"),
            (window, None) => format!("window {}", window.unwrap_or_default()),
        };
        let mut text = format!(
            "{}: {} publishers, {} {}subscribers, MQTT {} over {}, QoS {}, {} bytes, {load}; {:.1} s\n\
             delivered      {:.0}/s\n\
             in all         {} sent, {} acknowledged, {} delivered\n\
             not as sent    {} lost, {} twice, {} out of order, {} refused, {} unanswered, {} foreign, {} connections broke\n",
            self.scenario,
            self.publishers,
            self.subscribers,
            if self.is_persistent { "persistent " } else { "" },
            version(self.version),
            self.transport,
            self.qos,
            self.payload_bytes,
            self.seconds,
            self.per_second(),
            counts.sent,
            counts.acknowledged,
            counts.delivered,
            counts.lost,
            counts.duplicates,
            counts.out_of_order,
            counts.refused,
            counts.unanswered,
            counts.foreign,
            counts.disconnected,
        );
        if let Some(end) = &self.first_end {
            let _ = writeln!(text, "first broken   {end}");
        }
        if let Some(why) = &self.left_behind {
            let _ = writeln!(text, "sessions left  {why}");
        }
        for (name, histogram) in [
            ("latency", &self.latency),
            ("acknowledged", &self.acknowledge),
            ("left late by", &self.send_delay),
        ] {
            let is_news = name != "left late by" || self.rate.is_some();
            if is_news && !histogram.is_empty() {
                let _ = writeln!(text, "{name:<14} {}", quantiles(histogram));
            }
        }
        for process in &self.processes {
            let _ = writeln!(text, "pid {:<10} {}", process.pid, in_words(process.used));
        }
        if let Some(cpu) = self.cpu_us_per_delivered() {
            let _ = writeln!(text, "brokers        {cpu:.2} µs of CPU per delivered message");
        }
        let _ = write!(text, "bench itself   {}", in_words(self.bench));
        text
    }

    fn per_second(&self) -> f64 {
        if self.seconds > 0.0 {
            self.measured as f64 / self.seconds
        } else {
            0.0
        }
    }

    /// Of all given processes together.
    fn cpu_us_per_delivered(&self) -> Option<f64> {
        let cpu_seconds: f64 = self.processes.iter().map(|process| process.used.cpu_seconds).sum();
        (self.measured > 0 && !self.processes.is_empty()).then(|| cpu_seconds * 1e6 / self.measured as f64)
    }
}

pub fn version(version: Version) -> &'static str {
    match version {
        Version::V3_1 => "3.1",
        Version::V3_1_1 => "3.1.1",
        Version::V5 => "5",
    }
}

pub fn usage(usage: Usage) -> Value {
    json!({ "cpu_seconds": usage.cpu_seconds, "rss_bytes": usage.rss_bytes })
}

pub fn process(process: &Process) -> Value {
    json!({ "pid": process.pid, "cpu_seconds": process.used.cpu_seconds, "rss_bytes": process.used.rss_bytes })
}

pub fn in_words(usage: Usage) -> String {
    let mib = usage.rss_bytes as f64 / (1024.0 * 1024.0);
    format!("{:.2} s of CPU, {mib:.1} MiB resident", usage.cpu_seconds)
}

fn distribution(histogram: &Histogram<u64>) -> Value {
    if histogram.is_empty() {
        return Value::Null;
    }
    let quantile = |quantile| histogram.value_at_quantile(quantile) as f64 / 1e3;
    json!({
        "count": histogram.len(),
        "mean": histogram.mean() / 1e3,
        "p50": quantile(0.5),
        "p90": quantile(0.9),
        "p99": quantile(0.99),
        "p999": quantile(0.999),
        "max": histogram.max() as f64 / 1e3,
    })
}

fn quantiles(histogram: &Histogram<u64>) -> String {
    let at = |quantile| histogram.value_at_quantile(quantile) as f64 / 1e6;
    format!(
        "p50 {:.3} ms, p90 {:.3}, p99 {:.3}, p99.9 {:.3}, max {:.3}",
        at(0.5),
        at(0.9),
        at(0.99),
        at(0.999),
        histogram.max() as f64 / 1e6
    )
}
