//! What the cluster keeps of who may do what, through real nodes: users, rules, bans and keys by the admin API and the command
//! line; in effect on every node when the answer is there, also when one of them stands still or is cut off.

use crate::support::auth::{connack, lontra_user};
use crate::support::client::{Client, Gone};
use crate::support::cluster::{Cluster, LONTRA, free_ports};
use crate::support::codec::{Connect, Packet, Publish, VERSIONS, Version, Will};
use crate::support::partition::Cut;
use crate::support::{SOON, START, alone, eventually};
use serde_json::{Value, json};
use std::path::Path;
use std::process::Stdio;
use std::time::Instant;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;

const CLUSTER_USERS: (&str, &str) = ("LONTRA__AUTH__CLUSTER_USERS", "true");
const BANNED: u8 = 0x8a;
const ADMINISTRATIVE_ACTION: u8 = 0x98;
const NOT_AUTHORIZED: u8 = 0x87;
const WRONG: u8 = 0x86;

// ---- users ----

#[tokio::test]
async fn a_user_is_let_in_everywhere_once_it_is_added_and_let_go_everywhere_once_it_is_removed() {
    let _alone = alone().await;
    let cluster = start(3, &[CLUSTER_USERS]).await;
    let node = url(&cluster, 0);
    lontra_user(&["add", "--node", &node, "alice", "--groups", "ops"], "wonder land").await;
    let alice = |name: &str| Connect::clean(Version::V5, name).user("alice", "wonder land");
    // At once, where it was not added.
    assert_eq!(connack(cluster.mqtt(2), &alice("c")).await, 0);
    let liar = Connect::clean(Version::V5, "c").user("alice", "wonder");
    assert_eq!(connack(cluster.mqtt(1), &liar).await, WRONG);
    assert_eq!(
        connack(cluster.mqtt(1), &Connect::clean(Version::V5, "c")).await,
        NOT_AUTHORIZED
    );
    // A hash of Mosquitto's making is taken as it is, and no plain password in its place.
    let mosquitto = json!({ "hash": SHA_512 });
    assert_eq!(
        put(&cluster, 1, "/api/v1/users/old", &mosquitto).await,
        (200, json!({ "existed": false }))
    );
    let plain = put(&cluster, 1, "/api/v1/users/plain", &json!({ "hash": "wonder" })).await;
    assert_eq!(plain.0, 400, "{}", plain.1);
    let old = Connect::clean(Version::V5, "old").user("old", "older");
    let (mut old, _) = Client::connect(cluster.mqtt(2), &old).await;

    let mut clients = Vec::new();
    for (index, version) in VERSIONS.into_iter().cycle().take(6).enumerate() {
        let connect = Connect::clean(version, &format!("alice-{index}")).user("alice", "wonder land");
        clients.push(Client::connect(cluster.mqtt(index % 3), &connect).await.0);
    }
    // The same again is no change, and lets nobody go.
    let same = json!({ "groups": ["ops"] });
    assert_eq!(
        put(&cluster, 2, "/api/v1/users/alice", &same).await,
        (200, json!({ "existed": true }))
    );
    for client in &mut clients {
        client.ping().await;
    }
    let told = lontra(&["user", "list", "--node", &url(&cluster, 1)]).await;
    assert_eq!(told, "alice (ops)\nold");
    let told = lontra(&["user", "remove", "--node", &url(&cluster, 1), "alice"]).await;
    assert!(told.contains("removed `alice`"), "{told}");
    for client in &mut clients {
        let (code, _) = client.closed_by_server(SOON).await;
        let expected = (client.version == Version::V5).then_some(NOT_AUTHORIZED);
        assert_eq!(code, expected, "{}", client.client_id);
    }
    for index in 0..3 {
        assert_eq!(connack(cluster.mqtt(index), &alice("c")).await, WRONG, "node {index}");
    }
    old.ping().await;
    // Another password is another proof.
    let changed = put(&cluster, 0, "/api/v1/users/old", &json!({ "password": "new" })).await;
    assert_eq!(changed, (200, json!({ "existed": true })));
    assert_eq!(old.closed_by_server(SOON).await.0, Some(NOT_AUTHORIZED));
    assert_eq!(
        connack(cluster.mqtt(1), &Connect::clean(Version::V5, "old").user("old", "new")).await,
        0
    );
    for (name, body) in [
        ("a:b", json!({ "password": "x" })),
        ("x", json!({ "password": "" })),
        ("x", json!({ "password": 7 })),
        ("x", json!({ "password": "x", "hash": SHA_512 })),
        ("x", json!({ "password": "x", "groups": ["a b"] })),
        ("x", json!({ "password": "x", "group": [] })),
    ] {
        let refused = put(&cluster, 0, &format!("/api/v1/users/{name}"), &body).await;
        assert_eq!(refused.0, 400, "{name} {body}: {}", refused.1);
    }
    let nobody = put(&cluster, 0, "/api/v1/users/nobody", &json!({ "groups": ["a"] })).await;
    assert_eq!(nobody.0, 404, "{}", nobody.1);
    cluster.assert_no_panic();
    let logs = cluster.logs();
    for secret in ["wonder land", "argon2id", "$6$"] {
        assert!(!logs.contains(secret), "{secret} is in the log");
    }
    assert!(is_in_files(&cluster.dir, b"argon2id"), "the search finds what is there");
    assert!(!is_in_files(&cluster.dir, b"wonder land"), "kept in plain");
}

#[tokio::test]
async fn a_node_that_stands_still_or_is_cut_off_serves_nobody_who_was_revoked() {
    let _alone = alone().await;
    let cluster = start(3, &[CLUSTER_USERS]).await;
    for stands_still in [true, false] {
        let away = cluster.nodes[2].id;
        let added = put(&cluster, 0, "/api/v1/users/bob", &json!({ "password": "b" })).await;
        assert_eq!(added.0, 200, "{}", added.1);
        let connect = Connect::clean(Version::V5, "bob").user("bob", "b");
        let (mut bob, _) = Client::connect(cluster.mqtt(2), &connect).await;
        assert_eq!(bob.publish_code("a", "before", 1).await, 0x10, "nobody subscribes");
        match stands_still {
            true => cluster.pause(away).await,
            false => cluster.isolate(away, Cut::Both),
        }
        let started = Instant::now();
        let removed = ask(&cluster, 0, "DELETE", "/api/v1/users/bob", "", None).await;
        assert_eq!(
            removed,
            (200, json!({ "existed": true })),
            "after {:?}",
            started.elapsed()
        );
        // From the answer on nothing is done for the user there, whether the node knows of it or not.
        let sent = Publish {
            pid: bob.next_pid(),
            ..Publish::new("a", "after", 1)
        };
        // The connection may be closed already.
        let _: Result<(), Gone> = bob.send(&sent.encode(Version::V5)).await;
        match stands_still {
            true => cluster.resume(away),
            false => {
                assert_ne!(connack_or_closed(cluster.mqtt(2), &connect).await, Some(0));
                // What it last knew is not told as what is.
                for path in ["/api/v1/users", "/api/v1/bans", "/api/v1/rules", "/api/v1/sessions/bob"] {
                    let (code, told) = ask(&cluster, 2, "GET", path, "", None).await;
                    assert!(
                        code == 503 && told["error"].to_string().contains("no lease"),
                        "{path}: {code} {told}"
                    );
                }
            }
        }
        loop {
            match bob.packet_within(SOON).await {
                Ok(Packet::Puback { code, .. }) => panic!("acknowledged with {code:#x} (stands still: {stands_still})"),
                Ok(_) => {}
                Err(Gone::Closed(_)) => break,
                Err(gone) => panic!("not let go: {gone:?}"),
            }
        }
        cluster.heal();
        cluster.wait_ready(away, START).await;
        assert_eq!(connack(cluster.mqtt(2), &connect).await, WRONG);
    }
    cluster.assert_no_panic();
}

/// As for users: what is answered holds on the node that does not hear of it, and on its return.
#[tokio::test]
async fn a_node_that_stands_still_or_is_cut_off_serves_nobody_against_a_ban_or_a_rule() {
    let _alone = alone().await;
    let cluster = start(3, &[]).await;
    let open = json!({ "rules": ["allow publish,subscribe #"] });
    let closed = json!({ "rules": ["deny client=ruled publish,subscribe a", "allow publish,subscribe #"] });
    let ban = json!({ "client": "banned" }).to_string();
    for stands_still in [true, false] {
        assert_eq!(put(&cluster, 0, "/api/v1/rules", &open).await.0, 200);
        let away = cluster.nodes[2].id;
        let banned = Connect::clean(Version::V5, "banned");
        let ruled = Connect::persistent(Version::V5, "ruled");
        let mut clients = Vec::new();
        for connect in [&banned, &ruled] {
            let (mut client, _) = Client::connect(cluster.mqtt(2), connect).await;
            client.subscribe(&[("a", 1)]).await;
            assert_eq!(client.publish_code("b", "before", 1).await, 0x10, "nobody subscribes");
            clients.push(client);
        }
        match stands_still {
            true => cluster.pause(away).await,
            false => cluster.isolate(away, Cut::Both),
        }
        let (by_ban, by_rule) = tokio::join!(
            ask(&cluster, 0, "POST", "/api/v1/bans", &ban, None),
            put(&cluster, 1, "/api/v1/rules", &closed)
        );
        assert_eq!((by_ban.0, by_rule.0), (200, 200), "{} {}", by_ban.1, by_rule.1);
        // Both are denied this from here on, whether their node knows of it or not.
        for client in &mut clients {
            let sent = Publish {
                pid: client.next_pid(),
                ..Publish::new("a", "after", 1)
            };
            // The connection may be closed already.
            let _: Result<(), Gone> = client.send(&sent.encode(Version::V5)).await;
        }
        let mut other = Client::open(cluster.mqtt(0), Version::V5, "other").await;
        other.publish("a", "not for them", 1).await;
        if stands_still {
            cluster.resume(away);
        }
        for client in &mut clients {
            loop {
                match client.packet_within(SOON).await {
                    Ok(Packet::Puback { code, .. }) if code < 0x80 => {
                        panic!("{}: acknowledged (stands still: {stands_still})", client.client_id)
                    }
                    Ok(Packet::Publish(one)) => panic!("{}: got {one:?}", client.client_id),
                    Ok(_) => {}
                    Err(Gone::Closed(_)) => break,
                    Err(gone) => panic!("{}: not let go: {gone:?}", client.client_id),
                }
            }
        }
        cluster.heal();
        cluster.wait_ready(away, START).await;
        assert_eq!(connack(cluster.mqtt(2), &banned).await, BANNED);
        // Its subscription is there, and what waited for it is not for it any more.
        let (mut ruled, _) = Client::connect(cluster.mqtt(2), &ruled).await;
        assert_eq!(ruled.publish_code("a", "x", 1).await, NOT_AUTHORIZED);
        ruled.subscribe(&[("end", 1)]).await;
        other.publish("a", "nor this", 1).await;
        other.publish("end", "end", 1).await;
        let came = ruled.messages_until("end").await;
        assert!(came.is_empty(), "{came:?}");
        // Its acknowledgement of the last message may be lost with its connection: the next round begins without the session.
        let gone = Connect::clean(Version::V5, "ruled");
        Client::connect(cluster.mqtt(0), &gone).await.0.disconnect().await;
        let lifted = ask(&cluster, 0, "DELETE", "/api/v1/bans?client=banned", "", None).await;
        assert_eq!(lifted.0, 200, "{}", lifted.1);
    }
    cluster.assert_no_panic();
}

/// Wills that wait are decided when they are due, by whichever node leads then: those of a node that has died, too.
#[tokio::test]
async fn a_will_of_who_was_revoked_since_is_not_published_though_its_node_died() {
    let _alone = alone().await;
    let cluster = start(3, &[CLUSTER_USERS]).await;
    let rules = ["allow publish,subscribe #"];
    assert_eq!(
        put(&cluster, 0, "/api/v1/rules", &json!({ "rules": rules })).await.0,
        200
    );
    for name in ["removed", "banned", "denied", "honest"] {
        let path = format!("/api/v1/users/{name}");
        let added = put(&cluster, 0, &path, &json!({ "password": "p" })).await;
        assert_eq!(added.0, 200, "{}", added.1);
    }
    let honest = |name: &str| Connect::clean(Version::V5, name).user("honest", "p");
    let mut witness = Client::connect(cluster.mqtt(0), &honest("witness")).await.0;
    witness.subscribe(&[("w/#", 1)]).await;
    let delay = 8;
    let mut connected = Vec::new();
    for name in ["removed", "banned", "denied", "honest"] {
        let connect = Connect::persistent(Version::V5, name)
            .user(name, "p")
            .will(Will::new(&format!("w/{name}"), name, 1).delay(delay));
        connected.push(Client::connect(cluster.mqtt(2), &connect).await.0);
    }
    cluster.kill(cluster.nodes[2].id).await;
    let removed = ask(&cluster, 0, "DELETE", "/api/v1/users/removed", "", None);
    let banned = json!({ "client": "banned" }).to_string();
    let banned = ask(&cluster, 1, "POST", "/api/v1/bans", &banned, None);
    let rules = json!({ "rules": ["deny user=denied publish w/#", "allow publish,subscribe #"] });
    let denied = put(&cluster, 1, "/api/v1/rules", &rules);
    let (removed, banned, denied) = tokio::join!(removed, banned, denied);
    for answer in [removed, banned, denied] {
        assert_eq!(answer.0, 200, "{}", answer.1);
    }
    assert_eq!(witness.message().await.topic, "w/honest");
    let counted = "lontra_authorization_denied_total";
    eventually("three wills that were denied", SOON, || async {
        let counted = cluster.all_metrics().await.sum_where(counted, "action=\"will\"");
        (counted >= 3.0).then_some(())
    })
    .await;
    let mut end = Client::connect(cluster.mqtt(1), &honest("end")).await.0;
    end.publish("w/end", "end", 1).await;
    let rest = witness.messages_until("end").await;
    let rest: Vec<&str> = rest.iter().map(|message| &*message.topic).collect();
    assert_eq!(rest, [""; 0], "of nobody else");
    cluster.assert_no_panic();
}

// ---- rules ----

#[tokio::test]
async fn rules_of_the_cluster_hold_at_once_on_every_node_after_the_local_ones_and_before_the_file() {
    let _alone = alone().await;
    let files = tempfile::tempdir().expect("a directory");
    let acl_file = files.path().join("acl");
    std::fs::write(&acl_file, "topic readwrite file/#\ntopic readwrite cluster/#\n").expect("written");
    let acl_file = acl_file.to_str().expect("text");
    let cluster = start(
        3,
        &[
            ("LONTRA__AUTH__RULES", r#"["allow publish,subscribe local/#"]"#),
            ("LONTRA__AUTH__ACL_FILE", acl_file),
        ],
    )
    .await;
    let mut reader = Client::open(cluster.mqtt(1), Version::V5, "reader").await;
    reader
        .subscribe(&[("local/#", 0), ("cluster/#", 0), ("file/#", 0)])
        .await;
    let mut writer = Client::open(cluster.mqtt(2), Version::V5, "writer").await;
    let node = url(&cluster, 0);
    for rule in ["deny publish,subscribe local/#", "deny subscribe cluster/secret/#"] {
        lontra(&["acl", "add", rule, "--node", &node]).await;
    }
    // The first is behind the local one, which decides. The second is before the file.
    for topic in ["local/1", "cluster/secret/1", "cluster/1", "file/1"] {
        assert_eq!(writer.publish_code(topic, topic, 1).await, 0, "{topic}");
    }
    let mut came: Vec<String> = Vec::new();
    for _ in 0..3 {
        came.push(reader.message().await.topic);
    }
    came.sort();
    assert_eq!(came, ["cluster/1", "file/1", "local/1"]);
    lontra(&["acl", "add", "deny publish file/#", "--at", "1", "--node", &node]).await;
    assert_eq!(
        writer.publish_code("file/1", "x", 1).await,
        NOT_AUTHORIZED,
        "denied at once"
    );
    let listed = lontra(&["acl", "list", "--node", &url(&cluster, 1)]).await;
    assert_eq!(
        listed,
        "deny publish file/#\ndeny publish,subscribe local/#\ndeny subscribe cluster/secret/#"
    );
    // Who looked at what is not there any more does not overwrite it.
    let (code, shown) = ask(&cluster, 1, "GET", "/api/v1/rules", "", None).await;
    assert_eq!(code, 200);
    lontra(&["acl", "remove", "deny publish file/#", "--node", &node]).await;
    let late = json!({ "rules": [], "version": shown["version"] });
    assert_eq!(put(&cluster, 2, "/api/v1/rules", &late).await.0, 409);
    assert_eq!(writer.publish_code("file/1", "x", 1).await, 0);
    let (code, told) = put(&cluster, 0, "/api/v1/rules", &json!({ "rules": ["permit publish a"] })).await;
    assert!(code == 400 && told["error"].to_string().contains("permit"), "{told}");
    let rules = files.path().join("rules");
    std::fs::write(&rules, "# none\n").expect("written");
    lontra(&["acl", "set", rules.to_str().expect("text"), "--node", &node]).await;
    assert_eq!(writer.publish_code("cluster/secret/1", "now", 1).await, 0);
    loop {
        let message = reader.message().await;
        if message.text() == "now" {
            assert_eq!(message.topic, "cluster/secret/1");
            break;
        }
    }
    cluster.assert_no_panic();
}

#[tokio::test]
async fn what_no_rule_allows_is_denied_once_there_is_one_in_the_cluster() {
    let _alone = alone().await;
    let cluster = start(1, &[]).await;
    let mut client = Client::open(cluster.mqtt(0), Version::V5, "c").await;
    assert_eq!(client.publish_code("b", "x", 1).await, 0x10);
    let set = put(&cluster, 0, "/api/v1/rules", &json!({ "rules": ["allow publish a"] })).await;
    assert_eq!(set.0, 200, "{}", set.1);
    assert_eq!(client.publish_code("a", "x", 1).await, 0x10);
    assert_eq!(client.publish_code("b", "x", 1).await, NOT_AUTHORIZED);
    let set = put(&cluster, 0, "/api/v1/rules", &json!({ "rules": [] })).await;
    assert_eq!(set.0, 200, "{}", set.1);
    assert_eq!(client.publish_code("b", "x", 1).await, 0x10, "open again");
    cluster.assert_no_panic();
}

// ---- bans ----

#[tokio::test]
async fn a_ban_holds_on_every_node_whatever_else_its_target_shows() {
    let _alone = alone().await;
    let cluster = start(3, &[CLUSTER_USERS]).await;
    for name in ["eve", "bob"] {
        let added = put(
            &cluster,
            0,
            &format!("/api/v1/users/{name}"),
            &json!({ "password": name }),
        )
        .await;
        assert_eq!(added.0, 200, "{}", added.1);
    }
    let connect = |client_id: &str, user: &str| Connect::clean(Version::V5, client_id).user(user, user);
    let (mut eve, _) = Client::connect(cluster.mqtt(2), &connect("eve-1", "eve")).await;
    let (mut bob, _) = Client::connect(cluster.mqtt(2), &connect("bob-1", "bob")).await;

    // By client id: whatever user comes with it, on whichever node, in whichever version.
    let told = lontra(&[
        "ban",
        "add",
        "--client",
        "eve-1",
        "--reason",
        "noise",
        "--node",
        &url(&cluster, 0),
    ])
    .await;
    assert_eq!(told, "banned: client eve-1");
    assert_eq!(eve.closed_by_server(SOON).await.0, Some(ADMINISTRATIVE_ACTION));
    for index in 0..3 {
        assert_eq!(connack(cluster.mqtt(index), &connect("eve-1", "eve")).await, BANNED);
        assert_eq!(connack(cluster.mqtt(index), &connect("eve-1", "bob")).await, BANNED);
        let v3 = Connect::clean(Version::V311, "eve-1").user("eve", "eve");
        assert_eq!(connack(cluster.mqtt(index), &v3).await, 5);
    }
    // Another client id is another client; the user is what to ban then.
    let (mut eve, _) = Client::connect(cluster.mqtt(1), &connect("eve-2", "eve")).await;
    lontra(&["ban", "add", "--user", "eve", "--node", &url(&cluster, 2)]).await;
    assert_eq!(eve.closed_by_server(SOON).await.0, Some(ADMINISTRATIVE_ACTION));
    for (index, client_id) in ["eve-3", "eve-4", ""].into_iter().enumerate() {
        assert_eq!(
            connack(cluster.mqtt(index), &connect(client_id, "eve")).await,
            BANNED,
            "{client_id}"
        );
    }
    // Who does not show that it is eve is not told that eve is banned.
    let liar = Connect::clean(Version::V5, "liar").user("eve", "wrong");
    assert_eq!(connack(cluster.mqtt(0), &liar).await, WRONG);
    bob.ping().await;

    let (code, bans) = ask(&cluster, 1, "GET", "/api/v1/bans", "", None).await;
    assert_eq!((code, bans["bans"].as_array().map(Vec::len)), (200, Some(2)), "{bans}");
    assert_eq!(
        (
            &bans["bans"][0]["client"],
            &bans["bans"][0]["reason"],
            &bans["bans"][0]["by"]
        ),
        (&json!("eve-1"), &json!("noise"), &json!("local"))
    );
    let told = lontra(&["ban", "remove", "--user", "eve", "--node", &url(&cluster, 0)]).await;
    assert_eq!(told, "user eve: not banned any more");
    assert_eq!(connack(cluster.mqtt(2), &connect("eve-3", "eve")).await, 0);
    assert_eq!(connack(cluster.mqtt(2), &connect("eve-1", "eve")).await, BANNED);
    let told = lontra(&["ban", "remove", "--user", "eve", "--node", &url(&cluster, 0)]).await;
    assert_eq!(told, "user eve: was not banned");
    cluster.assert_no_panic();
}

/// A handshake costs more than anything else that a stranger can ask for.
#[tokio::test]
async fn a_banned_address_is_turned_away_before_a_handshake() {
    let cluster = start(1, &[]).await;
    let count = async |family: &str, label: &str| cluster.metrics(cluster.nodes[0].id).await.sum_where(family, label);
    let body = json!({ "address": "127.0.0.0/8" }).to_string();
    assert_eq!(ask(&cluster, 0, "POST", "/api/v1/bans", &body, None).await.0, 200);
    // It says nothing, and need not wait until a handshake would be given up.
    let mut stream = TcpStream::connect(&cluster.nodes[0].mqtts).await.expect("a connection");
    let end = tokio::time::timeout(SOON, stream.read(&mut [0; 64]))
        .await
        .expect("turned away");
    assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
    let banned = count("lontra_limit_refusals_total", "limit=\"banned_address\"").await;
    assert_eq!(banned, 1.0);
    let path = "/api/v1/bans?address=127.0.0.0%2F8";
    assert_eq!(ask(&cluster, 0, "DELETE", path, "", None).await.0, 200);
    cluster.assert_no_panic();
}

#[tokio::test]
async fn a_ban_of_a_network_ends_by_itself_and_knows_mapped_addresses() {
    let _alone = alone().await;
    let port = free_ports(1) + 50;
    let listeners =
        format!("[{{ name = \"both\", kind = \"mqtt\", listen = \"[::]:{port}\", anonymous = \"always\" }}]");
    let cluster = start(1, &[("LONTRA__LISTENERS", &listeners)]).await;
    // Through an IPv6 socket, which sees ::ffff:127.0.0.1.
    let mapped = format!("127.0.0.1:{port}");
    let v6 = format!("[::1]:{port}");
    let nobody = || Connect::clean(Version::V5, "c");
    let (mut client, _) = Client::connect(&mapped, &nobody()).await;
    let (mut other, _) = Client::connect(&v6, &Connect::clean(Version::V5, "other")).await;
    let body = json!({ "address": "127.0.0.0/8", "seconds": 2 });
    let banned = ask(&cluster, 0, "POST", "/api/v1/bans", &body.to_string(), None).await;
    assert_eq!(banned, (200, json!({ "existed": false })));
    assert_eq!(client.closed_by_server(SOON).await.0, Some(ADMINISTRATIVE_ACTION));
    let (code, bans) = ask(&cluster, 0, "GET", "/api/v1/bans", "", None).await;
    assert_eq!(
        (code, &bans["bans"][0]["address"]),
        (200, &json!("127.0.0.0/8")),
        "{bans}"
    );
    let left = bans["bans"][0]["ends_in_ms"].as_u64().expect("it ends");
    assert!(left <= 2_000, "{bans}");
    other.ping().await;
    eventually("the ban has ended", SOON, || async {
        (connack(&mapped, &nobody()).await == 0).then_some(())
    })
    .await;
    eventually("it is swept", SOON, || async {
        let (_, bans) = ask(&cluster, 0, "GET", "/api/v1/bans", "", None).await;
        (bans["bans"] == json!([])).then_some(())
    })
    .await;
    // Written as a mapped address, it is the same.
    let body = json!({ "address": "::ffff:127.0.0.1" });
    let banned = ask(&cluster, 0, "POST", "/api/v1/bans", &body.to_string(), None).await;
    assert_eq!(banned.0, 200, "{}", banned.1);
    for at in [&mapped, cluster.mqtt(0)] {
        assert_eq!(connack(at, &nobody()).await, BANNED, "{at}");
    }
    let path = "/api/v1/bans?address=127.0.0.1%2F32";
    assert_eq!(
        ask(&cluster, 0, "DELETE", path, "", None).await,
        (200, json!({ "existed": true }))
    );
    assert_eq!(connack(&mapped, &nobody()).await, 0);
    cluster.assert_no_panic();
}

// ---- keys ----

#[tokio::test]
async fn once_there_is_a_key_each_endpoint_asks_for_its_role_on_every_node() {
    let _alone = alone().await;
    let files = tempfile::tempdir().expect("a directory");
    let audit = files.path().join("audit");
    let cluster = start(3, &[("LONTRA__LOG__AUDIT_FILE", audit.to_str().expect("text"))]).await;
    let node = url(&cluster, 0);
    let first = json!({ "role": "read" }).to_string();
    let refused = ask(&cluster, 0, "POST", "/api/v1/keys", &first, None).await;
    assert_eq!(refused.0, 409, "the first key administers: {}", refused.1);
    let admin = lontra(&["key", "create", "--role", "admin", "--label", "first", "--node", &node]).await;
    assert!(admin.starts_with("lontra_") && admin.len() == 67, "a key alone");
    // Everywhere, at once.
    for index in 0..3 {
        for key in [None, Some("lontra_0000000000000000_x"), Some(&admin[..66])] {
            let asked = ask(&cluster, index, "GET", "/api/v1/status", "", key).await;
            assert_eq!(asked.0, 401, "node {index}: {}", asked.1);
        }
        let asked = ask(&cluster, index, "GET", "/api/v1/status", "", Some(&admin)).await;
        assert_eq!(asked.0, 200, "node {index}: {}", asked.1);
    }
    let mut keys = Vec::new();
    for role in ["read", "operate"] {
        let body = json!({ "role": role, "label": role }).to_string();
        let (code, made) = ask(&cluster, 1, "POST", "/api/v1/keys", &body, Some(&admin)).await;
        assert_eq!(code, 200, "{made}");
        keys.push(made["key"].as_str().expect("a key").to_owned());
    }
    let [read, operate] = &keys[..] else { unreachable!() };
    let ban = r#"{"client":"nobody","seconds":1}"#;
    let user = r#"{"password":"hunter2"}"#;
    let new_key = r#"{"role":"admin"}"#;
    // What each may, and what it may not, on every node.
    for index in 0..3 {
        for (method, path, body, lowest) in [
            ("GET", "/api/v1/cluster", "", 0),
            ("GET", "/api/v1/users", "", 0),
            ("GET", "/api/v1/bans", "", 0),
            ("POST", "/api/v1/groups/meta/snapshot", "", 1),
            ("POST", "/api/v1/bans", ban, 1),
            ("PUT", "/api/v1/users/al", user, 2),
            ("PUT", "/api/v1/rules", r#"{"rules":[]}"#, 2),
            ("GET", "/api/v1/keys", "", 2),
            ("POST", "/api/v1/keys", new_key, 2),
            ("DELETE", "/api/v1/keys/0", "", 2),
        ] {
            for (role, key) in [read, operate].into_iter().enumerate() {
                let (code, told) = ask(&cluster, index, method, path, body, Some(key)).await;
                let expected = if role >= lowest { 200 } else { 403 };
                assert_eq!(code, expected, "node {index}, {method} {path} as {role}: {told}");
            }
        }
    }
    let (_, shown) = ask(&cluster, 2, "GET", "/api/v1/keys", "", Some(&admin)).await;
    let listed = shown["keys"].as_array().expect("keys");
    assert_eq!(listed.len(), 3, "nobody made a key for itself: {shown}");
    let id_of = |key: &str| key.split('_').nth(1).expect("an id").to_owned();
    // From the command line: by a file, by the environment.
    let key_file = files.path().join("key");
    std::fs::write(&key_file, format!("{admin}\n")).expect("written");
    let key_file = key_file.to_str().expect("text");
    let told = lontra(&["key", "list", "--node", &node, "--key-file", key_file]).await;
    assert!(told.contains("first") && !told.contains(&admin), "{told}");
    let (code, told) = run(&["ban", "list", "--node", &node], "", Some(read)).await;
    assert_eq!(code, 0, "{told}");
    let (code, told) = run(&["key", "list", "--node", &node], "", Some(read)).await;
    assert!(code == 1 && told.contains("403") && told.contains("admin"), "{told}");
    let (code, told) = run(&["cluster", "status", "--url", &node], "", None).await;
    assert!(code == 2 && told.contains("401"), "{told}");
    let (code, told) = run(&["cluster", "status", "--url", &node], "", Some(read)).await;
    assert!(code <= 1 && told.contains("GROUP"), "{told}");
    // A removed key is none; the last one that administers stays.
    let last = ask(
        &cluster,
        0,
        "DELETE",
        &format!("/api/v1/keys/{}", id_of(&admin)),
        "",
        Some(&admin),
    )
    .await;
    assert_eq!(last.0, 409, "{}", last.1);
    lontra(&[
        "key",
        "remove",
        &id_of(operate),
        "--node",
        &node,
        "--key-file",
        key_file,
    ])
    .await;
    for index in 0..3 {
        let asked = ask(&cluster, index, "GET", "/api/v1/status", "", Some(operate)).await;
        assert_eq!(asked.0, 401, "node {index}: {}", asked.1);
    }
    // Metrics and health are nobody's secret.
    let metrics = ask_text(&cluster.nodes[0].http, "GET", "/metrics", "", None).await;
    assert_eq!(metrics.0, 200);
    cluster.wait_ready(cluster.nodes[0].id, SOON).await;

    let audited = std::fs::read_to_string(&audit).expect("records");
    let records: Vec<Value> = audited
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect();
    let is_there = |who: &str, what: &str, outcome: &str| {
        let found = records
            .iter()
            .any(|record| record["who"] == who && record["what"] == what && record["outcome"] == outcome);
        assert!(found, "{who} {what} {outcome}: {audited}");
    };
    is_there("local", "POST /api/v1/keys", "done");
    is_there("local", "POST /api/v1/keys", "refused (409)");
    is_there(&format!("key:{}", id_of(read)), "POST /api/v1/keys", "denied");
    is_there(&format!("key:{}", id_of(operate)), "POST /api/v1/bans", "done");
    is_there(
        &format!("key:{}", id_of(&admin)),
        &format!("DELETE /api/v1/keys/{}", id_of(operate)),
        "done",
    );
    cluster.assert_no_panic();
    let logs = cluster.logs();
    for key in [&admin, read, operate] {
        let secret = key.rsplit('_').next().expect("a secret");
        assert!(!logs.contains(secret) && !audited.contains(secret), "a key is told");
        assert!(!is_in_files(&cluster.dir, secret.as_bytes()), "a key is kept");
    }
    assert!(
        !logs.contains("hunter2") && !audited.contains("hunter2"),
        "a password is told"
    );
}

#[tokio::test]
async fn on_other_addresses_the_api_is_off_until_there_is_a_key() {
    let _alone = alone().await;
    let cluster = start(1, &[]).await;
    let node = &cluster.nodes[0];
    // Of this machine, and not loopback; nothing is sent there.
    let probe = std::net::UdpSocket::bind("0.0.0.0:0").expect("a socket");
    probe.connect("192.0.2.1:9").expect("a route");
    let outside = probe.local_addr().expect("an address").ip();
    assert!(!outside.is_loopback(), "{outside}");
    let port = node.http.rsplit_once(':').expect("a port").1;
    let text = std::fs::read_to_string(&node.config).expect("a configuration");
    let moved = text.replace(&node.http, &format!("0.0.0.0:{port}"));
    assert_ne!(moved, text, "{text}");
    std::fs::write(&node.config, moved).expect("written");
    cluster.kill(node.id).await;
    cluster.start_node(node.id);
    cluster.wait_ready(node.id, START).await;
    let outside = format!("{outside}:{port}");
    let new = r#"{"role":"admin"}"#;
    for (method, path, body) in [("GET", "/api/v1/status", ""), ("POST", "/api/v1/keys", new)] {
        let (code, told) = ask_text(&outside, method, path, body, None).await;
        assert!(
            code == 403 && told.contains("there is no key yet"),
            "{path}: {code} {told}"
        );
    }
    let (code, told) = ask_text(&outside, "GET", "/metrics", "", None).await;
    assert!(code == 403 && told.contains("http.metrics"), "{code} {told}");
    assert_eq!(ask_text(&node.http, "GET", "/metrics", "", None).await.0, 200);
    assert_eq!(ask_text(&outside, "GET", "/health/live", "", None).await.0, 200);
    let key = lontra(&["key", "create", "--role", "admin", "--node", &url(&cluster, 0)]).await;
    assert_eq!(ask_text(&outside, "GET", "/api/v1/status", "", Some(&key)).await.0, 200);
    for at in [&outside, &node.http] {
        assert_eq!(ask_text(at, "GET", "/api/v1/status", "", None).await.0, 401, "{at}");
    }
    for (at, key, expected) in [
        (&outside, None, 401),
        (&outside, Some(&*key), 200),
        (&node.http, None, 200),
    ] {
        assert_eq!(ask_text(at, "GET", "/metrics", "", key).await.0, expected, "{at}");
    }
    cluster.assert_no_panic();
}

#[tokio::test]
async fn lists_come_in_pages() {
    let cluster = start(1, &[]).await;
    for n in 0..5 {
        let ban = json!({ "client": format!("c/{n}") }).to_string();
        assert_eq!(ask(&cluster, 0, "POST", "/api/v1/bans", &ban, None).await.0, 200);
    }
    let (mut came, mut after, mut pages) = (Vec::new(), String::new(), 0);
    loop {
        let (code, page) = ask(&cluster, 0, "GET", &format!("/api/v1/bans?limit=2{after}"), "", None).await;
        assert_eq!(code, 200, "{page}");
        let bans = page["bans"].as_array().expect("a list");
        came.extend(
            bans.iter()
                .map(|ban| ban["client"].as_str().expect("a client").to_owned()),
        );
        pages += 1;
        let Some(next) = page["next"].as_str() else { break };
        after = format!("&after={}", next.replace('/', "%2F"));
    }
    assert_eq!((pages, came), (3, (0..5).map(|n| format!("c/{n}")).collect::<Vec<_>>()));
    cluster.assert_no_panic();
}

// ---- durability ----

#[tokio::test]
async fn all_of_it_survives_a_kill_of_all_nodes() {
    let _alone = alone().await;
    let cluster = start(3, &[CLUSTER_USERS]).await;
    let user = put(
        &cluster,
        0,
        "/api/v1/users/alice",
        &json!({ "password": "a", "groups": ["g"] }),
    )
    .await;
    assert_eq!(user.0, 200, "{}", user.1);
    let rules = json!({ "rules": ["allow group=g publish a", "deny publish b"] });
    assert_eq!(put(&cluster, 1, "/api/v1/rules", &rules).await.0, 200);
    let ban = json!({ "client": "eve", "reason": "noise" }).to_string();
    assert_eq!(ask(&cluster, 2, "POST", "/api/v1/bans", &ban, None).await.0, 200);
    let key = lontra(&["key", "create", "--role", "admin", "--node", &url(&cluster, 0)]).await;
    let ids = cluster.ids();
    cluster.kill_all(&ids).await;
    for id in &ids {
        cluster.start_node(*id);
    }
    cluster.wait_all_ready().await;
    let alice = |client_id: &str| Connect::clean(Version::V5, client_id).user("alice", "a");
    for index in 0..3 {
        let (mut client, _) = Client::connect(cluster.mqtt(index), &alice(&format!("c-{index}"))).await;
        assert_eq!(client.publish_code("a", "x", 1).await, 0x10);
        assert_eq!(client.publish_code("b", "x", 1).await, NOT_AUTHORIZED);
        assert_eq!(connack(cluster.mqtt(index), &alice("eve")).await, BANNED);
        assert_eq!(ask(&cluster, index, "GET", "/api/v1/rules", "", None).await.0, 401);
        let (code, kept) = ask(&cluster, index, "GET", "/api/v1/rules", "", Some(&key)).await;
        assert_eq!((code, &kept["rules"]), (200, &rules["rules"]), "node {index}");
    }
    cluster.assert_no_panic();
}

// ---- helpers ----

async fn start(size: usize, environment: &[(&str, &str)]) -> Cluster {
    let directory = tempfile::Builder::new().prefix("lontra-wire-").tempdir();
    let directory = directory.expect("a directory").keep();
    let verbose = ("LONTRA__LOG__LEVEL", "info,lontra=debug");
    Cluster::start_in(directory, size, &[&[verbose], environment].concat()).await
}

fn url(cluster: &Cluster, index: usize) -> String {
    format!("http://{}", cluster.nodes[index].http)
}

async fn put(cluster: &Cluster, index: usize, path: &str, body: &Value) -> (u16, Value) {
    ask(cluster, index, "PUT", path, &body.to_string(), None).await
}

async fn ask(cluster: &Cluster, index: usize, method: &str, path: &str, body: &str, key: Option<&str>) -> (u16, Value) {
    let (code, text) = ask_text(&cluster.nodes[index].http, method, path, body, key).await;
    let answer = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{method} {path}: {error}: {text}"));
    (code, answer)
}

async fn ask_text(address: &str, method: &str, path: &str, body: &str, key: Option<&str>) -> (u16, String) {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await.expect("a connection");
        let length = body.len();
        let key = key
            .map(|key| format!("Authorization: Bearer {key}\r\n"))
            .unwrap_or_default();
        let head = format!("{method} {path} HTTP/1.0\r\nHost: {address}\r\n{key}Content-Length: {length}\r\n\r\n");
        stream.write_all((head + body).as_bytes()).await.expect("a request");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("an answer");
        answer
    };
    let answer = tokio::time::timeout(START, exchange)
        .await
        .unwrap_or_else(|_| panic!("no answer to {method} {path}"));
    let parsed = answer.split_once("\r\n\r\n").and_then(|(head, body)| {
        let code = head.split_whitespace().nth(1)?.parse().ok()?;
        Some((code, body.to_owned()))
    });
    parsed.unwrap_or_else(|| panic!("not HTTP: {answer}"))
}

/// What `lontra …` prints, which succeeds.
async fn lontra(arguments: &[&str]) -> String {
    let (code, printed) = run(arguments, "", None).await;
    assert_eq!(code, 0, "lontra {arguments:?}: {printed}");
    printed
}

/// The exit code, and what was printed on both outputs.
async fn run(arguments: &[&str], input: &str, key: Option<&str>) -> (i32, String) {
    let mut command = Command::new(LONTRA);
    command.args(arguments).env_remove("LONTRA_API_KEY");
    if let Some(key) = key {
        command.env("LONTRA_API_KEY", key);
    }
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("lontra");
    let mut stdin = child.stdin.take().expect("piped");
    stdin.write_all(input.as_bytes()).await.expect("written");
    drop(stdin);
    let output = child.wait_with_output().await.expect("it ends");
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8(text).expect("text").trim().to_owned();
    (output.status.code().expect("a code"), text)
}

/// The code of CONNACK; none if the connection was closed without one.
async fn connack_or_closed(address: &str, connect: &Connect) -> Option<u8> {
    match Client::try_connect(address, connect, SOON).await {
        Ok((_, Packet::Connack { code, .. })) => Some(code),
        Ok((_, other)) => panic!("CONNACK expected, not {other:?}"),
        Err(Gone::Closed(_)) => None,
        Err(gone) => panic!("no CONNACK: {gone:?}"),
    }
}

/// Whether a file below `directory` has these bytes in it.
fn is_in_files(directory: &Path, bytes: &[u8]) -> bool {
    let entries = std::fs::read_dir(directory).expect("a directory").flatten();
    entries.map(|entry| entry.path()).any(|path| match path.is_dir() {
        true => is_in_files(&path, bytes),
        // Files come and go while a node runs.
        false => std::fs::read(&path).is_ok_and(|content| content.windows(bytes.len()).any(|part| part == bytes)),
    })
}

/// `older`, salted with twelve bytes: of mosquitto_passwd 1.6.
const SHA_512: &str =
    "$6$AAECAwQFBgcICQoL$q8SbyQYRUp+POkGQlWs5NLRYglHTsjpwJu/znVNckxwfZdjjk2unNGv28sdd5KnnVznnoaXsoklqIzMuhuOUGA==";
