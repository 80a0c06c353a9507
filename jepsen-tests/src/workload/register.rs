//! `register`: the retained message of a topic is a linearizable register, read by sessions that have just begun.
//!
//! Some topics are also deleted, by one writer each, so that there are few operations at once to search through; and some
//! subscribers arrive late, amid the writes, and stay: they end with the newest value.

use super::publishers::{self, Plan, publisher, share};
use super::subscribers::{Habits, latecomer, subscriber};
use super::{Cast, Part, version};
use crate::client::{Client, Filter, Options, Stage};
use crate::mqtt::Version;
use std::time::Duration;
use tokio::time::Instant;

pub fn cast(cast: &mut Cast) {
    let topics = cast.topics("r", TOPICS);
    for index in 0..WRITERS {
        let plan = Plan {
            retain: true,
            window: 4,
            crash: 0.002,
            large: 0.01,
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
    for index in 0..DELETED {
        let topic = cast.topic(&format!("rd/{index}"));
        // 5: what is empty is known by its User Property only.
        let writer = cast.part(&format!("d{index}"), Version::V5);
        let open = cast.scene.publisher();
        cast.play(writes_and_deletes(writer, topic.clone(), open));
        let part = cast.part(&format!("e{index}"), Version::V5);
        cast.play(reader_of(part, topic));
    }
    for index in 0..LATE {
        let habits = Habits::new(vec![Filter::new(cast.topic("r/#"), 1 + index as u8 % 2)]);
        let part = cast.part(&format!("l{index}"), version(index));
        cast.play(latecomer(part, habits, Duration::from_secs(LATEST)));
    }
    for index in 0..2 {
        let filter = Filter {
            retain_as_published: true,
            id: Some(7 + index as u32),
            ..Filter::new(cast.topic("r/#"), 1 + index as u8)
        };
        let habits = Habits::new(vec![filter]);
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

/// The only writer of a topic: one operation at a time, one in three a deletion.
async fn writes_and_deletes(mut part: Part, topic: String, open: crate::client::Publishing) {
    publishers::connect(&mut part).await;
    part.ready();
    part.wait_for(Stage::Load).await;
    while part.scene.stage() == Stage::Load {
        if !part.client.is_connected() {
            publishers::connect(&mut part).await;
            continue;
        }
        let qos = part.client.random.between(1, 2) as u8;
        match part.client.random.below(3) {
            0 => part.client.delete_retained(&topic, qos).await,
            _ => part.client.publish(&topic, qos, true, 0).await,
        };
        publishers::room(&mut part.client, 1).await;
        let pause = Duration::from_millis(part.client.random.between(200, 4_000));
        part.client.pass(pause).await;
    }
    publishers::finish(&mut part).await;
    drop(open);
    part.drained();
    part.settled();
    part.client.disconnect(0, None).await;
}

/// Fresh sessions read one topic, again and again.
async fn reader_of(mut part: Part, topic: String) {
    part.ready();
    part.wait_for(Stage::Load).await;
    while part.scene.stage() == Stage::Load {
        visit(&mut part, std::slice::from_ref(&topic), 1).await;
        part.client.pass(Duration::from_millis(200)).await;
    }
    part.drained();
    part.wait_for(Stage::Final).await;
    for node in part.scene.names() {
        let mut client = part.next_client();
        if client.connect(&node, &Options::clean()).await.is_served() {
            read(&mut client, std::slice::from_ref(&topic)).await;
        }
    }
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
/// Topics that are deleted too.
const DELETED: usize = 3;
const LATE: usize = 6;
/// In seconds: until then all have come.
const LATEST: u64 = 20;
