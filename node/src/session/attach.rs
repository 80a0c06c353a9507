//! A session comes to its connection: owned, fenced, attached shard by shard, fed with pages.

use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use lontra_cluster::lease::Serving;
use lontra_cluster::{Attached, ConnectRequest, MetaError, PageLimits};
use lontra_storage::ids::{Offset, SessionEpoch, ShardId};
use lontra_storage::message::Role;
use lontra_storage::shard::{Page, PendingEntry};

use super::admit;
use super::execute::kept_will;
use super::operations::Operation;
use crate::auth::Access;
use crate::auth::access::Denied;
use crate::auth::certificate;
use crate::auth::chain::{Connecting, Refused as Refusal, check_client_id};
use crate::metrics::DeniedAction;
use crate::protocol::checks::{Check, on};
use crate::protocol::codec::ReasonCode;
use crate::protocol::codec::topic_grammar::is_shared;
use crate::protocol::connection::Served;
use crate::protocol::handshake::Accepted;
use crate::protocol::publish_out::{PAGE_BYTES, PAGE_ENTRIES};
use crate::protocol::topic_rules::{Namer, Verdict};
use crate::worker::{Client, Worker};

/// CONNECT was accepted by the protocol: makes this node the owner of the session.
pub fn begin(worker: &Rc<Worker>, client: &Rc<Client>, accepted: Box<Accepted>) {
    let (worker, client) = (worker.clone(), client.clone());
    tokio::task::spawn_local(async move {
        // Not for long: one that waits for the cluster is no reason for all others to.
        let turn = tokio::time::timeout(TURN_WAIT_MAX, worker.attaching.acquire()).await;
        let attached = attach(&worker, &client, accepted).await;
        drop(turn);
        match attached {
            Ok(()) => worker.metrics.connect_answered(ReasonCode::SUCCESS),
            // It counts itself.
            Err(Refused::Because(reason)) => client.connection.borrow_mut().refuse(reason, None),
            // A CONNACK that says no would be a lie if it was carried out: the socket closes.
            Err(Refused::Unknown) => client.connection.borrow_mut().lost(),
        }
        client.wake.notify_one();
    });
}

/// What the session has subscribed to by itself, before CONNACK, and before anything is delivered for it. `bounded`: some at a
/// time, between what else the thread does.
async fn add_filters(worker: &Rc<Worker>, client: &Rc<Client>, attached: &Attached) {
    let mut own = attached.subscriptions.iter().filter(|(filter, _)| !is_shared(filter));
    // One that has gone meanwhile has been forgotten, with its filters.
    while worker.is_open(client) {
        let mut added = 0;
        for (filter, options) in own.by_ref().take(FILTERS_AT_ONCE) {
            worker.add_filter(client, filter, *options);
            added += 1;
        }
        if added < FILTERS_AT_ONCE {
            return;
        }
        tokio::task::yield_now().await;
    }
}

/// Why a CONNECT is not served.
enum Refused {
    /// It was not carried out.
    Because(ReasonCode),
    /// It was carried out, or may be yet, and is then given back. Until that is committed its will may become due, and it has
    /// displaced whoever was served.
    Unknown,
}

impl From<ReasonCode> for Refused {
    fn from(reason: ReasonCode) -> Refused {
        Refused::Because(reason)
    }
}

async fn attach(worker: &Rc<Worker>, client: &Rc<Client>, mut accepted: Box<Accepted>) -> Result<(), Refused> {
    admit::client_id(worker, client, &accepted.client_id)?;
    if accepted.credentials.user_name.is_some() || accepted.credentials.password.is_some() {
        admit::login(worker, client)?;
    }
    let access = identify(worker, client, &mut accepted).await?;
    admit::user(worker, client, &access, &accepted.client_id)?;
    wait_until_serving(worker).await?;
    if client.connection.borrow().ending().is_some() {
        // Its client gave it up, perhaps while this node stood still, and may be served elsewhere by now: carried out late,
        // an old CONNECT would displace the newer one.
        return Err(ReasonCode::SERVER_BUSY.into());
    }
    rewrite_will(client, &mut accepted, &access)?;
    let will = match &accepted.will {
        None => None,
        Some(will) => {
            let allowed = access.authorize_will(will, |will| &will.topic).map_err(|Denied| {
                worker.metrics.denied(DeniedAction::Will);
                ReasonCode::NOT_AUTHORIZED
            })?;
            kept_will(&allowed, access.author())
        }
    };
    let request = ConnectRequest {
        client_id: accepted.client_id.clone(),
        clean_start: accepted.clean_start,
        expiry: accepted.expiry,
        will,
    };
    let is_wanted = || client.connection.borrow().ending().is_none();
    let connecting = worker.cluster.connect(request, is_wanted);
    let attached = connecting.await.map_err(|error| match error {
        MetaError::Stale => Refused::Because(ReasonCode::SERVER_BUSY),
        MetaError::Unavailable { .. } => Refused::Because(ReasonCode::SERVER_UNAVAILABLE),
        MetaError::Unknown { .. } => Refused::Unknown,
    })?;
    let (session, epoch) = (attached.session, attached.epoch);
    // Fence first, then look: a Connect elsewhere is either seen here, or sets the fence.
    let fence = worker
        .hub
        .register(session, epoch, worker.id, client.id, client.credit.clone());
    *client.fence.borrow_mut() = Some(fence);
    add_filters(worker, client, &attached).await;
    // No await from here until it is attached.
    let is_current = attached.incarnation == worker.cluster.lease().incarnation();
    if !is_current || !worker.cluster.is_owner(session, epoch) {
        worker.hub.unregister(session, epoch);
        worker.cluster.give_back(session, epoch);
        return Err(Refused::Unknown);
    }
    client.incarnation.set(attached.incarnation);
    let expires = access
        .identity
        .expires
        .filter(|_| on(Check::TokenEnds))
        .and_then(|at| instant_of(at, SystemTime::now(), Instant::now()));
    let shards = worker.cluster.shards().shard_count();
    {
        let mut connection = client.connection.borrow_mut();
        let served = Served {
            session,
            epoch,
            present: attached.present,
        };
        connection.expires = expires;
        if !connection.attached(accepted, served, shards, attached.durable, access, Instant::now()) {
            // It ended while the cluster was asked.
            worker.hub.unregister(session, epoch);
            worker.cluster.give_back(session, epoch);
            return Err(Refused::Unknown);
        }

        connection.outbound.resume(attached.sent.as_deref());
        if attached.durable && !attached.present {
            connection.outbound.attach_fresh();
        }
    }
    worker.serve(session, client);
    tracing::debug!(
        client = client.connection.borrow().client_id(),
        peer = %client.peer,
        listener = client.config.name,
        "a client is connected"
    );
    if let Some(sys) = &worker.sys {
        let connection = client.connection.borrow();
        if let (Some(client_id), Some(version)) = (connection.client_id(), connection.version()) {
            sys.connected(client_id, version);
        }
    }
    // A group gives it messages from here on.
    for (filter, options) in attached.subscriptions.iter().filter(|(filter, _)| is_shared(filter)) {
        worker.add_filter(client, filter, *options);
    }
    subscribe_for_it(worker, client, &attached);
    if !attached.owed.is_empty() {
        worker.cluster.enqueue_retained(session, attached.owed);
    }
    if attached.durable && attached.present {
        for shard in worker.cluster.shards().shards() {
            attach_shard(worker, client, shard);
        }
    }
    Ok(())
}

/// Who the client is, by the chain of its listener; what it may do.
async fn identify(worker: &Rc<Worker>, client: &Rc<Client>, accepted: &mut Accepted) -> Result<Rc<Access>, ReasonCode> {
    let credentials = std::mem::take(&mut accepted.credentials);
    let auth = worker.auth();
    let connecting = Connecting {
        client_id: (!accepted.assigned).then_some(&*accepted.client_id),
        address: client.peer.address.map(|address| address.ip()),
        certificate: client.peer.certificate(),
        listener: &client.config.name,
    };
    let address = connecting.address;
    let is_banned = |user: Option<&str>| auth.acl.cluster.ban_of(&accepted.client_id, user, address).is_some();
    let mut known = match (is_banned(None), &accepted.proven) {
        // Before its password costs anything.
        (true, _) => Err(Refusal::Banned),
        (false, Some(proven)) => {
            check_client_id(&auth, &proven.identity, connecting.client_id).map(|()| proven.identity.clone())
        }
        (false, None) => {
            let chain = &client.config.auth;
            chain
                .authenticate(&auth, credentials, connecting, &worker.runtime)
                .await
        }
    };
    if let (Ok(identity), Some(der)) = (&mut known, client.peer.certificate()) {
        // TLS has looked at it when it was shown, not when the session was resumed by a ticket.
        let ends = certificate::not_after(der).unwrap_or_default();
        identity.expires = Some(identity.expires.map_or(ends, |at| at.min(ends)));
    }
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    if known
        .as_ref()
        .is_ok_and(|identity| identity.expires.is_some_and(|at| at <= now))
    {
        known = Err(Refusal::BadToken);
    }
    if known.as_ref().is_ok_and(|identity| is_banned(identity.user.as_deref())) {
        known = Err(Refusal::Banned);
    }
    worker.metrics.authenticated(&known);
    let identity = known.map_err(|refused| {
        if matches!(
            refused,
            Refusal::UnknownUser | Refusal::BadCredentials | Refusal::BadToken
        ) {
            client.config.guard.login_failed(address, Instant::now());
        }
        tracing::debug!(
            client = &*accepted.client_id,
            peer = %client.peer,
            listener = client.config.name,
            reason = refused.name(),
            "a client was not let in"
        );
        refused.reason()
    })?;
    // As they are now: they may have been reloaded meanwhile.
    let auth = worker.auth();
    if !auth.still_knows(&identity) {
        return Err(ReasonCode::NOT_AUTHORIZED);
    }
    let access = Access::new(identity, &accepted.client_id, address, &auth.acl);
    *client.access.borrow_mut() = Some(access.clone());
    Ok(access)
}

/// What the wall clock calls `at`, in seconds since 1970, as the clock that does not jump will say it. None: never, as far as
/// it goes.
fn instant_of(at: u64, wall: SystemTime, now: Instant) -> Option<Instant> {
    let at = UNIX_EPOCH.checked_add(Duration::from_secs(at))?;
    now.checked_add(at.duration_since(wall).unwrap_or_default())
}

/// Where the will goes by the rules of `[topics]`, as a PUBLISH would. `handshake` has mounted it.
fn rewrite_will(client: &Client, accepted: &mut Accepted, access: &Access) -> Result<(), ReasonCode> {
    let policy = &client.config.policy;
    let Some(will) = &mut accepted.will else { return Ok(()) };
    let namer = Namer {
        client_id: &accepted.client_id,
        user_name: access.identity.user.as_deref(),
    };
    let named = policy.mountpoint.unmounted(&will.topic);
    if let Some(rewritten) = policy.topic_rules.topic(named, namer)? {
        let mounted = policy.mountpoint.topic(&rewritten)?;
        will.topic = mounted.map_or(rewritten.into(), |mounted| mounted.to_string());
    }
    let topic = policy.mountpoint.unmounted(&will.topic);
    match policy.topic_rules.verdict(topic, will.qos as u8, will.retain) {
        Verdict::AsItIs => {}
        Verdict::WithoutRetain => will.retain = false,
        // [MQTT-3.2.2-12] [MQTT-3.2.2-13]
        Verdict::Refused(reason) | Verdict::NotOffered(reason) => return Err(reason),
    }
    Ok(())
}

/// What `topics.subscribe` gives every client, but what its session has already.
fn subscribe_for_it(worker: &Rc<Worker>, client: &Rc<Client>, attached: &Attached) {
    let mut subscriptions = client.connection.borrow().auto_subscriptions();
    subscriptions.retain(|one| !attached.subscriptions.iter().any(|(filter, _)| *filter == one.filter));
    if subscriptions.is_empty() {
        return;
    }
    let operation = Operation::Subscribe {
        packet_id: None,
        subscriptions,
        reasons: Vec::new(),
    };
    worker.operate(client, operation);
}

/// A node that starts, or paused, keeps its clients waiting for a while; one that is cut off sends them elsewhere.
async fn wait_until_serving(worker: &Worker) -> Result<(), ReasonCode> {
    let deadline = Instant::now() + SERVING_WAIT_MAX;
    loop {
        match worker.cluster.lease().serving() {
            Serving::Serving => return Ok(()),
            Serving::Refusing => return Err(ReasonCode::SERVER_UNAVAILABLE),
            Serving::Starting | Serving::Paused => {}
        }
        if Instant::now() >= deadline || worker.is_stopping() {
            return Err(ReasonCode::SERVER_UNAVAILABLE);
        }
        tokio::time::sleep(SERVING_POLL).await;
    }
}

/// Each shard starts by itself, once this node's view of it shows everything that was acknowledged before.
fn attach_shard(worker: &Rc<Worker>, client: &Rc<Client>, shard: ShardId) {
    let (worker, client) = (worker.clone(), client.clone());
    tokio::task::spawn_local(async move {
        let cluster = worker.cluster.clone();
        let Ok(index) = worker
            .runtime
            .spawn(async move { cluster.read_index(shard).await })
            .await
        else {
            return;
        };
        {
            let mut connection = client.connection.borrow_mut();
            let protocol = &mut *connection;
            protocol.outbound.attach(shard, index, &mut protocol.effects);
        }
        client.wake.notify_one();
    });
}

/// Reads the next page of the session's queue in a shard, beside the worker's thread.
pub fn read_page(worker: &Rc<Worker>, client: &Rc<Client>, shard: ShardId, after: Offset) {
    let (served, applied) = {
        let connection = client.connection.borrow();
        (connection.served, connection.outbound.attached_at(shard))
    };
    let Some(served) = served else { return };
    let (worker, client) = (worker.clone(), client.clone());
    tokio::task::spawn_local(async move {
        let cluster = worker.cluster.clone();
        let limits = PageLimits {
            entries: PAGE_ENTRIES,
            bytes: PAGE_BYTES,
        };
        let reading = worker
            .runtime
            .spawn(async move { cluster.read_page(shard, served.session, after, applied, limits).await });
        match reading.await {
            Ok(Ok(mut page)) => {
                let lost = take_lost(&mut page, served.epoch);
                if !lost.is_empty() {
                    worker.cluster.unassign(shard, served.session, lost);
                }
                let mut connection = client.connection.borrow_mut();
                let protocol = &mut *connection;
                protocol.outbound.page(shard, page, &mut protocol.effects);
            }
            Ok(Err(error)) => {
                tracing::error!(shard = shard.0, %error, "a session's queue cannot be read");
                client
                    .connection
                    .borrow_mut()
                    .close(ReasonCode::UNSPECIFIED_ERROR, None);
            }
            // The runtime is shutting down.
            Err(_) => return,
        }
        client.wake.notify_one();
    });
}

/// What a shared group assigned to an earlier connection at QoS 1 is not this one's: it goes back. (P8)
fn take_lost(page: &mut Page, epoch: SessionEpoch) -> Vec<Offset> {
    let is_lost = |entry: &PendingEntry| match entry.granted.role {
        Role::Member { epoch: assigned, .. } => assigned != epoch && entry.granted.qos < 2,
        Role::Session | Role::Group => false,
    };
    let lost = page
        .entries
        .iter()
        .filter(|entry| is_lost(entry))
        .map(|entry| entry.offset);
    let lost: Vec<Offset> = lost.collect();
    if !lost.is_empty() {
        page.entries.retain(|entry| !is_lost(entry));
    }
    lost
}

const SERVING_WAIT_MAX: Duration = Duration::from_secs(10);
const SERVING_POLL: Duration = Duration::from_millis(10);
const FILTERS_AT_ONCE: usize = 500;
/// For a turn among those that connect.
const TURN_WAIT_MAX: Duration = Duration::from_millis(250);
