//! Parts of the cluster that are slow: what waits for them, and what does not.
//!
//! A disk that does not answer is a log writer that stands still ([`Stuck`]): the node runs, hears and speaks, and nothing
//! that it appends is ever synced.

use crate::slow_back_in_time::tag_on_every_shard;
use crate::support::client::{Client, Gone};
use crate::support::cluster::Cluster;
use crate::support::codec::{self, Connect, Packet, Publish, Version};
use crate::support::load::{Load, Plan, assert_kept};
use crate::support::random::Random;
use crate::support::steady::resident;
use crate::support::stuck::Stuck;
use crate::support::throttled::Throttled;
use crate::support::{SOON, START, eventually};
use lontra_storage::topic::shard_of;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// DESIGN §3: a leader whose log write stays unsynced for 1 s gives its leaderships away. This one leads meta too, so that
/// nobody else would take it Down. As a follower it lives, and the others keep what it lacks: it goes on by log afterwards,
/// not by snapshot, though they make a checkpoint every second.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_disk_is_slow_leads_nothing() {
    let _alone = crate::support::alone().await;
    let mut random = Random::announced("slow-disk");
    let dir = tempfile::tempdir().expect("a directory");
    let environment = [("LONTRA__STORAGE__CHECKPOINT_INTERVAL", "1s")];
    let cluster = Cluster::start_in(dir.path().to_owned(), 3, &environment).await;
    let victim = cluster.leader_of("meta").await;
    eventually("it leads shards as well", START, || async {
        (led_by(&cluster, victim).await.len() > 2).then_some(())
    })
    .await;
    let healthy = cluster.nodes.iter().filter(|node| node.id != victim);
    let healthy: Vec<&str> = healthy.map(|node| node.mqtt.as_str()).collect();
    let plan = Plan {
        rate: 60,
        ..Plan::default()
    };
    let load = Load::start(&healthy, &tag_on_every_shard(), plan, &mut random).await;
    load.acknowledges_more(500, START).await;

    let Some(stuck) = Stuck::stop(cluster.pid(victim).expect("it runs"), LOG_WRITER) else {
        return;
    };
    let at = load.now();
    let published = eventually("a publish on every topic", START, || async {
        let all: Option<Vec<Duration>> = load.published_after(at).into_iter().collect();
        all.and_then(|all| all.into_iter().max())
    })
    .await;
    println!("slow-disk: publishing on every topic again after {published:?}");
    let given_away = cluster
        .metrics(victim)
        .await
        .sum("lontra_raft_leaderships_given_away_total");
    assert!(
        given_away >= 1.0,
        "it gave {given_away} leaderships away\n{}",
        cluster.logs()
    );
    eventually("it leads nothing", START, || async {
        led_by(&cluster, victim).await.is_empty().then_some(())
    })
    .await;
    // Hundreds of entries for each shard.
    load.acknowledges_more(4_000, START).await;

    drop(stuck);
    cluster.wait_all_ready().await;
    let history = load.drain(PATIENCE).await;
    let snapshots = cluster
        .metrics(victim)
        .await
        .sum("lontra_storage_snapshots_installed_total");
    assert_eq!(snapshots, 0.0, "it was sent snapshots\n{}", cluster.logs());
    assert_kept("slow-disk", &history, &cluster).await;
    assert!(published < BACK_WITHIN, "{published:?}\n{}", cluster.logs());
}

/// P5, P4: what was acknowledged elsewhere before the SUBSCRIBE is what the subscriber gets, though the replica beside it has
/// not applied it yet. No entry of the control plane says so: another client subscribed to the filter here before.
#[tokio::test(flavor = "multi_thread")]
async fn a_retained_message_is_read_from_a_view_that_has_caught_up() {
    let _alone = crate::support::alone().await;
    let cluster = Cluster::start(3).await;
    let meta = cluster.leader_of("meta").await;
    let lagging = cluster.ids().into_iter().find(|id| *id != meta).expect("three nodes");
    let mut topic = String::new();
    for number in 0.. {
        topic = format!("pressure/{number}");
        let shard = shard_of(&topic, SHARDS).0;
        if cluster.leader_of(&format!("shard-{shard}")).await != lagging {
            break;
        }
    }
    let mut publisher = Client::open(&cluster.node(meta).mqtt, Version::V5, "pressure-publisher").await;
    let mut first = Client::open(&cluster.node(lagging).mqtt, Version::V5, "pressure-first").await;
    first.subscribe(&[(&topic, 1)]).await;
    let mut late = Client::open(&cluster.node(lagging).mqtt, Version::V5, "pressure-late").await;
    let retained = |text: &str| Publish {
        retain: true,
        ..Publish::new(&topic, text, 1)
    };
    assert_eq!(publisher.publish_packet(retained("old")).await, 0);
    assert_eq!(first.message().await.text(), "old");

    let Some(stuck) = Stuck::stop(cluster.pid(lagging).expect("it runs"), LOG_WRITER) else {
        return;
    };
    assert_eq!(
        publisher.publish_packet(retained("new")).await,
        0,
        "two of three have it"
    );
    let subscribe = codec::subscribe(Version::V5, 7, &[(&topic, 1)]);
    late.send(&subscribe).await.expect("SUBSCRIBE");
    // A broker that reads what it has answers at once.
    let early = late.packet_within(Duration::from_millis(500)).await;
    assert!(
        matches!(early, Err(Gone::Silent(_))),
        "before its view had caught up: {early:?}"
    );
    drop(stuck);
    let mut packets = Vec::new();
    while !matches!(packets.last(), Some(Packet::Publish(_))) {
        packets.push(
            late.packet_within(SOON)
                .await
                .expect("SUBACK, and the retained message"),
        );
    }
    let Some(Packet::Publish(message)) = packets.pop() else {
        unreachable!("the loop ends with one")
    };
    assert_eq!(message.text(), "new", "after {packets:?}");
    cluster.assert_no_panic();
}

/// A subscriber that takes nothing holds its publisher back once its outbox is full; nothing is dropped, and the broker takes
/// no more on than outbox and sockets hold.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_subscriber_slows_its_publisher_and_loses_nothing() {
    let _alone = crate::support::alone().await;
    let dir = tempfile::tempdir().expect("a directory");
    let environment = [
        ("LONTRA__MQTT__OUTBOX_MESSAGES_MAX", "16"),
        // It is slow, not gone.
        ("LONTRA__MQTT__OUTBOX_WAIT_MAX", "10s"),
    ];
    let cluster = Cluster::start_in(dir.path().to_owned(), 1, &environment).await;
    let connect = Connect::clean(Version::V5, "pressure-subscriber");
    let mut subscriber = Client::open_with_small_buffer(cluster.mqtt(0), &connect).await;
    subscriber.subscribe(&[("pressure/slow", 1)]).await;
    let mut publisher = Client::open(cluster.mqtt(0), Version::V5, "pressure-fast").await;
    let acknowledged = Arc::new(AtomicUsize::new(0));
    let counted = acknowledged.clone();
    let publishing = tokio::spawn(async move {
        for number in 0..MESSAGES {
            let mut payload = number.to_string().into_bytes();
            payload.resize(MESSAGE_BYTES, b' ');
            publisher.publish("pressure/slow", payload, 1).await;
            counted.fetch_add(1, Ordering::SeqCst);
        }
    });
    let held_at = stands_still(&acknowledged).await;
    println!("slow-subscriber: {held_at} of {MESSAGES} messages were taken on");
    assert!(
        held_at < MESSAGES / 2,
        "{held_at} messages of {MESSAGE_BYTES} bytes were taken on"
    );
    for number in 0..MESSAGES {
        let message = subscriber.message().await;
        assert_eq!(message.text().trim_end(), number.to_string());
    }
    publishing.await.expect("every message is acknowledged");
    cluster.assert_no_panic();
}

/// The same in bytes: large messages fill an outbox long before they are many, whatever number of them its publisher may have
/// unacknowledged.
#[tokio::test(flavor = "multi_thread")]
async fn an_outbox_is_bounded_in_bytes_as_well() {
    let _alone = crate::support::alone().await;
    let dir = tempfile::tempdir().expect("a directory");
    // It is slow, not gone.
    let environment = [("LONTRA__MQTT__OUTBOX_WAIT_MAX", "10s")];
    let cluster = Cluster::start_in(dir.path().to_owned(), 1, &environment).await;
    let node = cluster.pid(cluster.ids()[0]).expect("it runs");
    let mut subscriber = Client::open(cluster.mqtt(0), Version::V5, "large-subscriber").await;
    subscriber.subscribe(&[("pressure/large", 1)]).await;
    let before = resident(node);
    let sent = Arc::new(AtomicUsize::new(0));
    let publishing = tokio::spawn(publish_large(cluster.mqtt(0).to_owned(), sent.clone()));
    let held_at = stands_still(&sent).await;
    let grown = resident(node).saturating_sub(before);
    println!(
        "large-messages: {held_at} of {LARGE} were sent, {} MiB taken on",
        grown >> 20
    );
    assert!(held_at < LARGE / 2, "{held_at} of {LARGE} MiB were sent");
    assert!(
        grown < LARGE_RESIDENT_MAX,
        "{} MiB for messages that nobody reads",
        grown >> 20
    );
    for number in 0..LARGE {
        let message = subscriber.message().await;
        assert_eq!(message.payload[..4], (number as u32).to_be_bytes());
    }
    publishing.await.expect("every message is acknowledged");
    cluster.assert_no_panic();
}

/// DESIGN §3.2: a full outbox delays the acknowledgement for a while, then that subscriber is let go, and its publisher goes on.
#[tokio::test(flavor = "multi_thread")]
async fn who_takes_no_large_messages_is_let_go() {
    let _alone = crate::support::alone().await;
    let cluster = Cluster::start(1).await;
    let mut subscriber = Client::open(cluster.mqtt(0), Version::V5, "large-subscriber").await;
    subscriber.subscribe(&[("pressure/large", 1)]).await;
    let sent = Arc::new(AtomicUsize::new(0));
    publish_large(cluster.mqtt(0).to_owned(), sent).await;
    let (code, _) = subscriber.closed_by_server(SOON).await;
    // The end may come before what tells it: the socket is full.
    assert!(matches!(code, None | Some(0x97)), "{code:?}");
    eventually("it is counted", SOON, || async {
        let metrics = cluster.metrics(cluster.ids()[0]).await;
        let ended = metrics.sum_where("lontra_disconnects_total", "reason=\"quota exceeded\"");
        (ended >= 1.0).then_some(())
    })
    .await;
    cluster.assert_no_panic();
}

/// Messages of 1 MiB at QoS 1, as many unacknowledged as there are; all are acknowledged in the end. Numbered in their first bytes.
async fn publish_large(address: String, sent: Arc<AtomicUsize>) {
    let mut publisher = Client::open(&address, Version::V5, "large-publisher").await;
    for number in 0..LARGE {
        let mut payload = vec![b'x'; LARGE_BYTES];
        payload[..4].copy_from_slice(&(number as u32).to_be_bytes());
        let publish = Publish {
            pid: publisher.next_pid(),
            ..Publish::new("pressure/large", payload, 1)
        };
        publisher.send(&publish.encode(Version::V5)).await.expect("PUBLISH");
        sent.fetch_add(1, Ordering::SeqCst);
    }
    for _ in 0..LARGE {
        let answer = publisher.packet_within(SOON).await;
        assert!(matches!(answer, Ok(Packet::Puback { .. })), "{answer:?}");
    }
}

/// What a count has come to, once it does not move for half a second.
async fn stands_still(count: &AtomicUsize) -> usize {
    let mut last = (usize::MAX, Instant::now());
    eventually("it stands still", START, || {
        let now = count.load(Ordering::SeqCst);
        if now != last.0 {
            last = (now, Instant::now());
        }
        let stands_still = last.1.elapsed() > Duration::from_millis(500);
        async move { (stands_still && now > 0).then_some(now) }
    })
    .await
}

/// A follower that gets a tenth of a core takes what it is sent late. The others go on as a majority, or wait
/// for it where it leads; none of them gathers in memory what it has not taken, and nothing that was acknowledged is lost.
#[tokio::test(flavor = "multi_thread")]
async fn a_follower_with_a_tenth_of_a_core_costs_no_memory_and_no_message() {
    let _alone = crate::support::alone().await;
    let mut random = Random::announced("slow-follower");
    let dir = tempfile::tempdir().expect("a directory");
    // What RocksDB keeps by itself is not what is looked at.
    let environment = [
        ("LONTRA__STORAGE__WRITE_BUFFER_BYTES", "8MiB"),
        ("LONTRA__STORAGE__CACHE_BYTES", "16MiB"),
    ];
    let cluster = Cluster::start_in(dir.path().to_owned(), 3, &environment).await;
    let meta = cluster.leader_of("meta").await;
    let victim = cluster.ids().into_iter().find(|id| *id != meta).expect("three nodes");
    let pids: Vec<u32> = cluster.ids().into_iter().filter_map(|id| cluster.pid(id)).collect();
    assert_eq!(pids.len(), 3, "all run");
    let healthy = cluster.nodes.iter().filter(|node| node.id != victim);
    let healthy: Vec<&str> = healthy.map(|node| node.mqtt.as_str()).collect();
    let plan = Plan {
        filling: 32 << 10,
        ..Plan::default()
    };
    let load = Load::start(&healthy, &tag_on_every_shard(), plan, &mut random).await;
    load.acknowledges_more(500, START).await;

    let before: Vec<u64> = pids.iter().map(|pid| resident(*pid)).collect();
    let Some(throttled) = Throttled::to(cluster.pid(victim).expect("it runs"), 10) else {
        return;
    };
    let began = (load.now(), load.acknowledged());
    let mut grown_max = vec![0; pids.len()];
    eventually("it is sent more than it could hide", THROTTLED_MAX, || {
        for ((pid, before), grown) in pids.iter().zip(&before).zip(&mut grown_max) {
            *grown = resident(*pid).saturating_sub(*before).max(*grown);
        }
        let enough = load.acknowledged() >= began.1 + THROTTLED_MESSAGES;
        async move { enough.then_some(()) }
    })
    .await;
    println!(
        "slow-follower: {THROTTLED_MESSAGES} messages in {:?}; memory grew by {:?} MiB",
        load.now() - began.0,
        grown_max.iter().map(|grown| grown >> 20).collect::<Vec<u64>>()
    );
    drop(throttled);
    cluster.wait_all_ready().await;
    let history = load.drain(PATIENCE).await;
    assert_kept("slow-follower", &history, &cluster).await;
    assert!(
        grown_max.iter().all(|grown| *grown < THROTTLED_GROWTH_MAX),
        "{grown_max:?} bytes more than before"
    );
}

/// The groups that the node leads, as the newest of all nodes' views.
async fn led_by(cluster: &Cluster, node: u64) -> Vec<String> {
    let shards = (0..SHARDS).map(|shard| format!("shard-{shard}"));
    let mut led = Vec::new();
    for group in std::iter::once("meta".to_owned()).chain(shards) {
        if cluster.leader_of(&group).await == node {
            led.push(group);
        }
    }
    led
}

/// The thread that writes and syncs the logs of all groups.
const LOG_WRITER: &str = "lontra-log";
/// P10.
const BACK_WITHIN: Duration = Duration::from_secs(5);
/// How long nothing may move in the drain before what is missing counts as lost.
const PATIENCE: Duration = Duration::from_secs(60);
/// 64 MiB in all: more than twice what outbox, the publisher and the sockets of both hold.
const MESSAGES: usize = 1_000;
const MESSAGE_BYTES: usize = 64 * 1024;
/// 200 MiB in all; as many unacknowledged as Receive Maximum allows by far.
const LARGE: usize = 200;
const LARGE_BYTES: usize = (1 << 20) - 1024;
/// An outbox, as much of its publisher's, and a packet each are 18 MiB; the rest is for buffers that grew.
const LARGE_RESIDENT_MAX: u64 = 96 << 20;
/// 190 MiB of payloads, which each of three consumers gets besides.
const THROTTLED_MESSAGES: u64 = 6_000;
/// At less than a tenth of the load's rate.
const THROTTLED_MAX: Duration = Duration::from_secs(180);
const THROTTLED_GROWTH_MAX: u64 = 600 << 20;
/// The default of `cluster.shards`.
const SHARDS: u16 = 12;
