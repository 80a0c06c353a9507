//! What operators and fault tests see and do over HTTP and with `lontra cluster status`, on three real nodes.

use crate::support::client::Client;
use crate::support::cluster::{Cluster, LONTRA, http_get};
use crate::support::codec::{Connect, Version};
use crate::support::{START, eventually};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

// ---- lontra cluster status ----

#[tokio::test]
async fn status_tells_what_the_cluster_is_and_what_it_lacks() {
    let _alone = crate::support::alone().await;
    let mut cluster = Cluster::start(3).await;
    let mut client = Client::open(cluster.mqtt(1), Version::V5, "status").await;
    client.ping().await;
    let (absent, _) = Client::connect(cluster.mqtt(2), &Connect::persistent(Version::V5, "status-absent")).await;
    absent.disconnect().await;

    let healthy = status_with(&cluster, "all is well", |code, status| {
        let connected = status["sessions"] == json!({ "all": 2, "durable": 1, "connected": 1 });
        code == 0 && connected && everything_is_known(status)
    })
    .await;
    assert_eq!((&healthy["ok"], &healthy["problems"]), (&json!(true), &json!([])));
    for (index, node) in cluster.nodes.iter().enumerate() {
        let shown = &healthy["nodes"][index];
        assert_eq!(shown["node"], node.id);
        assert_eq!(
            (&shown["up"], &shown["answers"]),
            (&json!(true), &json!(true)),
            "{shown}"
        );
        assert_eq!(shown["client_address"], *node.mqtt);
        assert_eq!(shown["http_address"], *node.http);
        assert_eq!(shown["disk_low"], false);
        assert_eq!(shown["clients"], u64::from(index == 1), "{healthy:#}");
        let left = shown["lease_left_ms"].as_u64().expect("the meta leader answers");
        assert!((1..=2000).contains(&left), "{shown}");
    }
    assert_eq!(
        healthy["groups"].as_array().expect("groups").len(),
        13,
        "meta and 12 shards"
    );
    assert_eq!(healthy["meta_leader"], cluster.leader_of("meta").await);

    // For people: every node and group has its line, also by way of a configuration file.
    let config = cluster.nodes[2].config.to_str().expect("UTF-8").to_owned();
    let (code, table, _) = status(&["--config", &config]).await;
    assert_eq!(code, 0, "{table}");
    assert!(
        table.contains(": all is well\n") && table.contains("as node 3 at"),
        "{table}"
    );
    for name in [
        "NODE",
        "1  ",
        "2  ",
        "3  ",
        "GROUP",
        "meta",
        "shard-0",
        "shard-11",
        "Sessions: 2, of them 1",
    ] {
        assert!(table.lines().any(|line| line.starts_with(name)), "{name}: {table}");
    }

    // A node that went is named by the others, and its groups are led again.
    let lost = cluster.nodes[2].id;
    cluster.kill(lost).await;
    let down = format!("node {lost} is down");
    let degraded = status_with(&cluster, &down, |code, status| {
        code == 1 && status["problems"] == json!([down])
    })
    .await;
    assert_eq!(
        (&degraded["ok"], &degraded["unanswered"]),
        (&json!(false), &json!([lost]))
    );
    assert_eq!(
        (&degraded["nodes"][2]["up"], &degraded["nodes"][2]["version"]),
        (&json!(false), &Value::Null)
    );
    let (code, table, _) = status(&["--url", &url(&cluster, 0)]).await;
    assert!(code == 1 && table.contains(&format!("  - {down}\n")), "{code}: {table}");
    cluster.start_node(lost);
    status_with(&cluster, "well again", |code, status| {
        code == 0 && everything_is_known(status)
    })
    .await;
    cluster.assert_no_panic();

    let gone = url(&cluster, 0);
    cluster.stop();
    let (code, table, error) = status(&["--url", &gone, "--json"]).await;
    assert_eq!((code, &*table), (2, ""), "{error}");
    assert!(
        error.contains(&cluster.nodes[0].http) && error.contains("http.listen"),
        "{error}"
    );
}

fn everything_is_known(status: &Value) -> bool {
    let leases = status["nodes"].as_array().expect("nodes").iter();
    let groups = status["groups"].as_array().expect("groups").iter();
    leases.map(|node| &node["lease_left_ms"]).all(Value::is_u64)
        && groups
            .flat_map(|group| group["replicas"].as_array().expect("replicas"))
            .all(|replica| replica["lag"] == 0)
}

/// Asks node 0 until its status and the exit code are as `wanted`.
async fn status_with(cluster: &Cluster, what: &str, wanted: impl Fn(i32, &Value) -> bool) -> Value {
    let url = url(cluster, 0);
    eventually(&format!("status: {what}"), START, || async {
        let (code, text, _) = status(&["--url", &url, "--json"]).await;
        let status: Value = serde_json::from_str(&text).ok()?;
        wanted(code, &status).then_some(status)
    })
    .await
}

/// `lontra cluster status` with its exit code, output and errors.
async fn status(arguments: &[&str]) -> (i32, String, String) {
    let output = tokio::process::Command::new(LONTRA)
        .args(["cluster", "status"])
        .args(arguments)
        .output()
        .await
        .expect("lontra runs");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    (
        output.status.code().expect("an exit code"),
        text(output.stdout),
        text(output.stderr),
    )
}

fn url(cluster: &Cluster, index: usize) -> String {
    format!("http://{}", cluster.nodes[index].http)
}

// ---- hooks ----

#[tokio::test]
async fn replicas_that_applied_the_same_hold_the_same() {
    let _alone = crate::support::alone().await;
    let cluster = Cluster::start(3).await;
    let mut sessions = Vec::new();
    for n in 0..6 {
        let connect = Connect::persistent(Version::V5, &format!("digest-{n}"));
        let (mut client, _) = Client::connect(cluster.mqtt(n % 3), &connect).await;
        client.subscribe(&[("digest/#", 1), (&format!("own/{n}"), 1)]).await;
        sessions.push(client);
    }
    // Half of them take their messages, the others' stay.
    let absent = sessions.split_off(3);
    for client in absent {
        client.disconnect().await;
    }
    let mut publisher = Client::open(cluster.mqtt(0), Version::V5, "digest-p").await;
    for n in 0..60 {
        publisher.publish(&format!("digest/{n}"), vec![n; 500], 1).await;
    }
    for client in &mut sessions {
        for _ in 0..60 {
            client.message().await;
        }
    }
    // Settling comes after the client's PUBACK, and changes its shard.
    eventually("only what waits for the absent", START, || async {
        let waits = cluster.nodes.len() * 3 * 60;
        (leftovers(&cluster).await.get("pending") == Some(&waits)).then_some(())
    })
    .await;
    let mut digests = BTreeMap::new();
    for group in groups() {
        let digest = agreed_digest(&cluster, &group).await;
        assert!(digest["rows"].as_u64() > Some(0), "{digest}");
        digests.insert(group, digest["digest"].clone());
    }
    // One more message changes its shard, and no other.
    publisher.publish("digest/once more", "x", 1).await;
    let mut changed = Vec::new();
    for group in groups().into_iter().filter(|group| group != "meta") {
        if agreed_digest(&cluster, &group).await["digest"] != digests[&group] {
            changed.push(group);
        }
    }
    assert!(!changed.is_empty() && changed.len() < 12, "{changed:?}");

    // A replica that was sent a snapshot, because the log that it lacks is gone.
    let lost = cluster.nodes[2].id;
    cluster.kill(lost).await;
    for n in 0..60 {
        publisher.publish(&format!("digest/{n}"), vec![n; 500], 1).await;
    }
    for node in &cluster.nodes[..2] {
        for group in groups() {
            let (code, answer) = post(&node.http, &format!("/api/v1/groups/{group}/snapshot"), "").await;
            assert_eq!(code, 200, "{answer}");
        }
    }
    cluster.start_node(lost);
    cluster.wait_ready(lost, START).await;
    for group in groups() {
        agreed_digest(&cluster, &group).await;
    }
    let installed = cluster
        .metrics(lost)
        .await
        .sum("lontra_storage_snapshots_installed_total");
    assert!(installed > 0.0, "some digest was of an installed snapshot");
    cluster.assert_no_panic();
}

/// The digest that all nodes agree on once they have applied the same; equal `applied` never comes with another digest.
async fn agreed_digest(cluster: &Cluster, group: &str) -> Value {
    eventually(&format!("equal applied of {group}"), START, || async {
        let mut answers = Vec::new();
        for node in &cluster.nodes {
            answers.push(get(&node.http, &format!("/api/v1/groups/{group}/digest")).await);
        }
        for (one, other) in [(0, 1), (0, 2), (1, 2)] {
            let (one, other): (&Value, &Value) = (&answers[one], &answers[other]);
            if one["applied"] == other["applied"] {
                assert_eq!(one["digest"], other["digest"], "apply-deterministic: {one} {other}");
            }
        }
        let applied = |answer: &Value| answer["applied"].as_u64().expect("applied");
        let all_equal = answers.iter().all(|answer| applied(answer) == applied(&answers[0]));
        all_equal.then(|| answers.remove(0))
    })
    .await
}

#[tokio::test]
async fn hooks_snapshot_a_group_and_move_its_leader() {
    let _alone = crate::support::alone().await;
    let dir = tempfile::tempdir().expect("a directory");
    // No checkpoint comes by itself.
    let seldom = [("LONTRA__STORAGE__CHECKPOINT_INTERVAL", "1h")];
    let cluster = Cluster::start_in(dir.path().to_owned(), 3, &seldom).await;
    let mut publisher = Client::open(cluster.mqtt(0), Version::V5, "hooks-p").await;
    let connect = Connect::persistent(Version::V5, "hooks-s");
    let (mut subscriber, _) = Client::connect(cluster.mqtt(1), &connect).await;
    subscriber.subscribe(&[("hooks/#", 1)]).await;
    for n in 0..40 {
        publisher.publish(&format!("hooks/{n}"), "x", 1).await;
        subscriber.message().await;
    }

    let http = &cluster.nodes[1].http;
    for name in ["meta", "shard-3"] {
        let before = group(http, name).await;
        let index = |value: &Value, key: &str| value[key].as_u64().unwrap_or_else(|| panic!("{key}: {value}"));
        assert!(index(&before, "applied") > index(&before, "snapshot"), "{before}");
        let (code, answer) = post(http, &format!("/api/v1/groups/{name}/snapshot"), "").await;
        assert_eq!(code, 200, "{answer}");
        assert!(
            index(&answer, "snapshot") >= index(&before, "applied"),
            "{before} {answer}"
        );
        let after = group(http, name).await;
        assert!(
            index(&after, "snapshot") >= index(&answer, "snapshot"),
            "{answer} {after}"
        );
        assert!(
            index(&after, "purged") > index(&before, "purged"),
            "the log begins later: {before} {after}"
        );
        assert!(index(&after, "last_log") >= index(&after, "committed"), "{after}");
    }

    // Through each node: it may lead, be the one that shall, or neither.
    for name in ["meta", "shard-3"] {
        for (asked, to) in [(0, 1), (0, 2), (0, 0), (1, 1), (2, 0)] {
            let (http, to) = (&cluster.nodes[asked].http, cluster.nodes[to].id);
            let body = json!({ "to": to }).to_string();
            let (code, answer) = post(http, &format!("/api/v1/groups/{name}/leader"), &body).await;
            assert_eq!((code, &answer["leader"]), (200, &json!(to)), "{name}: {answer}");
            if name == "meta" {
                // Shards may move on by themselves to spread.
                assert_eq!(cluster.leader_of(name).await, to);
                let seen = group(http, name).await;
                assert_eq!(seen["role"] == "leader", cluster.nodes[asked].id == to, "{seen}");
            }
        }
    }
    publisher.publish("hooks/after", "still served", 1).await;
    assert_eq!(subscriber.message().await.text(), "still served");

    // Who owns a client id, and what waits for it.
    let session = get(http, "/api/v1/sessions/hooks-s").await;
    assert_eq!(
        (&session["owner"], &session["connected"]),
        (&json!(2), &json!(true)),
        "{session}"
    );
    assert!(session["epoch"].is_u64() && session["incarnation"].is_u64() && session["expires_in_ms"].is_null());
    subscriber.disconnect().await;
    publisher.publish("hooks/waits", "x", 1).await;
    let waiting = eventually("a pending entry on this node", START, || async {
        let pending = get(http, "/api/v1/sessions/hooks-s/pending").await;
        (pending["total"] == 1).then_some(pending)
    })
    .await;
    let shards = waiting["shards"].as_object().expect("shards").values();
    assert_eq!(shards.filter(|count| **count == 1).count(), 1, "{waiting}");

    for (path, body, expected, part) in [
        ("/api/v1/groups/shard-12/snapshot", "", 404, "shard-0 to shard-11"),
        ("/api/v1/groups/shards/leader", r#"{"to":1}"#, 404, "no group shards"),
        ("/api/v1/groups/meta/leader", r#"{"to":4}"#, 409, "one of [1, 2, 3]"),
        ("/api/v1/groups/meta/leader", "to 1", 400, r#"{"to": 2}"#),
        ("/api/v1/groups/meta/digest", "", 405, "POST"),
    ] {
        let (code, answer) = post(http, path, body).await;
        let error = answer["error"].as_str().unwrap_or_default();
        assert!(
            code == expected && error.contains(part),
            "{path} {body}: {code} {answer}"
        );
    }
    for (path, expected) in [
        ("/api/v1/groups/shard-99/digest", 404),
        ("/api/v1/groups/meta/leader", 405),
        ("/api/v1/sessions/nobody/pending", 404),
    ] {
        let (code, body) = http_get(http, path).await.expect("an answer");
        let answer: Value = serde_json::from_str(&body).expect("JSON");
        assert!(code == expected && answer["error"].is_string(), "{path}: {code} {body}");
    }

    // Leadership does not go where nobody is.
    let lost = cluster.nodes[2].id;
    cluster.kill(lost).await;
    let body = json!({ "to": lost }).to_string();
    let (code, answer) = post(http, "/api/v1/groups/meta/leader", &body).await;
    assert!(code == 409 || code == 503, "{code}: {answer}");
    assert!(
        answer["error"].as_str().is_some_and(|error| error.contains("meta")),
        "{answer}"
    );
    cluster.assert_no_panic();
}

#[tokio::test]
async fn ended_sessions_leave_no_key_behind() {
    let _alone = crate::support::alone().await;
    let cluster = Cluster::start(3).await;
    let name = |n: usize| format!("keys-{n}");
    // What every group has from its first entry on.
    let mut publisher = Client::open(cluster.mqtt(0), Version::V5, "keys-p").await;
    publisher.publish("nobody", "x", 1).await;
    let before = leftovers(&cluster).await;

    for n in 0..SESSIONS {
        let (mut client, _) = Client::connect(cluster.mqtt(n % 3), &Connect::persistent(Version::V5, &name(n))).await;
        client.subscribe(&[("keys/#", 1), (&name(n), 1)]).await;
        client.disconnect().await;
    }
    for n in 0..MESSAGES {
        publisher.publish(&format!("keys/{n}"), "for all of them", 1).await;
    }
    let during = leftovers(&cluster).await;
    let grown = |kind: &str| during.get(kind).copied().unwrap_or(0) - before.get(kind).copied().unwrap_or(0);
    let replicas = cluster.nodes.len();
    assert_eq!(grown("session"), replicas * SESSIONS, "{during:?}");
    assert_eq!(grown("subscription"), replicas * SESSIONS * 2, "{during:?}");
    eventually("messages and their entries on all replicas", START, || async {
        let kinds = leftovers(&cluster).await;
        let has = |kind: &str, count: usize| kinds.get(kind) == Some(&(replicas * count));
        (has("message", MESSAGES) && has("pending", MESSAGES * SESSIONS)).then_some(())
    })
    .await;

    // Each ends as its owner likes: half of them without a word to their messages.
    for n in 0..SESSIONS {
        let (client, _) = Client::connect(cluster.mqtt((n + 1) % 3), &Connect::clean(Version::V5, &name(n))).await;
        client.disconnect().await;
    }
    eventually("no key of theirs left", START, || async {
        (leftovers(&cluster).await == before).then_some(())
    })
    .await;
    cluster.assert_no_panic();
}

const SESSIONS: usize = 5;
const MESSAGES: usize = 30;

/// Keys by kind over all groups and nodes, but for those that stay however little there is to keep.
async fn leftovers(cluster: &Cluster) -> BTreeMap<String, usize> {
    let mut all = BTreeMap::<String, usize>::new();
    for node in &cluster.nodes {
        for group in groups() {
            let answer = get(&node.http, &format!("/api/v1/groups/{group}/keys")).await;
            for (kind, count) in answer["kinds"].as_object().expect("kinds") {
                *all.entry(kind.clone()).or_default() += count.as_u64().expect("a count") as usize;
            }
        }
    }
    for stays in ["meta_head", "node", "sender", "shard_head"] {
        all.remove(stays);
    }
    all
}

// ---- helpers ----

/// Of a cluster with the default number of shards.
fn groups() -> Vec<String> {
    std::iter::once("meta".to_owned())
        .chain((0..12).map(|shard| format!("shard-{shard}")))
        .collect()
}

/// One group as the node at `http` has it.
async fn group(http: &str, name: &str) -> Value {
    let answer = get(http, "/api/v1/groups").await;
    let mut groups = answer["groups"].as_array().expect("groups").iter();
    groups.find(|group| group["group"] == name).expect("the group").clone()
}

async fn get(http: &str, path: &str) -> Value {
    let (code, body) = http_get(http, path)
        .await
        .unwrap_or_else(|error| panic!("{path}: {error}"));
    assert_eq!(code, 200, "{path}: {body}");
    serde_json::from_str(&body).unwrap_or_else(|error| panic!("{path}: {error}: {body}"))
}

async fn post(http: &str, path: &str, body: &str) -> (u16, Value) {
    let exchange = async {
        let mut stream = TcpStream::connect(http).await.expect("a connection");
        let length = body.len();
        let head = format!("POST {path} HTTP/1.0\r\nHost: {http}\r\nContent-Length: {length}\r\n\r\n");
        stream.write_all((head + body).as_bytes()).await.expect("a request");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("an answer");
        answer
    };
    let answer = tokio::time::timeout(START, exchange)
        .await
        .unwrap_or_else(|_| panic!("no answer to POST {path}"));
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .unwrap_or_else(|| panic!("not HTTP: {answer}"));
    let code = head.split_whitespace().nth(1).and_then(|code| code.parse().ok());
    let code = code.unwrap_or_else(|| panic!("not HTTP: {head}"));
    (
        code,
        serde_json::from_str(body).unwrap_or_else(|error| panic!("POST {path}: {error}: {body}")),
    )
}
