//! What CONNACK grants is what the configuration says, of the node, of its rules for topics and of each listener; and who goes
//! beyond it is refused with the reason code of the standard, filter by filter and publish by publish.

use crate::support::auth::{Guarded, connack};
use crate::support::client::Client;
use crate::support::cluster::free_ports;
use crate::support::codec::{
    self, Connect, MAXIMUM_PACKET_SIZE, MAXIMUM_QOS, Packet, Property, Publish, RECEIVE_MAXIMUM, RETAIN_AVAILABLE,
    SERVER_KEEP_ALIVE, SESSION_EXPIRY_INTERVAL, SUBSCRIPTION_IDENTIFIER, TOPIC_ALIAS_MAXIMUM, VERSIONS, Value, Version,
    Will,
};
use crate::support::{SOON, eventually};

const QOS_NOT_SUPPORTED: u8 = 0x9b;
const RETAIN_NOT_SUPPORTED: u8 = 0x9a;
const PACKET_TOO_LARGE: u8 = 0x95;
const TOPIC_NAME_INVALID: u8 = 0x90;
const TOPIC_FILTER_INVALID: u8 = 0x8f;

/// The properties of CONNACK that tell what is granted, in this order.
const GRANTED: [u8; 7] = [
    MAXIMUM_QOS,
    RETAIN_AVAILABLE,
    RECEIVE_MAXIMUM,
    TOPIC_ALIAS_MAXIMUM,
    MAXIMUM_PACKET_SIZE,
    SERVER_KEEP_ALIVE,
    SESSION_EXPIRY_INTERVAL,
];
/// Wildcard, Subscription Identifiers and Shared Subscription: what is absent is available.
const AVAILABLE: [u8; 3] = [0x28, 0x29, 0x2a];

/// What a client of 5.0 is granted that asks for a Keep Alive of 60 s and for a session of 1000 s.
async fn granted(address: &str) -> [Option<Value>; 7] {
    let connect = Connect::clean(Version::V5, "granted")
        .keep_alive(60)
        .property(SESSION_EXPIRY_INTERVAL, Value::Four(1000));
    let (_, connack) = Client::try_connect(address, &connect, SOON).await.expect("CONNACK");
    assert!(matches!(connack, Packet::Connack { code: 0, .. }), "{connack:?}");
    for property in AVAILABLE {
        assert_eq!(connack.property(property), None, "{connack:?}");
    }
    GRANTED.map(|property| connack.property(property).cloned())
}

#[tokio::test]
async fn connack_tells_what_the_configuration_grants() {
    let port = free_ports(1) + 50;
    let listeners = format!(
        "[{{ name = \"small\", kind = \"mqtt\", listen = \"127.0.0.1:{port}\", receive_maximum = 3, \
             topic_alias_max = 0, packet_size_max = \"2KiB\", keep_alive_max = \"9s\", session_expiry_max = \"50s\" }}, \
          {{ name = \"large\", kind = \"mqtt\", listen = \"127.0.0.1:{}\", receive_maximum = 9, topic_alias_max = 5, \
             keep_alive_max = \"0s\", session_expiry_max = \"never\" }}]",
        port + 1
    );
    let settings = [
        ("mqtt.receive_maximum", "7"),
        ("mqtt.topic_alias_max", "4"),
        ("mqtt.packet_size_max", "64KiB"),
        ("mqtt.keep_alive_max", "20s"),
        ("mqtt.session_expiry_max", "100s"),
        ("listeners", &*listeners),
    ];
    let guarded = Guarded::start(1, &[], &settings).await;
    let (two, four) = (|n| Some(Value::Two(n)), |n| Some(Value::Four(n)));
    let expected = [None, None, two(7), two(4), four(64 << 10), two(20), four(100)];
    assert_eq!(granted(guarded.at()).await, expected);
    let small = [None, None, two(3), None, four(2 << 10), two(9), four(50)];
    assert_eq!(granted(&format!("127.0.0.1:{port}")).await, small);
    let large = [None, None, two(9), two(5), four(64 << 10), None, None];
    assert_eq!(granted(&format!("127.0.0.1:{}", port + 1)).await, large);
    guarded.cluster.assert_no_panic();
}

#[tokio::test]
async fn what_no_policy_grants_is_told_in_connack_and_refused_with_its_reason() {
    let policy =
        r##"[{ filter = "a/#", qos_max = 0, retain = "refuse" }, { filter = "#", qos_max = 1, retain = "refuse" }]"##;
    let guarded = Guarded::start(1, &[], &[("topics.policy", policy)]).await;
    let told = granted(guarded.at()).await;
    assert_eq!(told[..2], [Some(Value::Byte(1)), Some(Value::Byte(0))]);
    let counted = async |family: &str, reason: &str| guarded.counted(family, &format!("reason=\"{reason}\"")).await;
    let reasons = ["QoS not supported", "retain not supported"];

    let exactly_once = |topic: &str| Publish {
        pid: 1,
        ..Publish::new(topic, "x", 2)
    };
    let retained = |topic: &str| Publish {
        retain: true,
        ..Publish::new(topic, "x", 0)
    };
    for (publish, code, reason) in [
        (exactly_once("b"), QOS_NOT_SUPPORTED, reasons[0]),
        // Topics that begin with $ match no `#`, but CONNACK speaks of all.
        (exactly_once("$b"), QOS_NOT_SUPPORTED, reasons[0]),
        (retained("b"), RETAIN_NOT_SUPPORTED, reasons[1]),
    ] {
        let (refused, ended) = ("lontra_publishes_refused_total", "lontra_disconnects_total");
        let before = (counted(refused, reason).await, counted(ended, reason).await);
        let mut client = Client::open(guarded.at(), Version::V5, "beyond").await;
        client.send(&publish.encode(Version::V5)).await.expect("PUBLISH");
        assert_eq!(client.closed_by_server(SOON).await.0, Some(code), "{publish:?}");
        assert_eq!(counted(refused, reason).await, before.0 + 1.0, "{publish:?}");
        eventually("the end is counted", SOON, || async {
            (counted(ended, reason).await == before.1 + 1.0).then_some(())
        })
        .await;
    }
    for version in VERSIONS {
        let is_v5 = version == Version::V5;
        let will = |qos, retain| Will {
            retain,
            ..Will::new("w", "x", qos)
        };
        for (will, code, reason) in [
            (will(2, false), QOS_NOT_SUPPORTED, reasons[0]),
            (will(1, true), RETAIN_NOT_SUPPORTED, reasons[1]),
        ] {
            let before = counted("lontra_connects_total", reason).await;
            let connect = Connect::clean(version, "will").will(will);
            // 3.x: not authorized.
            assert_eq!(guarded.connack(&connect).await, if is_v5 { code } else { 5 });
            eventually("the refusal is counted", SOON, || async {
                (counted("lontra_connects_total", reason).await == before + 1.0).then_some(())
            })
            .await;
        }
        let connect = Connect::clean(version, "will").will(will(1, false));
        assert_eq!(guarded.connack(&connect).await, 0);

        // What is granted goes on; so does a subscription of any QoS. [MQTT-3.2.2-10]
        let mut client = Client::open(guarded.at(), version, "within").await;
        client.subscribe(&[("b", 2)]).await;
        client.publish("b", "within", 1).await;
        assert_eq!(client.message().await.text(), "within");
        if is_v5 {
            // A policy for some topics is told in the acknowledgement, which knows neither 0x9A nor 0x9B.
            assert_eq!(client.publish_code("a/x", "x", 1).await, 0x83);
        } else {
            client.send(&exactly_once("b").encode(version)).await.expect("PUBLISH");
            client.closed_by_server(SOON).await;
        }
    }
    guarded.cluster.assert_no_panic();
}

#[tokio::test]
async fn a_topic_or_filter_that_a_rule_spoils_is_refused_alone() {
    let rules = r#"[{ on = "publish", from = '^bad$', to = 'a/+' }, { on = "subscribe", from = '^bad$', to = 'a#' }]"#;
    let guarded = Guarded::start(1, &[], &[("topics.rewrite", rules)]).await;
    let mut client = Client::open(guarded.at(), Version::V5, "spoiled").await;
    for qos in [1, 2] {
        let publish = Publish::new("bad", "x", qos);
        assert_eq!(client.publish_packet(publish).await, TOPIC_NAME_INVALID);
        // The identifier is free again, and the connection goes on.
        assert!(client.publish_packet(Publish::new("good", "x", qos)).await < 0x80);
    }
    client.subscribe(&[("good", 1)]).await;
    let unsubscribed = client.unsubscribe(&["bad", "good", "none"]).await;
    assert_eq!(unsubscribed, [TOPIC_FILTER_INVALID, 0x00, 0x11]);
    assert_eq!(client.unsubscribe(&["bad"]).await, [TOPIC_FILTER_INVALID]);
    let codes = suback(&mut client, &[], &[("bad", 1), ("good", 1)]).await;
    assert_eq!(codes, [TOPIC_FILTER_INVALID, 1]);
    let reason = "reason=\"topic filter invalid\"";
    assert_eq!(guarded.counted("lontra_subscriptions_refused_total", reason).await, 3.0);
    let reason = "reason=\"topic name invalid\"";
    assert_eq!(guarded.counted("lontra_publishes_refused_total", reason).await, 2.0);
    guarded.cluster.assert_no_panic();
}

#[tokio::test]
async fn filters_that_the_operator_does_not_let_clients_have_are_refused_alone() {
    let settings = [
        ("mqtt.wildcard_subscriptions", "false"),
        ("mqtt.shared_subscriptions", "false"),
        ("mqtt.subscription_identifiers", "false"),
    ];
    let guarded = Guarded::start(1, &[], &settings).await;
    let connect = Connect::clean(Version::V5, "available");
    let (_, told) = Client::try_connect(guarded.at(), &connect, SOON)
        .await
        .expect("CONNACK");
    assert_eq!(
        AVAILABLE.map(|id| told.property(id).cloned()),
        [(); 3].map(|()| Some(Value::Byte(0)))
    );
    let filters = [("a/+", 1), ("#", 0), ("$share/g/a", 1), ("$queue/a", 0), ("a", 1)];
    for (version, expected) in [
        (Version::V5, [0xa2, 0xa2, 0x9e, 0x9e, 1]),
        (Version::V311, [0x80, 0x80, 0x80, 0x80, 1]),
    ] {
        let mut client = Client::open(guarded.at(), version, "subscribes").await;
        assert_eq!(suback(&mut client, &[], &filters).await, expected, "{version:?}");
        client.publish("a", "heard", 1).await;
        assert_eq!(client.message().await.text(), "heard");
        if version == Version::V5 {
            let identified = [Property(SUBSCRIPTION_IDENTIFIER, Value::Var(7))];
            assert_eq!(
                suback(&mut client, &identified, &[("b", 1), ("c", 0)]).await,
                [0xa1, 0xa1]
            );
        }
    }
    for (reason, count) in [
        ("wildcard subscriptions not supported", 4.0),
        ("shared subscriptions not supported", 4.0),
        ("subscription identifiers not supported", 2.0),
    ] {
        let label = format!("reason=\"{reason}\"");
        assert_eq!(
            guarded.counted("lontra_subscriptions_refused_total", &label).await,
            count,
            "{reason}"
        );
    }
    guarded.cluster.assert_no_panic();
}

/// The codes of SUBACK.
async fn suback(client: &mut Client, properties: &[Property], filters: &[(&str, u8)]) -> Vec<u8> {
    let pid = client.next_pid();
    let subscribe = codec::subscribe_with(client.version, pid, properties, filters);
    client.send(&subscribe).await.expect("SUBSCRIBE");
    client
        .wait_for("SUBACK", |packet| match packet {
            Packet::Suback { pid: answered, codes } if *answered == pid => Some(codes.clone()),
            _ => None,
        })
        .await
}

#[tokio::test]
async fn packets_that_are_no_publish_have_a_size_of_their_own() {
    let guarded = Guarded::start(1, &[], &[("limits.control_packet_size_max", "1KiB")]).await;
    let too_large = async || {
        guarded
            .counted("lontra_limit_refusals_total", "limit=\"packet_size\"")
            .await
    };
    let long = "x".repeat(1100);
    let mut client = Client::open(guarded.at(), Version::V5, "control").await;
    assert!(client.publish_code("control", vec![b'x'; 4000], 1).await < 0x80);
    client.subscribe(&[(&long[..900], 0)]).await;
    let subscribe = codec::subscribe(Version::V5, 9, &[(&*long, 0)]);
    client.send(&subscribe).await.expect("SUBSCRIBE");
    assert_eq!(client.closed_by_server(SOON).await.0, Some(PACKET_TOO_LARGE));
    assert_eq!(too_large().await, 1.0);
    let connect = Connect::clean(Version::V5, "control").will(Will::new("control", &*long, 0));
    assert_eq!(connack(guarded.at(), &connect).await, PACKET_TOO_LARGE);
    assert_eq!(too_large().await, 2.0);
    guarded.cluster.assert_no_panic();
}
