//! `[topics]` and the filters beyond the standard, on three nodes: rewriting, subscriptions that the operator makes, policies,
//! `$queue/`.

use std::collections::HashSet;

use crate::support::SOON;
use crate::support::client::Client;
use crate::support::cluster::Cluster;
use crate::support::codec::{Connect, Packet, Property, Publish, TOPIC_ALIAS, VERSIONS, Value, Version, Will};

const REWRITE: &str = r#"[
    { on = "publish", from = '^home/(.+)$', to = 'homes/%c/$1' },
    { on = "all", from = '^old/(.+)$', to = 'new/$1' },
    { on = "publish", from = '^bad$', to = 'a/+' },
]"#;
const SUBSCRIBE: &str = r#"[
    { filter = "clients/%c/in", qos = 1 },
    { filter = "of/%u/in" },
]"#;
const POLICY: &str = r#"[
    { filter = "limited/#", qos_max = 1 },
    { filter = "plain/#", retain = "refuse" },
    { filter = "fleeting/#", retain = "ignore" },
]"#;

#[tokio::test(flavor = "multi_thread")]
async fn topics_are_what_the_operator_makes_of_them() {
    let line = |text: &str| text.replace('\n', " ");
    let (rewrite, subscribe, policy) = (line(REWRITE), line(SUBSCRIBE), line(POLICY));
    let environment = [
        ("LONTRA__TOPICS__REWRITE", &*rewrite),
        ("LONTRA__TOPICS__SUBSCRIBE", &*subscribe),
        ("LONTRA__TOPICS__POLICY", &*policy),
    ];
    let dir = tempfile::Builder::new().prefix("lontra-wire-").tempdir();
    let cluster = Cluster::start_in(dir.expect("a directory").keep(), 3, &environment).await;
    for version in VERSIONS {
        rewritten(&cluster, version).await;
        rewritten_wills(&cluster, version).await;
        subscribed_by_the_operator(&cluster, version).await;
        refused_by_policy(&cluster, version).await;
        queues(&cluster, version).await;
    }
    aliases_name_what_was_rewritten(&cluster).await;
    malformed_queues(&cluster).await;
    cluster.assert_no_panic();
}

async fn client(cluster: &Cluster, node: usize, version: Version, name: &str) -> Client {
    Client::open(cluster.mqtt(node), version, &format!("{name}-{version:?}")).await
}

async fn rewritten(cluster: &Cluster, version: Version) {
    let mut old = client(cluster, 0, version, "rw-old").await;
    let mut new = client(cluster, 1, version, "rw-new").await;
    let mut publisher = client(cluster, 2, version, "rw-pub").await;
    old.subscribe(&[("old/+", 2)]).await;
    new.subscribe(&[("new/#", 1), ("homes/#", 1)]).await;
    for (qos, topic) in [(0, "old/a"), (1, "old/a"), (2, "old/a"), (1, "new/a")] {
        let publish = Publish::new(topic, format!("{topic}-{qos}"), qos);
        assert!(publisher.publish_packet(publish).await < 0x80);
        for subscriber in [&mut old, &mut new] {
            let message = subscriber.message().await;
            assert_eq!((&*message.topic, message.text()), ("new/a", format!("{topic}-{qos}")));
        }
    }
    publisher.publish("home/door", "open", 1).await;
    let message = new.message().await;
    assert_eq!(message.topic, format!("homes/rw-pub-{version:?}/door"));

    // Retained, and gone under either name.
    let retained = Publish {
        retain: true,
        ..Publish::new("old/kept", "r", 1)
    };
    assert_eq!(publisher.publish_packet(retained).await, 0);
    let mut late = client(cluster, 0, version, "rw-late").await;
    late.subscribe(&[("old/kept", 1)]).await;
    let message = late.message().await;
    assert_eq!((&*message.topic, message.retain), ("new/kept", true));
    let removed = Publish {
        retain: true,
        ..Publish::new("new/kept", "", 1)
    };
    publisher.publish_packet(removed).await;

    if version == Version::V5 {
        assert_eq!(late.unsubscribe(&["old/kept", "old/other"]).await, [0x00, 0x11]);
        // What a rule makes of it is no topic: as if the client had named it.
        publisher
            .send(&Publish::new("bad", "x", 0).encode(version))
            .await
            .expect("sent");
        assert_eq!(publisher.closed_by_server(SOON).await.0, Some(0x90));
    } else {
        late.unsubscribe(&["old/kept"]).await;
    }
}

async fn rewritten_wills(cluster: &Cluster, version: Version) {
    let mut witness = client(cluster, 0, version, "rw-witness").await;
    witness.subscribe(&[("new/will", 1)]).await;
    let will = Will::new("old/will", format!("{version:?}"), 1);
    let connect = Connect::clean(version, &format!("rw-dies-{version:?}")).will(will);
    drop(Client::connect(cluster.mqtt(1), &connect).await);
    let message = witness.message().await;
    assert_eq!((&*message.topic, message.text()), ("new/will", format!("{version:?}")));

    let refused = Will::new("limited/will", "x", 2);
    let connect = Connect::clean(version, &format!("rw-refused-{version:?}")).will(refused);
    let (_, connack) = Client::try_connect(cluster.mqtt(1), &connect, SOON)
        .await
        .expect("CONNACK");
    let expected = if version == Version::V5 { 0x9b } else { 5 };
    assert!(
        matches!(connack, Packet::Connack { code, .. } if code == expected),
        "{connack:?}"
    );
}

async fn subscribed_by_the_operator(cluster: &Cluster, version: Version) {
    let name = format!("auto-{version:?}");
    let topic = format!("clients/{name}/in");
    let mut publisher = client(cluster, 2, version, "auto-pub").await;
    let (mut here, _) = Client::connect(cluster.mqtt(0), &Connect::persistent(version, &name)).await;
    // Operations of a connection are carried out one after the other.
    here.subscribe(&[("auto/barrier", 0)]).await;
    publisher.publish(&topic, "live", 1).await;
    assert_eq!(here.message().await.text(), "live");
    here.disconnect().await;
    publisher.publish(&topic, "away", 1).await;
    let (mut here, _) = Client::connect(cluster.mqtt(1), &Connect::persistent(version, &name)).await;
    assert_eq!(here.message().await.text(), "away");
    publisher.publish(&topic, "once", 1).await;
    here.subscribe(&[("auto/barrier", 0)]).await;
    publisher.publish("auto/barrier", "end", 0).await;
    let texts: Vec<String> = here.messages_until("end").await.iter().map(Publish::text).collect();
    assert_eq!(texts, ["once"]);

    // Nobody widens a rule by a name that he chose.
    let mut curious = Client::open(cluster.mqtt(0), version, "+").await;
    curious.subscribe(&[("auto/barrier", 0)]).await;
    publisher.publish(&topic, "private", 1).await;
    publisher.publish("auto/barrier", "end", 0).await;
    let texts: Vec<String> = curious.messages_until("end").await.iter().map(Publish::text).collect();
    assert!(texts.is_empty(), "{texts:?}");
    here.disconnect().await;
    curious.disconnect().await;
}

async fn refused_by_policy(cluster: &Cluster, version: Version) {
    let mut subscriber = client(cluster, 0, version, "pol-sub").await;
    subscriber
        .subscribe(&[("limited/#", 2), ("plain/#", 2), ("fleeting/#", 2)])
        .await;
    let node = cluster.nodes[1].id;
    let refused = || async {
        let scrape = cluster.metrics(node).await;
        scrape.sum_where(
            "lontra_publishes_refused_total",
            "reason=\"implementation specific error\"",
        )
    };
    let before = refused().await;
    let retained = |topic: &str, payload: &str| Publish {
        retain: true,
        ..Publish::new(topic, payload, 1)
    };
    for publish in [Publish::new("limited/a", "no", 2), retained("plain/a", "no")] {
        let mut publisher = client(cluster, 1, version, "pol-pub").await;
        if version == Version::V5 {
            assert_eq!(publisher.publish_packet(publish).await, 0x83);
            publisher.disconnect().await;
        } else {
            publisher
                .send(&Publish { pid: 1, ..publish }.encode(version))
                .await
                .expect("sent");
            publisher.closed_by_server(SOON).await;
        }
    }
    assert_eq!(refused().await, before + 2.0);
    let mut publisher = client(cluster, 1, version, "pol-pub").await;
    publisher.publish_packet(Publish::new("limited/a", "yes", 1)).await;
    publisher.publish_packet(Publish::new("plain/a", "yes", 2)).await;
    publisher.publish_packet(retained("fleeting/a", "yes")).await;
    let mut topics = Vec::new();
    for _ in 0..3 {
        let message = subscriber.message().await;
        assert_eq!((message.text(), message.retain), ("yes".to_owned(), false));
        topics.push(message.topic);
    }
    topics.sort_unstable();
    assert_eq!(topics, ["fleeting/a", "limited/a", "plain/a"]);
    let mut late = client(cluster, 2, version, "pol-late").await;
    late.subscribe(&[("fleeting/#", 1), ("plain/#", 1), ("pol/end", 0)])
        .await;
    publisher.publish("pol/end", "end", 0).await;
    assert!(late.messages_until("end").await.is_empty(), "something was retained");
}

async fn queues(cluster: &Cluster, version: Version) {
    let topic = format!("jobs/{version:?}");
    let mut members = Vec::new();
    for (node, filter) in [(0, "$queue"), (1, "$queue"), (2, "$share/$queue")] {
        let mut member = client(cluster, node, version, &format!("queue-{node}")).await;
        member.subscribe(&[(&format!("{filter}/{topic}"), 1)]).await;
        members.push(member);
    }
    let mut publisher = client(cluster, 1, version, "queue-pub").await;
    let sent: Vec<Vec<u8>> = (0..60).map(|n| n.to_string().into_bytes()).collect();
    publisher.publish_all(&topic, &sent, 10).await;
    let mut seen = HashSet::new();
    let mut of_each = [0; 3];
    while seen.len() < sent.len() {
        let [a, b, c] = &mut members[..] else {
            unreachable!("three")
        };
        let (at, message) = tokio::select! {
            message = a.message() => (0, message),
            message = b.message() => (1, message),
            message = c.message() => (2, message),
        };
        assert!(seen.insert(message.text()), "twice: {}", message.text());
        of_each[at] += 1;
    }
    assert!(of_each.iter().all(|count| *count > 0), "{of_each:?}");
    for mut member in members {
        member.unsubscribe(&[&format!("$queue/{topic}")]).await;
        member.disconnect().await;
    }
}

async fn aliases_name_what_was_rewritten(cluster: &Cluster) {
    let mut subscriber = client(cluster, 0, Version::V5, "alias-sub").await;
    subscriber.subscribe(&[("new/alias", 0)]).await;
    let mut publisher = client(cluster, 1, Version::V5, "alias-pub").await;
    let properties = vec![Property(TOPIC_ALIAS, Value::Two(1))];
    for topic in ["old/alias", ""] {
        let publish = Publish {
            properties: properties.clone(),
            ..Publish::new(topic, "aliased", 0)
        };
        publisher.send(&publish.encode(Version::V5)).await.expect("sent");
        assert_eq!(subscriber.message().await.topic, "new/alias");
    }
}

async fn malformed_queues(cluster: &Cluster) {
    let mut client = client(cluster, 0, Version::V5, "queue-bad").await;
    client
        .send(&crate::support::codec::subscribe(Version::V5, 1, &[("$queue/", 1)]))
        .await
        .expect("sent");
    assert_eq!(client.closed_by_server(SOON).await.0, Some(0x8f));
}
