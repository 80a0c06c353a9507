//! Mutators that change what a history has.

use super::{Expect, Mutator, Spoil, acknowledgements};
use crate::checker::model::{Delivery, NEVER, Outcome, Published};
use crate::history::{Event, Kind, Message, Op};
use serde_json::json;

type Row = (&'static str, Expect, fn(&mut Spoil) -> Option<Vec<Event>>);

pub fn mutators() -> Vec<Mutator> {
    use Expect::{Class, Unknown, Valid};
    let table: [Row; 38] = [
        (
            "drop the first delivery of a stream",
            Class("lost-prefix", &[]),
            |spoil| drop_at(spoil, Place::First),
        ),
        ("drop a delivery in the middle", Class("lost-middle", &[]), |spoil| {
            drop_at(spoil, Place::Middle)
        }),
        (
            "drop the last delivery of a stream",
            Class("lost-postfix", &["retained-not-last"]),
            |spoil| drop_at(spoil, Place::Last),
        ),
        (
            "drop all deliveries of a session",
            Class("lost-all", &["missing-will"]),
            drop_session,
        ),
        (
            "drop what a connection-long session got",
            Class("missed-after-suback", &[]),
            drop_ephemeral,
        ),
        ("drop deliveries of a message with unknown outcome", Valid, drop_unknown),
        (
            "forget the acknowledgement of a message and drop it",
            Valid,
            forget_and_drop,
        ),
        ("forget the acknowledgement of a message", Valid, forget),
        (
            "forge 0x10, no matching subscribers",
            Class("forged-no-subscribers", &[]),
            forge_no_subscribers,
        ),
        ("hand a QoS 2 message on twice", Class("duplicate-qos2", &[]), |spoil| {
            again(spoil, Again::SamePid)
        }),
        (
            "repeat QoS 2 under a new identifier",
            Class("new-packet-id", &[]),
            |spoil| again(spoil, Again::NewPid),
        ),
        ("repeat QoS 2 before PUBREL, not handed on", Valid, |spoil| {
            again(spoil, Again::NotHanded)
        }),
        (
            "repeat QoS 1 on its connection without DUP",
            Class("unexplained-duplicate", &[]),
            |spoil| again(spoil, Again::Qos1 { dup: false }),
        ),
        (
            "repeat QoS 1 on its connection with DUP",
            Class("unexplained-duplicate", &[]),
            |spoil| again(spoil, Again::Qos1 { dup: true }),
        ),
        ("repeat QoS 1, sent twice by its publisher", Valid, retransmitted),
        ("repeat QoS 1 on the next connection with DUP", Valid, |spoil| {
            on_next_connection(spoil, true)
        }),
        (
            "repeat QoS 1 on the next connection without DUP",
            Class("missing-dup", &[]),
            |spoil| on_next_connection(spoil, false),
        ),
        ("set DUP on a first copy of a resumed session", Valid, |spoil| {
            set_dup(spoil, true)
        }),
        (
            "set DUP on a first copy of a new session",
            Class("false-dup", &[]),
            |spoil| set_dup(spoil, false),
        ),
        (
            "swap two messages of a publisher",
            Class("reordered", &["order-cycle", "retained-not-last"]),
            swap_own,
        ),
        (
            "swap two messages of two publishers in one session",
            Class("order-cycle", &["retained-not-last"]),
            swap_others,
        ),
        (
            "let a read return an overwritten retained message",
            Class("stale-read", &["retained-not-last"]),
            stale_read,
        ),
        (
            "let a read return what nobody wrote",
            Class("foreign-read", &[]),
            foreign_read,
        ),
        ("tell Session Present 0 where it was 1", Class("amnesia", &[]), amnesia),
        (
            "tell Session Present 1 to a new client",
            Class("phantom-session", &["false-dup"]),
            phantom,
        ),
        (
            "tell Session Present 1 after Clean Start",
            Class("clean-but-present", &[]),
            clean_but_present,
        ),
        ("deliver a will twice", Class("extra-will", &[]), extra_will),
        ("drop a will", Class("missing-will", &[]), missing_will),
        ("drop what a group got", Class("shared-lost", &[]), shared_lost),
        ("alter a payload", Class("altered", &[]), altered),
        (
            "deliver what nobody published",
            Class("from-nowhere", &[]),
            from_nowhere,
        ),
        (
            "refuse what was delivered",
            Class("refused-delivered", &[]),
            refused_delivered,
        ),
        (
            "raise the QoS of a delivery",
            Class("qos", &["duplicate-qos2"]),
            wrong_qos,
        ),
        ("set RETAIN on a live copy", Class("retain-flag", &[]), retain_flag),
        (
            "exchange the subscription identifier",
            Class("subscription-id", &[]),
            subscription_id,
        ),
        ("exceed Receive Maximum", Class("receive-maximum", &[]), receive_maximum),
        ("let replicas differ", Class("diverged", &[]), |spoil| {
            digest(spoil, "digest", json!("other"))
        }),
        ("let a replica stay behind", Class("not-converged", &[]), |spoil| {
            digest(spoil, "applied", json!(1))
        }),
    ];
    let more: [Row; 5] = [
        ("tell the digests of one node only", Unknown, |spoil| {
            let is_digest = |event: &Event| matches!(&event.op, Op::Observe { about, node, .. } if about == "digest" && node.as_deref() != Some("n1"));
            let digests = indexes(spoil, is_digest);
            (!digests.is_empty()).then(|| spoil.without(&digests))
        }),
        ("drop every PUBACK", Valid, |spoil| {
            let is_puback = |event: &Event| matches!(&event.op, Op::AckSent { packet, .. } if packet == "puback");
            let pubacks = indexes(spoil, is_puback);
            (!pubacks.is_empty()).then(|| spoil.without(&pubacks))
        }),
        ("write a panic", Class("panic", &[]), |spoil| {
            let event = note(
                spoil,
                Op::Panic {
                    node: "n1".into(),
                    line: "thread 'main' panicked".into(),
                },
            );
            Some(spoil.inserted(spoil.events.len() / 2, vec![event]))
        }),
        ("let the harness fail", Unknown, |spoil| {
            let event = note(
                spoil,
                Op::HarnessFailure {
                    detail: "no disk".into(),
                },
            );
            Some(spoil.inserted(spoil.events.len() / 2, vec![event]))
        }),
        ("stop before the drain", Unknown, |spoil| {
            let drain = spoil.model.phases.start("drain")?;
            Some(spoil.events[..drain].to_vec())
        }),
    ];
    let all = table.into_iter().chain(more);
    all.map(|(name, expect, apply)| Mutator { name, expect, apply })
        .collect()
}

fn indexes(spoil: &Spoil, wanted: impl Fn(&Event) -> bool) -> Vec<usize> {
    let found = spoil.events.iter().enumerate().filter(|(_, event)| wanted(event));
    found.map(|(index, _)| index).collect()
}

fn note(spoil: &Spoil, op: Op) -> Event {
    Event {
        op,
        process: crate::history::Process::Name("harness".into()),
        kind: Kind::Info,
        ..spoil.events[0].clone()
    }
}

/// A message and all that one life got of it.
struct Got {
    life: u32,
    number: u32,
    at: Vec<usize>,
}

/// What lives got, filtered by the message and the copies.
fn got(spoil: &Spoil, wanted: impl Fn(u32, &Published, &[&Delivery]) -> bool) -> Vec<Got> {
    let model = &spoil.model;
    let mut found = Vec::new();
    for (life, number, copies) in model.copy_groups() {
        if wanted(life, &model.messages[number as usize], &copies) {
            let at = copies.iter().map(|copy| copy.index).collect();
            found.push(Got { life, number, at });
        }
    }
    found
}

/// Owed to a persistent session, and not through a group.
fn is_owed(spoil: &Spoil, life: u32, published: &Published, copies: &[&Delivery]) -> bool {
    let model = &spoil.model;
    let end = model.phases.drain_end;
    let held = model.surely_held(life, published.topic, published.invoke, end - 1);
    published.is_kept()
        && !published.doubtful
        && model.lives[life as usize].persistent
        && held.is_some_and(|hold| hold.least_qos(0, NEVER) > 0)
        && !model.is_shared(life, published.topic)
        && copies.iter().all(|copy| copy.index < end)
}

/// With its acknowledgements, so that they do not stand for other copies.
fn without_copies(spoil: &Spoil, at: &[usize]) -> Vec<Event> {
    let mut removed = at.to_vec();
    for index in at {
        let delivery = spoil.model.deliveries.iter().find(|delivery| delivery.index == *index);
        removed.extend(
            delivery
                .into_iter()
                .flat_map(|delivery| acknowledgements(&spoil.model, delivery)),
        );
    }
    spoil.without(&removed)
}

enum Place {
    First,
    Middle,
    Last,
}

fn drop_at(spoil: &mut Spoil, place: Place) -> Option<Vec<Event>> {
    let all = got(spoil, |life, published, copies| is_owed(spoil, life, published, copies));
    let stream = |got: &Got| {
        let published = &spoil.model.messages[got.number as usize];
        (got.life, published.publisher, published.topic)
    };
    let mut streams: std::collections::BTreeMap<_, Vec<&Got>> = Default::default();
    for one in &all {
        streams.entry(stream(one)).or_default().push(one);
    }
    let mut candidates = Vec::new();
    for owed in streams.values_mut().filter(|owed| owed.len() > 2) {
        owed.sort_by_key(|got| spoil.model.messages[got.number as usize].message.seq);
        let place = match place {
            Place::First => 0,
            Place::Middle => owed.len() / 2,
            Place::Last => owed.len() - 1,
        };
        candidates.push(owed[place].at.clone());
    }
    let at = spoil.choose(candidates)?;
    Some(without_copies(spoil, &at))
}

fn drop_session(spoil: &mut Spoil) -> Option<Vec<Event>> {
    let owed = got(spoil, |life, published, copies| is_owed(spoil, life, published, copies));
    let life = spoil.choose(owed)?.life;
    let of_life = spoil
        .model
        .deliveries
        .iter()
        .filter(|delivery| delivery.life == Some(life));
    let mut removed: Vec<usize> = of_life.map(|delivery| delivery.index).collect();
    let client = spoil.model.client_of(life);
    removed.extend(indexes(
        spoil,
        |event| matches!(&event.op, Op::AckSent { client: by, .. } if by == client),
    ));
    removed.sort_unstable();
    let kept = spoil
        .events
        .iter()
        .enumerate()
        .filter(|(index, _)| removed.binary_search(index).is_err());
    Some(super::renumbered(kept.map(|(_, event)| event.clone()).collect()))
}

fn drop_ephemeral(spoil: &mut Spoil) -> Option<Vec<Event>> {
    let model = &spoil.model;
    let end = model.phases.drain_end;
    let candidates = got(spoil, |life, published, _| {
        let held = model.surely_held(life, published.topic, published.invoke, end);
        published.is_kept() && !model.lives[life as usize].persistent && held.is_some()
    });
    let at = spoil.choose(candidates)?.at;
    Some(without_copies(spoil, &at))
}

/// All copies that anybody got of a message.
fn everywhere(spoil: &Spoil, number: u32) -> Vec<usize> {
    let copies = spoil
        .model
        .deliveries
        .iter()
        .filter(|delivery| delivery.message == Some(number));
    copies.map(|delivery| delivery.index).collect()
}

fn drop_unknown(spoil: &mut Spoil) -> Option<Vec<Event>> {
    let unknown = |published: &Published| published.outcome == Outcome::Info && !published.will && !published.retain;
    let candidates = got(spoil, |_, published, _| unknown(published));
    let number = spoil.choose(candidates)?.number;
    Some(without_copies(spoil, &everywhere(spoil, number)))
}

/// Its completion says `info` instead of `ok`.
fn unanswered(event: &mut Event) {
    event.kind = Kind::Info;
    if let Op::Publish { reason, .. } = &mut event.op {
        *reason = None;
    }
}

fn forget(spoil: &mut Spoil) -> Option<Vec<Event>> {
    let candidates = got(spoil, |_, published, _| published.is_kept());
    let number = spoil.choose(candidates)?.number;
    Some(spoil.with(spoil.model.messages[number as usize].end, unanswered))
}

fn forget_and_drop(spoil: &mut Spoil) -> Option<Vec<Event>> {
    let candidates = got(spoil, |_, published, _| published.is_kept() && !published.retain);
    let number = spoil.choose(candidates)?.number;
    let end = spoil.model.messages[number as usize].end;
    let forgotten = spoil.with(end, unanswered);
    let limits = crate::synthetic::profile().limits;
    let spoil = Spoil::new(&forgotten, &limits, 0);
    Some(without_copies(&spoil, &everywhere(&spoil, number)))
}

fn forge_no_subscribers(spoil: &mut Spoil) -> Option<Vec<Event>> {
    let candidates = got(spoil, |life, published, copies| is_owed(spoil, life, published, copies));
    let number = spoil.choose(candidates)?.number;
    Some(spoil.with(spoil.model.messages[number as usize].end, |event| {
        if let Op::Publish { reason, .. } = &mut event.op {
            *reason = Some(0x10);
        }
    }))
}

enum Again {
    SamePid,
    NewPid,
    NotHanded,
    Qos1 { dup: bool },
}

/// Puts another copy right after the only one.
fn again(spoil: &mut Spoil, how: Again) -> Option<Vec<Event>> {
    let wanted = if matches!(how, Again::Qos1 { .. }) { 1 } else { 2 };
    let model = &spoil.model;
    let candidates = got(spoil, |life, published, copies| {
        let once = copies.len() == 1 && copies[0].qos == wanted && published.send_count == 1;
        once && published.qos == wanted
            && model.is_live(copies[0])
            && !model.is_shared(life, published.topic)
            && !published.will
    });
    let at = spoil.choose(candidates)?.at[0];
    let mut copy = spoil.events[at].clone();
    if let Op::Recv { pid, dup, handed, .. } = &mut copy.op {
        match how {
            Again::SamePid => *dup = true,
            Again::NewPid => *pid = 65_000,
            Again::NotHanded => (*dup, *handed) = (true, false),
            Again::Qos1 { dup: set } => (*pid, *dup) = (65_000, set),
        }
    }
    Some(spoil.inserted(at, vec![copy]))
}

fn retransmitted(spoil: &mut Spoil) -> Option<Vec<Event>> {
    let model = &spoil.model;
    let candidates = got(spoil, |life, published, copies| {
        let once = copies.len() == 1 && copies[0].qos == 1 && published.qos == 1 && published.send_count == 1;
        once && published.is_kept() && !copies[0].dup && !model.is_shared(life, published.topic)
    });
    let chosen = spoil.choose(candidates)?;
    let end = spoil.model.messages[chosen.number as usize].end;
    let mut copy = spoil.events[chosen.at[0]].clone();
    if let Op::Recv { pid, .. } = &mut copy.op {
        *pid = 65_000;
    }
    let mut events = spoil.with(end, |event| {
        if let Op::Publish { sends, .. } = &mut event.op {
            *sends = Some(2);
        }
    });
    events.insert(chosen.at[0] + 1, copy);
    Some(super::renumbered(events))
}

/// The only copy, of QoS 1, comes again first of all on the session's next connection; its PUBACK was never sent.
fn on_next_connection(spoil: &mut Spoil, with_dup: bool) -> Option<Vec<Event>> {
    let model = &spoil.model;
    let next = |life: u32, connection: u32| {
        let connections = &model.lives[life as usize].connections;
        let at = connections.iter().position(|at| *at == connection)?;
        connections.get(at + 1).copied()
    };
    let candidates = got(spoil, |life, published, copies| {
        let [only] = copies else { return false };
        let once = only.qos == 1 && published.qos == 1 && published.send_count == 1 && !only.dup;
        once && model.is_live(only)
            && !model.is_shared(life, published.topic)
            && next(life, only.connection).is_some_and(|next| model.connections[next as usize].answer > only.index)
    });
    let chosen = spoil.choose(candidates)?;
    let model = &spoil.model;
    let delivery = model
        .deliveries
        .iter()
        .find(|delivery| delivery.index == chosen.at[0])?;
    let connections = &model.lives[chosen.life as usize].connections;
    let at = connections.iter().position(|at| *at == delivery.connection)?;
    let next = &model.connections[connections[at + 1] as usize];
    let mut copy = spoil.events[delivery.index].clone();
    if let Op::Recv {
        conn, dup, in_flight, ..
    } = &mut copy.op
    {
        (*conn, *dup, *in_flight) = (next.number, with_dup, 1);
    }
    let acks = acknowledgements(model, delivery);
    let mut events = spoil.events.to_vec();
    events.insert(next.answer + 1, copy);
    let mut kept = Vec::new();
    for (index, event) in events.into_iter().enumerate() {
        let before = if index > next.answer { index - 1 } else { index };
        if index == next.answer + 1 || !acks.contains(&before) {
            kept.push(event);
        }
    }
    Some(super::renumbered(kept))
}

fn set_dup(spoil: &mut Spoil, resumed: bool) -> Option<Vec<Event>> {
    let model = &spoil.model;
    let candidates = got(spoil, |life, published, copies| {
        let connection = &model.connections[copies[0].connection as usize];
        let first = model.lives[life as usize].connections[0] == copies[0].connection;
        let known = connection.session_present == Some(resumed) && first != resumed;
        known
            && !published.will
            && copies[0].qos == 1
            && published.qos == 1
            && copies.len() == 1
            && model.is_live(copies[0])
    });
    let at = spoil.choose(candidates)?.at[0];
    Some(spoil.with(at, |event| {
        if let Op::Recv { dup, .. } = &mut event.op {
            *dup = true;
        }
    }))
}

/// Exchanges the messages of two deliveries.
fn swapped(spoil: &Spoil, a: usize, b: usize) -> Vec<Event> {
    let mut events = spoil.events.to_vec();
    let message = |events: &[Event], at: usize| match &events[at].op {
        Op::Recv { message, .. } => message.clone(),
        _ => None,
    };
    let (of_a, of_b) = (message(&events, a), message(&events, b));
    for (at, new) in [(a, of_b), (b, of_a)] {
        if let Op::Recv { message, .. } = &mut events[at].op {
            *message = new;
        }
    }
    events
}

/// Pairs of neighbouring single copies of one topic in one life and on one connection.
fn neighbours(spoil: &Spoil, wanted: impl Fn(&Published, &Published) -> bool) -> Vec<(usize, usize)> {
    let model = &spoil.model;
    let mut last: std::collections::BTreeMap<(u32, u32), &Delivery> = Default::default();
    let mut pairs = Vec::new();
    let single = |delivery: &Delivery| {
        let (Some(life), Some(number)) = (delivery.life, delivery.message) else {
            return false;
        };
        let published = &model.messages[number as usize];
        published.send_count == 1
            && model.copies(life, number).count() == 1
            && delivery.qos > 0
            && model.is_live(delivery)
            && !model.is_shared(life, published.topic)
            && model.lives[life as usize].persistent
    };
    for delivery in model.deliveries.iter().filter(|delivery| delivery.message.is_some()) {
        let (Some(life), Some(number)) = (delivery.life, delivery.message) else {
            continue;
        };
        let published = &model.messages[number as usize];
        let before = last.insert((life, published.topic), delivery);
        let Some(before) = before.filter(|before| before.connection == delivery.connection) else {
            continue;
        };
        let Some(first) = before.message.map(|number| &model.messages[number as usize]) else {
            continue;
        };
        let alike = before.qos == delivery.qos && before.dup == delivery.dup && before.ids == delivery.ids;
        if alike && single(before) && single(delivery) && wanted(first, published) && published.invoke < before.index {
            pairs.push((before.index, delivery.index));
        }
    }
    pairs
}

fn swap_own(spoil: &mut Spoil) -> Option<Vec<Event>> {
    let pairs = neighbours(spoil, |a, b| {
        a.publisher == b.publisher
            && a.qos == b.qos
            && !a.will
            && a.sends.first().map(|at| at.0) == b.sends.first().map(|at| at.0)
    });
    let (a, b) = spoil.choose(pairs)?;
    Some(swapped(spoil, a, b))
}

fn swap_others(spoil: &mut Spoil) -> Option<Vec<Event>> {
    let model = &spoil.model;
    let both_seen = |a: &Published, b: &Published| {
        let saw = |life: u32, published: &Published| {
            model
                .message(published.message)
                .is_some_and(|number| model.copies(life, number).any(|copy| model.is_live(copy)))
        };
        let lives = (0..model.lives.len() as u32).filter(|life| saw(*life, a) && saw(*life, b));
        lives.count() >= 2
    };
    let pairs = neighbours(spoil, |a, b| {
        let concurrent = a.end > b.invoke && b.end > a.invoke;
        a.publisher != b.publisher && a.qos == b.qos && concurrent && !a.will && !b.will && both_seen(a, b)
    });
    let (a, b) = spoil.choose(pairs)?;
    Some(swapped(spoil, a, b))
}

fn read_events(spoil: &Spoil) -> Vec<usize> {
    indexes(spoil, |event| {
        event.kind == Kind::Ok && matches!(event.op, Op::ReadRetained { value: Some(_), .. })
    })
}

fn with_value(spoil: &Spoil, at: usize, new: Message) -> Vec<Event> {
    spoil.with(at, |event| {
        if let Op::ReadRetained { value, .. } = &mut event.op {
            *value = Some(new);
        }
    })
}

fn stale_read(spoil: &mut Spoil) -> Option<Vec<Event>> {
    let model = &spoil.model;
    // After the drain nothing is written: a final read of anything but the last value is stale.
    let reads = read_events(spoil).into_iter().filter(|at| *at > model.phases.drain_end);
    let mut candidates = Vec::new();
    for at in reads {
        let Op::ReadRetained { value: Some(value), .. } = &spoil.events[at].op else {
            continue;
        };
        let Some(current) = model.message(value).map(|number| &model.messages[number as usize]) else {
            continue;
        };
        let older = model.messages.iter().filter(|old| {
            old.retain && old.topic == current.topic && old.end < current.invoke && old.is_single() && old.is_kept()
        });
        candidates.extend(
            older
                .filter(|_| current.is_single())
                .map(|old| (at, old.message.clone())),
        );
    }
    let (at, old) = spoil.choose(candidates)?;
    Some(with_value(spoil, at, old))
}

fn foreign_read(spoil: &mut Spoil) -> Option<Vec<Event>> {
    let at = spoil.choose(read_events(spoil))?;
    let Op::ReadRetained { value: Some(value), .. } = &spoil.events[at].op else {
        return None;
    };
    let mut foreign = value.clone();
    foreign.seq += 1_000_000;
    Some(with_value(spoil, at, foreign))
}

fn with_session_present(spoil: &Spoil, at: usize, present: bool) -> Vec<Event> {
    spoil.with(at, |event| {
        if let Op::Connect { session_present, .. } = &mut event.op {
            *session_present = Some(present);
        }
    })
}

fn amnesia(spoil: &mut Spoil) -> Option<Vec<Event>> {
    let model = &spoil.model;
    // Of clients without subscriptions: what such a session would have got is not asked for here.
    let alone = model.connacks.iter().filter(|step| {
        let plain = !model.holds.iter().any(|hold| hold.client == step.client);
        step.connections.len() == 1 && plain
    });
    let resumed = alone.map(|step| &model.connections[step.connections[0] as usize]);
    let resumed = resumed.filter(|connection| connection.session_present == Some(true));
    let candidates: Vec<usize> = resumed.map(|connection| connection.answer).collect();
    let at = spoil.choose(candidates)?;
    Some(with_session_present(spoil, at, false))
}

fn phantom(spoil: &mut Spoil) -> Option<Vec<Event>> {
    let model = &spoil.model;
    // An unanswered CONNECT before it may have made the session.
    let unanswered = |client: u32| {
        let mut connections = model.connections.iter();
        connections.any(|at| at.client == client && at.outcome == Outcome::Info)
    };
    let new = model.connections.iter().filter(|connection| {
        connection.session_present == Some(false) && !connection.clean && !unanswered(connection.client)
    });
    let candidates: Vec<usize> = new.map(|connection| connection.answer).collect();
    let at = spoil.choose(candidates)?;
    Some(with_session_present(spoil, at, true))
}

fn clean_but_present(spoil: &mut Spoil) -> Option<Vec<Event>> {
    let clean = spoil
        .model
        .connections
        .iter()
        .filter(|connection| connection.session_present == Some(false) && connection.clean);
    let candidates: Vec<usize> = clean.map(|connection| connection.answer).collect();
    let at = spoil.choose(candidates)?;
    Some(with_session_present(spoil, at, true))
}

fn extra_will(spoil: &mut Spoil) -> Option<Vec<Event>> {
    let candidates = got(spoil, |_, published, copies| {
        published.will && copies.len() == 1 && !copies[0].dup
    });
    let at = spoil.choose(candidates)?.at[0];
    let mut copy = spoil.events[at].clone();
    if let Op::Recv { pid, .. } = &mut copy.op {
        *pid = 65_000;
    }
    Some(spoil.inserted(at, vec![copy]))
}

fn missing_will(spoil: &mut Spoil) -> Option<Vec<Event>> {
    let model = &spoil.model;
    let due = |published: &Published| {
        let connection = model
            .connections
            .iter()
            .find(|connection| connection.invoke == published.invoke);
        connection.is_some_and(|connection| {
            let graceful = connection.disconnect.is_some_and(|disconnect| disconnect.reason == 0);
            let at_once = connection.will.is_some_and(|will| will.delay == 0);
            at_once && !graceful && connection.outcome == Outcome::Ok && connection.end.is_some()
        })
    };
    let candidates = got(spoil, |_, published, _| published.will && due(published));
    let at = spoil.choose(candidates)?.at;
    Some(without_copies(spoil, &at))
}

fn shared_lost(spoil: &mut Spoil) -> Option<Vec<Event>> {
    let model = &spoil.model;
    let end = model.phases.drain_end;
    let stands = |published: &Published| {
        model.holds_of_topic(published.topic).iter().any(|hold| {
            let hold = &model.holds[*hold as usize];
            hold.group.is_some() && hold.is_sure_within(published.invoke, end)
        })
    };
    let candidates = got(spoil, |life, published, _| {
        model.is_shared(life, published.topic) && published.is_kept() && !published.doubtful && stands(published)
    });
    let number = spoil.choose(candidates)?.number;
    Some(without_copies(spoil, &everywhere(spoil, number)))
}

fn altered(spoil: &mut Spoil) -> Option<Vec<Event>> {
    let candidates: Vec<usize> = spoil.model.deliveries.iter().map(|delivery| delivery.index).collect();
    let at = spoil.choose(candidates)?;
    Some(spoil.with(at, |event| {
        if let Op::Recv { bad, .. } = &mut event.op {
            *bad = Some("checksum".into());
        }
    }))
}

fn from_nowhere(spoil: &mut Spoil) -> Option<Vec<Event>> {
    let candidates: Vec<usize> = spoil.model.deliveries.iter().map(|delivery| delivery.index).collect();
    let at = spoil.choose(candidates)?;
    let mut copy = spoil.events[at].clone();
    if let Op::Recv {
        message: Some(message),
        pid,
        in_flight,
        ..
    } = &mut copy.op
    {
        message.seq += 1_000_000;
        (*pid, *in_flight) = (65_000, 1);
    }
    Some(spoil.inserted(at, vec![copy]))
}

fn refused_delivered(spoil: &mut Spoil) -> Option<Vec<Event>> {
    let candidates = got(spoil, |_, published, _| {
        published.is_kept() && published.send_count == 1 && !published.retain
    });
    let number = spoil.choose(candidates)?.number;
    Some(spoil.with(spoil.model.messages[number as usize].end, |event| {
        event.kind = Kind::Fail;
        if let Op::Publish { reason, .. } = &mut event.op {
            *reason = Some(0x97);
        }
    }))
}

fn wrong_qos(spoil: &mut Spoil) -> Option<Vec<Event>> {
    let candidates = got(spoil, |_, published, copies| {
        published.qos == 1 && copies.len() == 1 && copies[0].qos == 1
    });
    let at = spoil.choose(candidates)?.at[0];
    Some(spoil.with(at, |event| {
        if let Op::Recv { qos, .. } = &mut event.op {
            *qos = 2;
        }
    }))
}

fn retain_flag(spoil: &mut Spoil) -> Option<Vec<Event>> {
    let model = &spoil.model;
    let candidates = got(spoil, |life, published, copies| {
        !published.retain && copies.len() == 1 && !published.will && !model.is_shared(life, published.topic)
    });
    let at = spoil.choose(candidates)?.at[0];
    Some(spoil.with(at, |event| {
        if let Op::Recv { retain, .. } = &mut event.op {
            *retain = true;
        }
    }))
}

fn subscription_id(spoil: &mut Spoil) -> Option<Vec<Event>> {
    let with_id = spoil
        .model
        .deliveries
        .iter()
        .filter(|delivery| !delivery.ids.is_empty());
    let candidates: Vec<usize> = with_id.map(|delivery| delivery.index).collect();
    let at = spoil.choose(candidates)?;
    let new = if spoil.random.chance(50) { vec![8] } else { Vec::new() };
    Some(spoil.with(at, |event| {
        if let Op::Recv { ids, .. } = &mut event.op {
            *ids = new;
        }
    }))
}

fn receive_maximum(spoil: &mut Spoil) -> Option<Vec<Event>> {
    let candidates: Vec<usize> = spoil.model.deliveries.iter().map(|delivery| delivery.index).collect();
    let at = spoil.choose(candidates)?;
    Some(spoil.with(at, |event| {
        if let Op::Recv { in_flight, .. } = &mut event.op {
            *in_flight = 11;
        }
    }))
}

fn digest(spoil: &mut Spoil, field: &str, new: serde_json::Value) -> Option<Vec<Event>> {
    let candidates = indexes(
        spoil,
        |event| matches!(&event.op, Op::Observe { about, .. } if about == "digest"),
    );
    let at = spoil.choose(candidates)?;
    Some(spoil.with(at, |event| {
        if let Op::Observe { value, .. } = &mut event.op {
            value["meta"][field] = new;
        }
    }))
}
