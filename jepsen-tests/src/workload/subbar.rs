//! `subbar`: a SUBACK holds for the whole cluster at once, and so does an UNSUBACK.
//!
//!     subscriber at node a: SUBSCRIBE ──SUBACK──▶            UNSUBSCRIBE ──UNSUBACK──▶
//!     publisher  at node b:                     PUBLISH, seen                        PUBLISH, not seen

use super::publishers;
use super::{Cast, Part, version};
use crate::client::{Client, Connected, Filter, Options, Publishing, Stage};
use crate::history::Message;
use std::time::Duration;
use tokio::time::Instant;

pub fn cast(cast: &mut Cast) {
    let pause = Duration::from_secs_f64(PAIRS as f64 * MESSAGES_A_ROUND / f64::from(cast.rate.max(1)));
    for index in 0..PAIRS {
        let publisher = cast.part(&format!("p{index}"), version(index));
        let subscriber = cast.part(&format!("s{index}"), version(index / 2));
        // Each pair has two parts in the steps of the run.
        let open = cast.scene.publisher();
        let level = cast.topic(&format!("x/{index}"));
        cast.play(pair(publisher, subscriber, level, pause, open));
    }
}

async fn pair(mut publisher: Part, mut subscriber: Part, level: String, pause: Duration, open: Publishing) {
    let options = match subscriber.client.random.below(3) {
        0 => Options::clean(),
        _ => Options::persistent(),
    };
    attach(&mut subscriber, &options).await;
    publishers::connect(&mut publisher).await;
    publisher.ready();
    publisher.wait_for(Stage::Load).await;
    let mut round = 0;
    while publisher.scene.stage() == Stage::Load {
        round += 1;
        let started = Instant::now();
        if !publisher.client.is_connected() {
            subscriber.client.beside(publishers::connect(&mut publisher)).await;
        }
        if !subscriber.client.is_connected() {
            publisher.client.beside(attach(&mut subscriber, &options)).await;
        }
        self::round(
            &mut subscriber.client,
            &mut publisher.client,
            &format!("{level}/{round}"),
        )
        .await;
        let rest = pause.saturating_sub(started.elapsed());
        tokio::join!(subscriber.client.pass(rest), publisher.client.pass(rest));
    }
    subscriber.client.beside(publishers::finish(&mut publisher)).await;
    drop(open);
    attach(&mut subscriber, &options).await;
    let quiet = Instant::now() + Duration::from_secs(30);
    while Instant::now() < quiet && subscriber.client.last_message.elapsed() < Duration::from_secs(3) {
        subscriber.client.pass(Duration::from_millis(200)).await;
    }
    publisher.drained();
    publisher.settled();
    subscriber.wait_for(Stage::End).await;
}

async fn attach(part: &mut Part, options: &Options) {
    while part.scene.stage() < Stage::End {
        match part.client.connect_anywhere(options).await {
            Connected::Served { .. } => return,
            _ if part.client.is_doubtful() => {
                part.replace_client();
                part.client.pass(Duration::from_millis(200)).await;
            }
            _ => part.client.pass(Duration::from_millis(200)).await,
        }
    }
}

async fn round(subscriber: &mut Client, publisher: &mut Client, topic: &str) {
    let (prefix, last) = topic.rsplit_once('/').expect("a topic with levels");
    let (filter, topic) = match subscriber.random.below(3) {
        0 => (topic.to_owned(), topic.to_owned()),
        1 => (format!("{prefix}/+/{last}"), format!("{prefix}/any/{last}")),
        _ => (format!("{topic}/#"), format!("{topic}/deep/er")),
    };
    let (first, second) = (
        subscriber.random.between(1, 2) as u8,
        subscriber.random.between(1, 2) as u8,
    );
    let granted = publisher
        .beside(subscriber.subscribe(&Filter::new(&filter, first)))
        .await;
    if granted.is_some_and(|code| code < 0x80) {
        let mut sent = Vec::new();
        sent.extend(publish(publisher, &topic).await);
        // Replacing a subscription loses nothing.
        if first != second {
            publisher
                .beside(subscriber.subscribe(&Filter::new(&filter, second)))
                .await;
            sent.extend(publish(publisher, &topic).await);
        }
        arrive(subscriber, publisher).await;
        // What was published is owed while the subscription stands: only then it may end.
        let seen = |client: &Client| sent.iter().all(|message| client.has_seen(message));
        if publisher.open() == 0 {
            publisher.beside(subscriber.until(SEEN_WITHIN, seen)).await;
        }
    }
    // Some stay to the end: what they miss is seen there.
    if subscriber.is_connected() && subscriber.random.chance(0.75) {
        publisher.beside(subscriber.unsubscribe(&filter)).await;
        publish(publisher, &topic).await;
        arrive(subscriber, publisher).await;
    }
}

async fn publish(publisher: &mut Client, topic: &str) -> Option<Message> {
    let qos = publisher.random.between(1, 2) as u8;
    let sent = publisher.publish(topic, qos, false, 0).await;
    sent.then(|| publisher.last_published()).flatten()
}

/// Until the publisher has its acknowledgements; the subscriber reads meanwhile.
async fn arrive(subscriber: &mut Client, publisher: &mut Client) {
    let acknowledged = publisher.until(Duration::from_secs(4), |client| client.open() == 0);
    subscriber.beside(acknowledged).await;
}

/// Longer than the checker of barriers waits before it accuses.
const SEEN_WITHIN: Duration = Duration::from_secs(14);
const PAIRS: usize = 8;
/// Two or three publishes, two or three (un)subscriptions.
const MESSAGES_A_ROUND: f64 = 5.0;
