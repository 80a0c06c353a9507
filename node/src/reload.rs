//! SIGHUP: the configuration is read again, and what may change while a node runs does.
//!
//!     file + environment ──▶ Config ──▶ changes(running, read) ─┬─ live ────▶ log level · workers · cluster
//!            └ refused: an ERROR, nothing changes               └─ others ──▶ a WARN each: needs a restart
//!     certificates, keys, CRLs of the listeners, users, rules, whether their paths changed or not ──▶ workers
//!     certificates, key, CRL of the links, where they were at the start ──▶ cluster
//!
//! All or nothing: a file with one mistake is refused as a whole, with its line and key; so is a certificate. Connections
//! keep the limits, and the certificates, that they were accepted under.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use lontra_cluster::Cluster;
use lontra_cluster::link::{FreshTls, LinkError};
use lontra_ops::telemetry::LevelHandle;
use serde::Deserialize;
use tokio::sync::watch;
use toml::{Table, Value};

use crate::auth::cluster::ClusterAccess;
use crate::auth::lasting::Lasting;
use crate::config::listener::Listener;
use crate::config::{Config, Machine, Source};
use crate::file_limit;
use crate::limits::Protection;
use crate::metrics::NodeMetrics;
use crate::start::limits;
use crate::worker::WorkerConfig;

/// What a running node can be given anew.
pub struct Reloader {
    pub source: Source,
    pub log: LevelHandle,
    /// As in force: what needs a restart is as it was at the start.
    pub running: Config,
    pub workers: watch::Sender<Arc<WorkerConfig>>,
    pub cluster: Cluster,
    pub metrics: NodeMetrics,
    pub lasting: Lasting,
    pub access: Arc<ClusterAccess>,
    pub protection: Arc<Protection>,
}

impl Reloader {
    /// Never fails: what cannot be applied is told in the log, and nothing has changed.
    pub async fn reload(&mut self) {
        let changes = self.read().await.and_then(|(changes, workers, links)| {
            let set = self.log.set(&changes.config.log.level);
            set.map(|()| (changes, workers, links))
                .map_err(|error| error.to_string())
        });
        let is_applied = changes.is_ok();
        match changes {
            Ok((changes, workers, links)) => self.apply(&changes, workers, links),
            Err(why) => tracing::error!(error = %why, "the configuration was not reloaded: nothing has changed"),
        }
        self.metrics.config_reloaded(is_applied);
    }

    /// Elsewhere, and not for ever: a file system that hangs must not keep the node from hearing SIGTERM.
    async fn read(&self) -> Result<(Changes, WorkerConfig, Option<FreshTls>), String> {
        let (source, running, lasting) = (self.source.clone(), self.running.clone(), self.lasting.clone());
        let (protection, cluster) = (self.protection.clone(), self.cluster.clone());
        let read = tokio::task::spawn_blocking(move || {
            // A pipe was read at the start: it would say nothing now, which is a valid configuration.
            let is_no_file = |path: &PathBuf| path.metadata().is_ok_and(|metadata| !metadata.is_file());
            let read = match &source.file {
                Some(path) if is_no_file(path) => Err(format!("{} is not a file", path.display())),
                _ => source.load().map_err(|error| error.to_string()),
            };
            let changes = changes(&running, &read?);
            let workers = WorkerConfig::load(&changes.config.resolved(&Machine::here()), &lasting, &protection);
            let workers = workers.map_err(|error| error.to_string())?;
            let links = cluster.read_link_tls().map_err(|error| described(&error))?;
            Ok((changes, workers, links))
        });
        match tokio::time::timeout(READ_MAX, read).await {
            Ok(Ok(read)) => read,
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("its file was not read within {READ_MAX:?}")),
        }
    }

    fn apply(&mut self, changes: &Changes, mut workers: WorkerConfig, links: Option<FreshTls>) {
        let config = &changes.config;
        workers.share_access(&self.access);
        self.workers.send_replace(Arc::new(workers));
        if let Some(links) = links {
            self.cluster.use_link_tls(links);
        }
        self.cluster.set_limits(limits(config));
        if config.mqtt.connections_max != self.running.mqtt.connections_max {
            file_limit::check(config.mqtt.connections_max);
        }
        self.running = config.clone();
        for key in &changes.restart {
            tracing::warn!(
                key,
                "changed in the configuration, but needs a restart: the old value stays"
            );
        }
        let changed = changes.live.join(", ");
        tracing::info!(changed, "configuration reloaded");
    }
}

/// With what is behind it.
fn described(error: &LinkError) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

/// What a configuration that was read means for a node that runs.
#[derive(Debug, PartialEq)]
struct Changes {
    /// What is in force from now on.
    config: Config,
    /// Keys that change now, and those that would.
    live: Vec<String>,
    restart: Vec<String>,
}

fn changes(running: &Config, read: &Config) -> Changes {
    let mut table = Table::try_from(running).expect("every field is a TOML value");
    let (old, new) = (leaves(running), leaves(read));
    let changed = new.into_iter().filter(|(key, value)| old.get(key) != Some(value));
    let changed = changed.filter(|(key, _)| key != "listeners");
    let (live, restart): (Vec<_>, Vec<_>) = changed.partition(|(key, _)| LIVE.contains(&key.as_str()));
    for (key, value) in &live {
        set(&mut table, key, value.clone());
    }
    let names = |changes: Vec<(String, Value)>| changes.into_iter().map(|(key, _)| key).collect();
    let mut changes = Changes {
        // Rules between keys are rules among these, or among the others: both were checked.
        config: Config::deserialize(Value::Table(table)).expect("values of two configurations"),
        live: names(live),
        restart: names(restart),
    };
    changes.of_listeners(&running.listeners, &read.listeners);
    changes
}

impl Changes {
    /// What is open stays open: a listener that comes, goes or moves needs a restart. Everything else of it is live.
    fn of_listeners(&mut self, running: &[Listener], read: &[Listener]) {
        for one in &mut self.config.listeners {
            let key = format!("listeners.{}", one.name);
            match read.iter().find(|other| other.is_same_socket(one)) {
                Some(other) if other == one => {}
                Some(other) => {
                    *one = other.clone();
                    self.live.push(key);
                }
                None => self.restart.push(key),
            }
        }
        let is_new = |one: &&Listener| running.iter().all(|other| other.name != one.name);
        let new = read.iter().filter(is_new).map(|one| format!("listeners.{}", one.name));
        self.restart.extend(new);
    }
}

/// Every `section.key` with its value.
fn leaves(config: &Config) -> BTreeMap<String, Value> {
    fn collect(prefix: &str, table: Table, found: &mut BTreeMap<String, Value>) {
        for (name, value) in table {
            let path = if prefix.is_empty() {
                name
            } else {
                format!("{prefix}.{name}")
            };
            match value {
                Value::Table(below) => collect(&path, below, found),
                value => drop(found.insert(path, value)),
            }
        }
    }
    let mut found = BTreeMap::new();
    collect(
        "",
        Table::try_from(config).expect("every field is a TOML value"),
        &mut found,
    );
    found
}

/// `LIVE` keys are `section.key` or `section.section.key`.
fn set(table: &mut Table, key: &str, value: Value) {
    let (sections, name) = key.rsplit_once('.').expect("a section and a key");
    let section = sections.split('.').fold(table, |level, section| {
        let below = level.get_mut(section).and_then(Value::as_table_mut);
        below.expect("a section")
    });
    section.insert(name.to_owned(), value);
}

const READ_MAX: Duration = Duration::from_secs(2);

/// Keys that a running node takes anew. `mqtt` and `websocket` hold for new connections, the others for everything.
const LIVE: &[&str] = &[
    "log.level",
    "mqtt.packet_size_max",
    "mqtt.connect_timeout",
    "mqtt.keep_alive_max",
    "mqtt.receive_maximum",
    "mqtt.session_expiry_max",
    "mqtt.topic_alias_max",
    "mqtt.outbox_bytes_max",
    "mqtt.outbox_messages_max",
    "mqtt.outbox_wait_max",
    "mqtt.connections_max",
    "mqtt.topic_levels_max",
    "mqtt.wildcard_subscriptions",
    "mqtt.shared_subscriptions",
    "mqtt.subscription_identifiers",
    "queue.messages_max",
    "queue.bytes_max",
    "queue.age_max",
    "queue.policy",
    "retained.messages_max",
    "retained.bytes_max",
    "limits.connection_rate",
    "limits.address_connection_rate",
    "limits.address_connections_max",
    "limits.failed_logins_address_max",
    "limits.user_connections_max",
    "limits.client_message_rate",
    "limits.client_byte_rate",
    "limits.message_rate",
    "limits.byte_rate",
    "limits.burst",
    "limits.over_rate_max",
    "limits.subscriptions_max",
    "limits.filters_per_packet_max",
    "limits.user_properties_max",
    "limits.unfinished_bytes_max",
    "limits.control_packet_size_max",
    "limits.topic_bytes_max",
    "limits.flapping_client_max",
    "limits.flapping_address_max",
    "limits.flapping_user_max",
    "limits.flapping_window",
    "limits.flapping_ban",
    "topics.delayed_messages_max",
    "websocket.origins",
    "auth.password_file",
    "auth.cluster_users",
    "auth.acl_file",
    "auth.rules",
    "auth.anonymous",
    "auth.denied_publish",
    "auth.revocation",
    "auth.certificate_user",
    "auth.certificate_client_id",
    "auth.client_id",
    "auth.jwt.from",
    "auth.jwt.secret_file",
    "auth.jwt.public_key_file",
    "auth.jwt.jwks_file",
    "auth.jwt.jwks_url",
    "auth.jwt.jwks_ca",
    "auth.jwt.jwks_refresh",
    "auth.jwt.issuer",
    "auth.jwt.audience",
    "auth.jwt.leeway",
    "auth.jwt.user_claim",
    "auth.jwt.groups_claim",
    "auth.jwt.client_id_claim",
    "auth.jwt.acl_claim",
    "auth.http.url",
    "auth.http.ca",
    "auth.http.secret_file",
    "auth.http.timeout",
    "auth.http.requests_max",
    "storage.free_space_min",
    "storage.checkpoint_interval",
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ByteSize;

    #[test]
    fn live_keys_change_and_the_others_wait_for_a_restart() {
        let running = Config::default();
        let mut read = running.clone();
        read.log.level = "debug".to_owned();
        read.mqtt.receive_maximum = 7;
        read.mqtt.listen = "127.0.0.1:1".parse().unwrap();
        read.cluster.tls.key = "key.pem".into();
        let changes = changes(&running, &read);
        assert_eq!(changes.live, ["log.level", "mqtt.receive_maximum"]);
        assert_eq!(changes.restart, ["cluster.tls.key", "mqtt.listen"]);
        let mut expected = running;
        expected.log.level = "debug".to_owned();
        expected.mqtt.receive_maximum = 7;
        assert_eq!(changes.config, expected);
    }

    #[test]
    fn an_open_listener_takes_everything_but_another_socket() {
        use crate::config::ListenerKind::{Mqtt, Mqtts};
        let listener = |name, kind, port: u16| {
            let address = format!("127.0.0.1:{port}").parse().unwrap();
            Listener::new(name, kind, address)
        };
        let (mut running, mut read) = (Config::default(), Config::default());
        running.listeners = vec![
            listener("stays", Mqtt, 1),
            listener("changes", Mqtts, 2),
            listener("moves", Mqtt, 3),
            listener("goes", Mqtt, 4),
        ];
        let mut changed = listener("changes", Mqtts, 2);
        changed.tls.certificate = "new.pem".into();
        changed.connections_max = 5;
        read.listeners = vec![
            listener("comes", Mqtt, 5),
            listener("moves", Mqtt, 6),
            changed.clone(),
            listener("stays", Mqtt, 1),
        ];
        let changes = changes(&running, &read);
        assert_eq!(changes.live, ["listeners.changes"]);
        assert_eq!(
            changes.restart,
            ["listeners.moves", "listeners.goes", "listeners.comes"]
        );
        running.listeners[1] = changed;
        assert_eq!(changes.config, running);
    }

    #[test]
    fn nothing_changed_is_nothing() {
        let mut config = Config::default();
        config.mqtt.packet_size_max = ByteSize::mib(2);
        let changes = changes(&config, &config.clone());
        assert_eq!((changes.live.len(), changes.restart.len()), (0, 0));
        assert_eq!(changes.config, config);
    }

    #[test]
    fn every_live_key_exists_and_the_guide_tells_it() {
        let known = leaves(&Config::default());
        let guide = concat!(env!("CARGO_MANIFEST_DIR"), "/../ops/docs/configuration.md");
        let guide = std::fs::read_to_string(guide).unwrap();
        let chapter = guide
            .split("\n## ")
            .find(|chapter| chapter.starts_with("Reload"))
            .unwrap();
        for key in LIVE {
            assert!(known.contains_key(*key), "{key}");
            assert!(
                chapter.contains(&format!("`{key}`")),
                "{key} is not in the guide's chapter"
            );
        }
    }
}
