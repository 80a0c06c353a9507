//! `queue`: what is acknowledged reaches every persistent session, in order, QoS 2 once.

use super::publishers::{Plan, deaf, publisher, share};
use super::subscribers::{Habits, Leave, subscriber, talker};
use super::{Cast, version};
use crate::client::Filter;
use crate::mqtt::Version;

pub fn cast(cast: &mut Cast) {
    let topics = cast.topics("q", TOPICS);
    for index in 0..PUBLISHERS {
        let plan = Plan {
            crash: 0.005,
            ..Plan::new(topics.clone(), share(cast.rate, PUBLISHERS))
        };
        let part = cast.part(&format!("p{index}"), version(index));
        let open = cast.scene.publisher();
        cast.play(publisher(part, plan, open));
    }
    for index in 0..DEAF {
        let plan = Plan {
            qos: [0, 0, 1],
            ..Plan::new(topics.clone(), 0.0)
        };
        let part = cast.part(&format!("d{index}"), version(index));
        let open = cast.scene.publisher();
        cast.play(deaf(part, plan, open));
    }
    let everything = cast.topic("q/#");
    let level = cast.topic("q/+");
    let some = |from: usize| {
        topics
            .iter()
            .skip(from)
            .step_by(8)
            .cloned()
            .map(|topic| Filter::new(topic, 2))
            .collect()
    };
    for index in 0..TALKERS {
        let filter = Filter {
            no_local: true,
            id: Some(100 + index as u32),
            ..Filter::new(cast.topic("qt/#"), 2)
        };
        let habits = Habits {
            // Its own messages are not for it.
            owed_all: false,
            ..Habits::new(vec![filter])
        };
        let topics = cast.topics("qt", 4);
        let part = cast.part(&format!("t{index}"), Version::V5);
        let open = cast.scene.publisher();
        cast.play(talker(part, habits, Plan::new(topics, 4.0), open));
    }
    let subscribers: [(Vec<Filter>, &[Leave]); 6] = [
        (vec![identified(&everything)], &[Leave::Politely, Leave::Cut]),
        (vec![Filter::new(&everything, 2)], &[Leave::Cut, Leave::Moved]),
        (vec![Filter::new(&level, 1)], &[Leave::Politely, Leave::Cut]),
        (some(0), &[Leave::Cut, Leave::Moved, Leave::Contended]),
        (some(3), &[Leave::Politely, Leave::Moved]),
        (vec![Filter::new(&level, 2)], &[Leave::Crash, Leave::Cut, Leave::Cut]),
    ];
    for (index, (filters, leaves)) in subscribers.into_iter().enumerate() {
        let habits = Habits {
            leaves: leaves.to_vec(),
            // One that crashes has no claim to what was sent before its last life.
            owed_all: !leaves.contains(&Leave::Crash),
            ..Habits::new(filters)
        };
        let part = cast.part(&format!("s{index}"), version(index));
        cast.play(subscriber(part, habits));
    }
}

/// With a subscription identifier and Retain As Published, where there are any (MQTT 5).
fn identified(filter: &str) -> Filter {
    Filter {
        id: Some(5),
        retain_as_published: true,
        ..Filter::new(filter, 2)
    }
}

const PUBLISHERS: usize = 8;
/// They publish and subscribe to the same topics, with No Local.
const TALKERS: usize = 2;
/// Enough that some send again after each fault what they sent before it.
const DEAF: usize = 4;
/// With 64 all of 12 shards are hit but for one run in twenty.
pub const TOPICS: usize = 64;
