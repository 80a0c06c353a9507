//! Who may do what has changed, by a reload or by the cluster: what is decided again for who is connected here.

use std::rc::{Rc, Weak};
use std::sync::Arc;

use lontra_storage::meta::AccessChange;

use super::{Client, ListenerConfig, Worker};
use crate::auth::{Access, Auth};
use crate::config::auth::Revocation;
use crate::gateway::tls::load::ClientTrust;
use crate::protocol::checks::{Check, on};
use crate::protocol::codec::ReasonCode;

impl Worker {
    /// Users and rules, as the last reload has read them; and what the cluster keeps.
    pub fn auth(&self) -> Arc<Auth> {
        self.config.borrow().auth.clone()
    }

    /// A reload: what was decided under other users and rules holds no more, from the next message on, and for who is
    /// connected.
    pub(super) fn access_changed(self: &Rc<Self>) {
        self.decide_again(|_| true);
        tokio::task::spawn_local(certificates_again(self.clone()));
    }

    /// The cluster's log: when this returns, nobody here is served against it.
    pub(super) fn cluster_access_changed(&self, changes: &[AccessChange]) {
        self.decide_again(|access| {
            changes.iter().any(|change| match change {
                AccessChange::User(name) => access.identity.user.as_ref() == Some(name),
                AccessChange::Rules => true,
                // Whoever it is not about has nothing to be decided: many bans, which machines make, cost little here.
                AccessChange::Ban(target) => access.is_target(target),
            })
        });
    }

    /// Whoever has shown a certificate that is good no more, by the files that were read since, is let go.
    pub(super) fn certificate_again(&self, client: &Client) {
        let Some(chain) = &client.peer.chain else { return };
        let present = self.config.borrow().clone();
        let listener = present.listeners.iter().find(|one| one.name == client.config.name);
        let Some(listener) = listener.filter(|present| !Arc::ptr_eq(present, &client.config)) else {
            return;
        };
        let Some(now) = trust(listener) else { return };
        if !on(Check::CertificateAgain) || now.still_takes(trust(&client.config), chain) {
            return;
        }
        if let Some(access) = client.access() {
            access.revoke();
        }
        let why = Some("the certificate is good no more");
        client.connection.borrow_mut().close(ReasonCode::NOT_AUTHORIZED, why);
        client.wake.notify_one();
    }

    fn decide_again(&self, is_touched: impl Fn(&Access) -> bool) {
        let auth = self.auth();
        for client in self.connections.borrow().values() {
            if let Some(access) = client.access()
                && is_touched(&access)
                && let Some((reason, why)) = ends(client, &access, &auth)
            {
                let mut connection = client.connection.borrow_mut();
                let reason = match reason {
                    // CONNACK knows no administrative action; DISCONNECT no ban. [MQTT-3.2.2-8] [MQTT-3.14.2-1]
                    ReasonCode::BANNED if connection.is_connected() => ReasonCode::ADMINISTRATIVE_ACTION,
                    reason => reason,
                };
                connection.close(reason, Some(why));
                drop(connection);
                client.wake.notify_one();
            }
        }
    }
}

/// `bounded`: signatures cost; the worker serves in between.
async fn certificates_again(worker: Rc<Worker>) {
    let clients: Vec<Weak<Client>> = {
        let connections = worker.connections.borrow();
        let with_certificate = connections.values().filter(|client| client.peer.chain.is_some());
        with_certificate.map(Rc::downgrade).collect()
    };
    for some in clients.chunks(CERTIFICATES_PER_TURN) {
        for client in some.iter().filter_map(Weak::upgrade) {
            worker.certificate_again(&client);
        }
        tokio::task::yield_now().await;
    }
}

fn trust(config: &ListenerConfig) -> Option<&ClientTrust> {
    config.tls.as_ref()?.clients.as_ref()
}

/// Some milliseconds.
const CERTIFICATES_PER_TURN: usize = 16;

/// Why the connection is not served any longer.
fn ends(client: &Rc<Client>, access: &Access, auth: &Auth) -> Option<(ReasonCode, &'static str)> {
    if access.is_banned(&auth.acl.cluster) {
        access.revoke();
        return Some((ReasonCode::BANNED, "banned"));
    }
    if on(Check::UserRemoved) && !auth.still_knows(&access.identity) {
        access.revoke();
        let why = "the user is gone, or shows who it is by something else";
        return Some((ReasonCode::NOT_AUTHORIZED, why));
    }
    access.look_up(&auth.acl);
    let is_lost = |filter: &str| !access.may_subscribe(filter);
    let ends = auth.revocation == Revocation::Disconnect
        && (client.subscriptions.borrow().keys().any(|filter| is_lost(filter))
            || client.shared.borrow().keys().any(|filter| is_lost(filter)));
    ends.then_some((ReasonCode::NOT_AUTHORIZED, "a subscription is allowed no more"))
}
