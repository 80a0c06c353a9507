//! Who may do what has changed, by a reload or by the cluster: what is decided again for who is connected here.

use std::rc::Rc;
use std::sync::Arc;

use lontra_storage::meta::AccessChange;

use super::{Client, Worker};
use crate::auth::{Access, Auth};
use crate::config::auth::Revocation;
use crate::protocol::codec::ReasonCode;

impl Worker {
    /// Users and rules, as the last reload has read them; and what the cluster keeps.
    pub fn auth(&self) -> Arc<Auth> {
        self.config.borrow().auth.clone()
    }

    /// A reload: what was decided under other users and rules holds no more, from the next message on, and for who is
    /// connected.
    pub(super) fn access_changed(&self) {
        self.decide_again(|_| true);
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

/// Why the connection is not served any longer.
fn ends(client: &Rc<Client>, access: &Access, auth: &Auth) -> Option<(ReasonCode, &'static str)> {
    if access.is_banned(&auth.acl.cluster) {
        access.revoke();
        return Some((ReasonCode::BANNED, "banned"));
    }
    if !auth.still_knows(&access.identity) {
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
