//! A node from its configuration to its end. Reads as a list.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use lontra_cluster::lease::Serving;
use lontra_cluster::limits::{QueueLimits, QueuePolicy};
use lontra_cluster::link::{LinkMetrics, TlsFiles};
use lontra_cluster::shared::Strategy;
use lontra_cluster::{Cluster, ClusterConfig, ClusterError, ClusterMetrics, Limits as ClusterLimits};
use lontra_ops::audit::Audit;
use lontra_ops::http::{HttpError, HttpServer, Probe};
use lontra_ops::telemetry::LevelHandle;
use lontra_storage::{Identity, MemoryBudget, OpenError, Storage, StorageConfig, StorageMetrics};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::admin;
use crate::auth::CheckedPublisher;
use crate::auth::lasting::Lasting;
use crate::config::{self, Config, Machine, MetricsFor, SharedStrategy, Source};
use crate::gateway::listen::{self, ListenError};
use crate::hub::Hub;
use crate::limits::Protection;
use crate::metrics::NodeMetrics;
use crate::probe::NodeProbe;
use crate::reload::Reloader;
use crate::supervisor::Supervisor;
use crate::sys::Sys;
use crate::worker::config::FileError;
use crate::worker::{self, WorkerConfig};

/// Why a node does not serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Http(#[from] HttpError),
    #[error("log.audit_file: {path} cannot be written: {source}; check the path, its owner and mode", path = path.display())]
    Audit { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Storage(#[from] OpenError),
    #[error("this node cannot join its cluster")]
    Cluster(#[from] ClusterError),
    #[error("metrics cannot be registered")]
    Metrics(#[from] prometheus::Error),
    #[error("a worker thread cannot be started: {0}; raise this user's limit of processes")]
    Worker(#[source] io::Error),
    #[error("signals cannot be waited for")]
    Signal(#[source] io::Error),
    #[error("storage failed, so the node stopped rather than acknowledge what it cannot keep: {0}")]
    StorageFailed(String),
}

/// Runs a node until SIGTERM or SIGINT; then drains it. SIGHUP reads `source` again; `log` is what it changes of the log.
///
/// # Errors
/// It could not start, or had to stop.
pub async fn serve(given: Config, source: Source, log: LevelHandle) -> Result<(), ServeError> {
    // First of all: SIGHUP would end a process that does not wait for it.
    let mut hangup = signal(SignalKind::hangup()).map_err(ServeError::Signal)?;
    let supervisor = Supervisor::from_environment();
    let machine = Machine::here();
    let config = given.resolved(&machine);
    tracing::info!(
        cores = machine.cores,
        memory_mib = machine.memory >> 20,
        workers = config.node.workers,
        cache = %config.storage.cache_bytes,
        write_buffer = %config.storage.write_buffer_bytes,
        "sized for what this process may use"
    );

    // Ports and certificates first: what is taken by another process, or wrong, is found before anything is written.
    let http = HttpServer::bind(config.http.listen)
        .await?
        .with_metrics_for(match config.http.metrics {
            MetricsFor::Key => lontra_ops::guard::MetricsFor::Keys,
            MetricsFor::Open => lontra_ops::guard::MetricsFor::Everybody,
        });
    let audit = Audit::new(&config.log.audit_file).map_err(|source| ServeError::Audit {
        path: config.log.audit_file.clone(),
        source,
    })?;
    let lasting = Lasting::for_cores(machine.cores);
    let protection = Protection::new(&config);
    let mut worker_config = WorkerConfig::load(&config, &lasting, &protection)?;
    let (listeners, socket_files) = listen::listen(&config)?;

    let registry = lontra_ops::metrics::registry();
    let metrics = NodeMetrics::new(&registry);
    let storage_config = storage_config(&config);
    let storage_metrics = StorageMetrics::new(&registry);
    let storage = tokio::task::spawn_blocking(move || Storage::open(storage_config, storage_metrics))
        .await
        .unwrap_or_else(|panicked| std::panic::resume_unwind(panicked.into_panic()))?;

    let (hub, queues) = Hub::new(listeners.len(), metrics.clone());
    let (cluster, publisher) = Cluster::start(
        cluster_config(&config, storage.start_number()),
        storage.clone(),
        hub.clone(),
        ClusterMetrics::new(&registry),
        LinkMetrics::new(&registry)?,
    )
    .await?;
    let publisher = CheckedPublisher::new(publisher);

    hub.access.bind(cluster.meta().clone());
    worker_config.share_access(&hub.access);
    cluster.set_about(admin::about(&config).to_string().into());

    let (stop, stopped) = watch::channel(false);
    let is_told = !config.sys.interval.is_zero();
    let sys = is_told.then(|| Arc::new(Sys::new(cluster.clone(), hub.clone(), metrics.clone())));
    let telling = sys.clone().map(|sys| sys.run(config.sys.interval, stopped.clone()));
    let telling = telling.map(tokio::spawn);
    let mut reloader = Reloader {
        source,
        log,
        running: given,
        workers: watch::Sender::new(Arc::new(worker_config)),
        cluster: cluster.clone(),
        metrics: metrics.clone(),
        lasting: lasting.clone(),
        access: hub.access.clone(),
        protection,
    };
    hub.bind(reloader.workers.subscribe());
    registry.register(cluster.ledgers()).expect("metric names are unique");
    let mut workers = Vec::new();
    for (id, (listeners, queue)) in listeners.into_iter().zip(queues).enumerate() {
        let started = worker::spawn(
            id as u16,
            reloader.workers.subscribe(),
            listeners,
            cluster.clone(),
            publisher.clone(),
            hub.clone(),
            queue,
            metrics.clone(),
            sys.clone(),
            stopped.clone(),
        );
        workers.push(started.map_err(ServeError::Worker)?);
    }

    let mut failed = storage.failed();
    let probe = Arc::new(NodeProbe::new(cluster.clone(), failed.clone(), lasting.operators));
    let mut http_stop = stopped.clone();
    let shutdown = async move {
        let _ = http_stop.wait_for(|stop| *stop).await;
    };
    let serving_http = tokio::spawn(http.serve(registry, probe.clone(), audit, shutdown));
    tokio::spawn(tell_when_ready(supervisor.clone(), probe));
    if !syncs() {
        tracing::error!("fsync is off (LONTRA_TEST_ONLY_NO_FSYNC): a power cut loses what was acknowledged");
    }
    #[cfg(feature = "test-bugs")]
    tracing::error!(
        bug = std::env::var("LONTRA_TEST_BUG").unwrap_or_default(),
        "built with test-bugs: this binary loses messages on purpose"
    );
    for listener in config.all_listeners() {
        if config.listener_auth(&listener).anonymous {
            let (name, listen) = (&listener.name, &listener.listen);
            tracing::warn!(listener = name, %listen, "clients need not show who they are here: see [auth]");
        }
    }
    if config.auth.jwt.is_lax() {
        tracing::warn!(
            url = config.auth.jwt.jwks_url,
            "auth.jwt: keys come over plain HTTP from another machine, or tokens that the same keys sign for others are good here: \
             set an https URL, and issuer or audience"
        );
    }
    for listener in &config.listeners {
        let (name, kind, listen) = (&listener.name, listener.kind, &listener.listen);
        tracing::info!(listener = name, %kind, %listen, "listening");
    }
    tracing::info!(
        node = config.node.id,
        mqtt = %config.mqtt.listen,
        websocket = %config.websocket.listen,
        http = %config.http.listen,
        "listening; clients are served once the node is admitted"
    );

    let mut terminate = signal(SignalKind::terminate()).map_err(ServeError::Signal)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(ServeError::Signal)?;
    let failure = loop {
        tokio::select! {
            _ = terminate.recv() => break None,
            _ = interrupt.recv() => break None,
            Some(()) = hangup.recv() => {
                supervisor.reloading();
                reloader.reload().await;
                supervisor.reloaded();
            }
            Ok(failure) = failed.wait_for(Option::is_some) => break failure.clone(),
        }
    };
    supervisor.stopping();
    if let Some(failure) = failure {
        // Nothing can be kept any more: no drain, which would write.
        tracing::error!(%failure, "storage failed");
        return Err(ServeError::StorageFailed(failure));
    }
    drain(&cluster, &storage, stop, workers).await;
    drop(socket_files);
    let _ = tokio::time::timeout(STEP_MAX, serving_http).await;
    if let Some(telling) = telling {
        let _ = telling.await;
    }
    tracing::info!("stopped");
    Ok(())
}

/// As `/health/ready` says it; `systemctl start` waits for this.
async fn tell_when_ready(supervisor: Supervisor, probe: Arc<NodeProbe>) {
    let mut told = Vec::new();
    loop {
        let readiness = probe.ready();
        if readiness.ready {
            if probe.has_no_keys() {
                tracing::warn!(
                    "the admin API asks nobody on this machine for a key: make one, with `lontra key create --role admin`"
                );
            }
            return supervisor.ready();
        }
        if told != readiness.reasons {
            supervisor.status(&format!("not ready yet: {}", readiness.reasons.join("; ")));
            told = readiness.reasons;
        }
        tokio::time::sleep(READY_POLL).await;
    }
}

/// SIGTERM: leaderships go to others, clients are told, what is left is made durable.
async fn drain(
    cluster: &Cluster,
    storage: &Storage,
    stop: watch::Sender<bool>,
    workers: Vec<std::thread::JoinHandle<()>>,
) {
    tracing::info!("stopping");
    if cluster.lease().serving() == Serving::Serving {
        cluster.give_up_leaderships(STEP_MAX).await;
    }
    stop.send_replace(true);
    let joined = tokio::task::spawn_blocking(move || {
        for worker in workers {
            let _ = worker.join();
        }
    });
    let _ = tokio::time::timeout(STEP_MAX * 2, joined).await;
    let _ = tokio::time::timeout(STEP_MAX * 2, cluster.stop()).await;
    match tokio::time::timeout(STEP_MAX, storage.close()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "the last checkpoint failed; the log replays at the next start"),
        Err(_) => tracing::warn!("the last checkpoint took too long; the log replays at the next start"),
    }
}

fn members(config: &Config) -> BTreeMap<u64, String> {
    let seeds = config.cluster.seeds.iter().map(|seed| (seed.id, seed.address.clone()));
    let mut members: BTreeMap<u64, String> = seeds.collect();
    members
        .entry(config.node.id)
        .or_insert_with(|| config.cluster.listen.to_string());
    members
}

fn storage_config(config: &Config) -> StorageConfig {
    StorageConfig {
        directory: config.node.data_dir.clone(),
        identity: Identity {
            cluster: config.cluster.name.clone(),
            node: config.node.id,
            shards: config.cluster.shards,
            replication_factor: config.cluster.replication_factor as u8,
            nodes: members(config).into_keys().collect(),
        },
        fsync: syncs(),
        memory: MemoryBudget {
            cache_bytes: config.storage.cache_bytes.bytes() as usize,
            write_buffer_bytes: config.storage.write_buffer_bytes.bytes() as usize,
        },
    }
}

/// A test that cuts the power shows what is lost without fsync: that the others would notice.
fn syncs() -> bool {
    std::env::var_os("LONTRA_TEST_ONLY_NO_FSYNC").is_none()
}

fn cluster_config(config: &Config, start: u64) -> ClusterConfig {
    ClusterConfig {
        node: config.node.id,
        name: config.cluster.name.clone(),
        start,
        members: members(config),
        listen: config.cluster.listen,
        tls: config.cluster.tls().map(|tls| TlsFiles {
            ca: tls.ca.clone(),
            certificate: tls.certificate.clone(),
            key: tls.key.clone(),
            crl: (!tls.crl.as_os_str().is_empty()).then(|| tls.crl.clone()),
        }),
        shards: config.cluster.shards,
        replication_factor: config.cluster.replication_factor,
        heartbeat: config.cluster.heartbeat,
        election: config.cluster.election,
        lease: config.cluster.lease,
        spool: config.node.data_dir.join("incoming"),
        shared_strategy: match config.shared.strategy {
            SharedStrategy::Random => Strategy::Random,
            SharedStrategy::RoundRobin => Strategy::RoundRobin,
            SharedStrategy::Sticky => Strategy::Sticky,
            SharedStrategy::Local => Strategy::Local,
            SharedStrategy::HashClientId => Strategy::HashClientId,
            SharedStrategy::HashTopic => Strategy::HashTopic,
            SharedStrategy::LeastLoaded => Strategy::LeastLoaded,
        },
        limits: limits(config),
    }
}

/// What holds for the whole of the node, and may change while it runs.
pub(crate) fn limits(config: &Config) -> ClusterLimits {
    ClusterLimits {
        queue: QueueLimits {
            messages: limit(config.queue.messages_max),
            bytes: limit(config.queue.bytes_max.bytes()),
            age: limit(config.queue.age_max.as_millis() as u64),
            policy: match config.queue.policy {
                config::QueuePolicy::EndSession => QueuePolicy::EndSession,
                config::QueuePolicy::DropOldest => QueuePolicy::DropOldest,
                config::QueuePolicy::DropNew => QueuePolicy::DropNew,
            },
        },
        checkpoint_interval: config.storage.checkpoint_interval,
        retained_messages_max: limit(config.retained.messages_max),
        retained_bytes_max: limit(config.retained.bytes_max.bytes()),
        delayed_messages_max: limit(config.topics.delayed_messages_max),
        free_space_min: f64::from(config.storage.free_space_min.0) / 100.0,
    }
}

/// 0 is no limit.
fn limit(value: u64) -> Option<u64> {
    (value > 0).then_some(value)
}

const READY_POLL: Duration = Duration::from_millis(100);
/// Each step of a stop gets this long: together they stay within 10 s.
const STEP_MAX: Duration = Duration::from_millis(1500);
