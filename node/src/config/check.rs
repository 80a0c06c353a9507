//! The bounds of every key, and the rules between keys.
//!
//! Decides only: a `Config` comes in, the first key that is out of its bounds comes out; `load.rs` adds where its value
//! came from. In the order of `Config`, so that the first mistake told is the first one in the file.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt::Display;
use std::net::SocketAddr;
use std::time::Duration;

use super::units::{ByteSize, Percent, duration::show};
use super::{Cluster, Config};

mod auth;
mod listeners;

/// A value that may not be, and why.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Violation {
    /// `section.key`, `listeners[0].key`.
    pub key: Cow<'static, str>,
    /// What is wrong, with the value, and what is allowed.
    pub problem: String,
}

pub(super) type Checked = Result<(), Violation>;

const MESSAGES_MAX: u64 = 1_000_000_000_000;
const TEN_YEARS: Duration = Duration::from_secs(3650 * 24 * 3600);

pub(super) fn check(config: &Config) -> Checked {
    let Config {
        node,
        cluster,
        mqtt,
        queue,
        retained,
        limits,
        // Every value is allowed.
        shared: _,
        websocket,
        http,
        storage,
        sys,
        topics,
        log,
        auth: who,
        listeners: _,
    } = config;

    range("node.id", node.id, 1, 65535)?;
    if node.data_dir.as_os_str().is_empty() {
        return refuse("node.data_dir", "may not be empty: name a directory".to_owned());
    }
    range("node.workers", node.workers, 0, 256)?;

    cluster_name(&cluster.name)?;
    port("cluster.listen", cluster.listen)?;
    range("cluster.shards", cluster.shards, 1, 64)?;
    if ![1, 3, 5].contains(&cluster.replication_factor) {
        return refuse(
            "cluster.replication_factor",
            format!("{} is not 1, 3 or 5", cluster.replication_factor),
        );
    }
    seeds(node.id, cluster)?;
    tls(cluster)?;
    time(
        "cluster.heartbeat",
        cluster.heartbeat,
        Duration::from_millis(10),
        Duration::from_secs(1),
    )?;
    time(
        "cluster.election",
        cluster.election,
        cluster.heartbeat * 5,
        Duration::from_secs(5),
    )?;
    time(
        "cluster.lease",
        cluster.lease,
        cluster.election * 2,
        Duration::from_secs(10),
    )?;
    config
        .timing()
        .check()
        .or_else(|problem| refuse("cluster.lease", problem))?;

    port("mqtt.listen", mqtt.listen)?;
    size(
        "mqtt.packet_size_max",
        mqtt.packet_size_max,
        ByteSize::kib(1),
        ByteSize::mib(256),
    )?;
    time(
        "mqtt.connect_timeout",
        mqtt.connect_timeout,
        Duration::from_millis(100),
        Duration::from_secs(300),
    )?;
    keep_alive_max("mqtt.keep_alive_max", mqtt.keep_alive_max)?;
    range("mqtt.receive_maximum", mqtt.receive_maximum, 1, 65535)?;
    range("mqtt.topic_alias_max", mqtt.topic_alias_max, 0, 1024)?;
    size(
        "mqtt.outbox_bytes_max",
        mqtt.outbox_bytes_max,
        mqtt.packet_size_max,
        ByteSize::gib(1),
    )?;
    range("mqtt.outbox_messages_max", mqtt.outbox_messages_max, 1, 10_000_000)?;
    time(
        "mqtt.outbox_wait_max",
        mqtt.outbox_wait_max,
        Duration::ZERO,
        Duration::from_secs(10),
    )?;
    range("mqtt.connections_max", mqtt.connections_max, 1, 1_000_000)?;
    range("mqtt.topic_levels_max", mqtt.topic_levels_max, 1, 32768)?;

    range("queue.messages_max", queue.messages_max, 0, MESSAGES_MAX)?;
    size(
        "queue.bytes_max",
        queue.bytes_max,
        ByteSize::mib(0),
        ByteSize::gib(1024),
    )?;
    time("queue.age_max", queue.age_max, Duration::ZERO, TEN_YEARS)?;
    range("retained.messages_max", retained.messages_max, 0, MESSAGES_MAX)?;
    size(
        "retained.bytes_max",
        retained.bytes_max,
        ByteSize::mib(0),
        ByteSize::gib(1024),
    )?;

    limits.check()?;

    port("websocket.listen", websocket.listen)?;
    operator_listener("http.listen", http.listen)?;
    distinct_ports(config)?;
    auth::check(who)?;
    for (key, listener) in ["mqtt.listen", "websocket.listen"]
        .into_iter()
        .zip(&config.all_listeners())
    {
        listeners::reach(key, config, listener)?;
    }
    listeners::check(config)?;

    within(
        "storage.free_space_min",
        storage.free_space_min,
        Percent(1),
        Percent(50),
    )?;
    let (shortest, longest) = (Duration::from_secs(1), Duration::from_secs(3600));
    time(
        "storage.checkpoint_interval",
        storage.checkpoint_interval,
        shortest,
        longest,
    )?;
    if !sys.interval.is_zero() {
        time("sys.interval", sys.interval, shortest, longest)?;
    }
    topics.check()?;
    range(
        "topics.delayed_messages_max",
        topics.delayed_messages_max,
        0,
        MESSAGES_MAX,
    )?;
    size_or_derived(
        "storage.cache_bytes",
        storage.cache_bytes,
        ByteSize::mib(1),
        ByteSize::gib(1024),
    )?;
    size_or_derived(
        "storage.write_buffer_bytes",
        storage.write_buffer_bytes,
        ByteSize::mib(1),
        ByteSize::gib(1),
    )?;

    lontra_ops::telemetry::check_level(&log.level).or_else(|problem| refuse("log.level", problem.to_string()))
}

/// TLS names and directories carry it: the letters of a DNS label.
fn cluster_name(name: &str) -> Checked {
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if name.is_empty() || name.len() > 63 || !name.chars().all(good) || name.starts_with('-') || name.ends_with('-') {
        return refuse(
            "cluster.name",
            format!("`{name}` is not a cluster name: write 1 to 63 of a-z, 0-9 and -, not beginning or ending with -"),
        );
    }
    Ok(())
}

fn seeds(own_id: u64, cluster: &Cluster) -> Checked {
    let key = "cluster.seeds";
    let seeds = &cluster.seeds;
    if seeds.len() > SEEDS_MAX {
        return refuse(key, format!("{} nodes are more than {SEEDS_MAX}", seeds.len()));
    }
    let (mut ids, mut addresses) = (BTreeSet::new(), BTreeSet::new());
    for seed in seeds {
        if !(1..=65535).contains(&seed.id) {
            return refuse(key, format!("id {} must be from 1 to 65535", seed.id));
        }
        if !ids.insert(seed.id) {
            return refuse(key, format!("id {} occurs twice", seed.id));
        }
        if !is_host_and_port(&seed.address) {
            return refuse(
                key,
                format!("address `{}` of node {} is not host:port", seed.address, seed.id),
            );
        }
        if !addresses.insert(&seed.address) {
            return refuse(key, format!("address `{}` occurs twice", seed.address));
        }
    }
    if !seeds.is_empty() && !ids.contains(&own_id) {
        return refuse(
            key,
            format!("node.id = {own_id} is none of the ids listed ({})", list(&ids)),
        );
    }
    Ok(())
}

fn tls(cluster: &Cluster) -> Checked {
    let files = [
        ("cluster.tls.ca", &cluster.tls.ca),
        ("cluster.tls.certificate", &cluster.tls.certificate),
        ("cluster.tls.key", &cluster.tls.key),
    ];
    let needed = cluster.seeds.len() > 1 || cluster.tls().is_some();
    match files.iter().find(|(_, path)| path.as_os_str().is_empty()) {
        Some((key, _)) if needed => refuse(
            *key,
            "is missing: nodes of a cluster talk over mutual TLS; make the files with `lontra cert authority` and \
             `lontra cert node`, and name all three (ca, certificate, key)"
                .to_owned(),
        ),
        _ => Ok(()),
    }
}

/// Until operators can be told apart, only the machine's own may connect.
fn operator_listener(key: &'static str, listen: SocketAddr) -> Checked {
    // Other addresses than loopback: /api asks for keys, and is not served there before one exists (ops/src/guard.rs).
    port(key, listen)
}

fn port(key: impl Into<Cow<'static, str>>, listen: SocketAddr) -> Checked {
    match listen.port() {
        0 => refuse(key, format!("{listen} has port 0: name the port, from 1 to 65535")),
        _ => Ok(()),
    }
}

/// The TCP listeners; `cluster.listen` is UDP.
fn distinct_ports(config: &Config) -> Checked {
    let listeners = [
        ("mqtt.listen", config.mqtt.listen),
        ("websocket.listen", config.websocket.listen),
        ("http.listen", config.http.listen),
    ];
    for (i, (key, address)) in listeners.iter().enumerate() {
        if let Some((other, _)) = listeners[..i].iter().find(|(_, other)| other == address) {
            return refuse(
                *key,
                format!("{address} is also {other}: each listener needs its own port"),
            );
        }
    }
    Ok(())
}

fn is_host_and_port(address: &str) -> bool {
    match address.rsplit_once(':') {
        Some((host, port)) => {
            let bracketed = host.starts_with('[') && host.ends_with(']');
            let host_good = if bracketed {
                address.parse::<SocketAddr>().is_ok()
            } else {
                !host.contains([':', '/', ' '])
            };
            !host.is_empty() && host_good && port.parse::<u16>().is_ok_and(|port| port > 0)
        }
        None => false,
    }
}

fn keep_alive_max(key: impl Into<Cow<'static, str>>, longest: Duration) -> Checked {
    let key = key.into();
    time(key.clone(), longest, Duration::ZERO, Duration::from_secs(65535))?;
    match longest.subsec_nanos() {
        0 => Ok(()),
        _ => refuse(key, format!("{} is not in whole seconds", show(longest))),
    }
}

pub(super) fn range<T: Into<u64> + Copy>(key: impl Into<Cow<'static, str>>, value: T, low: u64, high: u64) -> Checked {
    within(key, value.into(), low, high)
}

pub(super) fn size(key: impl Into<Cow<'static, str>>, value: ByteSize, low: ByteSize, high: ByteSize) -> Checked {
    within(key, value, low, high)
}

/// Nothing is what stands for "derive it".
fn size_or_derived(key: &'static str, value: ByteSize, low: ByteSize, high: ByteSize) -> Checked {
    match value.bytes() {
        0 => Ok(()),
        _ => size(key, value, low, high),
    }
}

pub(super) fn time(key: impl Into<Cow<'static, str>>, value: Duration, low: Duration, high: Duration) -> Checked {
    if value < low || value > high {
        return refuse(
            key,
            format!("{} must be from {} to {}", show(value), show(low), show(high)),
        );
    }
    Ok(())
}

fn within<T: PartialOrd + Display>(key: impl Into<Cow<'static, str>>, value: T, low: T, high: T) -> Checked {
    if value < low || value > high {
        return refuse(key, format!("{value} must be from {low} to {high}"));
    }
    Ok(())
}

fn refuse(key: impl Into<Cow<'static, str>>, problem: String) -> Checked {
    let key = key.into();
    Err(Violation { key, problem })
}

fn list(ids: &BTreeSet<u64>) -> String {
    ids.iter().map(u64::to_string).collect::<Vec<_>>().join(", ")
}

/// Links go from each node to each other one.
const SEEDS_MAX: usize = 64;
