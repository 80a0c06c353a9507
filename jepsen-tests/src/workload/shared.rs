//! `shared`: each message goes to one member of each group, and none is lost while the group has a subscription.

use super::publishers::{Plan, publisher, share};
use super::subscribers::{Habits, Leave, drain, go, subscriber};
use super::{Cast, Part, version};
use crate::client::{Acks, Filter, Options, Stage};
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::time::Instant;

pub fn cast(cast: &mut Cast) {
    let topics = cast.topics("s", TOPICS);
    for index in 0..PUBLISHERS {
        let plan = Plan::new(topics.clone(), share(cast.rate, PUBLISHERS));
        let part = cast.part(&format!("p{index}"), version(index));
        let open = cast.scene.publisher();
        cast.play(publisher(part, plan, open));
    }
    for group in 0..GROUPS {
        let prefix = cast.scene.prefix.clone();
        let filter = |qos| Filter::new(format!("$share/{prefix}g{group}/{prefix}/s/#"), qos);
        for index in 0..MEMBERS {
            let mut part = cast.part(&format!("g{group}m{index}"), version(index));
            let habits = Habits {
                owed_all: false,
                leaves: vec![Leave::Politely, Leave::Cut, Leave::Moved],
                ..Habits::new(vec![filter(1 + (index as u8 + group) % 2)])
            };
            match index {
                // The anchors: with them the group always has a subscription.
                0 | 1 => cast.play(subscriber(part, habits)),
                2 => {
                    part.client.acks.negative = 0.01;
                    cast.play(subscriber(part, habits));
                }
                _ => cast.play(guest(part, habits)),
            }
        }
    }
}

/// A member that joins and leaves the group, and sometimes keeps its acknowledgements back until it is cut.
async fn guest(mut part: Part, habits: Habits) {
    let mut subscribed = BTreeSet::new();
    part.ready();
    part.wait_for(Stage::Load).await;
    while part.scene.stage() == Stage::Load {
        if !part.client.is_connected() && !part.client.connect_anywhere(&Options::persistent()).await.is_served() {
            part.client.pass(Duration::from_millis(200)).await;
            continue;
        }
        let filter = &habits.filters[0];
        if part.client.subscribe(filter).await.is_none_or(|code| code >= 0x80) {
            continue;
        }
        part.client.mark_resumed();
        subscribed.insert(filter.filter.clone());
        let withholds = part.client.random.chance(0.3);
        part.client.acks.withhold = withholds;
        let stay = Duration::from_millis(part.client.random.between(500, 4_000));
        part.client.next_until(Instant::now() + stay).await;
        if withholds {
            go(&mut part.client, Leave::Cut, &habits.options).await;
            part.client.acks = Acks::default();
            continue;
        }
        if part.client.random.chance(0.5) && part.client.unsubscribe(&filter.filter).await.is_some() {
            subscribed.clear();
            let away = Duration::from_millis(part.client.random.between(200, 2_000));
            part.client.next_until(Instant::now() + away).await;
        }
    }
    part.client.acks = Acks::default();
    drain(&mut part, &habits, &mut subscribed).await;
    part.client.disconnect(0, None).await;
}

const PUBLISHERS: usize = 6;
const GROUPS: u8 = 3;
const MEMBERS: usize = 4;
const TOPICS: usize = 48;
