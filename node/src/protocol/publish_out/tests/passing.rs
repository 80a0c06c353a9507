//! Deliveries that are in no queue of the session: ephemeral, and those of a group.

use std::time::Duration;

use super::*;

pub(super) fn delivery(qos: u8, payload: &str) -> Delivery {
    Delivery {
        message: message(payload),
        qos,
        retain: false,
        subscription_identifiers: vec![],
        age: None,
        settle: None,
    }
}

/// Of a group's queue, appended at log time 1,000 ms, to be delivered within 5 s.
fn assigned(qos: u8, offset: u64) -> Delivery {
    let message = Message {
        expiry_interval: Some(5),
        ..(*message("m")).clone()
    };
    Delivery {
        message: Arc::new(message),
        age: Some(LogTime(1000)),
        settle: Some((S, Offset(offset))),
        ..delivery(qos, "m")
    }
}

fn ephemeral(version: Version, receive_maximum: u16) -> Fixture {
    Fixture::of(Answers::of_version(version), receive_maximum, 0, false)
}

fn id(value: u16) -> NonZeroU16 {
    NonZeroU16::new(value).unwrap()
}

/// What is left of the Message Expiry Interval in each PUBLISH that leaves.
fn left(fixture: &mut Fixture) -> Vec<Option<u32>> {
    let packets = fixture.packets().into_iter();
    let left = packets.map(|packet| match packet {
        Packet::Publish(publish) => publish.message_expiry_interval(),
        other => panic!("{other:?}"),
    });
    left.collect()
}

#[test]
fn qos_2_without_a_queue_needs_no_commit() {
    let mut fixture = ephemeral(Version::V5, 1);
    fixture.deliver(delivery(2, "a"), None);
    fixture.deliver(delivery(2, "b"), None);
    assert_eq!(fixture.told(), ["PUBLISH 1 q2"]);
    let Fixture {
        outbound, out, effects, ..
    } = &mut fixture;
    outbound.pubrec(id(1), ReasonCode::SUCCESS, out, effects);
    assert_eq!(out[..], [0x62, 2, 0, 1], "at once");
    assert_eq!(fixture.told(), ["PUBREL 1"]);
    assert!(fixture.outbound.pubcomp(id(1), &mut fixture.effects));
    assert_eq!(fixture.told(), ["PUBLISH 2 q2"]);
    assert_eq!(fixture.wishes(), []);
}

#[test]
fn a_refused_qos_2_frees_its_identifier() {
    let mut fixture = ephemeral(Version::V5, 1);
    fixture.deliver(delivery(2, "a"), None);
    let Fixture {
        outbound, out, effects, ..
    } = &mut fixture;
    outbound.pubrec(id(1), ReasonCode::QUOTA_EXCEEDED, out, effects);
    assert_eq!(fixture.outbound.free_quota(), 1);
    assert_eq!(fixture.told(), ["PUBLISH 1 q2"]);
}

#[test]
fn an_assigned_message_is_settled_when_it_is_over() {
    let settled = |qos: u8, end: fn(&mut Fixture)| {
        let mut fixture = ephemeral(Version::V5, 10);
        fixture.deliver(assigned(qos, 7), None);
        fixture.packets();
        end(&mut fixture);
        fixture.packets();
        fixture.wishes()
    };
    let settle = |id| vec![Wish::Settle(S, Offset(7), id, Left::Delivered)];
    assert_eq!(settled(0, |_| ()), settle(0));
    assert_eq!(settled(1, |_| ()), []);
    assert_eq!(settled(1, |fixture| fixture.ack(1)), settle(1));
    let receive = |fixture: &mut Fixture| {
        let Fixture {
            outbound, out, effects, ..
        } = fixture;
        outbound.pubrec(id(1), ReasonCode::SUCCESS, out, effects);
    };
    assert_eq!(settled(2, receive), []);
    let complete = |fixture: &mut Fixture| {
        let Fixture {
            outbound, out, effects, ..
        } = fixture;
        outbound.pubrec(id(1), ReasonCode::SUCCESS, out, effects);
        assert!(outbound.pubcomp(id(1), effects));
        assert!(!outbound.in_flight.is_busy(1), "free at once");
    };
    assert_eq!(settled(2, complete), settle(1));
}

#[test]
fn an_assigned_message_that_is_dropped_is_settled() {
    let answers = Answers {
        packet_size_max: 4,
        ..Answers::of_version(Version::V5)
    };
    for (answers, log_time, reason, how) in [
        (answers, 1000, Drop::TooLarge, Left::TooLarge),
        (Answers::of_version(Version::V5), 6000, Drop::Expired, Left::Expired),
    ] {
        let mut fixture = Fixture::of(answers, 10, 0, false);
        fixture.log_time = LogTime(log_time);
        fixture.deliver(assigned(1, 7), None);
        assert_eq!(fixture.packets(), []);
        assert_eq!(fixture.wishes(), [Wish::Settle(S, Offset(7), 0, how)]);
        assert_eq!(fixture.effects.dropped, [reason]);
    }
}

#[test]
fn what_is_left_of_the_expiry_interval_replaces_it() {
    let mut fixture = ephemeral(Version::V5, 1);
    fixture.log_time = LogTime(3500);
    fixture.deliver(assigned(0, 7), None);
    assert_eq!(left(&mut fixture), [Some(3)], "2.5 s of 5 s in a group's queue");
    // One that waits for quota.
    for _ in 0..3 {
        let fresh = Delivery {
            settle: None,
            age: None,
            ..assigned(1, 7)
        };
        fixture.deliver(fresh, None);
    }
    assert_eq!(left(&mut fixture), [Some(5)]);
    fixture.now += Duration::from_millis(1500);
    fixture.ack(1);
    assert_eq!(left(&mut fixture), [Some(4)]);
    fixture.now += Duration::from_millis(3500);
    fixture.ack(2);
    assert_eq!(left(&mut fixture), []);
    assert_eq!(fixture.effects.dropped, [Drop::Expired]);
}

#[test]
fn free_quota_is_what_neither_waits_nor_is_in_flight() {
    let mut fixture = ephemeral(Version::V5, 5);
    assert_eq!(fixture.outbound.free_quota(), 5);
    for n in 0..3 {
        fixture.deliver(assigned(1, n), None);
    }
    assert_eq!(fixture.outbound.free_quota(), 2, "waiting");
    fixture.packets();
    assert_eq!(fixture.outbound.free_quota(), 2, "in flight");
    fixture.ack(1);
    assert_eq!(fixture.outbound.free_quota(), 3);
    let mut durable = Fixture::new(5);
    durable.page(&[1, 2], 2, false);
    assert_eq!(durable.outbound.free_quota(), 3, "ready");
}

#[test]
fn a_client_that_takes_aliases_gets_each_topic_once() {
    let topics = |maximum: u16, packet_size_max: u32, sent: &[&str]| {
        let answers = Answers {
            packet_size_max,
            ..Answers::of_version(Version::V5)
        };
        let mut fixture = Fixture::of(answers, 10, maximum, false);
        for topic in sent {
            let message = Message {
                topic: (*topic).into(),
                ..(*message("m")).clone()
            };
            let delivery = Delivery {
                message: Arc::new(message),
                ..delivery(0, "m")
            };
            fixture.deliver(delivery, None);
        }
        let publishes = fixture.packets().into_iter().map(|packet| match packet {
            Packet::Publish(publish) => (publish.topic().to_owned(), publish.topic_alias()),
            other => panic!("{other:?}"),
        });
        publishes.collect::<Vec<_>>()
    };
    let sent = |topics: &[(&str, Option<u16>)]| -> Vec<(String, Option<u16>)> {
        topics
            .iter()
            .map(|(topic, alias)| ((*topic).to_owned(), *alias))
            .collect()
    };
    let twice = ["topic/a", "topic/a"];
    assert_eq!(topics(0, 100, &twice), sent(&[("topic/a", None), ("topic/a", None)]));
    assert_eq!(topics(1, 100, &twice), sent(&[("topic/a", Some(1)), ("", Some(1))]));
    // The alias would make the first too large: neither uses it. 2 + 2 + 7 + 1 + 1 bytes.
    assert_eq!(topics(1, 13, &twice), sent(&[("topic/a", None), ("topic/a", None)]));
}

#[test]
fn frames_are_shared_only_where_nothing_differs() {
    let mut plain = ephemeral(Version::V5, 10);
    let mut frames = FrameCache::default();
    let both = |identifiers: &[u32]| Delivery {
        subscription_identifiers: identifiers.to_vec(),
        ..delivery(1, "m")
    };
    for identifiers in [&[7, 9][..], &[8], &[]] {
        let Fixture {
            outbound, out, effects, ..
        } = &mut plain;
        outbound.deliver(both(identifiers), None, &mut frames, out, effects);
    }
    let identifiers = plain.packets().into_iter().map(|packet| match packet {
        Packet::Publish(publish) => publish.subscription_identifiers().collect::<Vec<u32>>(),
        other => panic!("{other:?}"),
    });
    assert_eq!(identifiers.collect::<Vec<_>>(), [vec![7, 9], vec![8], vec![]]);
}
