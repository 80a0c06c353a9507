//! The end of a connection: what it served is given back, its will published if that is due.

use std::rc::Rc;
use std::time::Duration;

use crate::protocol::codec::{ReasonCode, Will};
use crate::protocol::connection::{Ending, LOST, Served};
use crate::session::execute::publish_will;
use crate::worker::{Client, Worker};

/// Called once, by the gateway task, before it lets go of the socket.
pub async fn connection(worker: &Rc<Worker>, client: &Rc<Client>) {
    let (ending, served, will, expiry) = {
        let mut connection = client.connection.borrow_mut();
        let ending = connection.ending().unwrap_or(LOST);
        connection.outbound.abandon();
        (
            ending,
            connection.served,
            connection.take_will(ending),
            connection.session_expiry(ending),
        )
    };
    let filters = worker.forget(client);
    let Some(served) = served else { return };
    worker.metrics.disconnected(ending.reason);
    if !client.is_durable() {
        worker.cluster.remove_routes(filters);
    }
    worker.hub.unregister(served.session, served.epoch);
    if let Some(will) = will {
        due_will(worker, client.id, will, served, ending, expiry);
    }
    if client.is_displaced() {
        return;
    }
    let cluster = worker.cluster.clone();
    let sent = client.connection.borrow().outbound.highest_sent();
    let detached = worker
        .runtime
        .spawn(async move { cluster.detach(served.session, served.epoch, ending.expiry, sent).await });
    // After DISCONNECT 0x00 the socket closes only when that is committed: a will must not follow it. [P7]
    if ending.discard_will && tokio::time::timeout(DETACH_MAX, detached).await.is_err() {
        tracing::debug!("a detach takes long; its session is settled by the next Connect or by NodeDown");
    }
}

/// Publishes the will after its delay, or when the session ends if that is sooner; not if the session was resumed
/// before. [MQTT-3.1.3-9]
fn due_will(worker: &Rc<Worker>, client: u64, will: Will, served: Served, ending: Ending, expiry: u32) {
    // A node that let its clients go may not serve, and cannot publish: NodeDown tells the others (issue 3).
    if ending.reason == ReasonCode::SERVER_BUSY || !worker.cluster.lease().is_valid() {
        return;
    }
    let delay = Duration::from_secs(u64::from(will.properties.delay_interval.min(expiry)));
    if delay.is_zero() {
        return publish_will(worker, client, &will, served.session);
    }
    let worker = worker.clone();
    tokio::task::spawn_local(async move {
        tokio::time::sleep(delay).await;
        let resumed = {
            let meta = worker.cluster.meta().read();
            meta.session(served.session)
                .is_some_and(|session| session.epoch != served.epoch)
        };
        if !resumed {
            publish_will(&worker, client, &will, served.session);
        }
    });
}

const DETACH_MAX: Duration = Duration::from_secs(2);
