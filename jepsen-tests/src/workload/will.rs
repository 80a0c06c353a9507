//! `will`: a will comes once after an ungraceful end, and only then; two persistent QoS 2 observers count.

use super::publishers::{Plan, publisher};
use super::subscribers::{Habits, Leave, subscriber};
use super::{Cast, Part, version};
use crate::client::{Filter, Options, Stage, WillPlan};
use std::time::Duration;
use tokio::time::Instant;

pub fn cast(cast: &mut Cast) {
    for index in 0..2 {
        let habits = Habits {
            moves_after: Some((8_000, 15_000)),
            leaves: vec![Leave::Politely, Leave::Moved],
            owed_all: false,
            ..Habits::new(vec![Filter::new(cast.topic("w/#"), 2)])
        };
        let part = cast.part(&format!("s{index}"), version(index));
        cast.play(subscriber(part, habits));
        let plan = Plan::new(cast.topics("w/background", 12), 20.0);
        let part = cast.part(&format!("p{index}"), version(index));
        let open = cast.scene.publisher();
        cast.play(publisher(part, plan, open));
    }
    let topics = cast.topics("w", TOPICS);
    for index in 0..MORTALS {
        let part = cast.part(&format!("m{index}"), version(index));
        cast.play(mortal(part, topics.clone(), [0, 60][index / 2 % 2]));
    }
}

/// A client whose connections carry wills; its session expires with them, or after a minute.
async fn mortal(mut part: Part, topics: Vec<String>, expiry: u32) {
    part.ready();
    part.wait_for(Stage::Load).await;
    while part.scene.stage() == Stage::Load {
        let options = options(&mut part, &topics, expiry);
        let node = part.client.random.pick(&part.scene.names()).clone();
        if !part.client.connect(&node, &options).await.is_served() {
            part.client.pass(Duration::from_millis(300)).await;
            continue;
        }
        let stay = Instant::now() + Duration::from_millis(part.client.random.between(300, 4_000));
        while part.scene.stage() == Stage::Load && Instant::now() < stay && part.client.is_connected() {
            part.client.pass(Duration::from_millis(50)).await;
        }
        end(&mut part, &topics, expiry).await;
    }
    // A clean end is the one that is known: nothing is due after this, but for wills that wait for their delay, or for
    // somebody to notice that their connection is gone. The drain waits for them.
    part.client.disconnect(0, None).await;
    part.client.cut();
    part.client.pass(NOTICED_WITHIN).await;
    part.drained();
    part.settled();
}

fn options(part: &mut Part, topics: &[String], expiry: u32) -> Options {
    let random = &mut part.client.random;
    // 3.1.1 has no expiry: such a session ends with its connection, or never.
    let clean = !part.client.version.is_5() && expiry == 0;
    Options {
        clean,
        expiry,
        receive_maximum: None,
        will: Some(WillPlan {
            topic: random.pick(topics).clone(),
            qos: random.below(3).max(1) as u8,
            retain: false,
            delay: *random.pick(&[0, 0, 1, 2]),
        }),
    }
}

async fn end(part: &mut Part, topics: &[String], expiry: u32) {
    let away = match part.client.random.below(10) {
        0 | 1 => {
            part.client.disconnect(0, None).await;
            100
        }
        2 | 3 => {
            part.client.disconnect(4, None).await;
            part.client.random.between(0, 3_000)
        }
        // Before the delay has passed, or after.
        4 => {
            part.client.cut();
            part.client.random.between(0, 500)
        }
        5 | 6 => {
            part.client.cut();
            part.client.random.between(2_500, 4_000)
        }
        7 => {
            let options = options(part, topics, expiry);
            let node = part.client.random.pick(&part.scene.names()).clone();
            part.client.connect(&node, &options).await;
            500
        }
        // Stays until its node dies, or the next end.
        _ => part.client.random.between(1_000, 5_000),
    };
    let until = Instant::now() + Duration::from_millis(away);
    while part.scene.stage() == Stage::Load && Instant::now() < until {
        part.client.pass(Duration::from_millis(50)).await;
    }
}

/// A keep-alive and a half, the longest delay, and some.
const NOTICED_WITHIN: Duration = Duration::from_secs(18);
const MORTALS: usize = 30;
const TOPICS: usize = 48;
