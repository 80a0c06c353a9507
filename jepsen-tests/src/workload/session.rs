//! `session`: one client id has one connection, its session follows it, and Session Present tells the truth.
//!
//! An actor lives through connections with every kind of start and end. An id that an abandoned CONNECT may yet change is used
//! no more; its session, if it has one, is drained with the others.

use super::publishers::{Plan, publisher, share};
use super::subscribers::{Leave, go};
use super::{Cast, Part};
use crate::client::{Client, Connected, Filter, Options, Stage};
use crate::mqtt::Version;
use std::time::Duration;
use tokio::time::Instant;

pub fn cast(cast: &mut Cast) {
    let topics = cast.topics("e", TOPICS);
    for index in 0..PUBLISHERS {
        let plan = Plan::new(topics.clone(), share(cast.rate / 2, PUBLISHERS));
        let part = cast.part(&format!("p{index}"), super::version(index));
        let open = cast.scene.publisher();
        cast.play(publisher(part, plan, open));
    }
    for index in 0..ACTORS {
        let version = if index % 5 == 4 { Version::V311 } else { Version::V5 };
        let part = cast.part(&format!("a{index}"), version);
        cast.play(actor(part, topics.clone()));
    }
}

async fn actor(mut part: Part, topics: Vec<String>) {
    let mut retired: Vec<Client> = Vec::new();
    part.ready();
    part.wait_for(Stage::Load).await;
    while part.scene.stage() == Stage::Load {
        live(&mut part, &topics).await;
        if part.client.is_doubtful() {
            part.client.cut();
            let gone = part.replace_client();
            if gone.was_served() {
                retired.push(gone);
            }
        }
    }
    let last = part.replace_client();
    retired.push(last);
    drain(&part, &mut retired, Duration::from_secs(45)).await;
    part.drained();
    while part.scene.stage() < Stage::Final {
        read(&mut retired, Duration::from_millis(100)).await;
    }
    drain(&part, &mut retired, Duration::from_secs(10)).await;
    part.settled();
}

/// One connection: a start, some subscriptions, an end.
async fn live(part: &mut Part, topics: &[String]) {
    let client = &mut part.client;
    let options = Options {
        clean: client.random.chance(0.2),
        expiry: *client.random.pick(&[0, 3, 3600, 3600, 3600]),
        ..Options::default()
    };
    let node = client.random.pick(&part.scene.names()).clone();
    let Connected::Served { present } = client.connect(&node, &options).await else {
        client.pass(Duration::from_millis(200)).await;
        return;
    };
    if !present || client.random.chance(0.1) {
        for _ in 0..client.random.between(1, 3) {
            let topic = client.random.pick(topics).clone();
            let qos = client.random.between(1, 2) as u8;
            client.subscribe(&Filter::new(topic, qos)).await;
        }
    }
    let stay = Duration::from_millis(client.random.between(100, 2_500));
    client.next_until(Instant::now() + stay).await;
    end(client, &options, topics).await;
    let away = match client.random.below(4) {
        // Past an expiry of 3 s.
        0 => client.random.between(4_000, 6_000),
        _ => client.random.between(0, 600),
    };
    let away = Instant::now() + Duration::from_millis(away);
    while part.scene.stage() == Stage::Load && Instant::now() < away {
        part.client.pass(Duration::from_millis(100)).await;
    }
}

async fn end(client: &mut Client, options: &Options, topics: &[String]) {
    let again = Options {
        clean: false,
        ..options.clone()
    };
    match client.random.below(8) {
        0 => drop(client.disconnect(0, None).await),
        1 if options.expiry > 0 => {
            let expiry = *client.random.pick(&[0, 3600]);
            client.disconnect(0, Some(expiry)).await;
        }
        2 => drop(client.disconnect(4, None).await),
        3 => client.cut(),
        4 | 5 => {
            // The old connection must not be served any more: what it sends now is not acknowledged.
            go(client, Leave::Moved, &again).await;
            let topic = client.random.pick(topics).clone();
            client.publish_on_old(&topic).await;
            client.pass(Duration::from_millis(300)).await;
        }
        6 => go(client, Leave::Contended, &again).await,
        _ => {}
    }
}

/// Every session that may be there reads what it is owed.
async fn drain(part: &Part, clients: &mut [Client], cap: Duration) {
    let deadline = Instant::now() + cap;
    let options = Options::persistent();
    let mut quiet = Instant::now();
    while Instant::now() < deadline && quiet.elapsed() < SILENCE {
        for client in clients.iter_mut().filter(|client| !client.is_connected()) {
            client.connect_anywhere(&options).await;
            quiet = Instant::now();
        }
        read(clients, Duration::from_millis(100)).await;
        let last = clients.iter().map(|client| client.last_message).max();
        quiet = last.map_or(quiet, |last| last.max(quiet));
        if !part.scene.all_published() {
            quiet = Instant::now();
        }
    }
    for client in clients.iter_mut() {
        client.round_trip().await;
    }
}

/// Drives all of them, in turn.
async fn read(clients: &mut [Client], time: Duration) {
    let each = time / clients.len().max(1) as u32;
    for client in clients {
        client.pass(each).await;
    }
}

const ACTORS: usize = 20;
const PUBLISHERS: usize = 4;
const TOPICS: usize = 32;
const SILENCE: Duration = Duration::from_secs(3);
