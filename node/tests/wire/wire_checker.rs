//! The checker of the fault tests can say no: each planted fault is found under its own name. And it does not cry wolf:
//! what the promises allow passes.

use crate::support::checker::{
    Consumer, Delivery, History, Message, MessageId, Outcome, Position, Producer, check, matches,
};
use std::time::Duration;

/// Two producers of ten messages to `load/<sequence mod 2>/a`, all acknowledged; two consumers that got everything once.
fn good() -> History {
    let topic = |sequence: usize| format!("load/{}/a", sequence % 2);
    let message = |sequence| Message {
        topic: topic(sequence),
        sends: 1,
        outcome: Outcome::Acknowledged,
        first_sent: Duration::ZERO,
        acknowledged: Some(Duration::ZERO),
    };
    let producer = || Producer {
        messages: (0..10).map(message).collect(),
        misbehaved: Vec::new(),
    };
    let deliveries = (0..10).flat_map(|sequence| {
        [0, 1].map(|producer| Delivery {
            message: Some(MessageId { producer, sequence }),
            topic: topic(sequence),
            dup: false,
            connection: 1,
        })
    });
    let deliveries: Vec<_> = deliveries.collect();
    let consumer = |name: &str, filter: &str| Consumer {
        name: name.into(),
        filters: vec![filter.into()],
        deliveries: deliveries.clone(),
        misbehaved: Vec::new(),
    };
    History {
        producers: vec![producer(), producer()],
        consumers: vec![consumer("all", "load/#"), consumer("b", "load/+/a")],
    }
}

/// The kinds found after `plant` changed a good history, without repeats.
fn kinds(plant: impl FnOnce(&mut History)) -> Vec<&'static str> {
    let mut history = good();
    plant(&mut history);
    let mut kinds: Vec<_> = check(&history).iter().map(|violation| violation.kind()).collect();
    kinds.dedup();
    kinds
}

fn again(history: &mut History, dup: bool, connection: u32) {
    let copy = Delivery {
        dup,
        connection,
        ..history.consumers[0].deliveries[4].clone()
    };
    history.consumers[0].deliveries.push(copy);
}

#[test]
fn a_good_history_passes() {
    assert_eq!(kinds(|_| ()), [""; 0]);
}

#[test]
fn a_lost_message_is_found_in_the_middle_and_at_the_tail() {
    for (index, position) in [(8, Position::Middle), (18, Position::Tail)] {
        let mut history = good();
        let lost = history.consumers[0].deliveries.remove(index);
        let found = check(&history);
        assert!(
            matches!(&found[..], [crate::support::checker::Violation::Lost { message, position: at, .. }]
                if Some(*message) == lost.message && *at == position),
            "{found:?}"
        );
        assert_eq!(crate::support::checker::owed(&history, &history.consumers[0]), 1);
    }
    assert_eq!(kinds(|history| history.consumers[1].deliveries.clear()), ["lost"]);
}

#[test]
fn an_unacknowledged_message_may_be_missing_or_there() {
    assert_eq!(
        kinds(|history| {
            history.producers[0].messages[9].outcome = Outcome::Open;
            history.consumers[0].deliveries.retain(|d| {
                d.message
                    != Some(MessageId {
                        producer: 0,
                        sequence: 9,
                    })
            });
        }),
        [""; 0]
    );
}

#[test]
fn a_reorder_within_a_publisher_and_topic_is_found() {
    let swapped = kinds(|history| {
        for consumer in &mut history.consumers {
            consumer.deliveries.swap(4, 8);
        }
    });
    assert_eq!(swapped, ["reordered"]);
}

#[test]
fn topics_and_publishers_may_interleave() {
    let interleaved = kinds(|history| {
        for consumer in &mut history.consumers {
            // Stable, so that order within a topic stays.
            consumer.deliveries.sort_by_key(|delivery| delivery.topic.clone());
        }
    });
    assert_eq!(interleaved, [""; 0]);
}

#[test]
fn consumers_that_disagree_on_the_order_of_a_topic_are_found() {
    assert_eq!(
        kinds(|history| history.consumers[1].deliveries.swap(4, 5)),
        ["total-order"]
    );
}

#[test]
fn a_phantom_is_found_whatever_is_wrong_with_it() {
    let phantom = |change: fn(&mut Delivery)| {
        kinds(|history| {
            let mut delivery = history.consumers[0].deliveries[4].clone();
            change(&mut delivery);
            history.consumers[0].deliveries.push(delivery);
        })
    };
    let never_sent = phantom(|delivery| {
        delivery.message = Some(MessageId {
            producer: 1,
            sequence: 10,
        })
    });
    assert_eq!(never_sent, ["phantom"]);
    assert_eq!(
        phantom(|delivery| delivery.message = Some(MessageId {
            producer: 2,
            sequence: 0
        })),
        ["phantom"]
    );
    assert_eq!(phantom(|delivery| delivery.message = None), ["phantom"]);
    assert!(phantom(|delivery| delivery.topic = "load/1/a".into()).contains(&"phantom"));
}

#[test]
fn a_refused_message_that_was_delivered_is_found() {
    let refused = |sends: u32| {
        kinds(|history| {
            let message = &mut history.producers[0].messages[3];
            message.outcome = Outcome::Refused(0x97);
            message.sends = sends;
        })
    };
    assert_eq!(refused(1), ["refused-delivered"]);
    assert_eq!(refused(2), [""; 0], "an earlier send of it may have been taken");
}

#[test]
fn a_repeat_needs_dup_and_a_new_connection_or_a_second_send() {
    assert_eq!(
        kinds(|history| again(history, true, 2)),
        [""; 0],
        "re-delivery after a reconnect"
    );
    assert_eq!(
        kinds(|history| again(history, false, 2)),
        ["unexplained-duplicate"],
        "DUP is missing"
    );
    assert_eq!(
        kinds(|history| again(history, true, 1)),
        ["unexplained-duplicate"],
        "re-sent without a reconnect"
    );
    let sent_twice = kinds(|history| {
        history.producers[0].messages[2].sends = 2;
        again(history, false, 1);
    });
    assert_eq!(sent_twice, [""; 0], "the producer sent it twice");
    let three = kinds(|history| {
        history.producers[0].messages[2].sends = 2;
        again(history, false, 2);
        again(history, false, 3);
    });
    assert_eq!(three, ["unexplained-duplicate"], "three copies of two sends");
}

#[test]
fn a_delivery_that_no_filter_asked_for_is_found() {
    assert_eq!(
        kinds(|history| history.consumers[1].filters = vec!["load/0/a".into()]),
        ["not-subscribed"]
    );
}

#[test]
fn what_a_client_saw_itself_counts() {
    assert_eq!(
        kinds(|history| history.consumers[1].misbehaved.push("session lost".into())),
        ["misbehaved"]
    );
    assert_eq!(
        kinds(|history| history.producers[1].misbehaved.push("order".into())),
        ["misbehaved"]
    );
}

#[test]
fn filters_match_as_the_standard_says() {
    for (filter, topic, expected) in [
        ("a/b", "a/b", true),
        ("a/b", "a/c", false),
        ("a/#", "a", true),
        ("a/#", "a/b/c", true),
        ("a/#", "ab", false),
        ("+", "a", true),
        ("+", "a/b", false),
        ("+", "/a", false),
        ("/+", "/a", true),
        ("+/+", "/a", true),
        ("a/+/c", "a//c", true),
        ("a/+", "a", false),
        ("#", "a/b", true),
        ("#", "$SYS/a", false),
        ("+/a", "$SYS/a", false),
        ("$SYS/#", "$SYS/a", true),
    ] {
        assert_eq!(matches(filter, topic), expected, "{filter} {topic}");
    }
}
