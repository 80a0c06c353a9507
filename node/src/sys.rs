//! `$SYS`: what a node tells its clients about itself, in the two forms that dashboards and scripts know.
//!
//! ```text
//!   metrics, hub, meta ─▶ Reading ─▶ topics ─┬─ every interval ─▶ hub ─▶ workers ─▶ who is connected and matches
//!                           Loads ───────────┘─ a new subscription ─▶ that client alone, as if retained
//! ```
//!
//! `$SYS/broker/…` as Mosquitto has it, `$SYS/brokers/{node}/…` as EMQX. Both are of the node that the client is connected
//! to. Made here and delivered here, at QoS 0: no publish looks at it, nothing of it is routed, stored or forwarded, and
//! nothing is made while nobody subscribes. A durable session gets it while it is connected.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use lontra_cluster::Cluster;
use lontra_storage::ids::SessionId;
use lontra_storage::message::Message;
use serde_json::json;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use crate::clock::Utc;
use crate::hub::Hub;
use crate::metrics::{NodeMetrics, Totals};
use crate::protocol::codec::{ReasonCode, Version};

/// Whether the first level of a Topic Name or Topic Filter is `$SYS`: only the node publishes there. [MQTT-4.7.2-1]
pub fn is_sys(topic: &str) -> bool {
    topic
        .strip_prefix("$SYS")
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Shared by the task that publishes and by workers, which tell new subscribers.
pub struct Sys {
    started: Instant,
    cluster: Cluster,
    hub: Arc<Hub>,
    metrics: NodeMetrics,
    /// Guards the averages; written once per interval.
    loads: Mutex<Loads>,
}

impl Sys {
    pub fn new(cluster: Cluster, hub: Arc<Hub>, metrics: NodeMetrics) -> Self {
        let started = Instant::now();
        let loads = Mutex::new(Loads::new(started, metrics.totals()));
        Sys {
            started,
            cluster,
            hub,
            metrics,
            loads,
        }
    }

    /// Publishes every `interval` until `stop` is set.
    pub async fn run(self: Arc<Self>, interval: Duration, mut stop: watch::Receiver<bool>) {
        let mut ticks = tokio::time::interval(interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                _ = stop.wait_for(|stop| *stop) => return,
            }
            self.loads().sample(Instant::now(), self.metrics.totals());
            if self.hub.is_sys_watched() {
                for message in self.messages() {
                    self.hub.tell(message);
                }
            }
        }
    }

    /// Every topic with what it says now.
    pub fn messages(&self) -> Vec<Arc<Message>> {
        let averages = self.loads().averages;
        topics(&self.reading(), &averages)
            .into_iter()
            .map(|(topic, payload)| message(&topic, payload))
            .collect()
    }

    pub fn connected(&self, client_id: &str, version: Version) {
        let level = match version {
            Version::V3_1 => 3,
            Version::V3_1_1 => 4,
            Version::V5 => 5,
        };
        let about = json!({ "clientid": client_id, "proto_ver": level, "ts": unix_milliseconds() });
        self.client_event(client_id, "connected", &about);
    }

    pub fn disconnected(&self, client_id: &str, reason: ReasonCode) {
        let about = json!({
            "clientid": client_id,
            "reason": reason.name().unwrap_or("other"),
            "ts": unix_milliseconds(),
        });
        self.client_event(client_id, "disconnected", &about);
    }

    fn client_event(&self, client_id: &str, what: &str, about: &serde_json::Value) {
        // A client id may be what no topic level can be.
        if !self.hub.is_sys_watched() || client_id.contains(['+', '#']) || client_id.len() > CLIENT_ID_MAX {
            return;
        }
        let topic = format!("$SYS/brokers/{}/clients/{client_id}/{what}", self.cluster.node());
        self.hub.tell(message(&topic, about.to_string()));
    }

    fn reading(&self) -> Reading {
        let meta = self.cluster.meta().read();
        let (sessions, _) = meta.session_counts();
        Reading {
            node: self.cluster.node(),
            nodes: meta
                .nodes()
                .filter(|(_, record)| record.up)
                .map(|(node, _)| node)
                .collect(),
            uptime: self.started.elapsed(),
            now: SystemTime::now(),
            clients: self.hub.session_count(),
            sessions,
            absent: sessions.saturating_sub(meta.connected_count()),
            routes: meta.route_count(),
            retained: self.cluster.retained_size().count,
            totals: self.metrics.totals(),
        }
    }

    fn loads(&self) -> std::sync::MutexGuard<'_, Loads> {
        self.loads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is told, at one moment.
#[derive(Clone, Debug)]
struct Reading {
    node: u64,
    /// Those that are Up.
    nodes: Vec<u64>,
    uptime: Duration,
    now: SystemTime,
    /// Connected here.
    clients: usize,
    /// Of the cluster.
    sessions: usize,
    absent: usize,
    routes: usize,
    retained: u64,
    totals: Totals,
}

fn topics(reading: &Reading, averages: &[Averages; COUNTED]) -> Vec<(String, String)> {
    let mut topics = Vec::new();
    let mut tell = |topic: &str, payload: String| topics.push((topic.to_owned(), payload));
    let totals = &reading.totals;
    let uptime = format!("{} seconds", reading.uptime.as_secs());

    tell("$SYS/broker/version", format!("lontra version {VERSION}"));
    tell("$SYS/broker/uptime", uptime.clone());
    for (topic, value) in [
        ("clients/connected", reading.clients as u64),
        ("clients/disconnected", reading.absent as u64),
        ("clients/total", reading.sessions as u64),
        ("messages/received", totals.packets_received),
        ("messages/sent", totals.packets_sent),
        ("publish/messages/received", totals.publishes_received),
        ("publish/messages/sent", totals.publishes_sent),
        ("publish/messages/dropped", totals.publishes_dropped),
        ("bytes/received", totals.bytes_received),
        ("bytes/sent", totals.bytes_sent),
        ("subscriptions/count", totals.subscriptions.max(0) as u64),
        ("retained messages/count", reading.retained),
    ] {
        tell(&format!("$SYS/broker/{topic}"), value.to_string());
    }
    for ((what, _), averages) in counted(totals).iter().zip(averages) {
        for (minutes, average) in MINUTES.iter().zip(averages) {
            tell(
                &format!("$SYS/broker/load/{what}/{minutes}min"),
                format!("{average:.2}"),
            );
        }
    }

    let nodes: Vec<String> = reading.nodes.iter().map(u64::to_string).collect();
    tell("$SYS/brokers", nodes.join(","));
    let node = format!("$SYS/brokers/{}", reading.node);
    tell(&format!("{node}/version"), VERSION.to_owned());
    tell(&format!("{node}/uptime"), uptime);
    tell(&format!("{node}/datetime"), Utc::of(reading.now).iso8601());
    tell(&format!("{node}/sysdescr"), "Lontra MQTT broker".to_owned());
    for (topic, value) in [
        ("stats/connections/count", totals.connections.max(0) as u64),
        ("stats/sessions/count", reading.sessions as u64),
        ("stats/subscriptions/count", totals.subscriptions.max(0) as u64),
        ("stats/topics/count", reading.routes as u64),
        ("stats/retained/count", reading.retained),
        ("metrics/bytes/received", totals.bytes_received),
        ("metrics/bytes/sent", totals.bytes_sent),
        ("metrics/packets/received", totals.packets_received),
        ("metrics/packets/sent", totals.packets_sent),
        ("metrics/messages/received", totals.publishes_received),
        ("metrics/messages/sent", totals.publishes_sent),
        ("metrics/messages/dropped", totals.publishes_dropped),
    ] {
        tell(&format!("{node}/{topic}"), value.to_string());
    }
    topics
}

/// What averages are kept of, by the end of their topics.
fn counted(totals: &Totals) -> [(&'static str, u64); COUNTED] {
    [
        ("messages/received", totals.packets_received),
        ("messages/sent", totals.packets_sent),
        ("publish/received", totals.publishes_received),
        ("publish/sent", totals.publishes_sent),
        ("publish/dropped", totals.publishes_dropped),
        ("bytes/received", totals.bytes_received),
        ("bytes/sent", totals.bytes_sent),
        ("sockets", totals.sockets),
    ]
}

/// Per minute, over the last 1, 5 and 15 minutes.
type Averages = [f64; MINUTES.len()];

/// Exponential averages, as of a machine's load.
struct Loads {
    at: Instant,
    totals: Totals,
    averages: [Averages; COUNTED],
}

impl Loads {
    fn new(at: Instant, totals: Totals) -> Self {
        Loads {
            at,
            totals,
            averages: [[0.0; MINUTES.len()]; COUNTED],
        }
    }

    fn sample(&mut self, now: Instant, totals: Totals) {
        let elapsed = now.duration_since(self.at).as_secs_f64() / 60.0;
        if elapsed <= 0.0 {
            return;
        }
        let (before, after) = (counted(&self.totals), counted(&totals));
        for (index, averages) in self.averages.iter_mut().enumerate() {
            let per_minute = after[index].1.saturating_sub(before[index].1) as f64 / elapsed;
            for (minutes, average) in MINUTES.iter().zip(averages) {
                let kept = (-elapsed / *minutes as f64).exp();
                *average = per_minute + kept * (*average - per_minute);
            }
        }
        (self.at, self.totals) = (now, totals);
    }
}

/// Not retained in itself: then it would wait for a client that does not read, instead of being dropped.
fn message(topic: &str, payload: String) -> Arc<Message> {
    Arc::new(Message {
        topic: topic.into(),
        payload: payload.into(),
        qos: 0,
        retain: false,
        publisher: SessionId(0),
        expiry_interval: None,
        properties: Bytes::new(),
    })
}

fn unix_milliseconds() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_millis() as u64
}

const VERSION: &str = env!("CARGO_PKG_VERSION");
const MINUTES: [u32; 3] = [1, 5, 15];
const COUNTED: usize = 8;
/// With the levels around it a topic stays below 65,536 bytes.
const CLIENT_ID_MAX: usize = 60_000;

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn only_the_level_itself_is_sys() {
        for (topic, expected) in [
            ("$SYS", true),
            ("$SYS/", true),
            ("$SYS/#", true),
            ("$SYS/broker/uptime", true),
            ("$SYSTEM", false),
            ("$sys/broker", false),
            ("a/$SYS", false),
            ("$share/g/$SYS/#", false),
            ("#", false),
        ] {
            assert_eq!(is_sys(topic), expected, "{topic}");
        }
    }

    fn reading() -> Reading {
        Reading {
            node: 2,
            nodes: vec![1, 2],
            uptime: Duration::from_millis(61_900),
            now: UNIX_EPOCH + Duration::from_secs(1_470_822_458),
            clients: 3,
            sessions: 7,
            absent: 1,
            routes: 5,
            retained: 4,
            totals: Totals {
                packets_received: 11,
                publishes_dropped: 12,
                bytes_sent: 13,
                ..Totals::default()
            },
        }
    }

    #[test]
    fn each_topic_is_told_once_in_both_families() {
        let topics = topics(&reading(), &[[0.0; 3]; COUNTED]);
        let names: BTreeSet<&str> = topics.iter().map(|(topic, _)| topic.as_str()).collect();
        assert_eq!(names.len(), topics.len());
        assert!(names.iter().all(|topic| is_sys(topic)));
        for (topic, expected) in [
            ("$SYS/broker/uptime", "61 seconds"),
            ("$SYS/broker/clients/connected", "3"),
            ("$SYS/broker/clients/disconnected", "1"),
            ("$SYS/broker/clients/total", "7"),
            ("$SYS/broker/messages/received", "11"),
            ("$SYS/broker/publish/messages/dropped", "12"),
            ("$SYS/broker/retained messages/count", "4"),
            ("$SYS/broker/load/bytes/sent/15min", "0.00"),
            ("$SYS/brokers", "1,2"),
            ("$SYS/brokers/2/datetime", "2016-08-10T09:47:38+0000"),
            ("$SYS/brokers/2/stats/topics/count", "5"),
            ("$SYS/brokers/2/metrics/bytes/sent", "13"),
        ] {
            let told = topics.iter().find(|(name, _)| name == topic);
            assert_eq!(told.map(|(_, payload)| payload.as_str()), Some(expected), "{topic}");
        }
    }

    #[test]
    fn averages_come_to_a_steady_rate_and_decay() {
        let start = Instant::now();
        let mut loads = Loads::new(start, Totals::default());
        let sockets = |sockets| Totals {
            sockets,
            ..Totals::default()
        };
        // 10 in 10 s, for an hour.
        for tick in 1..=360 {
            loads.sample(start + Duration::from_secs(10 * tick), sockets(10 * tick));
        }
        for average in loads.averages[COUNTED - 1] {
            assert!((55.0..=60.0).contains(&average), "{average}");
        }
        // A minute of nothing: 1/e of the shortest is left.
        loads.sample(start + Duration::from_secs(3660), sockets(3600));
        let [one, five, fifteen] = loads.averages[COUNTED - 1];
        assert!((20.0..=23.0).contains(&one), "{one}");
        assert!(one < five && five < fifteen, "{five} {fifteen}");
        // No time, no change; and no division by it.
        loads.sample(start + Duration::from_secs(3660), sockets(9999));
        assert_eq!(loads.averages[COUNTED - 1], [one, five, fifteen]);
    }
}
