//! P7 through the wire while nodes live: every way in which a connection ends, how many wills that is, and when.
//!
//! One witness, a persistent QoS 2 session, sees all wills; the rows run at once, since most of them are waiting. That
//! nothing comes can only be shown by looking for as long as it could: the witness looks until the last row's window has
//! closed, and longer.

use crate::support::SOON;
use crate::support::client::Client;
use crate::support::cluster::shared;
use crate::support::codec::{
    self, Connect, Packet, Property, Publish, SESSION_EXPIRY_INTERVAL, USER_PROPERTY, VERSIONS, Value, Version, Will,
};
use crate::support::wills::{BOUND, Expected, judge};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tokio::time::sleep;

/// The table of `jepsen.md` (g), without the death of nodes.
#[tokio::test(flavor = "multi_thread")]
async fn every_end_of_a_connection_has_its_wills() {
    let cluster = shared();
    let (mut witness, _) = Client::connect(
        cluster.mqtt(0),
        &Connect::persistent(Version::V5, "wills-witness").keep_alive(0),
    )
    .await;
    witness.subscribe(&[("wills/#", 2)]).await;
    let begun = Instant::now();
    let mut rows: JoinSet<Expected> = JoinSet::new();

    for version in VERSIONS {
        let row = move |name: &str| format!("{name}-{version:?}");
        for qos in 0..=2 {
            rows.spawn(async move {
                let name = row(&format!("cut-qos{qos}"));
                let client = connected(&name, version, 0, qos, None).await;
                drop(client);
                Expected::once(&name, qos, Instant::now(), Duration::ZERO)
            });
        }
        rows.spawn(async move {
            let name = row("disconnect");
            let client = connected(&name, version, 1, 1, None).await;
            client.disconnect().await;
            Expected::never(&name)
        });
        rows.spawn(async move {
            let name = row("ephemeral-disconnect");
            let (client, _) = Client::connect(shared().mqtt(1), &clean(&name, version, 1)).await;
            client.disconnect().await;
            Expected::never(&name)
        });
        rows.spawn(async move {
            let name = row("ephemeral-cut");
            let (client, _) = Client::connect(shared().mqtt(1), &clean(&name, version, 1)).await;
            drop(client);
            Expected::once(&name, 1, Instant::now(), Duration::ZERO)
        });
        rows.spawn(async move {
            // Sent, and dead before anybody can tell whether it arrived.
            let name = row("disconnect-and-die");
            let mut client = connected(&name, version, 2, 1, None).await;
            client.send(&codec::disconnect()).await.expect("DISCONNECT");
            drop(client);
            Expected::at_most_once(&name, 1)
        });
        rows.spawn(async move {
            let name = row("keep-alive");
            let connect = durable(&name, version, 1, None).keep_alive(1);
            let (mut client, _) = Client::connect(shared().mqtt(2), &connect).await;
            client.ping().await;
            let silent = Instant::now();
            client.closed_by_server(SOON).await;
            // [MQTT-3.1.2-22]: one and a half times the keep alive.
            Expected::once(&name, 1, silent, Duration::from_millis(1_400))
        });
        rows.spawn(async move {
            let name = row("malformed");
            let mut client = connected(&name, version, 0, 2, None).await;
            client
                .send(&[0x00, 0x00])
                .await
                .expect("a packet type that is forbidden");
            let sent = Instant::now();
            client.closed_by_server(SOON).await;
            Expected::once(&name, 2, sent, Duration::ZERO)
        });
        rows.spawn(async move {
            let name = row("take-over");
            let old = connected(&name, version, 0, 1, None).await;
            let begun = Instant::now();
            let (new, connack) = Client::connect(shared().mqtt(1), &durable(&name, version, 1, None).no_will()).await;
            assert!(is_present(&connack));
            drop(old);
            new.disconnect().await;
            Expected::once(&name, 1, begun, Duration::ZERO)
        });
        rows.spawn(async move {
            let name = row("clean-start-ends");
            let old = connected(&name, version, 2, 1, None).await;
            let begun = Instant::now();
            let (new, connack) = Client::connect(shared().mqtt(1), &clean(&name, version, 1).no_will()).await;
            assert!(!is_present(&connack));
            drop(old);
            new.disconnect().await;
            Expected::once(&name, 1, begun, Duration::ZERO)
        });
        rows.spawn(async move {
            // The will of the next connection is another one; what the first left is out by then.
            let name = row("again");
            drop(connected(&name, version, 0, 1, None).await);
            let cut = Instant::now();
            let other = Will::new(&topic(&format!("{name}-other")), "other", 1);
            let connect = durable(&name, version, 1, None).will(other);
            let (client, _) = Client::connect(shared().mqtt(1), &connect).await;
            client.disconnect().await;
            Expected::once(&name, 1, cut, Duration::ZERO)
        });
    }

    rows.spawn(async {
        let name = "disconnect-with-will".to_owned();
        let mut client = connected(&name, Version::V5, 0, 1, None).await;
        let sent = Instant::now();
        client
            .send(&codec::disconnect_with_code(0x04))
            .await
            .expect("DISCONNECT");
        client.closed_by_server(SOON).await;
        Expected::once(&name, 1, sent, Duration::ZERO)
    });
    rows.spawn(async {
        let name = "disconnect-with-will-and-delay".to_owned();
        let mut client = connected(&name, Version::V5, 1, 1, Some(DELAY)).await;
        let sent = Instant::now();
        client
            .send(&codec::disconnect_with_code(0x04))
            .await
            .expect("DISCONNECT");
        client.closed_by_server(SOON).await;
        Expected::once(&name, 1, sent, seconds(DELAY))
    });
    rows.spawn(async {
        let name = "cut-with-delay".to_owned();
        drop(connected(&name, Version::V5, 1, 2, Some(DELAY)).await);
        Expected::once(&name, 2, Instant::now(), seconds(DELAY))
    });
    rows.spawn(async {
        let name = "keep-alive-with-delay".to_owned();
        let connect = durable(&name, Version::V5, 1, Some(DELAY)).keep_alive(1);
        let (mut client, _) = Client::connect(shared().mqtt(2), &connect).await;
        client.ping().await;
        let silent = Instant::now();
        client.closed_by_server(SOON).await;
        Expected::once(&name, 1, silent, Duration::from_millis(1_400) + seconds(DELAY))
    });
    rows.spawn(async {
        let name = "resumed-before-delay".to_owned();
        drop(connected(&name, Version::V5, 0, 1, Some(DELAY)).await);
        let connect = durable(&name, Version::V5, 1, None).no_will();
        let (client, connack) = Client::connect(shared().mqtt(1), &connect).await;
        assert!(is_present(&connack));
        // It stays for longer than the delay.
        sleep(seconds(DELAY) + BOUND).await;
        client.disconnect().await;
        Expected::never(&name)
    });
    rows.spawn(async {
        let name = "take-over-with-delay".to_owned();
        let old = connected(&name, Version::V5, 0, 1, Some(DELAY)).await;
        let connect = durable(&name, Version::V5, 1, None).no_will();
        let (client, connack) = Client::connect(shared().mqtt(2), &connect).await;
        assert!(is_present(&connack));
        drop(old);
        sleep(seconds(DELAY) + BOUND).await;
        client.disconnect().await;
        Expected::never(&name)
    });
    rows.spawn(async {
        // Resumed and lost again: the delay begins anew, and it is one will.
        let name = "cut-twice-with-delay".to_owned();
        drop(connected(&name, Version::V5, 0, 1, Some(DELAY)).await);
        sleep(seconds(DELAY) / 2).await;
        drop(connected(&name, Version::V5, 1, 1, Some(DELAY)).await);
        Expected::once(&name, 1, Instant::now(), seconds(DELAY))
    });
    rows.spawn(async {
        let name = "clean-start-ends-the-wait".to_owned();
        drop(connected(&name, Version::V5, 0, 1, Some(FAR)).await);
        let begun = Instant::now();
        let connect = clean(&name, Version::V5, 1).no_will();
        let (client, connack) = Client::connect(shared().mqtt(1), &connect).await;
        assert!(!is_present(&connack));
        client.disconnect().await;
        Expected::once(&name, 1, begun, Duration::ZERO)
    });
    rows.spawn(async {
        let name = "clean-start-takes-over-with-delay".to_owned();
        let old = connected(&name, Version::V5, 2, 1, Some(FAR)).await;
        let begun = Instant::now();
        let connect = clean(&name, Version::V5, 1).no_will();
        let (client, _) = Client::connect(shared().mqtt(1), &connect).await;
        drop(old);
        client.disconnect().await;
        Expected::once(&name, 1, begun, Duration::ZERO)
    });
    rows.spawn(async {
        let name = "expires-before-delay".to_owned();
        let connect = durable(&name, Version::V5, 1, Some(FAR)).property(SESSION_EXPIRY_INTERVAL, Value::Four(DELAY));
        drop(Client::connect(shared().mqtt(0), &connect).await);
        Expected::once(&name, 1, Instant::now(), seconds(DELAY))
    });
    rows.spawn(async {
        // No session to wait for: [MQTT-3.1.3-9] has nothing to say.
        let name = "ephemeral-with-delay".to_owned();
        let connect = Connect::clean(Version::V5, &id(&name)).will(will(&name, 1).delay(FAR));
        drop(Client::connect(shared().mqtt(0), &connect).await);
        Expected::once(&name, 1, Instant::now(), Duration::ZERO)
    });
    rows.spawn(async {
        // DISCONNECT 0x04 that ends the session with it.
        let name = "disconnect-ends-the-session".to_owned();
        let mut client = connected(&name, Version::V5, 0, 1, Some(FAR)).await;
        let sent = Instant::now();
        let frame = codec::frame(0xe0, &[0x04, 5, SESSION_EXPIRY_INTERVAL, 0, 0, 0, 0]);
        client.send(&frame).await.expect("DISCONNECT");
        client.closed_by_server(SOON).await;
        Expected::once(&name, 1, sent, Duration::ZERO)
    });

    let rows = rows.join_all();
    let looking = seconds(DELAY) + BOUND * 2;
    let mut arrivals: BTreeMap<String, Vec<(Instant, Publish)>> = BTreeMap::new();
    let expected = crate::support::wills::look(&mut witness, rows, looking, &mut arrivals).await;
    println!("P7: {} rows in {:?}", expected.len(), begun.elapsed());
    let wrong = judge("P7", &expected, &arrivals);
    assert!(wrong.is_empty(), "{wrong:#?}");
    witness.disconnect().await;
}

#[tokio::test]
async fn a_retained_will_is_kept() {
    let cluster = shared();
    for version in VERSIONS {
        let name = format!("will-retained-{version:?}");
        let topic = topic(&name);
        let will = Will {
            retain: true,
            ..Will::new(&topic, "last words", 1)
        };
        let mut live = Client::open(cluster.mqtt(1), version, &format!("{name}-live")).await;
        live.subscribe(&[(&topic, 1)]).await;
        drop(Client::connect(cluster.mqtt(0), &Connect::persistent(version, &name).will(will)).await);
        let message = live.message().await;
        assert_eq!((message.text().as_str(), message.retain), ("last words", false));
        for node in 0..3 {
            let mut late = Client::open(cluster.mqtt(node), version, &format!("{name}-late")).await;
            late.subscribe(&[(&topic, 1)]).await;
            let message = late.message().await;
            assert_eq!(
                (message.text().as_str(), message.retain, message.qos),
                ("last words", true, 1),
                "at node index {node}"
            );
        }
        // An empty one takes it away. [MQTT-3.3.1-6]
        let empty = Will {
            retain: true,
            ..Will::new(&topic, "", 1)
        };
        drop(Client::connect(cluster.mqtt(2), &Connect::persistent(version, &name).will(empty)).await);
        assert_eq!(live.message().await.payload, b"");
        let mut late = Client::open(cluster.mqtt(0), version, &format!("{name}-late")).await;
        late.subscribe(&[(&topic, 1)]).await;
        late.ping().await;
        assert!(!late.has_kept(), "{name}: deleted by a will");
    }
}

#[tokio::test]
async fn the_properties_of_a_will_arrive() {
    let cluster = shared();
    let topic = topic("will-properties");
    let mut subscriber = Client::open(cluster.mqtt(1), Version::V5, "will-properties-s").await;
    subscriber.subscribe(&[(&topic, 2)]).await;
    let properties = vec![
        Property(PAYLOAD_FORMAT_INDICATOR, Value::Byte(1)),
        Property(CONTENT_TYPE, Value::Text("text/plain".into())),
        Property(RESPONSE_TOPIC, Value::Text("answers/here".into())),
        Property(CORRELATION_DATA, Value::Binary(vec![0, 1, 254, 255])),
        Property(USER_PROPERTY, Value::Pair("b".into(), "1".into())),
        Property(USER_PROPERTY, Value::Pair("a".into(), "2".into())),
        Property(USER_PROPERTY, Value::Pair("b".into(), "3".into())),
    ];
    let will = Will {
        properties: properties.clone(),
        ..Will::new(&topic, "words", 2)
    };
    drop(
        Client::connect(
            cluster.mqtt(0),
            &Connect::persistent(Version::V5, "will-properties").will(will),
        )
        .await,
    );
    let message = subscriber.message().await;
    assert_eq!((message.text().as_str(), message.qos), ("words", 2));
    let (pairs, single): (Vec<_>, Vec<_>) = message
        .properties
        .into_iter()
        .partition(|property| property.0 == USER_PROPERTY);
    assert_eq!(pairs, properties[4..], "in their order");
    for property in &properties[..4] {
        assert!(single.contains(property), "{property:?} in {single:?}");
    }
    assert_eq!(single.len(), 4, "{single:?}");
}

/// The will counts as published by its client: No Local, and like any publish it reaches queues of sessions that are away.
#[tokio::test]
async fn a_will_waits_for_sessions_that_are_away() {
    let cluster = shared();
    for version in VERSIONS {
        let name = format!("will-queued-{version:?}");
        let topic = topic(&name);
        let connect = Connect::persistent(version, &format!("{name}-s"));
        let (mut subscriber, _) = Client::connect(cluster.mqtt(1), &connect).await;
        subscriber.subscribe(&[(&topic, 2)]).await;
        subscriber.disconnect().await;
        let mut live = Client::open(cluster.mqtt(2), version, &format!("{name}-live")).await;
        live.subscribe(&[(&topic, 0)]).await;
        drop(
            Client::connect(
                cluster.mqtt(0),
                &Connect::persistent(version, &name).will(Will::new(&topic, "words", 1)),
            )
            .await,
        );
        assert_eq!(live.message().await.text(), "words");
        let (mut subscriber, _) = Client::connect(cluster.mqtt(2), &connect).await;
        let message = subscriber.message().await;
        assert_eq!((message.text().as_str(), message.qos), ("words", 1));
        subscriber.disconnect().await;
    }
}

/// What judges wills, here and when nodes die, can say no.
#[test]
fn a_will_too_many_too_few_too_early_or_too_late_is_found() {
    let begun = Instant::now();
    let come = |name: &str, qos: u8, at: Duration| {
        let publish = Publish::new(&topic(name), "x", qos);
        (topic(name), vec![(begun + at, publish)])
    };
    let expected = [
        Expected::once("a", 1, begun, seconds(1)),
        Expected::never("b"),
        Expected::at_most_once("c", 2),
    ];
    let good = || BTreeMap::from([come("a", 1, seconds(2)), come("c", 2, seconds(0))]);
    assert_eq!(judge("planted", &expected, &good()), [""; 0]);
    type Fault<'a> = (&'a str, &'a dyn Fn(&mut crate::support::wills::Arrivals));
    let faults: [Fault<'_>; 7] = [
        ("a: 0 wills", &|arrivals| drop(arrivals.remove(&topic("a")))),
        ("a: 2 wills", &|arrivals| {
            let first = arrivals[&topic("a")][0].clone();
            arrivals.get_mut(&topic("a")).expect("there").push(first);
        }),
        ("a: 1ms too early", &|arrivals| {
            arrivals.extend([come("a", 1, Duration::from_millis(999))])
        }),
        ("after its time", &|arrivals| {
            arrivals.extend([come("a", 1, seconds(2) + BOUND)])
        }),
        ("qos: 0", &|arrivals| arrivals.extend([come("a", 0, seconds(2))])),
        ("b: 1 wills", &|arrivals| arrivals.extend([come("b", 1, seconds(2))])),
        ("wills/d: nobody", &|arrivals| {
            arrivals.extend([come("d", 1, seconds(2))])
        }),
    ];
    for (what, plant) in faults {
        let mut arrivals = good();
        plant(&mut arrivals);
        let wrong = judge("planted", &expected, &arrivals);
        assert!(wrong.len() == 1 && wrong[0].contains(what), "{what}: {wrong:?}");
    }
}

fn topic(name: &str) -> String {
    format!("wills/{name}")
}

fn id(name: &str) -> String {
    format!("will-of-{name}")
}

fn will(name: &str, qos: u8) -> Will {
    Will::new(&topic(name), format!("will of {name}"), qos)
}

/// A session that stays, with a will.
fn durable(name: &str, version: Version, qos: u8, delay: Option<u32>) -> Connect {
    let will = will(name, qos);
    let will = match delay {
        Some(seconds) => will.delay(seconds),
        None => will,
    };
    Connect::persistent(version, &id(name)).will(will)
}

/// A session that ends with its connection, with a will.
fn clean(name: &str, version: Version, qos: u8) -> Connect {
    Connect::clean(version, &id(name)).will(will(name, qos))
}

async fn connected(name: &str, version: Version, node: usize, qos: u8, delay: Option<u32>) -> Client {
    let connect = durable(name, version, qos, delay);
    Client::connect(shared().mqtt(node), &connect).await.0
}

fn is_present(connack: &Packet) -> bool {
    matches!(
        connack,
        Packet::Connack {
            session_present: true,
            ..
        }
    )
}

fn seconds(seconds: u32) -> Duration {
    Duration::from_secs(seconds.into())
}

/// Of the rows whose delay is waited for.
const DELAY: u32 = 3;
/// Of the rows whose will must not wait for it.
const FAR: u32 = 300;
const PAYLOAD_FORMAT_INDICATOR: u8 = 0x01;
const CONTENT_TYPE: u8 = 0x03;
const RESPONSE_TOPIC: u8 = 0x08;
const CORRELATION_DATA: u8 = 0x09;
