//! MQTT over WebSocket: the same sessions with the same promises as over TCP; what only WebSocket has; and what is wrong.

use crate::support::client::Client;
use crate::support::cluster::{Cluster, http_get, shared};
use crate::support::codec::{self, Connect, Packet, Publish, VERSIONS, Version, Will};
use crate::support::websocket::{
    self as ws, BINARY, CLOSE, CONTINUATION, FIN, PING, PONG, TEXT, WebSocket, close_code, frame, packets, relay,
    request, unmasked,
};
use crate::support::{SOON, START, eventually};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::timeout;

// ---- the same sessions ----

#[tokio::test]
async fn websocket_and_tcp_clients_exchange_at_every_qos() {
    let cluster = shared();
    // One byte per frame, and as the client writes.
    let (in_bytes, as_written) = (relay(cluster.ws(0), 1).await, relay(cluster.ws(1), usize::MAX).await);
    let ways = [
        (in_bytes.as_str(), cluster.mqtt(1)),
        (cluster.mqtt(2), in_bytes.as_str()),
        (as_written.as_str(), in_bytes.as_str()),
    ];
    for version in VERSIONS {
        for (way, (publisher_at, subscriber_at)) in ways.into_iter().enumerate() {
            let topic = format!("ws/every-qos/{version:?}/{way}");
            let mut subscriber = Client::open(subscriber_at, version, &format!("{topic}/s")).await;
            subscriber.subscribe(&[(&topic, 2)]).await;
            let mut publisher = Client::open(publisher_at, version, &format!("{topic}/p")).await;
            publisher.publish(&topic, "zero", 0).await;
            publisher.publish(&topic, "one", 1).await;
            publisher.publish_exactly_once(&topic, "two").await;
            for (qos, text) in [(0, "zero"), (1, "one"), (2, "two")] {
                let message = subscriber.message().await;
                assert_eq!((message.qos, message.text().as_str()), (qos, text), "{topic}");
            }
            publisher.disconnect().await;
            subscriber.disconnect().await;
        }
    }
}

#[tokio::test]
async fn large_messages_cross_frames() {
    let cluster = shared();
    let mut subscriber = Client::open(&relay(cluster.ws(0), 1000).await, Version::V5, "ws-large-s").await;
    subscriber.subscribe(&[("ws/large", 1)]).await;
    let mut publisher = Client::open(&relay(cluster.ws(1), usize::MAX).await, Version::V5, "ws-large-p").await;
    for n in 0..20_u8 {
        let length = [0, 125, 126, 65_535, 65_536, 500_000, 900_000][usize::from(n) % 7];
        publisher.publish("ws/large", vec![n; length], 1).await;
        assert_eq!(subscriber.message().await.payload, vec![n; length]);
    }
}

#[tokio::test]
async fn a_session_moves_between_tcp_and_websocket() {
    let cluster = shared();
    let over_ws = relay(cluster.ws(1), usize::MAX).await;
    let connect = Connect::persistent(Version::V5, "ws-moves");
    let (mut tcp, _) = Client::connect(cluster.mqtt(0), &connect).await;
    tcp.subscribe(&[("ws/moves", 1)]).await;
    let mut publisher = Client::open(cluster.mqtt(2), Version::V5, "ws-moves-p").await;

    let (mut ws, connack) = Client::connect(&over_ws, &connect).await;
    assert!(is_present(&connack), "{connack:?}");
    assert_eq!(tcp.closed_by_server(SOON).await.0, Some(0x8e));
    publisher.publish("ws/moves", "by ws", 1).await;
    assert_eq!(ws.message().await.text(), "by ws");

    let (mut tcp, connack) = Client::connect(cluster.mqtt(2), &connect).await;
    assert!(is_present(&connack), "{connack:?}");
    assert_eq!(ws.closed_by_server(SOON).await.0, Some(0x8e));
    publisher.publish("ws/moves", "by tcp", 1).await;
    // The PUBACK may have come too late for the connection that the session left.
    for again in tcp.messages_until("by tcp").await {
        assert_eq!((again.text().as_str(), again.dup), ("by ws", true));
    }
    tcp.disconnect().await;
}

#[tokio::test]
async fn a_killed_node_is_left_for_another_over_websocket() {
    let _alone = crate::support::alone().await;
    let cluster = Cluster::start(3).await;
    let connect = Connect::persistent(Version::V5, "ws-resumes");
    let (mut subscriber, _) = Client::connect(&relay(cluster.ws(0), usize::MAX).await, &connect).await;
    subscriber.subscribe(&[("ws/resumes", 2)]).await;
    let mut publisher = Client::open(&relay(cluster.ws(1), 7).await, Version::V5, "ws-resumes-p").await;
    // Received and not acknowledged: sent again, wherever the client comes back.
    subscriber.auto_acknowledge = false;
    publisher.publish("ws/resumes", "one", 1).await;
    publisher.publish_exactly_once("ws/resumes", "two").await;
    let first = [subscriber.message().await, subscriber.message().await];

    cluster.kill(1).await;
    subscriber.closed_by_server(SOON).await;
    publisher.publish("ws/resumes", "while away", 1).await;
    let again = relay(cluster.ws(2), usize::MAX).await;
    let (mut subscriber, connack) = eventually("another node takes the session", START, || async {
        match Client::try_connect(&again, &connect, SOON).await {
            Ok((client, connack @ Packet::Connack { code: 0, .. })) => Some((client, connack)),
            _ => None,
        }
    })
    .await;
    assert!(is_present(&connack), "{connack:?}");
    let mut texts = Vec::new();
    for _ in 0..3 {
        let message = subscriber.message().await;
        if let Some(sent) = first.iter().find(|sent| sent.text() == message.text()) {
            assert_eq!((message.dup, message.pid), (true, sent.pid), "{message:?}");
        }
        texts.push(message.text());
    }
    texts.sort();
    assert_eq!(texts, ["one", "two", "while away"]);
    cluster.assert_no_panic();
}

#[tokio::test]
async fn a_client_that_does_not_read_is_bounded_and_comes_back() {
    let cluster = shared();
    let mut slow = WebSocket::open_with_small_buffer(cluster.ws(0)).await;
    connect(&mut slow, Version::V5, "ws-slow").await;
    slow.send_packets(&[codec::subscribe(Version::V5, 1, &[("ws/slow/#", 0)])])
        .await;
    assert!(matches!(slow.packet(Version::V5).await, Packet::Suback { .. }));
    let mut other = Client::open(cluster.mqtt(0), Version::V5, "ws-slow-other").await;
    other.subscribe(&[("ws/slow/#", 0)]).await;
    let mut publisher = Client::open(cluster.mqtt(1), Version::V5, "ws-slow-p").await;
    let before = cluster.metrics(1).await;
    let payload = vec![b'x'; 64 * 1024];
    // Four times what an outbox holds; sockets hold some too.
    for _ in 0..512 {
        publisher.publish("ws/slow/a", payload.clone(), 0).await;
        other.message().await;
    }
    let dropped =
        |scrape: &crate::support::metrics::Scrape| scrape.sum_where("lontra_messages_dropped_total", "outbox_full");
    assert!(
        dropped(&cluster.metrics(1).await) > dropped(&before),
        "nothing was dropped"
    );
    // It reads again: what was kept, then an answer; a ping meanwhile is answered between frames.
    slow.send(&frame(PING, b"still there")).await;
    slow.send_packets(&[codec::pingreq()]).await;
    let (mut messages, mut pong, mut pingresp) = (0, false, false);
    while !(pong && pingresp) {
        let received = slow.frame().await.expect("a frame");
        if received.first == PONG {
            assert_eq!(received.payload, b"still there");
            pong = true;
            continue;
        }
        for packet in packets(Version::V5, &received) {
            match packet {
                Packet::Publish(publish) => {
                    assert_eq!(publish.payload, payload);
                    messages += 1;
                }
                Packet::Pingresp => pingresp = true,
                other => panic!("{other:?}"),
            }
        }
    }
    assert!((1..512).contains(&messages), "{messages} messages were kept");
    slow.send_packets(&[codec::disconnect()]).await;
    assert_eq!(slow.closed().await, 1000);
}

// ---- frames and packets ----

#[tokio::test]
async fn packets_cross_frames_and_share_them() {
    let cluster = shared();
    let mut socket = WebSocket::open(cluster.ws(0)).await;
    // With the handshake's last byte, as one frame: CONNECT and what needs no CONNACK first.
    let subscribe = codec::subscribe(Version::V5, 7, &[("ws/frames", 0)]);
    let connect = Connect::clean(Version::V5, "ws-frames").encode();
    socket.send_packets(&[connect, subscribe, codec::pingreq()]).await;
    let mut answers = Vec::new();
    while answers.len() < 3 {
        answers.extend(packets(Version::V5, &socket.frame().await.expect("a frame")));
    }
    assert!(
        matches!(
            answers[..],
            [
                Packet::Connack { code: 0, .. },
                Packet::Suback { pid: 7, .. },
                Packet::Pingresp
            ] | [
                Packet::Connack { code: 0, .. },
                Packet::Pingresp,
                Packet::Suback { pid: 7, .. }
            ]
        ),
        "{answers:?}"
    );
    // Fragments of one message, cut within a packet, with a ping between them and an empty one.
    let publish = Publish::new("ws/frames", "in fragments", 0).encode(Version::V5);
    let (head, tail) = publish.split_at(5);
    for part in [
        frame(BINARY & !FIN, head),
        frame(PING, b""),
        frame(CONTINUATION & !FIN, b""),
        frame(CONTINUATION & !FIN, &tail[..1]),
        frame(CONTINUATION, &tail[1..]),
    ] {
        socket.send(&part).await;
    }
    assert_eq!(socket.frame().await.map(|frame| frame.first), Some(PONG));
    match socket.packet(Version::V5).await {
        Packet::Publish(publish) => assert_eq!(publish.text(), "in fragments"),
        other => panic!("{other:?}"),
    }
    // Every byte of the frames by itself, and empty messages.
    let publish = Publish::new("ws/frames", "byte by byte", 0).encode(Version::V5);
    for byte in [frame(BINARY, b""), frame(BINARY, &publish), frame(BINARY, b"")].concat() {
        socket.send(&[byte]).await;
    }
    match socket.packet(Version::V5).await {
        Packet::Publish(publish) => assert_eq!(publish.text(), "byte by byte"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn frames_may_come_with_the_handshake() {
    let cluster = shared();
    let connect = Connect::clean(Version::V311, "ws-early").encode();
    let mut stream = TcpStream::connect(cluster.ws(2)).await.expect("a connection");
    let all = [
        request(&[]).into_bytes(),
        frame(BINARY, &connect),
        frame(PING, b"early"),
    ]
    .concat();
    tokio::io::AsyncWriteExt::write_all(&mut stream, &all)
        .await
        .expect("sent");
    let mut answer = Vec::new();
    let wanted = [&[PONG, 5][..], b"early", &[BINARY, 4, 0x20, 2, 0, 0]].concat();
    while !answer.ends_with(&wanted) {
        let read = timeout(SOON, stream.read_buf(&mut answer)).await.expect("in time");
        assert!(read.expect("an open connection") > 0, "{answer:?}");
    }
}

#[tokio::test]
async fn a_ping_is_answered_with_its_payload() {
    let cluster = shared();
    let mut socket = WebSocket::open(cluster.ws(1)).await;
    let payload = [7; 125];
    // Before CONNECT too; a pong that nobody asked for is ignored.
    socket.send(&frame(PONG, b"unasked")).await;
    socket.send(&frame(PING, &payload)).await;
    let pong = socket.frame().await.expect("a frame");
    assert_eq!((pong.first, pong.payload), (PONG, payload.to_vec()));
    connect(&mut socket, Version::V311, "ws-ping").await;
    socket
        .send(&[frame(PING, b"1"), frame(BINARY, &codec::pingreq())].concat())
        .await;
    assert_eq!(socket.frame().await.map(|frame| frame.payload), Some(b"1".to_vec()));
    assert_eq!(socket.packet(Version::V311).await, Packet::Pingresp);
}

// ---- the end ----

#[tokio::test]
async fn a_close_without_disconnect_publishes_the_will_and_disconnect_does_not() {
    let cluster = shared();
    let mut watcher = Client::open(cluster.mqtt(2), Version::V5, "ws-will-watcher").await;
    watcher.subscribe(&[("ws/will/#", 1)]).await;
    for (leaves, will) in [("closes", true), ("disconnects", false), ("vanishes", true)] {
        let topic = format!("ws/will/{leaves}");
        let mut socket = WebSocket::open(cluster.ws(0)).await;
        let connect = Connect::clean(Version::V5, &topic).will(Will::new(&topic, "gone", 1));
        socket.send_packets(&[connect.encode()]).await;
        assert!(matches!(
            socket.packet(Version::V5).await,
            Packet::Connack { code: 0, .. }
        ));
        let close = frame(CLOSE, &[0x03, 0xe8, b'b', b'y', b'e']);
        match leaves {
            "vanishes" => drop(socket),
            _ => {
                // As clients do, in one write.
                let disconnect = frame(BINARY, &codec::disconnect());
                let last = if leaves == "closes" { Vec::new() } else { disconnect };
                socket.send(&[last, close].concat()).await;
                let answer = socket.frame().await.expect("a Close");
                assert_eq!(close_code(&answer), 1000, "{leaves}");
                assert_eq!(socket.frame().await, None, "{leaves}");
            }
        }
        if will {
            assert_eq!(watcher.message().await.topic, topic);
        }
    }
    watcher.ping().await;
    assert!(!watcher.has_kept(), "a will after DISCONNECT");
}

#[tokio::test]
async fn what_breaks_the_rules_is_told_by_a_close_code() {
    let cluster = shared();
    let huge = [ws::header(BINARY, 3 << 20, 0x80), vec![0; 100]].concat();
    let endless = [ws::header(BINARY, u64::MAX, 0x80), vec![0; 100]].concat();
    // Each fragment is small enough, their sum is not.
    let fragments: Vec<u8> = (0..40)
        .flat_map(|n| frame(if n == 0 { BINARY & !FIN } else { 0 }, &[0; 60_000]))
        .collect();
    for (what, bytes, code) in [
        ("text", frame(TEXT, b"hello"), 1003),
        ("text that is not UTF-8", frame(TEXT, &[0xff]), 1003),
        ("no mask", unmasked(BINARY, &codec::pingreq()), 1002),
        ("reserved bit", frame(BINARY | 0x40, &codec::pingreq()), 1002),
        ("reserved opcode", frame(0x83, b""), 1002),
        ("reserved control opcode", frame(0x8b, b""), 1002),
        ("continuation of nothing", frame(CONTINUATION, b""), 1002),
        ("ping in fragments", frame(PING & !FIN, b""), 1002),
        ("ping of 126 bytes", frame(PING, &[0; 126]), 1002),
        (
            "a message within a message",
            [frame(BINARY & !FIN, b""), frame(BINARY, b"")].concat(),
            1002,
        ),
        ("close of one byte", frame(CLOSE, b"x"), 1002),
        ("3 MiB in a frame", huge, 1009),
        ("2^64 - 1 bytes in a frame", endless, 1009),
        ("2.4 MB in fragments", fragments, 1009),
    ] {
        let name = format!("ws/rules/{what}").replace(' ', "-");
        let mut watcher = Client::open(cluster.mqtt(1), Version::V5, &format!("{name}/watcher")).await;
        watcher.subscribe(&[(&name, 1)]).await;
        let mut socket = WebSocket::open(cluster.ws(0)).await;
        connect(&mut socket, Version::V5, &name).await;
        // What came before is taken.
        let publish = Publish::new(&name, "before", 0).encode(Version::V5);
        socket.try_send(&[frame(BINARY, &publish), bytes].concat()).await;
        assert_eq!(socket.closed().await, code, "{what}");
        assert_eq!(watcher.message().await.text(), "before", "{what}");
    }
    cluster.assert_no_panic();
}

#[tokio::test]
async fn a_wrong_packet_is_told_by_disconnect_and_close() {
    let cluster = shared();
    let too_large = [&[0x30, 0x80, 0x80, 0x80, 0x01][..], &[0; 1000]].concat();
    for (packet, reason, code) in [
        (vec![0x00, 0x00], 0x81, 1002),
        (codec::frame(0x90, &[0, 1, 0, 0]), 0x82, 1002),
        (too_large, 0x95, 1009),
        (Publish::new("a/+", "", 0).encode(Version::V5), 0x90, 1008),
    ] {
        let mut socket = WebSocket::open(cluster.ws(1)).await;
        connect(&mut socket, Version::V5, "ws-wrong").await;
        socket.send_packets(std::slice::from_ref(&packet)).await;
        match socket.packet(Version::V5).await {
            Packet::Disconnect { code, .. } => assert_eq!(code, reason, "{packet:?}"),
            other => panic!("{packet:?}: {other:?}"),
        }
        assert_eq!(socket.closed().await, code, "{packet:?}");
    }
    // 3.1.1 knows no DISCONNECT of the server: the Close Code is all that tells.
    let mut socket = WebSocket::open(cluster.ws(1)).await;
    connect(&mut socket, Version::V311, "ws-wrong").await;
    socket.send_packets(&[vec![0x00, 0x00]]).await;
    assert_eq!(socket.closed().await, 1002);
    // Nothing but CONNECT comes first.
    let mut socket = WebSocket::open(cluster.ws(1)).await;
    socket.send_packets(&[codec::pingreq()]).await;
    assert_eq!(socket.closed().await, 1002);
    cluster.assert_no_panic();
}

#[tokio::test]
async fn a_node_that_stops_and_one_that_waits_in_vain_say_so() {
    let _alone = crate::support::alone().await;
    let dir = tempfile::tempdir().expect("a directory");
    let quick = [("LONTRA__MQTT__CONNECT_TIMEOUT", "2s")];
    let cluster = Cluster::start_in(dir.path().to_owned(), 1, &quick).await;
    // A handshake and a CONNECT have the same time, together.
    let silent = TcpStream::connect(cluster.ws(0)).await.expect("a connection");
    let mut half = TcpStream::connect(cluster.ws(0)).await.expect("a connection");
    tokio::io::AsyncWriteExt::write_all(&mut half, &request(&[]).as_bytes()[..40])
        .await
        .expect("sent");
    let mut no_connect = WebSocket::open(cluster.ws(0)).await;
    eventually("three connections are counted", SOON, || async {
        (cluster.metrics(1).await.sum("lontra_connections") == 3.0).then_some(())
    })
    .await;
    for mut stream in [silent, half] {
        let mut answer = Vec::new();
        let closed = timeout(SOON, stream.read_to_end(&mut answer))
            .await
            .expect("closed in time");
        assert!(
            closed.is_err() || answer.is_empty() || answer.starts_with(b"HTTP/1.1 4"),
            "{answer:?}"
        );
    }
    no_connect.closed().await;
    eventually("none is left", SOON, || async {
        (cluster.metrics(1).await.sum("lontra_connections") == 0.0).then_some(())
    })
    .await;

    let mut socket = WebSocket::open(cluster.ws(0)).await;
    connect(&mut socket, Version::V5, "ws-stopped").await;
    let (told, ()) = tokio::join!(
        async {
            let told = socket.packet(Version::V5).await;
            (told, close_code(&socket.frame().await.expect("a Close")))
        },
        cluster.terminate(1)
    );
    assert!(
        matches!(told, (Packet::Disconnect { code: 0x8b, .. }, 1001)),
        "{told:?}"
    );
}

// ---- handshakes ----

#[tokio::test]
async fn the_port_speaks_http() {
    let cluster = shared();
    let (status, body) = http_get(cluster.ws(0), "/").await.expect("an answer");
    assert!(status == 404 && body.contains("/mqtt"), "{status} {body}");
    let (status, body) = http_get(cluster.ws(0), "/mqtt").await.expect("an answer");
    assert!(status == 426 && body.contains("WebSocket"), "{status} {body}");

    for (changes, status) in [
        (&[("Upgrade", "")][..], 426),
        (&[("Sec-WebSocket-Version", "8")], 426),
        (&[("Sec-WebSocket-Key", "short")], 400),
        (&[("Sec-WebSocket-Protocol", "chat")], 400),
        (&[("Origin", "https://example.org")], 403),
        (&[("Content-Length", "3")], 400),
        (
            &[
                ("Origin", "http://localhost:8000"),
                ("Sec-WebSocket-Extensions", "permessage-deflate"),
            ],
            101,
        ),
        (&[("Sec-WebSocket-Protocol", "")], 101),
        (&[("Sec-WebSocket-Protocol", "mqttv3.1")], 101),
    ] {
        let (mut socket, answer) = WebSocket::ask(cluster.ws(0), &request(changes)).await;
        assert_eq!(answer.status, status, "{changes:?}: {}", answer.head);
        if status == 101 {
            assert!(
                answer
                    .head
                    .contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=")
            );
            assert!(!answer.head.contains("sec-websocket-extensions"), "none is spoken");
            let subprotocol = changes.iter().find(|change| change.0 == "Sec-WebSocket-Protocol");
            let subprotocol = subprotocol.map_or("mqtt", |change| change.1);
            let line = format!("sec-websocket-protocol: {subprotocol}\r\n");
            assert_eq!(answer.head.contains(&line), !subprotocol.is_empty(), "{}", answer.head);
            connect(&mut socket, Version::V311, "ws-handshake").await;
        }
    }
    cluster.assert_no_panic();
}

async fn connect(socket: &mut WebSocket, version: Version, client_id: &str) {
    socket
        .send_packets(&[Connect::clean(version, client_id).encode()])
        .await;
    match socket.packet(version).await {
        Packet::Connack { code: 0, .. } => {}
        other => panic!("{client_id}: {other:?}"),
    }
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
