//! The end of a connection: what it served is given back; its will is due unless the client took it back.

use std::rc::Rc;
use std::time::Duration;

use super::admit;
use crate::metrics::Refusal;
use crate::protocol::codec::ReasonCode;
use crate::protocol::connection::LOST;
use crate::worker::{Client, Worker};

/// How the socket is to be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Farewell {
    InOrder,
    /// The client asked that its will be discarded, and that is not certain: no close may look like a yes. (P7)
    Abrupt,
}

/// Called once, by the gateway task, before it lets go of the socket.
pub async fn connection(worker: &Rc<Worker>, client: &Rc<Client>) -> Farewell {
    let (ending, served) = {
        let mut connection = client.connection.borrow_mut();
        connection.outbound.end();
        (connection.ending().unwrap_or(LOST), connection.served)
    };
    worker.forget(client);
    let routes = client.routes.end();
    if !routes.is_empty() {
        worker.cluster.remove_routes(routes);
    }
    // Its places are free before its client can see that it is gone.
    client.places.take();
    let Some(served) = served else {
        if client.connection.borrow().version().is_none() {
            let refusal = match ending.reason {
                ReasonCode::MAXIMUM_CONNECT_TIME => Refusal::ConnectTimeout,
                _ => Refusal::NoConnect,
            };
            worker.metrics.connection_refused(refusal);
        }
        return Farewell::InOrder;
    };
    worker.metrics.disconnected(ending.reason);
    admit::ended(worker, client, ending.reason);
    tracing::debug!(
        client = client.connection.borrow().client_id(),
        peer = %client.peer,
        listener = client.config.name,
        reason = ending.reason.name(),
        "a client is gone"
    );
    if let (Some(sys), Some(client_id)) = (&worker.sys, client.connection.borrow().client_id()) {
        sys.disconnected(client_id, ending.reason);
    }
    worker.hub.unregister(served.session, served.epoch);
    if client.is_displaced() {
        return Farewell::InOrder;
    }
    // A client that may no longer publish there must not do so by ending.
    let may_will = client.access().is_some_and(|access| {
        let connection = client.connection.borrow();
        connection.will_topic().is_none_or(|topic| access.may_publish(topic))
    });
    let cluster = worker.cluster.clone();
    let sent = client.connection.borrow().outbound.highest_sent();
    // A client that ends well is not sent again, by its next node, what it has acknowledged.
    let settled = worker.cluster.clone();
    let shards = if ending.discard_will {
        client.unsettled.shards()
    } else {
        Vec::new()
    };
    let mut detached = worker.runtime.spawn(async move {
        let publish_will = !ending.discard_will && may_will;
        let detach = cluster.detach(served.session, served.epoch, ending.expiry, sent, publish_will);
        tokio::join!(detach, settled.settled(shards)).0
    });
    if !ending.discard_will {
        return Farewell::InOrder;
    }
    if let Ok(detached) = tokio::time::timeout(DETACH_MAX, &mut detached).await {
        return farewell(client, detached.unwrap_or(false));
    }
    tracing::debug!(
        "a detach, or what was acknowledged before it, takes long: the next Connect or NodeDown settles it"
    );
    if !client.connection.borrow().has_will() {
        return Farewell::InOrder;
    }
    // After DISCONNECT 0x00 the socket closes only when that is committed: a will must not follow it. [P7]
    farewell(client, detached.await.unwrap_or(false))
}

fn farewell(client: &Client, is_detached: bool) -> Farewell {
    match is_detached || !client.connection.borrow().has_will() {
        true => Farewell::InOrder,
        false => Farewell::Abrupt,
    }
}

/// For connections without a will, which nothing happens to afterwards.
const DETACH_MAX: Duration = Duration::from_secs(2);
