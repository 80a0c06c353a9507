//! QoS 2 through the wire while nothing fails: the exchange step by step, cut at every step and continued on another node.
//! And that what judges it under faults (`slow_exactly_once`) can say no.

use crate::support::SOON;
use crate::support::checker::{self, Consumer, Delivery, History, MessageId};
use crate::support::client::Client;
use crate::support::cluster::shared;
use crate::support::codec::{self, Connect, Packet, Publish, RECEIVE_MAXIMUM, VERSIONS, Value, Version};
use crate::support::exactly_once::{Again, Receiver, Recorded, Sender};
use crate::support::{mosquitto, random::Random};

// ---- the exchange ----

#[tokio::test]
async fn every_pair_of_nodes_completes_the_exchange() {
    let cluster = shared();
    for version in VERSIONS {
        for (s, p) in pairs() {
            let name = format!("qos2-pair-{version:?}-{s}-{p}");
            let mut subscriber = Client::open(cluster.mqtt(s), version, &format!("{name}-s")).await;
            let mut publisher = Client::open(cluster.mqtt(p), version, &format!("{name}-p")).await;
            subscriber.subscribe(&[(&name, 2)]).await;
            for n in 0..5 {
                publisher.publish_exactly_once(&name, format!("{n}")).await;
            }
            for n in 0..5 {
                let message = subscriber.message().await;
                assert_eq!((message.text(), message.qos), (format!("{n}"), 2));
                assert!(!message.dup && !message.retain, "{message:?}");
            }
            subscriber.ping().await;
            assert!(!subscriber.has_kept(), "{name}: more than was sent");
        }
    }
}

#[tokio::test]
async fn mosquitto_clients_complete_the_exchange() {
    let cluster = shared();
    for version in VERSIONS {
        for (s, p) in [(0, 0), (1, 2)] {
            let topic = format!("qos2-mosquitto/{version:?}/{s}/{p}");
            let mut sub = mosquitto::Sub::start(cluster.mqtt(s), version, &topic, 2).await;
            mosquitto::publish(cluster.mqtt(p), version, &topic, "across nodes", 2).await;
            assert_eq!(sub.message().await, format!("2 {topic} across nodes"));
        }
    }
}

/// [MQTT-4.6.0-3] [MQTT-4.6.0-4], although the topics are spread over all shards.
#[tokio::test]
async fn answers_come_in_the_order_of_what_they_answer() {
    let cluster = shared();
    for version in VERSIONS {
        let name = format!("qos2-order-{version:?}");
        let mut subscriber = Client::open(cluster.mqtt(1), version, &format!("{name}-s")).await;
        subscriber.subscribe(&[(&format!("{name}/#"), 2)]).await;
        let mut publisher = Client::open(cluster.mqtt(0), version, &format!("{name}-p")).await;
        let pids: Vec<u16> = (1..=MANY).collect();
        for pid in &pids {
            let publish = Publish::new(&format!("{name}/{pid}"), format!("{pid}"), 2);
            send(&mut publisher, Publish { pid: *pid, ..publish }).await;
        }
        for pid in &pids {
            let packet = publisher.packet_within(SOON).await;
            assert_eq!(packet, Ok(Packet::Pubrec { pid: *pid, code: 0 }));
        }
        for pid in &pids {
            publisher.send(&codec::pubrel(*pid)).await.expect("PUBREL");
        }
        for pid in &pids {
            let packet = publisher.packet_within(SOON).await;
            assert_eq!(packet, Ok(Packet::Pubcomp { pid: *pid, code: 0 }));
        }

        subscriber.auto_acknowledge = false;
        let mut received = Vec::new();
        for _ in &pids {
            received.push(subscriber.message().await.pid);
        }
        for pid in &received {
            subscriber.send(&codec::pubrec(*pid)).await.expect("PUBREC");
        }
        for pid in &received {
            let packet = subscriber.packet_within(SOON).await;
            assert_eq!(packet, Ok(Packet::Pubrel { pid: *pid, code: 0 }));
        }
        for pid in &received {
            subscriber.send(&codec::pubcomp(*pid)).await.expect("PUBCOMP");
        }
    }
}

#[tokio::test]
async fn messages_of_a_topic_arrive_in_order_also_while_the_session_is_away() {
    let cluster = shared();
    for version in VERSIONS {
        let name = format!("qos2-stream-{version:?}");
        let connect = Connect::persistent(version, &format!("{name}-s"));
        let (mut subscriber, _) = Client::connect(cluster.mqtt(1), &connect).await;
        subscriber.subscribe(&[(&name, 2)]).await;
        let mut publisher = Client::open(cluster.mqtt(0), version, &format!("{name}-p")).await;
        for n in 0..3 {
            for k in 0..MANY {
                let publish = Publish::new(&name, format!("{n} {k}"), 2);
                send(&mut publisher, Publish { pid: k + 1, ..publish }).await;
            }
            for k in 0..MANY {
                publisher.pubrec_of(k + 1).await;
            }
            for k in 0..MANY {
                publisher.release(k + 1).await;
            }
            if n == 0 {
                subscriber.disconnect().await;
                subscriber = resume(2, &connect).await;
                subscriber.auto_acknowledge = true;
            }
        }
        for n in 0..3 {
            for k in 0..MANY {
                assert_eq!(subscriber.message().await.text(), format!("{n} {k}"));
            }
        }
        subscriber.disconnect().await;
    }
}

#[tokio::test]
async fn a_message_arrives_at_the_lower_qos_of_publish_and_subscription() {
    let cluster = shared();
    for version in VERSIONS {
        let name = format!("qos2-lower-{version:?}");
        let mut subscribers = Vec::new();
        for granted in 0..=2 {
            for persistent in [false, true] {
                let id = format!("{name}-{granted}-{persistent}");
                let connect = match persistent {
                    false => Connect::clean(version, &id),
                    true => Connect::persistent(version, &id),
                };
                let (mut subscriber, _) = Client::connect(cluster.mqtt(usize::from(granted)), &connect).await;
                subscriber.subscribe(&[(&name, granted)]).await;
                subscribers.push((granted, subscriber));
            }
        }
        let (mut both, _) = Client::connect(
            cluster.mqtt(1),
            &Connect::persistent(version, &format!("{name}-overlap")),
        )
        .await;
        both.subscribe(&[(&name, 0), (&format!("{name}/#"), 2), ("+", 1)]).await;
        subscribers.push((2, both));
        let mut publisher = Client::open(cluster.mqtt(0), version, &format!("{name}-p")).await;
        for qos in [2, 1, 0, 2] {
            match qos {
                2 => drop(publisher.publish_exactly_once(&name, format!("{qos}")).await),
                lower => publisher.publish(&name, format!("{qos}"), lower).await,
            }
            for (granted, subscriber) in &mut subscribers {
                let message = subscriber.message().await;
                assert_eq!(
                    (message.text(), message.qos),
                    (format!("{qos}"), qos.min(*granted)),
                    "{} granted {granted}",
                    subscriber.client_id
                );
            }
        }
        for (_, subscriber) in subscribers {
            let (mut subscriber, id) = (subscriber, name.clone());
            subscriber.ping().await;
            assert!(!subscriber.has_kept(), "{id}: more than was sent");
        }
    }
}

// ---- publishers that change their node ----

#[tokio::test]
async fn a_repeat_before_pubrel_is_one_message_on_any_node() {
    let cluster = shared();
    for version in VERSIONS {
        let name = format!("qos2-repeat-{version:?}");
        let mut witness = witness(&name).await;
        let connect = Connect::persistent(version, &format!("{name}-p"));
        let first = Publish {
            pid: 7,
            ..Publish::new(&format!("{name}/x"), "once", 2)
        };
        let again = Publish {
            dup: true,
            ..first.clone()
        };
        let (mut publisher, _) = Client::connect(cluster.mqtt(0), &connect).await;
        send(&mut publisher, first).await;
        publisher.pubrec_of(7).await;
        // On the same connection too: 3.1.1 does not forbid it.
        send(&mut publisher, again.clone()).await;
        publisher.pubrec_of(7).await;
        for node in [1, 2, 0, 2] {
            publisher = resume(node, &connect).await;
            send(&mut publisher, again.clone()).await;
            publisher.pubrec_of(7).await;
        }
        assert_eq!(publisher.release(7).await, 0);
        publisher.publish_exactly_once(&format!("{name}/x"), "fence").await;
        assert_eq!(texts_until_fence(&mut witness).await, ["once"]);
        publisher.disconnect().await;
    }
}

#[tokio::test]
async fn pubrel_is_taken_on_any_node_and_frees_the_identifier() {
    let cluster = shared();
    for version in VERSIONS {
        let name = format!("qos2-release-{version:?}");
        let mut witness = witness(&name).await;
        let connect = Connect::persistent(version, &format!("{name}-p"));
        let (mut publisher, _) = Client::connect(cluster.mqtt(0), &connect).await;
        for n in 0..6 {
            // Different topics are in different shards: the node that gets PUBREL does not know which.
            let publish = Publish::new(&format!("{name}/{n}"), format!("{n}"), 2);
            send(&mut publisher, Publish { pid: 7, ..publish }).await;
            publisher.pubrec_of(7).await;
            publisher = resume(n + 1, &connect).await;
            assert_eq!(publisher.release(7).await, 0, "{name}: PUBREL {n}");
        }
        publisher.publish_exactly_once(&format!("{name}/x"), "fence").await;
        let mut received = texts_until_fence(&mut witness).await;
        received.sort();
        assert_eq!(received, ["0", "1", "2", "3", "4", "5"]);
        publisher.disconnect().await;
    }
}

/// `one-owner`: the old connection's PUBLISH is under way while the client has already come back elsewhere, completes the
/// exchange, and uses the identifier again.
#[tokio::test]
async fn a_publish_that_an_old_connection_has_under_way_is_no_second_message() {
    let cluster = shared();
    let mut random = Random::announced("qos2-under-way");
    for version in VERSIONS {
        let name = format!("qos2-under-way-{version:?}");
        let mut witness = witness(&name).await;
        let connect = Connect::persistent(version, &format!("{name}-p"));
        let (mut old, _) = Client::connect(cluster.mqtt(0), &connect).await;
        let mut expected = Vec::new();
        for round in 0..ROUNDS {
            let topic = format!("{name}/{}", random.below(24));
            let first = Publish {
                pid: 1,
                ..Publish::new(&topic, format!("first {round}"), 2)
            };
            send(&mut old, first.clone()).await;
            let kept = (round % 2 == 0).then_some(old);
            let mut new = resume(round + 1, &connect).await;
            let dup = Publish { dup: true, ..first };
            send(&mut new, dup).await;
            new.pubrec_of(1).await;
            assert!(new.release(1).await < 0x80);
            let second = Publish {
                pid: 1,
                ..Publish::new(&topic, format!("second {round}"), 2)
            };
            send(&mut new, second).await;
            new.pubrec_of(1).await;
            assert!(new.release(1).await < 0x80);
            expected.extend([format!("first {round}"), format!("second {round}")]);
            drop(kept);
            old = new;
        }
        old.publish_exactly_once(&format!("{name}/x"), "fence").await;
        let mut received = texts_until_fence(&mut witness).await;
        received.sort();
        expected.sort();
        assert_eq!(received, expected);
        old.disconnect().await;
    }
}

#[tokio::test]
async fn a_clean_start_forgets_what_was_received() {
    let cluster = shared();
    for version in VERSIONS {
        let name = format!("qos2-clean-{version:?}");
        let mut witness = witness(&name).await;
        let connect = Connect::clean(version, &format!("{name}-p"));
        for n in 0..3 {
            let (mut publisher, _) = Client::connect(cluster.mqtt(n), &connect).await;
            let publish = Publish::new(&format!("{name}/x"), format!("{n}"), 2);
            send(&mut publisher, Publish { pid: 7, ..publish }).await;
            publisher.pubrec_of(7).await;
        }
        let (mut publisher, _) = Client::connect(cluster.mqtt(0), &connect).await;
        publisher.publish_exactly_once(&format!("{name}/x"), "fence").await;
        assert_eq!(texts_until_fence(&mut witness).await, ["0", "1", "2"]);
    }
}

#[tokio::test]
async fn pubrel_of_nothing_is_answered() {
    let cluster = shared();
    for version in VERSIONS {
        let name = format!("qos2-nothing-{version:?}");
        let connect = Connect::persistent(version, &name);
        let (mut publisher, _) = Client::connect(cluster.mqtt(0), &connect).await;
        // 5.0 may say that it knows of nothing, which is no error after a reconnect; 3.1.1 has one answer.
        let answers: &[u8] = if version == Version::V5 { &[0, NOT_FOUND] } else { &[0] };
        assert!(answers.contains(&publisher.release(9).await));
        let pid = publisher.publish_exactly_once(&name, "x").await;
        assert!(answers.contains(&publisher.release(pid).await), "after its PUBCOMP");
        drop(publisher);
        let mut publisher = resume(1, &connect).await;
        assert!(answers.contains(&publisher.release(pid).await), "on another node");
        publisher.disconnect().await;
    }
}

// ---- subscribers that change their node ----

/// The next packet, but for a PUBREL of an earlier exchange: its PUBCOMP had not been committed when its connection ended,
/// so it comes again.
async fn packet_of(subscriber: &mut Client, pid: u16) -> Packet {
    loop {
        match subscriber.packet_within(SOON).await.expect("a packet") {
            Packet::Pubrel { pid: earlier, .. } if earlier != pid => {
                subscriber.send(&codec::pubcomp(earlier)).await.expect("PUBCOMP");
            }
            packet => return packet,
        }
    }
}

#[tokio::test]
async fn a_subscriber_continues_each_step_on_another_node() {
    let cluster = shared();
    for version in VERSIONS {
        let name = format!("qos2-steps-{version:?}");
        let connect = Connect::persistent(version, &format!("{name}-s"));
        let mut publisher = Client::open(cluster.mqtt(0), version, &format!("{name}-p")).await;
        let (mut subscriber, _) = Client::connect(cluster.mqtt(1), &connect).await;
        subscriber.subscribe(&[(&format!("{name}/#"), 2)]).await;
        subscriber.auto_acknowledge = false;
        for n in 0..9 {
            let topic = format!("{name}/{n}");
            publisher.publish_exactly_once(&topic, "x").await;
            let first = message_after_pubrels(&mut subscriber).await;
            assert_eq!(first.topic, topic);
            let pid = first.pid;

            // PUBLISH came, and nothing more: it comes again, under the same identifier.
            subscriber = resume(n + 1, &connect).await;
            let again = message_after_pubrels(&mut subscriber).await;
            assert_eq!((&again.topic, again.pid, again.dup, again.qos), (&topic, pid, true, 2));

            // PUBREC left, and nothing is known of it: PUBLISH or PUBREL.
            subscriber.send(&codec::pubrec(pid)).await.expect("PUBREC");
            subscriber = resume(n + 2, &connect).await;
            match packet_of(&mut subscriber, pid).await {
                Packet::Publish(publish) => {
                    assert_eq!((&publish.topic, publish.pid, publish.dup), (&topic, pid, true));
                    subscriber.send(&codec::pubrec(pid)).await.expect("PUBREC");
                    subscriber.pubrel_of(pid).await;
                }
                packet => assert_eq!(packet, Packet::Pubrel { pid, code: 0 }),
            }

            // PUBREL came: PUBREL comes again, PUBLISH never. [MQTT-4.3.3-5]
            for node in [n, n + 2] {
                subscriber = resume(node, &connect).await;
                let packet = packet_of(&mut subscriber, pid).await;
                assert_eq!(packet, Packet::Pubrel { pid, code: 0 }, "{name}, message {n} on {node}");
            }
            subscriber.send(&codec::pubcomp(pid)).await.expect("PUBCOMP");
            subscriber.disconnect().await;
            // Over: the next PUBLISH is of the next message.
            subscriber = resume(n, &connect).await;
        }
        subscriber.disconnect().await;
    }
}

/// P1, P2. What an earlier connection published is stored, whatever may be said of it now: its repeat is answered with success,
/// or its identifier would stay recorded, and the next message under it be taken for one more repeat. `$SYS/` stands for a
/// topic that the client may not publish to any more.
#[tokio::test]
async fn a_repeat_of_what_is_stored_is_not_refused() {
    let cluster = shared();
    let name = "qos2-refused";
    let mut subscriber = Client::open(cluster.mqtt(1), Version::V5, &format!("{name}-s")).await;
    subscriber.subscribe(&[(name, 2)]).await;
    let connect = Connect::persistent(Version::V5, &format!("{name}-p"));
    let publish = |topic: &str, payload: String| Publish {
        pid: 7,
        ..Publish::new(topic, payload, 2)
    };
    for node in 0..3 {
        let (mut publisher, _) = Client::connect(cluster.mqtt(node), &connect).await;
        send(&mut publisher, publish(name, format!("first {node}"))).await;
        publisher.pubrec_of(7).await;
        // As if PUBREC had not arrived.
        drop(publisher);
        let mut publisher = resume(node + 1, &connect).await;
        send(&mut publisher, publish("$SYS/nobody", format!("first {node}"))).await;
        let answer = publisher.packet_within(SOON).await;
        assert_eq!(answer, Ok(Packet::Pubrec { pid: 7, code: 0 }));
        assert_eq!(publisher.release(7).await, 0);
        // Of what is not stored the refusal is told, and its identifier is free.
        send(&mut publisher, publish("$SYS/nobody", "refused".into())).await;
        let answer = publisher.packet_within(SOON).await;
        assert_eq!(
            answer,
            Ok(Packet::Pubrec {
                pid: 7,
                code: TOPIC_NAME_INVALID
            })
        );
        send(&mut publisher, publish(name, format!("second {node}"))).await;
        publisher.pubrec_of(7).await;
        assert_eq!(publisher.release(7).await, 0);
        publisher.disconnect().await;
        for nth in ["first", "second"] {
            assert_eq!(subscriber.message().await.text(), format!("{nth} {node}"));
        }
    }
    subscriber.ping().await;
    assert!(!subscriber.has_kept(), "more than was sent");
}

/// A PUBLISH waits for the PUBREL of its identifier, and is refused then: what the client sent behind it is looked at.
#[tokio::test]
async fn what_comes_behind_a_refused_publish_that_waited_is_answered() {
    let cluster = shared();
    let mut publisher = Client::open(cluster.mqtt(0), Version::V5, "qos2-behind").await;
    let publish = |topic: &str| Publish {
        pid: 7,
        ..Publish::new(topic, "x", 2)
    };
    for _ in 0..10 {
        send(&mut publisher, publish("qos2-behind")).await;
        publisher.pubrec_of(7).await;
        let refused = publish("$SYS/nobody").encode(Version::V5);
        let at_once = [codec::pubrel(7), refused, codec::pingreq()].concat();
        publisher.send(&at_once).await.expect("three packets");
        let mut expected = vec![
            Packet::Pubcomp { pid: 7, code: 0 },
            Packet::Pubrec {
                pid: 7,
                code: TOPIC_NAME_INVALID,
            },
            Packet::Pingresp,
        ];
        while !expected.is_empty() {
            let packet = publisher.packet_within(SOON).await.expect("an answer");
            let answered = expected.iter().position(|one| *one == packet);
            expected.remove(answered.unwrap_or_else(|| panic!("{packet:?}, not one of {expected:?}")));
        }
    }
}

/// [MQTT-3.3.1-1] in both directions: a clean end and a lost connection tell the next node how far this one had sent.
#[tokio::test]
async fn dup_is_set_on_what_was_sent_and_nowhere_else() {
    let cluster = shared();
    for cut in [false, true] {
        let name = format!("qos2-dup-{cut}");
        let connect = Connect::persistent(Version::V5, &format!("{name}-s")).property(RECEIVE_MAXIMUM, Value::Two(2));
        let (mut subscriber, _) = Client::connect(cluster.mqtt(1), &connect).await;
        subscriber.subscribe(&[(&name, 2)]).await;
        subscriber.auto_acknowledge = false;
        let mut publisher = Client::open(cluster.mqtt(0), Version::V5, &format!("{name}-p")).await;
        for n in 0..5 {
            publisher.publish_exactly_once(&name, format!("{n}")).await;
        }
        let sent = [subscriber.message().await, subscriber.message().await];
        if cut {
            drop(subscriber);
            // Its node has to notice.
            crate::support::eventually("the session is not served", SOON, || async {
                let owner = cluster.owner_of(&connect.client_id).await;
                owner.is_none().then_some(())
            })
            .await;
        } else {
            subscriber.disconnect().await;
        }
        subscriber = resume(2, &connect).await;
        for (n, before) in sent.iter().enumerate() {
            let again = subscriber.message().await;
            assert_eq!((again.text(), again.dup, again.pid), (format!("{n}"), true, before.pid));
            subscriber.complete(again.pid).await;
        }
        for n in 2..5 {
            let message = subscriber.message().await;
            assert_eq!((message.text(), message.dup), (format!("{n}"), false), "cut: {cut}");
            subscriber.complete(message.pid).await;
        }
        subscriber.disconnect().await;
    }
}

// ---- flow control ----

#[tokio::test]
async fn receive_maximum_of_the_client_holds_until_pubcomp() {
    let cluster = shared();
    for persistent in [false, true] {
        let name = format!("qos2-flow-{persistent}");
        let connect = match persistent {
            false => Connect::clean(Version::V5, &name),
            true => Connect::persistent(Version::V5, &name),
        };
        let connect = connect.property(RECEIVE_MAXIMUM, Value::Two(3));
        let (mut subscriber, _) = Client::connect(cluster.mqtt(1), &connect).await;
        subscriber.subscribe(&[(&name, 2)]).await;
        subscriber.auto_acknowledge = false;
        let mut publisher = Client::open(cluster.mqtt(0), Version::V5, &format!("{name}-p")).await;
        for n in 0..8 {
            publisher.publish_exactly_once(&name, format!("{n}")).await;
        }
        let mut in_flight = Vec::new();
        for n in 0..3 {
            let message = subscriber.message().await;
            assert_eq!(message.text(), format!("{n}"));
            in_flight.push(message.pid);
        }
        nothing_more(&mut subscriber).await;
        // PUBREC and PUBREL are not the end of it.
        for pid in &in_flight {
            subscriber.send(&codec::pubrec(*pid)).await.expect("PUBREC");
            subscriber.pubrel_of(*pid).await;
        }
        nothing_more(&mut subscriber).await;
        subscriber.send(&codec::pubcomp(in_flight[0])).await.expect("PUBCOMP");
        assert_eq!(subscriber.message().await.text(), "3");
        nothing_more(&mut subscriber).await;
        // A refusal is: PUBREC of 0x80 and more. [MQTT-4.3.3-4]
        subscriber.send(&codec::pubcomp(in_flight[1])).await.expect("PUBCOMP");
        let refused = subscriber.message().await;
        assert_eq!(refused.text(), "4");
        nothing_more(&mut subscriber).await;
        let refusal = codec::pubrec_with_code(refused.pid, IMPLEMENTATION_SPECIFIC);
        subscriber.send(&refusal).await.expect("PUBREC");
        assert_eq!(subscriber.message().await.text(), "5");
        nothing_more(&mut subscriber).await;
    }
}

#[tokio::test]
async fn receive_maximum_of_the_server_counts_exchanges_until_pubcomp() {
    let cluster = shared();
    let name = "qos2-server-flow";
    let (mut publisher, connack) = Client::connect(cluster.mqtt(0), &Connect::persistent(Version::V5, name)).await;
    let Some(Value::Two(maximum)) = connack.property(RECEIVE_MAXIMUM).cloned() else {
        panic!("no Receive Maximum in {connack:?}")
    };
    let publish = |pid| Publish {
        pid,
        ..Publish::new(name, "x", 2)
    };
    for pid in 1..=maximum {
        send(&mut publisher, publish(pid)).await;
    }
    for pid in 1..=maximum {
        publisher.pubrec_of(pid).await;
    }
    // One is over: one more may begin, and no second one.
    publisher.release(1).await;
    send(&mut publisher, publish(1)).await;
    publisher.pubrec_of(1).await;
    send(&mut publisher, publish(maximum + 1)).await;
    let (code, _) = publisher.closed_by_server(SOON).await;
    assert_eq!(code, Some(RECEIVE_MAXIMUM_EXCEEDED));

    // The session has not forgotten them, and they do not count against the next connection.
    let mut publisher = resume(1, &Connect::persistent(Version::V5, name)).await;
    for pid in 1..=maximum {
        assert_eq!(publisher.release(pid).await, 0, "PUBREL {pid}");
    }
    publisher.disconnect().await;
}

// ---- what judges under faults can say no ----

#[test]
fn a_second_copy_is_found() {
    let delivery = |sequence| Delivery {
        message: Some(MessageId { producer: 0, sequence }),
        topic: "t".into(),
        dup: true,
        connection: 1,
    };
    let mut history = History::default();
    history.consumers.push(Consumer {
        name: "c".into(),
        filters: vec!["#".into()],
        deliveries: vec![delivery(0), delivery(1)],
        misbehaved: Vec::new(),
    });
    assert_eq!(checker::twice(&history), []);
    history.consumers[0].deliveries.push(delivery(0));
    let found = checker::twice(&history);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].kind(), "twice");
}

#[test]
fn a_receiver_tells_what_the_server_did_wrong() {
    let message = |sequence| MessageId { producer: 0, sequence };
    // A whole exchange, cut and continued at every step, is right; then the identifier is another message's.
    let good = || {
        let mut receiver = Receiver::new(Some(2));
        receiver.connected();
        assert_eq!(receiver.sees_publish(message(0), 5, false), Ok(()));
        receiver.connected();
        assert_eq!(receiver.sees_publish(message(0), 5, true), Ok(()));
        assert!(receiver.take(5));
        receiver.connected();
        assert_eq!(receiver.sees_publish(message(0), 5, true), Ok(()));
        assert!(!receiver.take(5), "waits for its PUBREL: no second message");
        receiver.pubrec_leaves(5);
        receiver
    };
    let mut receiver = good();
    receiver.connected();
    assert_eq!(receiver.sees_pubrel(5), Ok(()));
    receiver.release(5);
    receiver.connected();
    assert_eq!(receiver.sees_pubrel(5), Ok(()));
    assert_eq!(receiver.open(), 1);
    receiver.pubcomp_leaves(5);
    assert_eq!(receiver.open(), 0);
    assert_eq!(receiver.sees_pubrel(5), Ok(()), "PUBCOMP was lost");
    assert_eq!(receiver.sees_publish(message(1), 5, false), Ok(()));
    assert!(receiver.take(5));

    let wrong = |plant: &dyn Fn(&mut Receiver) -> Result<(), String>| plant(&mut good()).expect_err("a planted fault");
    assert!(wrong(&|receiver| receiver.sees_publish(message(0), 5, true)).contains("twice on one connection"));
    assert!(wrong(&|receiver| receiver.sees_publish(message(1), 5, false)).contains("not over"));
    assert!(
        wrong(&|receiver| {
            receiver.sees_publish(message(1), 6, false)?;
            receiver.sees_publish(message(2), 7, false)
        })
        .contains("3 in flight")
    );
    assert!(
        wrong(&|receiver| {
            receiver.sees_publish(message(1), 6, false)?;
            receiver.take(6);
            receiver.sees_pubrel(6)
        })
        .contains("before its PUBREC")
    );
    assert!(
        wrong(&|receiver| {
            receiver.sees_publish(message(1), 6, false)?;
            receiver.pubrec_leaves(6);
            receiver.sees_pubrel(6)
        })
        .contains("overtook 1")
    );
    let reconnected = |plant: &dyn Fn(&mut Receiver) -> Result<(), String>| {
        wrong(&|receiver| {
            receiver.connected();
            plant(receiver)
        })
    };
    assert!(reconnected(&|receiver| receiver.sees_publish(message(0), 6, true)).contains("before under 5"));
    assert!(reconnected(&|receiver| receiver.sees_publish(message(0), 5, false)).contains("without DUP"));
    assert!(
        reconnected(&|receiver| {
            receiver.sees_pubrel(5)?;
            receiver.sees_publish(message(0), 5, true)
        })
        .contains("after its PUBREL")
    );
}

#[test]
fn a_sender_tells_what_the_server_did_wrong() {
    let mut sender = Sender::default();
    assert_eq!([sender.publish(10), sender.publish(11)], [1, 2]);
    assert_eq!(sender.pubrec(1, 0), Ok(Recorded::Release(10)));
    assert!(sender.pubrec(1, 0).is_err(), "again");
    let again = [Again::Pubrel { pid: 1 }, Again::Publish { pid: 2, sequence: 11 }];
    assert_eq!(sender.resume(), again);
    sender.pubrel(1);
    assert!(sender.pubcomp(2, 0).is_err(), "its PUBREL did not leave");

    let mut sender = Sender::default();
    sender.publish(10);
    sender.publish(11);
    assert!(sender.pubrec(2, 0).is_err(), "overtook");

    let first_pubrel = || {
        let mut sender = Sender::default();
        sender.publish(10);
        assert_eq!(sender.pubrec(1, 0), Ok(Recorded::Release(10)));
        sender.pubrel(1);
        sender
    };
    assert!(first_pubrel().pubcomp(1, NOT_FOUND).is_err(), "the server forgot it");
    let mut sender = first_pubrel();
    sender.resume();
    sender.pubrel(1);
    assert_eq!(sender.pubcomp(1, NOT_FOUND), Ok(10), "its PUBCOMP may have been lost");
    assert_eq!(sender.publish(12), 1, "the identifier is free");
    assert_eq!(sender.pubrec(1, 0x97), Ok(Recorded::Refused(12, 0x97)));
    assert!(sender.is_empty());
}

// ---- common ----

/// [MQTT-3.5.2-1]
const TOPIC_NAME_INVALID: u8 = 0x90;

async fn send(client: &mut Client, publish: Publish) {
    client.send(&publish.encode(client.version)).await.expect("PUBLISH");
}

/// The session of `connect` on node `node` (by index, round and round), which must be there; an old connection is displaced.
/// The client acknowledges nothing by itself.
async fn resume(node: usize, connect: &Connect) -> Client {
    let (mut client, connack) = Client::connect(shared().mqtt(node % 3), connect).await;
    assert!(
        matches!(
            connack,
            Packet::Connack {
                session_present: true,
                ..
            }
        ),
        "{}: {connack:?}",
        connect.client_id
    );
    client.auto_acknowledge = false;
    client
}

/// A QoS 2 subscriber to all below `name`.
async fn witness(name: &str) -> Client {
    let connect = Connect::persistent(Version::V5, &format!("{name}-witness"));
    let (mut witness, _) = Client::connect(shared().mqtt(1), &connect).await;
    witness.subscribe(&[(&format!("{name}/#"), 2)]).await;
    witness
}

/// What came before `fence`, and nothing comes after it. Messages of other topics than the fence's may be later than it:
/// a round trip of the publisher ended before it was sent, so they are in the queue, and come with the next round trips.
async fn texts_until_fence(witness: &mut Client) -> Vec<String> {
    let mut texts: Vec<String> = witness
        .messages_until("fence")
        .await
        .iter()
        .map(Publish::text)
        .collect();
    loop {
        witness.ping().await;
        if !witness.has_kept() {
            return texts;
        }
        match witness.packet().await {
            Ok(Packet::Publish(publish)) => {
                witness.complete(publish.pid).await;
                texts.push(publish.text());
            }
            other => panic!("{other:?}"),
        }
    }
}

/// The next PUBLISH. A PUBREL may come before it: nobody waits for the commit of a PUBCOMP.
async fn message_after_pubrels(client: &mut Client) -> Publish {
    loop {
        match client.packet_within(SOON).await.expect("a packet") {
            Packet::Publish(publish) => return publish,
            Packet::Pubrel { pid, .. } => client.send(&codec::pubcomp(pid)).await.expect("PUBCOMP"),
            other => panic!("{}: {other:?}", client.client_id),
        }
    }
}

async fn nothing_more(client: &mut Client) {
    for _ in 0..2 {
        client.ping().await;
    }
    assert!(!client.has_kept(), "{}: more than its quota", client.client_id);
}

fn pairs() -> Vec<(usize, usize)> {
    (0..3).flat_map(|s| (0..3).map(move |p| (s, p))).collect()
}

/// Without an answer in between: less than the server's Receive Maximum.
const MANY: u16 = 60;
const ROUNDS: usize = 25;
const NOT_FOUND: u8 = 0x92;
const RECEIVE_MAXIMUM_EXCEEDED: u8 = 0x93;
const IMPLEMENTATION_SPECIFIC: u8 = 0x83;
