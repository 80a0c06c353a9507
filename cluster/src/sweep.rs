//! Level-triggered cleanup: each shard's leader removes what is left of sessions that are gone for good.
//!
//! A session id is made of the meta index that created it, and is never reused: dead means that this node has applied
//! that index, and the control plane knows no such session.

use std::sync::Arc;
use std::time::Duration;

use lontra_storage::ids::SessionId;
use lontra_storage::shard::next_session;

use crate::Inner;
use crate::group::Group;
use crate::publisher::ShardRequest;

/// Runs for the life of the node; acts in the shards that it leads, while it may serve.
pub(crate) async fn run(inner: Arc<Inner>) {
    loop {
        tokio::time::sleep(INTERVAL).await;
        for (shard, group) in inner.groups.iter().filter(|(_, group)| group.is_leader()) {
            if !inner.lease.is_valid() {
                break;
            }
            let dead = match dead_sessions(&inner, group) {
                Ok(dead) => dead,
                Err(error) => {
                    tracing::error!(shard = shard.0, %error, "a shard cannot be swept");
                    continue;
                }
            };
            let sender = inner
                .senders
                .get()
                .and_then(|senders| senders.get(usize::from(shard.0)));
            for session in dead {
                if let Some(sender) = sender {
                    sender.send(ShardRequest::Sweep { session });
                }
            }
            tokio::task::yield_now().await;
        }
    }
}

/// Sessions with entries in the shard that are dead for good; at most a page of them.
fn dead_sessions(inner: &Inner, group: &Group) -> std::io::Result<Vec<SessionId>> {
    let mut dead = Vec::new();
    let mut after = None;
    // Read before the sessions are looked up: what was created later is not judged.
    let applied = inner.meta.applied.current();
    while dead.len() < SESSIONS_MAX
        && let Some(session) = next_session(&group.tables, after)?
    {
        after = Some(session);
        let is_known = inner.meta_view.read().session(session).is_some();
        if !is_known && session.0 / SessionId::PER_ENTRY <= applied {
            dead.push(session);
        }
    }
    Ok(dead)
}

const INTERVAL: Duration = Duration::from_secs(5);
const SESSIONS_MAX: usize = 64;
