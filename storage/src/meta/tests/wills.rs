//! P7: a will is published once after an ungraceful end, not at all after a clean one, not before its delay.

use super::*;

struct Left {
    fixture: Fixture,
    owner: Owner,
    session: SessionId,
    epoch: SessionEpoch,
}

/// A connection with a will of this delay.
fn connected(expiry: u32, delay: u32) -> Left {
    let mut fixture = Fixture::new();
    let owner = fixture.live(1);
    let (session, epoch, ..) = fixture.connect_with("c", false, expiry, owner, will(delay));
    fixture.events();
    Left {
        fixture,
        owner,
        session,
        epoch,
    }
}

impl Left {
    /// In how many seconds the will becomes due: 0 for now, `None` for never.
    fn due_in(&self) -> Option<u64> {
        let state = self.fixture.view.read();
        let scheduled = state.scheduled_will(self.session, self.epoch)?;
        let is_due = state
            .due_wills()
            .any(|(session, epoch, _)| (session, epoch) == (self.session, self.epoch));
        assert_eq!(is_due, scheduled.due);
        assert_eq!(state.next_will().is_none(), scheduled.due);
        Some(scheduled.due_at.0.saturating_sub(state.log_time().0) / 1000)
    }

    /// How often it became due since this was asked last.
    fn due_events(&self) -> usize {
        let due = MetaEvent::WillDue {
            session: self.session,
            epoch: self.epoch,
        };
        self.fixture.events().into_iter().filter(|event| *event == due).count()
    }

    fn due_wills(&mut self) -> MetaReply {
        self.fixture.apply(MetaOp::DueWills { limit: 10 })
    }

    fn published(&mut self) -> MetaReply {
        self.fixture.apply(MetaOp::WillPublished {
            session: self.session,
            epoch: self.epoch,
        })
    }
}

#[test]
fn a_clean_end_discards_the_will() {
    for (expiry, delay) in [(0, 0), (60, 0), (60, 5), (0, 5)] {
        let mut left = connected(expiry, delay);
        assert_eq!(left.fixture.detach(left.session, left.epoch, false), MetaReply::Done);
        assert_eq!((left.due_in(), left.due_events()), (None, 0));
        left.fixture.now += 100_000;
        assert_eq!(left.due_wills(), MetaReply::Due { count: 0 });
    }
}

#[test]
fn an_ungraceful_end_publishes_after_delay_or_session_expiry() {
    let check = |expiry, delay, expected| {
        let mut left = connected(expiry, delay);
        assert_eq!(left.fixture.detach(left.session, left.epoch, true), MetaReply::Done);
        assert_eq!(
            left.due_in(),
            Some(expected),
            "expiry {expiry}, delay {delay}, detached"
        );
        assert_eq!(left.due_events(), usize::from(expected == 0));

        let mut left = connected(expiry, delay);
        let (node, incarnation) = (left.owner.node, left.owner.incarnation);
        left.fixture.apply(MetaOp::NodeDown { node, incarnation });
        assert_eq!(
            left.due_in(),
            Some(expected),
            "expiry {expiry}, delay {delay}, node down"
        );
        assert_eq!(left.due_events(), usize::from(expected == 0));

        let mut left = connected(expiry, delay);
        left.fixture.live(1);
        assert_eq!(
            left.due_in(),
            Some(expected),
            "expiry {expiry}, delay {delay}, node restarted"
        );
    };
    check(60, 0, 0);
    check(60, 5, 5);
    check(60, 90, 60);
    check(0, 5, 0);
    check(u32::MAX, 90, 90);
    check(u32::MAX, u32::MAX, u32::MAX as u64);
}

#[test]
fn session_expiry_of_disconnect_bounds_the_delay() {
    let mut left = connected(60, 50);
    left.fixture.apply(MetaOp::Detach {
        session: left.session,
        epoch: left.epoch,
        expiry: Some(20),
        sent: None,
        publish_will: true,
    });
    assert_eq!(left.due_in(), Some(20));
}

#[test]
fn a_will_becomes_due_in_its_time_and_is_published_once() {
    let mut left = connected(60, 5);
    left.fixture.detach(left.session, left.epoch, true);
    assert_eq!(
        left.fixture.detach(left.session, left.epoch, true),
        MetaReply::Done,
        "a repeat"
    );
    assert_eq!(left.published(), MetaReply::Stale, "nobody may publish it yet");
    left.fixture.now += 4_999;
    assert_eq!(left.due_wills(), MetaReply::Due { count: 0 });
    left.fixture.now += 1;
    assert_eq!(left.due_events(), 0);
    assert_eq!(left.due_wills(), MetaReply::Due { count: 1 });
    assert_eq!((left.due_in(), left.due_events()), (Some(0), 1));
    left.fixture.reload();
    assert_eq!(left.due_wills(), MetaReply::Due { count: 0 });
    assert_eq!(
        left.fixture.view.read().due_wills().next().unwrap().2.message,
        "last words"
    );
    assert_eq!(left.published(), MetaReply::Done);
    assert_eq!(left.published(), MetaReply::Stale, "a repeat");
    assert_eq!((left.due_in(), left.due_events()), (None, 0));
    assert_eq!(left.fixture.view.read().will_counts(), (0, 0));
}

#[test]
fn wills_become_due_oldest_first() {
    let mut fixture = Fixture::new();
    let owner = fixture.live(1);
    let left: Vec<_> = [30, 10, 20]
        .into_iter()
        .map(|delay| {
            let (session, epoch, ..) = fixture.connect_with(&delay.to_string(), false, 60, owner, will(delay));
            fixture.detach(session, epoch, true);
            session
        })
        .collect();
    fixture.now += 60_000;
    fixture.apply(MetaOp::DueWills { limit: 2 });
    let due: Vec<SessionId> = fixture.view.read().due_wills().map(|(session, ..)| session).collect();
    assert_eq!(due, [left[1], left[2]]);
    assert_eq!(fixture.view.read().will_counts(), (3, 2));
}

#[test]
fn a_session_resumed_in_time_discards_the_will() {
    let mut left = connected(60, 5);
    left.fixture.detach(left.session, left.epoch, true);
    left.fixture.now += 4_999;
    assert!(left.fixture.connect("c", false, 60, left.owner).2);
    assert_eq!((left.due_in(), left.due_events()), (None, 0));
}

#[test]
fn a_session_resumed_too_late_does_not() {
    let mut left = connected(60, 5);
    left.fixture.detach(left.session, left.epoch, true);
    left.fixture.now += 5_000;
    let (_, epoch, present, _) = left.fixture.connect_with("c", false, 60, left.owner, will(5));
    assert!(present);
    assert_eq!((left.due_in(), left.due_events()), (Some(0), 1));
    // The wills of two connections are two.
    left.fixture.detach(left.session, epoch, true);
    assert_eq!(left.fixture.view.read().will_counts(), (2, 1));
    left.fixture.connect("c", false, 60, left.owner);
    assert_eq!(left.fixture.view.read().will_counts(), (1, 1), "what is due stays");
    assert_eq!(left.published(), MetaReply::Done);
}

#[test]
fn a_take_over_publishes_without_delay_or_with_the_sessions_end() {
    let check = |expiry, delay, clean_start, expected| {
        let mut left = connected(expiry, delay);
        left.fixture.connect("c", clean_start, 60, left.owner);
        let found = (left.due_in(), left.due_events());
        assert_eq!(
            found.0.is_some(),
            expected,
            "expiry {expiry}, delay {delay}, clean start {clean_start}"
        );
        assert_eq!(found.1, usize::from(expected));
    };
    check(60, 0, false, true);
    check(60, 5, false, false);
    check(60, 0, true, true);
    check(60, 5, true, true);
    check(0, 0, false, true);
    check(0, 5, false, true);
}

#[test]
fn the_end_of_the_session_ends_the_delay() {
    let check = |name: &str, end: &dyn Fn(&mut Left)| {
        let mut left = connected(60, 50);
        left.fixture.detach(left.session, left.epoch, true);
        assert_eq!(left.due_in(), Some(50));
        end(&mut left);
        assert!(left.fixture.view.read().session(left.session).is_none(), "{name}");
        assert_eq!(
            (left.due_in(), left.due_events()),
            (Some(0), 1),
            "{name}: the will outlives its session"
        );
        assert_eq!(left.published(), MetaReply::Done);
    };
    check("clean start", &|left| {
        left.fixture.connect("c", true, 60, left.owner);
    });
    check("ended", &|left| {
        left.fixture.apply(MetaOp::EndSession {
            session: left.session,
            epoch: None,
        });
    });
    check("expired", &|left| {
        left.fixture.now += 61_000;
        left.fixture.apply(MetaOp::ExpireSessions { limit: 10 });
    });
    check("expired, found at Connect", &|left| {
        left.fixture.now += 61_000;
        assert!(!left.fixture.connect("c", false, 60, left.owner).2);
    });
}

#[test]
fn a_repeated_connect_schedules_nothing_twice() {
    let mut left = connected(60, 0);
    let connect = MetaOp::Connect {
        client_id: "c".into(),
        clean_start: false,
        expiry: 60,
        node: 1,
        incarnation: left.owner.incarnation,
        request: 1_000,
        will: will(0),
    };
    let first = left.fixture.apply(connect.clone());
    assert_eq!(left.due_events(), 1);
    assert_eq!(left.published(), MetaReply::Done);
    assert_eq!(left.fixture.apply(connect), first);
    assert_eq!((left.due_in(), left.due_events()), (None, 0));
    assert_eq!(left.fixture.view.read().will_counts(), (0, 0));
}

#[test]
fn disconnect_after_node_down_counts_until_the_will_is_due() {
    let mut left = connected(60, 5);
    let restart = |left: &mut Left| left.fixture.live(1);
    restart(&mut left);
    assert_eq!(left.due_in(), Some(5));
    assert_eq!(left.fixture.detach(left.session, left.epoch, false), MetaReply::Done);
    assert_eq!(left.due_in(), None);
    assert_eq!(
        left.fixture.detach(left.session, left.epoch, false),
        MetaReply::Done,
        "a repeat"
    );

    let mut left = connected(60, 5);
    restart(&mut left);
    left.fixture.now += 5_000;
    assert_eq!(
        left.fixture.detach(left.session, left.epoch, false),
        MetaReply::Stale,
        "nobody tells the client that there is no will"
    );
    assert_eq!((left.due_in(), left.due_events()), (Some(0), 1));
}

#[test]
fn a_session_is_ended_while_it_is_served() {
    let mut left = connected(60, 50);
    let end = |epoch| MetaOp::EndSession {
        session: left.session,
        epoch,
    };
    assert_eq!(left.fixture.apply(end(Some(SessionEpoch(7)))), MetaReply::Stale);
    assert_eq!(left.fixture.apply(end(Some(left.epoch))), MetaReply::Done);
    assert_eq!(
        left.fixture.events(),
        [
            MetaEvent::Displaced {
                session: left.session,
                epoch: left.epoch,
                owner: left.owner
            },
            MetaEvent::WillDue {
                session: left.session,
                epoch: left.epoch
            },
            MetaEvent::SessionEnded {
                session: left.session,
                durable: true
            },
        ]
    );
    assert_eq!(left.fixture.apply(end(None)), MetaReply::Stale, "a repeat");
    assert_eq!(left.published(), MetaReply::Done);
    assert_eq!(left.fixture.rows(), 0);
}
