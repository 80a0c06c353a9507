//! SUBSCRIBE and UNSUBSCRIBE of one connection: one after the other, in order of receipt.
//!
//! Invariant `subscribe-visible`: deliveries match here before the cluster is told, and SUBACK leaves only after every
//! Up node matches publishes against the subscription.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::num::NonZeroU16;
use std::rc::Rc;

use lontra_cluster::MetaError;
use lontra_storage::command::Subscription;
use lontra_storage::meta::SubscriptionOptions;

use super::admit;
use super::exclusive;
use super::retained::Expected;
use crate::protocol::codec::ReasonCode;
use crate::protocol::codec::topic_grammar::is_shared;
use crate::protocol::connection::Served;
use crate::sys::is_sys;
use crate::worker::{Client, Worker};

/// What a client asked for and has not been answered.
#[derive(Default)]
pub struct Operations {
    queue: RefCell<VecDeque<Operation>>,
    running: Cell<bool>,
}

pub enum Operation {
    /// `reasons` has one per filter of the packet; those of `subscriptions` are below 0x80.
    Subscribe {
        /// None: not asked for by the client, who is not answered.
        packet_id: Option<NonZeroU16>,
        subscriptions: Vec<Subscription>,
        reasons: Vec<ReasonCode>,
    },
    Unsubscribe {
        packet_id: NonZeroU16,
        filters: Vec<Box<str>>,
        /// One for each filter of the packet: none for those of `filters`.
        refused: Vec<Option<ReasonCode>>,
    },
}

impl Operations {
    /// Whether the client must wait for an answer before it is listened to again.
    pub fn is_full(&self) -> bool {
        self.queue.borrow().len() >= OPERATIONS_MAX
    }
}

/// What a piece of a SUBSCRIBE brings about once the whole is granted.
struct Granted {
    replays: Expected,
    /// What `$SYS` tells at once.
    told: Vec<Subscription>,
}

/// Whether this node replays retained messages for it: what a shard keeps a queue for comes from there.
fn is_replayed(client: &Client, one: &Subscription) -> bool {
    let is_asked = one.retain_handling == 0 || one.retain_handling == 1 && !client.has_filter(&one.filter);
    is_asked && !is_shared(&one.filter) && (is_sys(&one.filter) || !client.is_durable() || one.qos == 0)
}

/// More SUBSCRIBEs than any client has under way.
const OPERATIONS_MAX: usize = 64;
/// About a millisecond of this thread, with a replay for each of twelve shards.
const FILTERS_AT_ONCE: usize = 200;

impl Worker {
    /// Queues an operation; a task runs them while there are any.
    pub fn operate(self: &Rc<Self>, client: &Rc<Client>, operation: Operation) {
        client.operations.queue.borrow_mut().push_back(operation);
        if client.operations.running.replace(true) {
            return;
        }
        let (worker, client) = (self.clone(), client.clone());
        tokio::task::spawn_local(async move {
            loop {
                let next = client.operations.queue.borrow_mut().pop_front();
                let Some(operation) = next else { break };
                worker.run_operation(&client, operation).await;
                client.wake.notify_one();
            }
            client.operations.running.set(false);
        });
    }

    async fn run_operation(self: &Rc<Self>, client: &Rc<Client>, operation: Operation) {
        match operation {
            Operation::Subscribe {
                packet_id,
                subscriptions,
                mut reasons,
            } => {
                let subscriptions = match packet_id {
                    Some(_) => admit::subscriptions(self, client, subscriptions, &mut reasons),
                    // What the operator subscribes a client to is not the client's doing.
                    None => subscriptions,
                };
                self.wait_for_replays(client).await;
                let outcome = self.subscribe(client, subscriptions, &mut reasons).await;
                match (outcome, packet_id) {
                    (Ok(()), _) => {}
                    (Err(MetaError::Stale), _) => {
                        return client
                            .connection
                            .borrow_mut()
                            .close(ReasonCode::SESSION_TAKEN_OVER, None);
                    }
                    (Err(MetaError::Unavailable { .. }), Some(_)) => {
                        for reason in reasons.iter_mut().filter(|reason| !reason.is_error()) {
                            *reason = ReasonCode::UNSPECIFIED_ERROR;
                        }
                    }
                    // Who did not ask hears no SUBACK; and neither a yes nor a no is true of what may stand.
                    (Err(MetaError::Unavailable { what } | MetaError::Unknown { what }), _) => {
                        return client
                            .connection
                            .borrow_mut()
                            .close(ReasonCode::SERVER_BUSY, Some(what));
                    }
                }
                if let Some(packet_id) = packet_id {
                    self.count_refused(&reasons);
                    client.connection.borrow_mut().subscribed(packet_id, reasons);
                }
            }
            Operation::Unsubscribe {
                packet_id,
                filters,
                refused,
            } => match self.unsubscribe(client, filters).await {
                Ok(existed) => {
                    let mut existed = existed.into_iter();
                    let mut reason = |refused: Option<ReasonCode>| match refused {
                        Some(reason) => reason,
                        None if existed.next() == Some(true) => ReasonCode::SUCCESS,
                        None => ReasonCode::NO_SUBSCRIPTION_EXISTED,
                    };
                    let reasons: Vec<ReasonCode> = refused.into_iter().map(&mut reason).collect();
                    self.count_refused(&reasons);
                    client.connection.borrow_mut().unsubscribed(packet_id, reasons);
                }
                Err(MetaError::Stale) => client
                    .connection
                    .borrow_mut()
                    .close(ReasonCode::SESSION_TAKEN_OVER, None),
                // 3.x has no way to say that it failed; the client asks again after it reconnected.
                Err(MetaError::Unavailable { what } | MetaError::Unknown { what }) => {
                    client
                        .connection
                        .borrow_mut()
                        .close(ReasonCode::SERVER_BUSY, Some(what));
                }
            },
        }
    }

    /// What SUBACK or UNSUBACK refuses, filter by filter.
    fn count_refused(&self, reasons: &[ReasonCode]) {
        for reason in reasons.iter().filter(|reason| reason.is_error()) {
            self.metrics.subscription_refused(*reason);
        }
    }

    /// `reasons`: as of [`Operation::Subscribe`]; what another session holds exclusively is refused there.
    async fn subscribe(
        self: &Rc<Self>,
        client: &Rc<Client>,
        mut subscriptions: Vec<Subscription>,
        reasons: &mut [ReasonCode],
    ) -> Result<(), MetaError> {
        if subscriptions.is_empty() {
            return Ok(());
        }
        let Some(served) = client.connection.borrow().served else {
            return Err(MetaError::Stale);
        };
        let claims = exclusive::claims(&subscriptions, client.is_durable(), |filter| client.holds(filter));
        if claims.is_empty() {
            return self.subscribe_granted(client, served, subscriptions).await;
        }
        let asked = claims.iter().map(|position| subscriptions[*position].clone()).collect();
        let (refused, _) = self.cluster.subscribe(served.session, served.epoch, asked).await?;
        let refused = refused.iter().filter_map(|at| claims.get(*at as usize).copied());
        let refused: Vec<usize> = refused.collect();
        exclusive::refuse(&mut subscriptions, reasons, &refused);
        let granted = self.subscribe_granted(client, served, subscriptions).await;
        granted.map_err(|error| match error {
            // What was claimed stands.
            MetaError::Unavailable { what } => MetaError::Unknown { what },
            error => error,
        })
    }

    async fn subscribe_granted(
        self: &Rc<Self>,
        client: &Rc<Client>,
        served: Served,
        subscriptions: Vec<Subscription>,
    ) -> Result<(), MetaError> {
        if subscriptions.is_empty() {
            return Ok(());
        }
        // What was acknowledged before this SUBSCRIBE came is retained for it, not live: nothing of it is on its way any
        // more when its filters begin to match.
        let replayed = subscriptions
            .iter()
            .filter(|one| is_replayed(client, one) && !is_sys(&one.filter));
        let replayed: Vec<&str> = replayed.map(|one| &*one.filter).collect();
        if !self.catch_up(&replayed).await {
            return Err(MetaError::Unavailable {
                what: "retained messages",
            });
        }
        // `bounded`: some at a time, so that neither this thread nor an entry of the log is held up by all of them.
        let (mut replays, mut told) = (Vec::new(), Vec::new());
        for some in subscriptions.chunks(FILTERS_AT_ONCE) {
            match self.subscribe_some(client, served, some).await {
                Ok(granted) => {
                    replays.push(granted.replays);
                    told.extend(granted.told);
                }
                Err(error) => {
                    let is_first = replays.is_empty();
                    for replays in replays {
                        client.replays.cancel(replays);
                    }
                    return Err(match error {
                        // What came before it stands.
                        MetaError::Unavailable { what } if !is_first => MetaError::Unknown { what },
                        error => error,
                    });
                }
            }
        }
        for replays in replays {
            self.replay_retained(client, replays);
        }
        self.tell_sys(client, told);
        Ok(())
    }

    /// At most [`FILTERS_AT_ONCE`].
    async fn subscribe_some(
        self: &Rc<Self>,
        client: &Rc<Client>,
        served: Served,
        subscriptions: &[Subscription],
    ) -> Result<Granted, MetaError> {
        // No await from here until all of it is noted: what a connection that is gone has had is taken back by `forget`, once.
        if !self.is_open(client) {
            return Err(MetaError::Stale);
        }
        let mut fresh: Vec<Box<str>> = subscriptions
            .iter()
            .filter(|one| !client.has_filter(&one.filter))
            .map(|one| one.filter.clone())
            .collect();
        // A filter that a packet has twice is subscribed once.
        fresh.sort_unstable();
        fresh.dedup();
        // [MQTT-3.8.4-4]: what a replaced subscription gets again is decided before it is replaced.
        let (told, replayed): (Vec<Subscription>, Vec<Subscription>) = subscriptions
            .iter()
            .filter(|one| is_replayed(client, one))
            .cloned()
            .partition(|one| is_sys(&one.filter));
        let own: Vec<Box<str>> = match client.is_durable() {
            true => Vec::new(),
            false => fresh.iter().filter(|filter| !is_shared(filter)).cloned().collect(),
        };
        let Some(own) = client.routes.add(own) else {
            return Err(MetaError::Stale);
        };
        self.cluster.count_routes(&own);
        let replays = self.expect_replays(client, replayed);
        for subscription in subscriptions {
            self.add_filter(client, &subscription.filter, SubscriptionOptions::of(subscription));
        }
        let result = self.tell_cluster(client, served, &own, subscriptions).await;
        if let Err(error) = result {
            client.replays.cancel(replays);
            if self.is_open(client) {
                for filter in &fresh {
                    self.remove_filter(client, filter);
                }
            }
            self.cluster.remove_routes(client.routes.take(&own));
            return Err(error);
        }
        Ok(Granted { replays, told })
    }

    /// `own`: what is fresh of an ephemeral session's and not shared.
    async fn tell_cluster(
        self: &Rc<Self>,
        client: &Rc<Client>,
        served: Served,
        own: &[Box<str>],
        subscriptions: &[Subscription],
    ) -> Result<(), MetaError> {
        if client.is_durable() {
            let subscribed = self
                .cluster
                .subscribe(served.session, served.epoch, subscriptions.to_vec());
            let (_, owed) = subscribed.await?;
            if !owed.is_empty() {
                self.cluster.enqueue_retained(served.session, owed);
            }
            return Ok(());
        }
        let shared = subscriptions.iter().filter(|one| is_shared(&one.filter));
        let shared: Vec<Subscription> = shared.cloned().collect();
        if !shared.is_empty() {
            // A group keeps its queue in the shards, whoever its members are.
            self.cluster.subscribe(served.session, served.epoch, shared).await?;
        }
        self.cluster.publish_routes(own.to_vec()).await
    }

    async fn unsubscribe(&self, client: &Rc<Client>, filters: Vec<Box<str>>) -> Result<Vec<bool>, MetaError> {
        let Some(served) = client.connection.borrow().served else {
            return Err(MetaError::Stale);
        };
        if filters.is_empty() {
            return Ok(Vec::new());
        }
        if client.is_durable() {
            let existed = self
                .cluster
                .unsubscribe(served.session, served.epoch, filters.clone())
                .await?;
            for filter in &filters {
                self.remove_filter(client, filter);
            }
            return Ok(existed);
        }
        let in_meta = filters
            .iter()
            .filter(|filter| is_shared(filter) || client.holds(filter));
        let in_meta: Vec<Box<str>> = in_meta.cloned().collect();
        // Nothing is delivered for it from here on, before another may hold what was exclusive; the other nodes stop
        // sending when they hear of it.
        let own = |filter: &str| !is_shared(filter) && self.remove_filter(client, filter);
        let mut existed: Vec<bool> = filters.iter().map(|filter| own(filter)).collect();
        let gone = filters.iter().zip(&existed).filter(|(_, existed)| **existed);
        let gone: Vec<Box<str>> = gone.map(|(filter, _)| filter.clone()).collect();
        self.cluster.remove_routes(client.routes.take(&gone));
        if !in_meta.is_empty() {
            self.cluster.unsubscribe(served.session, served.epoch, in_meta).await?;
        }
        for (filter, existed) in filters.iter().zip(&mut existed) {
            if is_shared(filter) {
                *existed = self.remove_filter(client, filter);
            }
        }
        Ok(existed)
    }
}
