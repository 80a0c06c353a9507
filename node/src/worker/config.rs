//! What holds for connections that are accepted now, made of the configuration; replaced as a whole at a reload.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;

use crate::auth::chain::ListenerAuth;
use crate::auth::cluster::ClusterAccess;
use crate::auth::lasting::Lasting;
use crate::auth::{Auth, AuthFileError};
use crate::config::listener::Listener;
use crate::config::{Config, ListenerKind, Network, WebOrigin, seconds_unless_none};
use crate::gateway::tls::load::{self, ClientTrust, TlsFileError};
use crate::limits::{Guard, Protection};
use crate::protocol::codec::Limits;
use crate::protocol::handshake::{Available, Policy};
use crate::protocol::mountpoint::Mountpoint;
use crate::protocol::topic_rules::TopicRules;

/// What all workers share.
pub struct WorkerConfig {
    /// Of the node.
    pub connections_max: i64,
    /// Of each worker.
    pub unfinished_bytes_max: usize,
    /// As in `Config::all_listeners`.
    pub listeners: Vec<Arc<ListenerConfig>>,
    /// Users and rules: for those who are connected too.
    pub auth: Arc<Auth>,
}

/// Which of the files that a configuration names cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error(transparent)]
    Tls(#[from] TlsFileError),
    #[error(transparent)]
    Auth(#[from] AuthFileError),
}

/// Of one listener. A connection keeps the one that it was accepted under.
pub struct ListenerConfig {
    pub name: String,
    pub kind: ListenerKind,
    pub policy: Arc<Policy>,
    pub limits: Limits,
    pub connect_timeout: Duration,
    pub outbox_wait_max: Duration,
    /// 0: no limit.
    pub connections_max: i64,
    /// Web pages that may connect.
    pub origins: Arc<[WebOrigin]>,
    /// Where they do.
    pub path: String,
    pub proxy_protocol: bool,
    pub trusted_proxies: Vec<Network>,
    pub tls: Option<TlsConfig>,
    pub auth: ListenerAuth,
    pub guard: Guard,
}

pub struct TlsConfig {
    pub config: Arc<ServerConfig>,
    /// None: no certificate is asked for.
    pub clients: Option<ClientTrust>,
    pub handshake_timeout: Duration,
    pub handshakes_max: usize,
}

impl ListenerConfig {
    pub fn trusts(&self, address: IpAddr) -> bool {
        self.trusted_proxies.iter().any(|network| network.contains(address))
    }

    /// Whether only an HTTP request tells where a client comes from.
    pub fn learns_address_later(&self) -> bool {
        self.kind.is_websocket() && !self.trusted_proxies.is_empty()
    }
}

impl WorkerConfig {
    /// Reads certificates, keys, users and rules: blocks on the disk.
    ///
    /// # Errors
    /// The first file that cannot be used; nothing has changed.
    pub fn load(config: &Config, lasting: &Lasting, protection: &Arc<Protection>) -> Result<Self, FileError> {
        let topic_rules = TopicRules::new(&config.topics);
        let listeners = config.all_listeners();
        let listeners = listeners
            .iter()
            .map(|listener| listener_config(config, listener, &topic_rules, protection).map(Arc::new));
        Ok(WorkerConfig {
            connections_max: i64::from(config.mqtt.connections_max),
            unfinished_bytes_max: config.limits.unfinished_bytes_max.bytes() as usize
                / usize::from(config.node.workers.max(1)),
            listeners: listeners.collect::<Result<_, _>>()?,
            auth: Arc::new(Auth::load(config, lasting)?),
        })
    }

    /// What the cluster keeps is one for the node, whatever is reloaded.
    pub fn share_access(&mut self, access: &Arc<ClusterAccess>) {
        let auth = Arc::get_mut(&mut self.auth).expect("nobody has it before it is in force");
        auth.acl.cluster = access.clone();
    }
}

fn listener_config(
    config: &Config,
    listener: &Listener,
    topic_rules: &TopicRules,
    protection: &Arc<Protection>,
) -> Result<ListenerConfig, TlsFileError> {
    let mqtt = &config.mqtt;
    let packet_bytes = listener.packet_size_max.unwrap_or(mqtt.packet_size_max).bytes() as usize;
    let limits = Limits {
        packet_bytes,
        control_packet_bytes: packet_bytes.min(config.limits.control_packet_size_max.bytes() as usize),
        topic_levels: usize::from(mqtt.topic_levels_max),
        topic_bytes: config.limits.topic_bytes_max as usize,
        filters_per_packet: config.limits.filters_per_packet_max as usize,
        user_properties: config.limits.user_properties_max as usize,
    };
    let auth = config.listener_auth(listener);
    let tls = match listener.kind.is_tls() {
        false => None,
        true => {
            let loaded = load::load(listener)?;
            Some(TlsConfig {
                config: loaded.config,
                clients: loaded.clients,
                handshake_timeout: listener.tls.handshake_timeout,
                handshakes_max: listener.tls.handshakes_max as usize,
            })
        }
    };
    Ok(ListenerConfig {
        name: listener.name.clone(),
        kind: listener.kind,
        policy: Arc::new(Policy {
            packet_size_max: packet_bytes as u32,
            receive_maximum: listener.receive_maximum.unwrap_or(mqtt.receive_maximum),
            keep_alive_max: seconds_unless_none(listener.keep_alive_max.unwrap_or(mqtt.keep_alive_max)),
            session_expiry_max: listener.session_expiry_max.unwrap_or(mqtt.session_expiry_max).seconds(),
            topic_alias_max: listener.topic_alias_max.unwrap_or(mqtt.topic_alias_max),
            outbox_bytes_max: mqtt.outbox_bytes_max.bytes() as usize,
            outbox_messages_max: mqtt.outbox_messages_max as usize,
            mountpoint: Mountpoint::new(&listener.mountpoint),
            topic_rules: topic_rules.clone(),
            available: Available {
                wildcards: mqtt.wildcard_subscriptions,
                shared: mqtt.shared_subscriptions,
                identifiers: mqtt.subscription_identifiers,
            },
            scram: auth.offers_scram(),
        }),
        limits,
        connect_timeout: listener.connect_timeout.unwrap_or(mqtt.connect_timeout),
        outbox_wait_max: mqtt.outbox_wait_max,
        connections_max: i64::from(listener.connections_max),
        origins: config.websocket.origins.clone().into(),
        path: listener.path.clone(),
        proxy_protocol: listener.proxy_protocol,
        trusted_proxies: listener.trusted_proxies.clone(),
        tls,
        auth,
        guard: Guard::new(protection, config, listener),
    })
}
