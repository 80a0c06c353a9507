//! `flow`: subscribers that take little at a time, keep acknowledgements back, or do not read.

use super::publishers::{Plan, publisher, share};
use super::subscribers::{Habits, drain};
use super::{Cast, Part, version};
use crate::client::{Acks, Connected, Filter, Options, Stage};
use crate::mqtt::Version;
use std::collections::BTreeSet;
use std::time::Duration;

pub fn cast(cast: &mut Cast) {
    let topics = cast.topics("f", TOPICS);
    for index in 0..PUBLISHERS {
        let plan = Plan {
            window: 16,
            ..Plan::new(topics.clone(), share(cast.rate / 2, PUBLISHERS))
        };
        let part = cast.part(&format!("p{index}"), version(index));
        let open = cast.scene.publisher();
        cast.play(publisher(part, plan, open));
    }
    for index in 0..SUBSCRIBERS {
        let version = if index % 3 == 2 { Version::V311 } else { Version::V5 };
        // The smallest window gets few topics: it takes a round trip for each message.
        let filters = match index % 4 {
            0 => topics
                .iter()
                .skip(index)
                .step_by(24)
                .map(|topic| Filter::new(topic, 2))
                .collect(),
            _ => vec![Filter::new(cast.topic("f/#"), 2)],
        };
        let habits = Habits {
            options: Options {
                receive_maximum: version.is_5().then_some([1, 3, 10, 7][index % 4]),
                ..Options::persistent()
            },
            ..Habits::new(filters)
        };
        let part = cast.part(&format!("s{index}"), version);
        cast.play(reluctant(part, habits));
    }
}

/// A subscriber that misuses, in turn, each way to be slow.
async fn reluctant(mut part: Part, habits: Habits) {
    let mut subscribed = BTreeSet::new();
    attach(&mut part, &habits, &mut subscribed).await;
    part.ready();
    while part.scene.stage() < Stage::Drain {
        attach(&mut part, &habits, &mut subscribed).await;
        let time = Duration::from_millis(part.client.random.between(300, 2_000));
        match part.client.random.below(5) {
            0 => {
                part.client.acks.withhold = true;
                part.client.pass(time).await;
                part.client.acknowledge_withheld();
            }
            1 => {
                part.client.acks.withhold = true;
                part.client.pass(time).await;
                part.client.cut();
                part.client.acks.withhold = false;
            }
            2 => part.client.read_nothing(time).await,
            3 => {
                part.client.acks.delay = (Duration::ZERO, Duration::from_millis(40));
                part.client.pass(time).await;
                part.client.acks = Acks::default();
            }
            _ => part.client.pass(time * 2).await,
        }
    }
    part.client.acks = Acks::default();
    drain(&mut part, &habits, &mut subscribed).await;
    part.client.disconnect(0, None).await;
}

async fn attach(part: &mut Part, habits: &Habits, subscribed: &mut BTreeSet<String>) {
    while !part.client.is_connected() || subscribed.len() < habits.filters.len() {
        if part.scene.stage() >= Stage::Drain {
            return;
        }
        if !part.client.is_connected() {
            match part.client.connect_anywhere(&habits.options).await {
                Connected::Served { present: false } => subscribed.clear(),
                Connected::Served { present: true } => {}
                _ => {
                    part.client.pass(Duration::from_millis(200)).await;
                    continue;
                }
            }
        }
        for filter in &habits.filters {
            if !subscribed.contains(&filter.filter)
                && part.client.subscribe(filter).await.is_some_and(|code| code < 0x80)
            {
                subscribed.insert(filter.filter.clone());
            }
        }
    }
    part.client.mark_resumed();
}

const PUBLISHERS: usize = 4;
const SUBSCRIBERS: usize = 6;
const TOPICS: usize = 48;
