//! Publishers: a bounded rate, a window of open exchanges, a session that goes on at another node when its connection is gone.
//!
//!     Load: tick ──window free──▶ publish, a random topic and QoS ── connection lost ──▶ another node, DUP ── crash ──▶ forget
//!     deaf: a window of PUBLISH ── nothing is read ── cut ── a while later, elsewhere: the same with DUP
//!     Drain: until nothing is open, or given up ──▶ `info`

use super::Part;
use crate::client::{Client, Connected, Options, Publishing, Scene, Stage};
use crate::mqtt::Version;
use crate::random::Random;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep};

#[derive(Clone)]
pub struct Plan {
    pub topics: Vec<String>,
    /// Relative weights of QoS 0, 1 and 2.
    pub qos: [u32; 3],
    pub retain: bool,
    /// Open exchanges at most.
    pub window: usize,
    /// Messages a second, on average.
    pub rate: f64,
    /// Chances per message.
    pub crash: f64,
    pub cut: f64,
    /// Bytes of filler at most.
    pub filler: usize,
    /// Chance per message of a payload of up to [`LARGE`] instead.
    pub large: f64,
}

impl Plan {
    pub fn new(topics: Vec<String>, rate: f64) -> Plan {
        Plan {
            topics,
            qos: [0, 1, 1],
            retain: false,
            window: 8,
            rate,
            crash: 0.0,
            cut: 0.002,
            filler: 100,
            large: 0.002,
        }
    }
}

/// A publisher's whole part.
pub async fn publisher(mut part: Part, plan: Plan, open: Publishing) {
    connect(&mut part).await;
    part.ready();
    part.wait_for(Stage::Load).await;
    let mut next = Instant::now();
    while part.scene.stage() == Stage::Load {
        if !part.client.is_connected() {
            connect(&mut part).await;
            continue;
        }
        // An even distribution around the mean: bursts and pauses.
        next = next.max(Instant::now() - Duration::from_secs(1))
            + Duration::from_secs_f64(2.0 * part.client.random.fraction() / plan.rate);
        part.client.next_until(next).await;
        if !room(&mut part.client, plan.window).await {
            continue;
        }
        one(&mut part.client, &plan).await;
        misfortune(&mut part.client, &plan);
    }
    finish(&mut part).await;
    drop(open);
    part.drained();
    part.settled();
    part.client.disconnect(0, None).await;
}

/// A publisher that hears nothing: its acknowledgements are lost with its connection, and it sends all of it again, at some
/// node, once others may have gone down.
pub async fn deaf(mut part: Part, plan: Plan, open: Publishing) {
    connect(&mut part).await;
    part.ready();
    part.wait_for(Stage::Load).await;
    while part.scene.stage() == Stage::Load {
        if !part.client.is_connected() {
            connect(&mut part).await;
            continue;
        }
        for _ in 0..plan.window {
            one(&mut part.client, &plan).await;
        }
        // Nobody drives the client meanwhile: what comes is not looked at.
        sleep(Duration::from_millis(part.client.random.between(100, 1_500))).await;
        part.client.cut();
        sleep(Duration::from_millis(part.client.random.between(0, 4_500))).await;
        connect(&mut part).await;
        room(&mut part.client, 1).await;
    }
    finish(&mut part).await;
    drop(open);
    part.drained();
    part.settled();
    part.client.disconnect(0, None).await;
}

/// Publishes one message.
pub async fn one(client: &mut Client, plan: &Plan) {
    let topic = client.random.pick(&plan.topics).clone();
    let mut draw = client.random.below(plan.qos.iter().sum::<u32>() as usize) as u32;
    let mut qos = 0;
    while draw >= plan.qos[qos] {
        draw -= plan.qos[qos];
        qos += 1;
    }
    let most = if client.random.chance(plan.large) {
        LARGE
    } else {
        plan.filler
    };
    let filler = client.random.below(most + 1);
    client.publish(&topic, qos as u8, plan.retain, filler).await;
}

fn misfortune(client: &mut Client, plan: &Plan) {
    if client.random.chance(plan.crash) {
        client.crash();
    } else if client.random.chance(plan.cut) {
        client.cut();
    }
}

/// Waits until the window has room; false: the connection is gone.
pub async fn room(client: &mut Client, window: usize) -> bool {
    client
        .until(Duration::from_secs(60), |client| client.open() < window)
        .await
        && client.is_connected()
}

/// Connects to some node; tries until the run ends. A client that an abandoned CONNECT may yet change gives way to another.
pub async fn connect(part: &mut Part) {
    while part.scene.stage() < Stage::Final {
        match part.client.connect_anywhere(&Options::persistent()).await {
            Connected::Served { .. } => return,
            _ if part.client.is_doubtful() => {
                part.replace_client();
                // A node that refuses at once would be asked without end.
                sleep(Duration::from_millis(part.client.random.between(100, 400))).await;
            }
            _ => sleep(Duration::from_millis(part.client.random.between(100, 400))).await,
        }
    }
}

/// Finishes what is open, for a while after the faults.
pub async fn finish(part: &mut Part) {
    let deadline = Instant::now() + FINISH;
    while part.client.open() > 0 && Instant::now() < deadline {
        if !part.client.is_connected() {
            connect(part).await;
        }
        part.client
            .until(Duration::from_secs(2), |client| client.open() == 0)
            .await;
    }
    if part.client.open() > 0 {
        // What is given up must not be answered later: another message could have its identifier by then.
        part.client.cut();
    }
    part.client.give_up_all();
}

/// A fresh client publishes to each of `topics` on `node`, until each was acknowledged or `limit` passed; whether all were.
pub async fn probe(scene: &Arc<Scene>, node: &str, topics: &[String], limit: Duration, random: Random) -> bool {
    let deadline = Instant::now() + limit;
    let mut attempt = 0;
    while Instant::now() < deadline {
        attempt += 1;
        let stage = scene.recorder.now();
        let id = format!("{}-probe-{node}-{stage}-{attempt}", scene.prefix);
        let mut client = Client::new(scene, id, Version::V5, random.fork(&attempt.to_string()));
        if client.connect(node, &Options::clean()).await.is_served() {
            for topic in topics {
                client.publish(topic, 1, false, 0).await;
            }
            let done = client.until(Duration::from_secs(5), |client| client.open() == 0).await;
            if done && client.is_connected() {
                client.disconnect(0, None).await;
                return true;
            }
            client.cut();
            client.give_up_all();
        }
        sleep(Duration::from_millis(200)).await;
    }
    false
}

/// Shares `rate` among `count` publishers.
pub fn share(rate: u32, count: usize) -> f64 {
    f64::from(rate) / count as f64
}

/// Bytes: many packets of the network, several reads of a node.
const LARGE: usize = 100_000;
const FINISH: Duration = Duration::from_secs(40);
