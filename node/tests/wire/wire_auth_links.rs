//! Who may be a node: certificates of the links, renewed while clients are served; another authority's. And who else may read
//! what a node writes.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::process::Command;

use crate::support::client::Client;
use crate::support::cluster::{Cluster, LONTRA};
use crate::support::codec::Version;
use crate::support::{SOON, START, alone, eventually};

/// The name that `lontra dev` gives its cluster.
const CLUSTER_NAME: &str = "dev";

async fn lontra(arguments: &[&str]) {
    let run = Command::new(LONTRA).args(arguments).output();
    let output = run.await.expect("lontra");
    assert!(output.status.success(), "lontra {arguments:?}: {output:?}");
}

async fn issue(authority: &Path, node: u64, to: &Path) {
    let (authority, node, to) = (authority.to_str(), node.to_string(), to.to_str());
    let (authority, to) = (authority.expect("text"), to.expect("text"));
    let files = ["--cluster", CLUSTER_NAME, "--node", &node, "--dir", to];
    lontra(&[&["cert", "node", "--authority", authority][..], &files].concat()).await;
}

fn tls_dir(cluster: &Cluster, node: u64) -> PathBuf {
    cluster.dir.join(format!("node-{node}")).join("tls")
}

/// What a node has for its links.
fn files(node: u64) -> [String; 3] {
    [
        "ca.pem".to_owned(),
        format!("node-{node}.pem"),
        format!("node-{node}-key.pem"),
    ]
}

#[tokio::test]
async fn certificates_of_all_nodes_are_renewed_under_traffic() {
    let _alone = alone().await;
    let cluster = Cluster::start(3).await;
    let mut subscriber = Client::open(cluster.mqtt(1), Version::V5, "links-s").await;
    subscriber.subscribe(&[("links", 1)]).await;
    let stop = Arc::new(AtomicBool::new(false));
    let mut publisher = Client::open(cluster.mqtt(0), Version::V5, "links-p").await;
    let traffic = tokio::spawn({
        let stop = stop.clone();
        async move {
            let mut sent = 0;
            while !stop.load(Ordering::Relaxed) {
                publisher.publish("links", format!("{sent}"), 1).await;
                sent += 1;
            }
            publisher.publish("links", "end", 1).await;
            sent
        }
    });
    // Beside: what nobody reads would end its connection.
    let arrivals = tokio::spawn(async move { subscriber.messages_until("end").await });
    for id in cluster.ids() {
        let dir = tls_dir(&cluster, id);
        let before = std::fs::read(dir.join(&files(id)[1])).expect("a certificate");
        for file in &files(id)[1..] {
            std::fs::remove_file(dir.join(file)).expect("removed");
        }
        issue(&cluster.dir.join("authority"), id, &dir).await;
        assert_ne!(std::fs::read(dir.join(&files(id)[1])).expect("a certificate"), before);
        let reloads = || async { cluster.metrics(id).await.sum("lontra_config_reloads_total") };
        let earlier = reloads().await;
        cluster.reload(id);
        eventually("a reload", SOON, || async { (reloads().await > earlier).then_some(()) }).await;
    }
    // One that starts with its new certificate meets the others' new ones.
    let last = cluster.nodes[2].id;
    cluster.terminate(last).await;
    cluster.start_node(last);
    cluster.wait_ready(last, START).await;
    stop.store(true, Ordering::Relaxed);
    let sent: usize = traffic.await.expect("every publish was acknowledged");
    let arrived = arrivals.await.expect("the subscription stayed");
    let mut came: Vec<String> = arrived.iter().map(|one| one.text()).collect();
    // At least once.
    came.dedup();
    let expected: Vec<String> = (0..sent).map(|n| n.to_string()).collect();
    assert_eq!(came, expected);
    cluster.assert_no_panic();
}

#[tokio::test]
async fn a_node_of_a_foreign_authority_is_no_node() {
    let _alone = alone().await;
    let cluster = Cluster::start(3).await;
    let id = cluster.nodes[2].id;
    let (dir, foreign, own) = (
        tls_dir(&cluster, id),
        cluster.dir.join("foreign"),
        cluster.dir.join("own"),
    );
    cluster.terminate(id).await;
    lontra(&["cert", "authority", "--dir", foreign.to_str().expect("text")]).await;
    let shown = cluster.dir.join("shown");
    issue(&foreign, id, &shown).await;
    std::fs::create_dir(&own).expect("a directory");
    for file in files(id) {
        std::fs::copy(dir.join(&file), own.join(&file)).expect("kept");
        std::fs::copy(shown.join(&file), dir.join(&file)).expect("replaced");
    }
    cluster.start_node(id);
    eventually("links refused for their certificates", START, || async {
        let refused = "check node id, cluster name, ca.pem and clock";
        cluster.logs().contains(refused).then_some(())
    })
    .await;
    assert!(
        cluster
            .ready_within(id, std::time::Duration::from_secs(3))
            .await
            .is_err()
    );
    // The lower id dials: it is dialled, and each refuses the other.
    eventually("the refusal is counted", START, || async {
        let refused = cluster.metrics(id).await;
        let count = refused.sum_where("lontra_link_handshakes_refused_total", "reason=\"handshake\"");
        (count > 0.0).then_some(())
    })
    .await;
    let mut client = Client::open(cluster.mqtt(0), Version::V5, "links-f").await;
    client.subscribe(&[("links", 1)]).await;
    client.publish("links", "the others go on", 1).await;
    cluster.kill(id).await;
    for file in files(id) {
        std::fs::copy(own.join(&file), dir.join(&file)).expect("put back");
    }
    cluster.start_node(id);
    cluster.wait_ready(id, START).await;
    cluster.assert_no_panic();
}

#[tokio::test]
async fn what_a_node_writes_is_for_its_user_alone() {
    let cluster = Cluster::start(1).await;
    let mut client = Client::open(cluster.mqtt(0), Version::V5, "files").await;
    let retained = crate::support::codec::Publish {
        retain: true,
        ..crate::support::codec::Publish::new("files", "x", 1)
    };
    client.publish_packet(retained).await;
    let mut looked_at = 0;
    for_others(&cluster.nodes[0].data, &mut looked_at);
    assert!(looked_at > 5, "{looked_at} files");
}

/// Files come and go while a node runs. What others see of a directory that is theirs to enter is in it.
fn for_others(directory: &Path, looked_at: &mut usize) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let Ok(metadata) = entry.metadata() else { continue };
        let path = entry.path();
        if metadata.is_dir() || metadata.is_file() {
            assert_eq!(metadata.permissions().mode() & 0o077, 0, "{}", path.display());
            *looked_at += 1;
        }
        if metadata.is_dir() {
            for_others(&path, looked_at);
        }
    }
}
