mod access;
mod exclusive;
mod groups;
mod random;
mod retained;
mod rows;
mod wills;

use std::sync::Mutex;
use std::sync::atomic::AtomicU32;

use super::*;
use crate::command::{Subscription, Will, decode_meta_replies, encode_envelope, encode_meta_ops};
use crate::engine::{StateBatch, StateEngine};
use crate::ids::{GroupId, Offset};
use crate::keys;
use crate::raft_types::{LeaderId, LogId, SnapshotMeta, encode_snapshot_meta};
use crate::testing::MemoryState;
use crate::topic::share_parts;

#[derive(Default)]
struct Recorder(Mutex<Vec<MetaEvent>>);

impl MetaSink for Recorder {
    fn applied(&self, _: MetaIndex, events: Vec<MetaEvent>) {
        self.0.lock().unwrap().extend(events);
    }
    fn jumped(&self, _: MetaIndex) {}
}

struct Fixture {
    engine: Arc<dyn StateEngine>,
    tables: Tables,
    view: MetaView,
    meta: Meta,
    sink: Arc<Recorder>,
    index: u64,
    now: u64,
}

impl Fixture {
    fn new() -> Self {
        let engine: Arc<dyn StateEngine> = Arc::new(MemoryState::default());
        let tables = Tables::new(engine.clone(), GroupId::META, Arc::new(AtomicU32::new(0)));
        let (view, sink) = (MetaView::default(), Arc::new(Recorder::default()));
        let mut meta = Meta::new(view.clone(), sink.clone());
        meta.load(&tables, false).unwrap();
        Fixture {
            engine,
            tables,
            view,
            meta,
            sink,
            index: 0,
            now: 1_000,
        }
    }

    fn apply(&mut self, operation: MetaOp) -> MetaReply {
        self.apply_all(&[operation]).remove(0)
    }

    /// One entry. Whatever it did: the rows alone tell it as memory does, and its indexes agree with each other.
    fn apply_all(&mut self, operations: &[MetaOp]) -> Vec<MetaReply> {
        self.index += 1;
        let at = EntryPosition {
            term: 1,
            index: self.index,
        };
        let command = encode_envelope(LogTime(self.now), &[encode_meta_ops(operations)]);
        let mut state = StateBatch::default();
        let mut batch = TableBatch::new(&mut state, self.tables.prefix());
        let reply = self.meta.apply(&self.tables, &mut batch, at, &command.0).unwrap();
        let applied = SnapshotMeta {
            last_log_id: Some(LogId::new(LeaderId { term: 1, node_id: 1 }, self.index)),
            ..Default::default()
        };
        batch.put(&[0], &encode_snapshot_meta(&applied));
        self.engine.write(state).unwrap();
        self.meta.emit(at);
        assert_eq!(self.reloaded(), content(&self.view.read()), "after {operations:?}");
        check_indexes(&self.view.read());
        decode_meta_replies(&reply.0[0]).unwrap()
    }

    /// What a restarted node would know.
    fn reloaded(&self) -> String {
        let view = MetaView::default();
        let mut meta = Meta::new(view.clone(), self.sink.clone());
        meta.load(&self.tables, false).unwrap();
        let state = view.read();
        assert_eq!(state.access, self.view.read().access, "what has no text too");
        assert_eq!(state.route_version(), self.index, "at least the applied index");
        content(&state)
    }

    fn live(&mut self, node: NodeId) -> Owner {
        let start = self.index;
        Owner {
            node,
            incarnation: self.up(node, start),
        }
    }

    fn up(&mut self, node: NodeId, start: u64) -> Incarnation {
        match self.apply(MetaOp::NodeUp { node, start }) {
            MetaReply::Admitted { incarnation } => incarnation,
            other => panic!("{other:?}"),
        }
    }

    fn connect(
        &mut self,
        client: &str,
        clean_start: bool,
        expiry: u32,
        owner: Owner,
    ) -> (SessionId, SessionEpoch, bool, Option<Owner>) {
        self.connect_with(client, clean_start, expiry, owner, None)
    }

    fn connect_with(
        &mut self,
        client: &str,
        clean_start: bool,
        expiry: u32,
        owner: Owner,
        will: Option<Will>,
    ) -> (SessionId, SessionEpoch, bool, Option<Owner>) {
        let operation = MetaOp::Connect {
            client_id: client.into(),
            clean_start,
            expiry,
            node: owner.node,
            incarnation: owner.incarnation,
            request: self.index,
            will,
        };
        match self.apply(operation) {
            MetaReply::Connected {
                session,
                epoch,
                present,
                previous,
                ..
            } => (session, epoch, present, previous),
            other => panic!("{other:?}"),
        }
    }

    fn detach(&mut self, session: SessionId, epoch: SessionEpoch, publish_will: bool) -> MetaReply {
        self.apply(MetaOp::Detach {
            session,
            epoch,
            expiry: None,
            sent: None,
            publish_will,
        })
    }

    fn subscribe(&mut self, session: SessionId, epoch: SessionEpoch, filter: &str) -> MetaReply {
        self.subscribe_with(session, epoch, vec![subscription(filter, 1, 0)])
    }

    fn subscribe_with(
        &mut self,
        session: SessionId,
        epoch: SessionEpoch,
        subscriptions: Vec<Subscription>,
    ) -> MetaReply {
        self.apply(MetaOp::Subscribe {
            session,
            epoch,
            subscriptions,
        })
    }

    fn unsubscribe(&mut self, session: SessionId, epoch: SessionEpoch, filter: &str) -> MetaReply {
        self.apply(MetaOp::Unsubscribe {
            session,
            epoch,
            filters: vec![filter.into()],
        })
    }

    fn matched(&self, topic: &str) -> (Vec<(u64, Option<NodeId>)>, Vec<NodeId>) {
        let matched = self.view.read().match_topic(topic);
        (
            matched
                .sessions
                .iter()
                .map(|session| (session.session.0, session.owner))
                .collect(),
            matched.nodes,
        )
    }

    fn events(&self) -> Vec<MetaEvent> {
        std::mem::take(&mut self.sink.0.lock().unwrap())
    }

    /// Rows of sessions and what hangs on them.
    fn rows(&self) -> usize {
        let count = |start, end| self.tables.scan(&[start], &[end], usize::MAX).unwrap().len();
        count(keys::SESSION, keys::META_HEAD) + count(keys::META_HEAD + 1, keys::USER)
    }

    fn reload(&mut self) {
        let mut meta = Meta::new(self.view.clone(), self.sink.clone());
        meta.load(&self.tables, false).unwrap();
        self.meta = meta;
    }
}

fn subscription(filter: &str, qos: u8, retain_handling: u8) -> Subscription {
    Subscription {
        filter: filter.into(),
        qos,
        no_local: false,
        retain_as_published: false,
        retain_handling,
        identifier: None,
        exclusive: false,
    }
}

fn exclusive(filter: &str) -> Subscription {
    Subscription {
        exclusive: true,
        ..subscription(filter, 1, 0)
    }
}

fn subscribed(existed: bool) -> MetaReply {
    MetaReply::Subscribed {
        existed: vec![existed],
        refused: vec![],
    }
}

fn will(delay: u32) -> Option<Will> {
    Some(Will {
        message: Bytes::from_static(b"last words"),
        delay,
        author: Bytes::new(),
    })
}

const TOPICS: [&str; 4] = ["a", "a/b", "b", "c/d"];

/// All that a state says, but for its route version.
fn content(state: &MetaState) -> String {
    let sessions: BTreeMap<_, _> = state.sessions.iter().collect();
    let clients: BTreeMap<_, _> = state.clients.iter().collect();
    let filters: Vec<_> = state
        .node_filters
        .iter()
        .filter(|(_, filters)| !filters.is_empty())
        .collect();
    let owned: Vec<_> = state.owned.iter().filter(|(_, owned)| !owned.is_empty()).collect();
    let exclusive: BTreeMap<_, _> = state.exclusive.iter().collect();
    let matches = TOPICS.map(|topic| Matched {
        route_version: 0,
        ..state.match_topic(topic)
    });
    format!(
        "{:#?}",
        (
            (state.log_time, &state.nodes, sessions, clients, state.durable_sessions),
            (filters, owned, &state.expiring, &state.groups, &state.wills),
            (state.route_count(), matches, exclusive, &state.access),
        )
    )
}

fn check_indexes(state: &MetaState) {
    let durable = state.sessions.values().filter(|session| session.durable).count();
    assert_eq!(state.session_counts(), (state.sessions.len(), durable));
    let connected = state
        .sessions
        .values()
        .filter(|session| session.owner.is_some())
        .count();
    assert_eq!(state.connected_count(), connected);
    let (mut memberships, mut exclusives) = (0, 0);
    for (id, session) in &state.sessions {
        assert!(
            session.will.is_none() || session.owner.is_some(),
            "a will has a connection"
        );
        for filter in session.retained_owed.keys() {
            assert!(session.durable && session.subscriptions[filter].qos > 0 && share_parts(filter).is_none());
        }
        for (filter, options) in &session.subscriptions {
            if let Some((name, filter)) = share_parts(filter) {
                let (_, group) = state.group_of(name, filter).expect("a subscription has its group");
                assert_eq!(group.members.get(id), Some(options));
                memberships += 1;
            } else if options.exclusive {
                assert_eq!(state.exclusive_holder(filter), Some(*id), "one-holder");
                exclusives += 1;
            } else {
                assert!(session.durable, "an ephemeral one is its node's");
            }
        }
    }
    assert_eq!(state.exclusive.len(), exclusives, "held by a subscription");
    let members: Vec<usize> = state.share_groups().map(|(_, group)| group.members.len()).collect();
    assert_eq!(members.iter().sum::<usize>(), memberships);
    assert!(
        members.iter().all(|count| *count > 0),
        "a group ends with its last member"
    );
}

#[test]
fn a_session_follows_its_client_to_another_node() {
    let mut fixture = Fixture::new();
    let one = Owner {
        node: 1,
        incarnation: fixture.up(1, 100),
    };
    let two = Owner {
        node: 2,
        incarnation: fixture.up(2, 200),
    };
    let (session, epoch, present, previous) = fixture.connect("c", false, 60, one);
    assert!(!present && previous.is_none());
    fixture.subscribe(session, epoch, "a/#");
    assert_eq!(fixture.matched("a/b").0, [(session.0, Some(1))]);
    fixture.events();
    let (again, next, present, previous) = fixture.connect("c", false, 60, two);
    assert_eq!(
        (again, next.0, present, previous),
        (session, epoch.0 + 1, true, Some(one))
    );
    assert_eq!(
        fixture.events(),
        [
            MetaEvent::Displaced {
                session,
                epoch,
                owner: one
            },
            MetaEvent::Served {
                session,
                epoch: next,
                owner: two,
                request: fixture.index - 1,
            }
        ]
    );
    assert_eq!(fixture.matched("a/b").0, [(session.0, Some(2))]);
    // one-owner: the displaced connection can no longer change anything.
    assert_eq!(
        fixture.apply(MetaOp::Detach {
            session,
            epoch,
            expiry: Some(0),
            sent: Some(vec![]),
            publish_will: false
        }),
        MetaReply::Stale
    );
    assert_eq!(fixture.subscribe(session, epoch, "b"), MetaReply::Stale);
    fixture.reload();
    assert_eq!(fixture.matched("a/b").0, [(session.0, Some(2))]);
}

#[test]
fn clean_start_and_expiry_leave_no_key_behind() {
    let mut fixture = Fixture::new();
    let owner = Owner {
        node: 1,
        incarnation: fixture.up(1, 100),
    };
    let (session, epoch, ..) = fixture.connect("c", false, 60, owner);
    fixture.subscribe(session, epoch, "a/#");
    let (other, _, present, _) = fixture.connect("c", true, 0, owner);
    assert!(!present && other != session);
    assert_eq!(fixture.matched("a/b").0, []);
    fixture.apply(MetaOp::Detach {
        session: other,
        epoch: SessionEpoch(1),
        expiry: None,
        sent: Some(vec![]),
        publish_will: false,
    });
    assert_eq!(fixture.rows(), 0);

    let (session, epoch, ..) = fixture.connect("d", false, 60, owner);
    fixture.subscribe(session, epoch, "a/#");
    fixture.apply(MetaOp::Detach {
        session,
        epoch,
        expiry: None,
        sent: Some(vec![]),
        publish_will: false,
    });
    assert_eq!(fixture.matched("a/b").0, [(session.0, None)]);
    fixture.reload();
    fixture.now += 59_000;
    assert_eq!(
        fixture.apply(MetaOp::ExpireSessions { limit: 10 }),
        MetaReply::Expired { count: 0 }
    );
    fixture.now += 2_000;
    assert_eq!(
        fixture.apply(MetaOp::ExpireSessions { limit: 10 }),
        MetaReply::Expired { count: 1 }
    );
    assert_eq!(fixture.rows(), 0);
    assert_eq!(fixture.view.read().route_count(), 0);
}

/// [MQTT-3.1.2.11.2] Found by jepsen-tests: a CONNECT right behind DISCONNECT 0x04 overtook the detach.
#[test]
fn a_session_that_lasts_as_long_as_its_connection_ends_when_it_is_displaced() {
    let mut fixture = Fixture::new();
    let one = Owner {
        node: 1,
        incarnation: fixture.up(1, 100),
    };
    let (session, ..) = fixture.connect("c", false, 60, one);
    let (same, _, present, _) = fixture.connect("c", false, 0, one);
    assert!(present && same == session, "it lasted for 60 s");
    let (other, _, present, previous) = fixture.connect("c", false, 60, one);
    assert!(!present && other != session);
    assert_eq!(previous, Some(one), "who is told to close");
}

#[test]
fn session_expiry_may_be_changed_at_disconnect() {
    let mut fixture = Fixture::new();
    let owner = Owner {
        node: 1,
        incarnation: fixture.up(1, 100),
    };
    let (session, epoch, ..) = fixture.connect("c", false, 60, owner);
    fixture.apply(MetaOp::Detach {
        session,
        epoch,
        expiry: Some(0),
        sent: Some(vec![]),
        publish_will: false,
    });
    assert!(fixture.view.read().session(session).is_none());
    let (session, epoch, ..) = fixture.connect("c", false, 60, owner);
    fixture.apply(MetaOp::Detach {
        session,
        epoch,
        expiry: Some(u32::MAX),
        sent: Some(vec![]),
        publish_will: false,
    });
    fixture.now += 1_000_000_000_000;
    fixture.apply(MetaOp::ExpireSessions { limit: 10 });
    assert!(fixture.view.read().session(session).is_some(), "never expires");
}

#[test]
fn a_node_that_goes_down_takes_its_connections_along() {
    let mut fixture = Fixture::new();
    let one = Owner {
        node: 1,
        incarnation: fixture.up(1, 100),
    };
    assert_eq!(fixture.up(1, 100), one.incarnation, "a repeat is recognised");
    let (durable, epoch, ..) = fixture.connect("durable", false, 60, one);
    fixture.subscribe(durable, epoch, "a");
    let (ephemeral, ..) = fixture.connect("ephemeral", true, 0, one);
    let routes = |add: &[&str]| MetaOp::NodeRoutes {
        node: 1,
        incarnation: one.incarnation,
        add: add.iter().map(|filter| (*filter).into()).collect(),
        remove: vec![],
    };
    fixture.apply(routes(&["a", "b"]));
    assert_eq!(fixture.matched("a"), (vec![(durable.0, Some(1))], vec![1]));
    assert_eq!(fixture.matched("b").1, [1]);
    fixture.reload();
    assert_eq!(fixture.matched("b").1, [1]);
    fixture.events();

    let again = fixture.up(1, 101);
    assert!(again > one.incarnation);
    assert_eq!(
        fixture.events(),
        [
            MetaEvent::NodeDown {
                node: 1,
                incarnation: one.incarnation
            },
            MetaEvent::SessionEnded {
                session: ephemeral,
                durable: false
            },
            MetaEvent::NodeUp {
                node: 1,
                incarnation: again
            },
        ]
    );
    assert_eq!(fixture.matched("a"), (vec![(durable.0, None)], vec![]));
    assert_eq!(fixture.matched("b").1, Vec::<NodeId>::new());
    assert_eq!(
        fixture.apply(routes(&["c"])),
        MetaReply::Stale,
        "a dead incarnation changes nothing"
    );
    let stale = MetaOp::NodeDown {
        node: 1,
        incarnation: one.incarnation,
    };
    assert_eq!(fixture.apply(stale), MetaReply::Stale);
}

#[test]
fn unsubscribe_tells_what_existed() {
    let mut fixture = Fixture::new();
    let owner = Owner {
        node: 1,
        incarnation: fixture.up(1, 100),
    };
    let (session, epoch, ..) = fixture.connect("c", false, 60, owner);
    fixture.subscribe(session, epoch, "a");
    let before = fixture.view.read().route_version();
    let reply = fixture.apply(MetaOp::Unsubscribe {
        session,
        epoch,
        filters: vec!["a".into(), "b".into()],
    });
    assert_eq!(
        reply,
        MetaReply::Unsubscribed {
            existed: vec![true, false]
        }
    );
    assert!(fixture.view.read().route_version() > before);
    assert_eq!(fixture.matched("a").0, []);
}

#[test]
fn a_repeated_connect_hears_the_first_answer() {
    let mut fixture = Fixture::new();
    let one = Owner {
        node: 1,
        incarnation: fixture.up(1, 100),
    };
    let connect = |request| MetaOp::Connect {
        client_id: "c".into(),
        clean_start: false,
        expiry: 60,
        node: 1,
        incarnation: one.incarnation,
        request,
        will: None,
    };
    let first = fixture.apply(connect(1));
    assert!(matches!(
        first,
        MetaReply::Connected {
            present: false,
            previous: None,
            ..
        }
    ));
    fixture.reload();
    assert_eq!(fixture.apply(connect(1)), first, "Session Present tells the truth");
    assert!(matches!(
        fixture.apply(connect(2)),
        MetaReply::Connected { present: true, .. }
    ));
}

#[test]
fn what_was_sent_is_known_only_after_a_detach() {
    let mut fixture = Fixture::new();
    let one = Owner {
        node: 1,
        incarnation: fixture.up(1, 100),
    };
    let (session, epoch, ..) = fixture.connect("c", false, 60, one);
    let sent = |fixture: &Fixture| {
        fixture
            .view
            .read()
            .session(session)
            .and_then(|session| session.sent.clone())
    };
    assert_eq!(sent(&fixture), Some(vec![]));
    fixture.apply(MetaOp::Detach {
        session,
        epoch,
        expiry: None,
        sent: Some(vec![Offset(4)]),
        publish_will: false,
    });
    fixture.reload();
    assert_eq!(sent(&fixture), Some(vec![Offset(4)]));
    fixture.connect("c", false, 60, one);
    assert_eq!(sent(&fixture), Some(vec![Offset(4)]));
    fixture.connect("c", false, 60, one);
    assert_eq!(sent(&fixture), None, "a displaced connection did not tell");
}

/// Its filters leave in pieces, between which others match: nobody ever finds a session that is not there.
#[test]
fn a_session_with_many_filters_is_gone_at_once_for_who_matches() {
    let mut fixture = Fixture::new();
    let owner = fixture.live(1);
    let (id, epoch, ..) = fixture.connect("many", true, 60, owner);
    let subscriptions: Vec<Subscription> = (0..3_000)
        .map(|n| Subscription {
            filter: format!("many/{n}/+").into(),
            qos: 1,
            no_local: false,
            retain_as_published: false,
            retain_handling: 2,
            identifier: None,
            exclusive: n == 7,
        })
        .collect();
    fixture.apply(MetaOp::Subscribe {
        session: id,
        epoch,
        subscriptions,
    });
    assert_eq!(fixture.view.read().route_count(), 3_000);
    let (view, stop) = (
        fixture.view.clone(),
        Arc::new(std::sync::atomic::AtomicBool::new(false)),
    );
    let stopped = stop.clone();
    let matching = std::thread::spawn(move || {
        while !stopped.load(std::sync::atomic::Ordering::Relaxed) {
            let state = view.read();
            for topic in ["many/0/x", "many/2999/x"] {
                let matched = state.match_topic(topic);
                assert!(matched.sessions.iter().all(|one| state.session(one.session).is_some()));
            }
        }
    });
    let version = fixture.view.read().route_version();
    fixture.apply(MetaOp::EndSession {
        session: id,
        epoch: Some(epoch),
    });
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    matching.join().unwrap();
    let state = fixture.view.read();
    assert!(state.route_version() > version && state.leaving.is_empty());
    assert_eq!((state.route_count(), state.exclusive_holder("many/7/+")), (0, None));
}
