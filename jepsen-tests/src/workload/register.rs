//! `register`: the retained message of a topic is a linearizable register, read by sessions that have just begun.

use super::publishers::{self, Plan, publisher, share};
use super::subscribers::{Habits, subscriber};
use super::{Cast, Part, version};
use crate::client::{Client, Filter, Options, Stage};
use std::time::Duration;
use tokio::time::Instant;

pub fn cast(cast: &mut Cast) {
    let topics = cast.topics("r", TOPICS);
    for index in 0..WRITERS {
        let plan = Plan {
            retain: true,
            window: 4,
            crash: 0.002,
            // A third of the operations; the reads cost most of a node's time.
            ..Plan::new(topics.clone(), share(cast.rate / 3, WRITERS))
        };
        let part = cast.part(&format!("w{index}"), version(index));
        let open = cast.scene.publisher();
        cast.play(publisher(part, plan, open));
    }
    let initialiser = cast.part("init", version(0));
    let open = cast.scene.publisher();
    cast.play(initialise(initialiser, topics.clone(), open));
    for index in 0..READERS {
        let part = cast.part(&format!("r{index}"), version(index));
        cast.play(reader(part, topics.clone()));
    }
    for index in 0..2 {
        let habits = Habits::new(vec![Filter::new(cast.topic("r/#"), 1 + index as u8)]);
        let part = cast.part(&format!("s{index}"), version(index));
        cast.play(subscriber(part, habits));
    }
}

/// A first value for every topic: no barrier proves that a topic has none.
async fn initialise(mut part: Part, topics: Vec<String>, open: crate::client::Publishing) {
    publishers::connect(&mut part).await;
    for topic in &topics {
        part.client.publish(topic, 1, true, 0).await;
    }
    publishers::finish(&mut part).await;
    drop(open);
    part.ready();
    part.client.disconnect(0, None).await;
    part.wait_for(Stage::Drain).await;
    part.drained();
    part.settled();
}

/// A fresh session reads some topics at a random node, and goes.
async fn reader(mut part: Part, topics: Vec<String>) {
    part.ready();
    part.wait_for(Stage::Load).await;
    while part.scene.stage() == Stage::Load {
        visit(&mut part, &topics, 4).await;
    }
    part.drained();
    part.wait_for(Stage::Final).await;
    // Once healed, every node answers the same.
    for node in part.scene.names() {
        let mut client = part.next_client();
        if client.connect(&node, &Options::clean()).await.is_served() {
            read(&mut client, &topics).await;
        }
    }
    part.settled();
}

async fn visit(part: &mut Part, topics: &[String], count: usize) {
    let mut client = part.next_client();
    let node = client.random.pick(&part.scene.names()).clone();
    if !client.connect(&node, &Options::clean()).await.is_served() {
        client.pass(Duration::from_millis(100)).await;
        return;
    }
    let chosen = client.random.sample(topics, count);
    read(&mut client, &chosen).await;
    let pause = client.random.between(0, 80);
    client.next_until(Instant::now() + Duration::from_millis(pause)).await;
}

async fn read(client: &mut Client, topics: &[String]) {
    for topic in topics {
        let qos = client.random.below(3) as u8;
        client.read_retained(topic, qos).await;
    }
    client.disconnect(0, None).await;
}

const WRITERS: usize = 5;
const READERS: usize = 6;
const TOPICS: usize = 16;
