//! Limits on who comes in and who comes back, carried out: `limits` decides.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use lontra_cluster::MetaError;
use lontra_cluster::access::BanRequest;
use lontra_storage::command::{BanTarget, Subnet, Subscription};

use crate::auth::Access;
use crate::gateway::peer::Peer;
use crate::limits::admission::Place;
use crate::limits::flapping::Subject;
use crate::limits::{Guard, Limit};
use crate::protocol::codec::ReasonCode;
use crate::worker::{Client, ListenerConfig, Worker};

/// A connection asks for a place among those of its address.
///
/// # Errors
/// The limit that it meets.
pub fn address(worker: &Worker, config: &ListenerConfig, peer: &Peer, now: Instant) -> Result<Place, Limit> {
    let address = peer.address.map(|address| address.ip());
    if let Some(address) = address {
        not_banned(worker, &config.guard, &Subject::Address(address.into()))?;
    }
    config.guard.enter(address, now)
}

/// As [`address`], and whom the cluster has banned: before a handshake, which costs more.
///
/// # Errors
/// The limit that it meets.
pub fn before_handshake(worker: &Worker, config: &ListenerConfig, peer: &Peer, now: Instant) -> Result<Place, Limit> {
    if let Some(address) = peer.address.map(|address| address.ip()) {
        let banned = worker.auth().acl.cluster.ban_of("", None, Some(address));
        if banned.is_some() {
            return Err(Limit::BannedAddress);
        }
    }
    self::address(worker, config, peer, now)
}

/// A connection is open; `place` is what it was given before its handshake, if it asked then. One that is not let in is
/// told so in CONNACK.
pub fn connection(worker: &Worker, client: &Client, place: Option<Place>) {
    if client.peer.is_surplus {
        let mut connection = client.connection.borrow_mut();
        return connection.refuse_connect(ReasonCode::QUOTA_EXCEEDED);
    }
    let entered = match place {
        Some(place) => Ok(place),
        None => address(worker, &client.config, &client.peer, Instant::now()),
    };
    match entered {
        Ok(place) => client.places.borrow_mut().0 = Some(place),
        Err(limit) => {
            let reason = refused(worker, client, limit);
            client.connection.borrow_mut().refuse_connect(reason);
        }
    }
}

/// Before it is asked who the client is: that costs more.
///
/// # Errors
/// The reason code of CONNACK.
pub fn client_id(worker: &Worker, client: &Client, client_id: &str) -> Result<(), ReasonCode> {
    let subject = Subject::Client(client_id.into());
    not_banned(worker, &client.config.guard, &subject).map_err(|limit| refused(worker, client, limit))
}

/// Before what it shows is looked at: that costs more.
///
/// # Errors
/// The reason code of CONNACK.
pub fn login(worker: &Worker, client: &Client) -> Result<(), ReasonCode> {
    let address = client.peer.address.map(|address| address.ip());
    let may = client.config.guard.may_log_in(address, Instant::now());
    may.map_err(|limit| refused(worker, client, limit))
}

/// Once it is known who the client is.
///
/// # Errors
/// The reason code of CONNACK.
pub fn user(worker: &Worker, client: &Client, access: &Access, client_id: &str) -> Result<(), ReasonCode> {
    let Some(user) = &access.identity.user else {
        return Ok(());
    };
    let guard = &client.config.guard;
    let entered =
        not_banned(worker, guard, &Subject::User(user.clone())).and_then(|()| guard.enter_user(user, client_id));
    let place = entered.map_err(|limit| refused(worker, client, limit))?;
    client.places.borrow_mut().1 = place.map(Box::new);
    Ok(())
}

/// A ban that was made here holds here; once the cluster has it, for as long as that says so.
fn not_banned(worker: &Worker, guard: &Guard, subject: &Subject) -> Result<(), Limit> {
    match guard.flapping().banned(subject, guard.moment(Instant::now())) {
        None => Ok(()),
        Some(ban) if ban.is_known && !is_banned_in_cluster(worker, subject) => {
            guard.flapping().lifted(subject);
            Ok(())
        }
        Some(_) => Err(subject.limit()),
    }
}

fn is_banned_in_cluster(worker: &Worker, subject: &Subject) -> bool {
    let meta = worker.cluster.meta().read();
    let (access, now) = (meta.access(), meta.log_time());
    let ban = match subject {
        Subject::Client(client_id) => access.ban_of(client_id, None, None, now),
        Subject::User(user) => access.ban_of("", Some(user), None, now),
        Subject::Address(source) => access.ban_of("", None, Some(source.address()), now),
    };
    ban.is_some()
}

/// A connection that was served has ended: who comes and goes too often is banned.
pub fn ended(worker: &Worker, client: &Client, reason: ReasonCode) {
    // What this node or its operator ends is no fault of the client's; a node without room closes publishers of 3.x.
    let is_ours = matches!(
        reason,
        ReasonCode::SERVER_SHUTTING_DOWN
            | ReasonCode::SERVER_BUSY
            | ReasonCode::USE_ANOTHER_SERVER
            | ReasonCode::SERVER_MOVED
            | ReasonCode::ADMINISTRATIVE_ACTION
            | ReasonCode::QUOTA_EXCEEDED
            | ReasonCode::NOT_AUTHORIZED
    );
    if is_ours || worker.is_stopping() {
        return;
    }
    let connection = client.connection.borrow();
    let Some(client_id) = connection.client_id() else {
        return;
    };
    let access = client.access();
    let user = access.as_ref().and_then(|access| access.identity.user.as_deref());
    let guard = &client.config.guard;
    let address = client.peer.address.map(|address| address.ip());
    // Who takes another's client id again and again must not have that one's user and address banned.
    let (user, address) = match reason {
        ReasonCode::SESSION_TAKEN_OVER => (None, None),
        _ => (user, address),
    };
    for subject in guard.ended(client_id, address, user, Instant::now()) {
        ban(worker, client, subject);
    }
}

/// The one place where a ban for flapping becomes known: this node holds it already, and the cluster is told.
fn ban(worker: &Worker, client: &Client, subject: Subject) {
    let guard = &client.config.guard;
    worker.metrics.limits.banned(&subject);
    tracing::warn!(
        subject = subject.name(),
        name = %subject,
        listener = client.config.name,
        seconds = guard.ban_time().as_secs(),
        "banned: it connects and goes too often"
    );
    let (cluster, config) = (worker.cluster.clone(), client.config.clone());
    let request = BanRequest {
        target: match &subject {
            Subject::Client(client_id) => BanTarget::Client(client_id.clone()),
            Subject::User(user) => BanTarget::User(user.clone()),
            Subject::Address(source) => {
                let network = Subnet::around(source.address(), source.prefix());
                BanTarget::Network(network.expect("a source has as many bits"))
            }
        },
        seconds: u32::try_from(guard.ban_time().as_secs()).ok(),
        reason: "it connected and went too often".into(),
        by: format!("node {}", cluster.node()).into(),
        // What an operator has said stays.
        only_longer: true,
    };
    worker.runtime.spawn(async move {
        for _ in 0..BAN_ATTEMPTS {
            match cluster.ban(request.clone()).await {
                Ok(_) => return config.guard.flapping().known(&subject),
                // As many are banned as may be: it stays this node's alone.
                Err(MetaError::Stale) => return,
                Err(MetaError::Unavailable { .. } | MetaError::Unknown { .. }) => {
                    tokio::time::sleep(BAN_RETRY).await;
                }
            }
        }
    });
}

/// What of a SUBSCRIBE the session has room for; the reason codes tell of the rest: 0x97.
pub fn subscriptions(
    worker: &Worker,
    client: &Client,
    subscriptions: Vec<Subscription>,
    reasons: &mut [ReasonCode],
) -> Vec<Subscription> {
    let max = client.config.guard.subscriptions_max;
    if max == 0 {
        return subscriptions;
    }
    let there = client.subscriptions.borrow().len() + client.shared.borrow().len();
    let mut fresh = HashSet::new();
    // One for each subscription: the others were refused before.
    let mut granted = reasons.iter_mut().filter(|reason| !reason.is_error());
    let mut has_room = |one: &Subscription| {
        if client.has_filter(&one.filter) || fresh.contains(&one.filter) {
            return true;
        }
        let has_room = there + fresh.len() < max;
        if has_room {
            fresh.insert(one.filter.clone());
        }
        has_room
    };
    let mut refused = 0;
    let mut within = subscriptions;
    within.retain(|one| {
        let (reason, has_room) = (granted.next(), has_room(one));
        if !has_room && let Some(reason) = reason {
            *reason = ReasonCode::QUOTA_EXCEEDED;
            refused += 1;
        }
        has_room
    });
    worker.metrics.limits.refused(Limit::Subscriptions, refused);
    within
}

fn refused(worker: &Worker, client: &Client, limit: Limit) -> ReasonCode {
    worker.metrics.limits.refused(limit, 1);
    tracing::debug!(peer = %client.peer, listener = client.config.name, ?limit, "a client was not let in");
    limit.connack_reason()
}

/// With [`BAN_RETRY`] between them: after that it stays this node's alone.
const BAN_ATTEMPTS: usize = 10;
const BAN_RETRY: Duration = Duration::from_secs(1);
