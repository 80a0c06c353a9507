//! A node from its configuration to its end. Reads as a list.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use lontra_cluster::lease::Serving;
use lontra_cluster::link::{LinkMetrics, TlsFiles};
use lontra_cluster::{Cluster, ClusterConfig, ClusterError, ClusterMetrics};
use lontra_ops::http::{HttpError, HttpServer, advice};
use lontra_storage::{Identity, OpenError, Storage, StorageConfig, StorageMetrics};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::config::Config;
use crate::hub::Hub;
use crate::metrics::NodeMetrics;
use crate::probe::NodeProbe;
use crate::protocol::codec::Limits;
use crate::protocol::handshake::Policy;
use crate::worker::{self, WorkerConfig};

/// Why a node does not serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("cannot listen for clients on {listen} (mqtt.listen): {source}; {}", advice(source))]
    Listen { listen: SocketAddr, source: io::Error },
    #[error(transparent)]
    Http(#[from] HttpError),
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

/// Runs a node until SIGTERM or SIGINT; then drains it.
///
/// # Errors
/// It could not start, or had to stop.
pub async fn serve(config: Config) -> Result<(), ServeError> {
    // Ports first: what is taken by another process is found before anything is written.
    let http = HttpServer::bind(config.http.listen).await?;
    let listeners = listen(config.mqtt.listen, config.workers())?;

    let registry = lontra_ops::metrics::registry();
    let metrics = NodeMetrics::new(&registry);
    let storage_config = storage_config(&config);
    let storage_metrics = StorageMetrics::new(&registry);
    let storage = tokio::task::spawn_blocking(move || Storage::open(storage_config, storage_metrics))
        .await
        .unwrap_or_else(|panicked| std::panic::resume_unwind(panicked.into_panic()))?;

    let (hub, queues) = Hub::new(listeners.len(), metrics.clone());
    let cluster = Cluster::start(
        cluster_config(&config, storage.start_number()),
        storage.clone(),
        hub.clone(),
        ClusterMetrics::new(&registry),
        LinkMetrics::new(&registry)?,
    )
    .await?;

    let (stop, stopped) = watch::channel(false);
    let mut workers = Vec::new();
    for (id, (listener, queue)) in listeners.into_iter().zip(queues).enumerate() {
        let started = worker::spawn(
            id as u16,
            worker_config(&config),
            listener,
            cluster.clone(),
            hub.clone(),
            queue,
            metrics.clone(),
            stopped.clone(),
        );
        workers.push(started.map_err(ServeError::Worker)?);
    }

    let mut failed = storage.failed();
    let probe = Arc::new(NodeProbe::new(cluster.clone(), failed.clone()));
    let mut http_stop = stopped.clone();
    let shutdown = async move {
        let _ = http_stop.wait_for(|stop| *stop).await;
    };
    let serving_http = tokio::spawn(http.serve(registry, probe, shutdown));
    tracing::info!(
        node = config.node.id,
        mqtt = %config.mqtt.listen,
        http = %config.http.listen,
        "listening; clients are served once the node is admitted"
    );

    let mut terminate = signal(SignalKind::terminate()).map_err(ServeError::Signal)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(ServeError::Signal)?;
    let failure = tokio::select! {
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
        Ok(failure) = failed.wait_for(Option::is_some) => failure.clone(),
    };
    if let Some(failure) = failure {
        // Nothing can be kept any more: no drain, which would write.
        tracing::error!(%failure, "storage failed");
        return Err(ServeError::StorageFailed(failure));
    }
    drain(&cluster, &storage, stop, workers).await;
    let _ = tokio::time::timeout(STEP_MAX, serving_http).await;
    tracing::info!("stopped");
    Ok(())
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

/// One listener per worker on the same port (SO_REUSEPORT): the kernel spreads connections.
fn listen(address: SocketAddr, workers: usize) -> Result<Vec<TcpListener>, ServeError> {
    let failed = |source| ServeError::Listen {
        listen: address,
        source,
    };
    // SO_REUSEPORT would share the port with another process of this user: a plain bind finds that out.
    drop(bind(address, false).map_err(failed)?);
    (0..workers).map(|_| bind(address, true).map_err(failed)).collect()
}

fn bind(address: SocketAddr, shared: bool) -> io::Result<TcpListener> {
    use socket2::{Domain, Protocol, Socket, Type};
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if shared {
        socket.set_reuse_port(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
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
        // A test that cuts the power shows what is lost without fsync: that the others would notice.
        fsync: std::env::var_os("LONTRA_TEST_ONLY_NO_FSYNC").is_none(),
    }
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
        }),
        shards: config.cluster.shards,
        replication_factor: config.cluster.replication_factor,
        heartbeat: config.cluster.heartbeat,
        election: config.cluster.election,
        lease: config.cluster.lease,
        spool: config.node.data_dir.join("incoming"),
        checkpoint_interval: config.storage.checkpoint_interval,
        free_space_min: f64::from(config.storage.free_space_min.0) / 100.0,
    }
}

fn worker_config(config: &Config) -> WorkerConfig {
    let mqtt = &config.mqtt;
    let packet_bytes = mqtt.packet_size_max.bytes() as usize;
    let limits = Limits {
        packet_bytes,
        control_packet_bytes: packet_bytes.min(Limits::default().control_packet_bytes),
        topic_levels: usize::from(mqtt.topic_levels_max),
        ..Limits::default()
    };
    WorkerConfig {
        policy: Policy {
            packet_size_max: packet_bytes as u32,
            receive_maximum: mqtt.receive_maximum,
            keep_alive_max: mqtt.keep_alive_max(),
            session_expiry_max: mqtt.session_expiry_max.seconds(),
            outbox_bytes_max: mqtt.outbox_bytes_max.bytes() as usize,
            outbox_messages_max: mqtt.outbox_messages_max as usize,
        },
        limits,
        connect_timeout: mqtt.connect_timeout,
        outbox_wait_max: mqtt.outbox_wait_max,
        connections_max: i64::from(mqtt.connections_max),
    }
}

/// Connections that wait to be accepted.
const BACKLOG: i32 = 1024;
/// Each step of a stop gets this long: together they stay within 10 s.
const STEP_MAX: Duration = Duration::from_millis(1500);
