//! P9 on a full disk: publishers that need it are told 0x97 (3.1.1: closed), others go on, and it heals by itself once
//! there is space. Nothing that was acknowledged before, meanwhile or after is missing.

use crate::support::client::{Client, Gone};
use crate::support::cluster::Cluster;
use crate::support::codec::{Connect, Packet, Publish, Version};
use crate::support::power::{Disks, can_cut_power};
use crate::support::{START, eventually};
use std::path::{Path, PathBuf};
use std::process::Command;

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_with_0x97_and_heals_by_itself() {
    if !can_cut_power() {
        return;
    }
    let _alone = crate::support::alone().await;
    let dir = tempfile::tempdir().expect("a directory");
    let mounts: Vec<PathBuf> = (1..=3).map(|id| dir.path().join(format!("node-{id}/data"))).collect();
    let _disks = Disks::mount(dir.path(), &mounts, MEGABYTES);
    let cluster = Cluster::start_in(dir.path().to_owned(), 3, &[("LONTRA__STORAGE__FREE_SPACE_MIN", "10%")]).await;

    let keeper = Connect::persistent(Version::V5, "disk-keeper");
    let (mut consumer, _) = Client::connect(cluster.mqtt(0), &keeper).await;
    consumer.subscribe(&[("disk/#", 1)]).await;
    consumer.disconnect().await;
    let mut publisher = Client::open(cluster.mqtt(1), Version::V5, "disk-publisher").await;
    let mut acknowledged = Vec::new();
    publish_to_every_shard(&mut publisher, "before", &mut acknowledged).await;

    // One full replica is enough: the shard could not be repaired otherwise. With three nodes it has all shards.
    let filler = mounts[2].join("filler");
    fill(&filler, &mounts[2]);
    eventually("0x97 on a full disk", START, || {
        let address = cluster.mqtt(1).to_owned();
        async move { (publish_once(&address).await == Ok(QUOTA_EXCEEDED)).then_some(()) }
    })
    .await;
    // A connection that was there before is told the same, and stays.
    let code = publisher.publish_code("disk/full", "while full", 1).await;
    assert_eq!(code, QUOTA_EXCEEDED);
    publisher.ping().await;
    let mut old = Client::open(cluster.mqtt(1), Version::V311, "disk-v3").await;
    let refused = Publish {
        pid: 1,
        ..Publish::new("disk/full", "while full", 1)
    };
    old.send(&refused.encode(Version::V311)).await.expect("PUBLISH");
    old.closed_by_server(START).await;
    // What needs no disk goes on.
    let mut live = Client::open(cluster.mqtt(0), Version::V5, "disk-live").await;
    live.subscribe(&[("elsewhere/#", 1)]).await;
    publisher.publish("elsewhere/a", "needs no disk", 1).await;
    assert_eq!(live.message().await.text(), "needs no disk");

    std::fs::remove_file(&filler).expect("the filler");
    eventually("publishing again after space was freed", START, || {
        let address = cluster.mqtt(1).to_owned();
        async move { (publish_once(&address).await == Ok(0)).then_some(()) }
    })
    .await;
    publish_to_every_shard(&mut publisher, "after", &mut acknowledged).await;
    publisher.publish("disk/end", "end", 1).await;

    let (mut consumer, connack) = Client::connect(cluster.mqtt(2), &keeper).await;
    assert!(
        matches!(
            connack,
            Packet::Connack {
                session_present: true,
                ..
            }
        ),
        "{connack:?}"
    );
    let mut missing = acknowledged.clone();
    missing.push("disk/end end".into());
    while !missing.is_empty() {
        let message = consumer.message().await;
        let name = format!("{} {}", message.topic, message.text());
        assert!(!name.contains("while full"), "a refused message was delivered: {name}");
        missing.retain(|expected| *expected != name);
    }
    cluster.assert_no_panic();
    for id in cluster.ids() {
        assert!(cluster.alive(id), "node {id} ended\n{}", cluster.logs());
    }
}

/// 60 topics: with 12 shards each has some.
async fn publish_to_every_shard(publisher: &mut Client, what: &str, acknowledged: &mut Vec<String>) {
    for topic in (0..60).map(|index| format!("disk/{index}")) {
        publisher.publish(&topic, what, 1).await;
        acknowledged.push(format!("{topic} {what}"));
    }
}

/// The PUBACK of a probe on a connection of its own.
async fn publish_once(address: &str) -> Result<u8, Gone> {
    let (mut client, _) = Client::try_connect(address, &Connect::clean(Version::V5, "disk-probe"), START).await?;
    Ok(client.publish_code("disk/probe", "probe", 1).await)
}

/// Takes all but 3 % of the space, which is below the watermark of 10 % and above nothing at all.
fn fill(file: &Path, mount: &Path) {
    let output = Command::new("df")
        .args(["--output=avail,size", "-B1"])
        .arg(mount)
        .output()
        .expect("df");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let numbers: Vec<u64> = text
        .lines()
        .nth(1)
        .expect("df")
        .split_whitespace()
        .map(|n| n.parse().expect("df"))
        .collect();
    let bytes = numbers[0] - numbers[1] * 3 / 100;
    let status = Command::new("fallocate")
        .args(["-l", &bytes.to_string()])
        .arg(file)
        .status()
        .expect("fallocate");
    assert!(status.success(), "fallocate of {bytes} bytes");
}

const MEGABYTES: u64 = 512;
const QUOTA_EXCEEDED: u8 = 0x97;
