//! Limits on who comes in and who comes back, carried out: `limits` decides.

use std::collections::HashSet;
use std::net::IpAddr;
use std::time::Instant;

use lontra_storage::command::Subscription;

use crate::auth::Access;
use crate::limits::Limit;
use crate::limits::admission::Place;
use crate::limits::flapping::Subject;
use crate::protocol::codec::ReasonCode;
use crate::worker::{Client, Worker};

/// A connection is open; `place` is what it was given before its handshake, if it asked then. One that is not let in is
/// told so in CONNACK.
pub fn connection(worker: &Worker, client: &Client, place: Option<Place>) {
    let entered = match place {
        Some(place) => Ok(place),
        None => client.config.guard.enter(address(client), Instant::now()),
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
    match client.config.guard.banned(subject, Instant::now()) {
        Some(limit) => Err(refused(worker, client, limit)),
        None => Ok(()),
    }
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
    let banned = guard.banned(Subject::User(user.clone()), Instant::now());
    let entered = match banned {
        Some(limit) => Err(limit),
        None => guard.enter_user(user, client_id),
    };
    let place = entered.map_err(|limit| refused(worker, client, limit))?;
    client.places.borrow_mut().1 = place;
    Ok(())
}

/// A connection that was served has ended: who comes and goes too often is banned.
pub fn ended(worker: &Worker, client: &Client, reason: ReasonCode) {
    // What this node or its operator ends is no fault of the client's.
    let is_ours = matches!(
        reason,
        ReasonCode::SERVER_SHUTTING_DOWN
            | ReasonCode::SERVER_BUSY
            | ReasonCode::USE_ANOTHER_SERVER
            | ReasonCode::SERVER_MOVED
            | ReasonCode::ADMINISTRATIVE_ACTION
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
    for subject in guard.ended(client_id, address(client), user, Instant::now()) {
        ban(worker, client, &subject);
    }
}

/// The one place where a ban for flapping becomes known: this node holds it already.
fn ban(worker: &Worker, client: &Client, subject: &Subject) {
    worker.metrics.limits.banned(subject);
    tracing::warn!(
        subject = subject.name(),
        name = %subject,
        listener = client.config.name,
        seconds = client.config.guard.ban_time().as_secs(),
        "banned: it connects and goes too often"
    );
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

fn address(client: &Client) -> Option<IpAddr> {
    client.peer.address.map(|address| address.ip())
}
