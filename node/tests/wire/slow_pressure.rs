//! Parts of the cluster that are slow: what waits for them, and what does not.
//!
//! A disk that does not answer is a log writer that stands still ([`Stuck`]): the node runs, hears and speaks, and nothing
//! that it appends is ever synced.

use crate::slow_back_in_time::tag_on_every_shard;
use crate::support::client::{Client, Gone};
use crate::support::cluster::Cluster;
use crate::support::codec::{self, Packet, Publish, Version};
use crate::support::load::{Load, Plan, assert_kept};
use crate::support::random::Random;
use crate::support::stuck::Stuck;
use crate::support::{SOON, START, eventually};
use lontra_storage::topic::shard_of;
use std::time::Duration;

/// DESIGN §3: a leader whose log write stays unsynced for 1 s gives its leaderships away. This one leads meta too, so that
/// nobody else would take it Down.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_disk_is_slow_leads_nothing() {
    let _alone = crate::support::alone().await;
    let mut random = Random::announced("slow-disk");
    let cluster = Cluster::start(3).await;
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
    load.acknowledges_more(500, START).await;

    drop(stuck);
    cluster.wait_all_ready().await;
    let history = load.drain(PATIENCE).await;
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
/// The default of `cluster.shards`.
const SHARDS: u16 = 12;
