//! The client against a scripted server.

use super::*;
use crate::history::{self, Event};
use crate::mqtt::{self, Publish, frame, frame_length, payload};
use crate::recorder::Recorder;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

struct Bench {
    dir: tempfile::TempDir,
    listener: TcpListener,
    scene: Arc<Scene>,
}

impl Bench {
    async fn new() -> (Bench, Client) {
        let dir = tempfile::tempdir().expect("a directory");
        let recorder = Recorder::create(&dir.path().join("h")).expect("a history");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        // Nobody listens at `n2`.
        let down = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let nodes = vec![
            ("n1".into(), address),
            ("n2".into(), down.local_addr().expect("an address")),
        ];
        drop(down);
        let scene = Arc::new(Scene::new(recorder, "t", nodes));
        let client = Client::new(&scene, "c", Version::V5, Random::new(1));
        let bench = Bench { dir, listener, scene };
        (bench, client)
    }

    /// Takes a connection and answers its CONNECT.
    async fn accept(&self, present: bool) -> TcpStream {
        self.answer(present, 0).await
    }

    async fn answer(&self, present: bool, reason: u8) -> TcpStream {
        let (mut stream, _) = self.listener.accept().await.expect("a connection");
        assert_eq!(read(&mut stream).await.0, 0x10);
        let connack = frame(0x20, &[u8::from(present), reason, 0]);
        stream.write_all(&connack).await.expect("CONNACK");
        stream
    }

    fn events(&self) -> Vec<Event> {
        self.scene.recorder.flush().expect("written");
        let text = std::fs::read_to_string(self.dir.path().join("h")).expect("a history");
        history::parse(&text).expect("a history")
    }

    /// Kind and name of each event, pings left out.
    fn story(&self) -> Vec<String> {
        let events = self.events().into_iter();
        let named = events.map(|event| {
            let value = serde_json::to_value(&event).expect("JSON");
            format!(
                "{} {}",
                value["f"].as_str().unwrap_or(""),
                value["type"].as_str().unwrap_or("")
            )
        });
        named.filter(|line| !line.starts_with("ping")).collect()
    }
}

async fn read(stream: &mut TcpStream) -> (u8, Vec<u8>) {
    let mut bytes = Vec::new();
    loop {
        if let Some((header, length)) = frame_length(&bytes).expect("a packet")
            && bytes.len() == header + length
        {
            return (bytes[0], bytes.split_off(header));
        }
        bytes.push(stream.read_u8().await.expect("a byte"));
    }
}

async fn served(bench: &Bench, client: &mut Client, options: &Options, present: bool) -> TcpStream {
    let (stream, connected) = tokio::join!(bench.accept(present), client.connect("n1", options));
    assert_eq!(connected, Connected::Served { present });
    stream
}

fn delivery(qos: u8, pid: u16) -> Vec<u8> {
    let message = Message {
        publisher: "p".into(),
        topic: "t/1".into(),
        seq: 1,
    };
    let packet = Publish {
        topic: "t/1".into(),
        payload: payload::payload(&message, 3),
        qos,
        dup: false,
        retain: false,
        pid,
        properties: Vec::new(),
    };
    mqtt::publish(Version::V5, &packet)
}

const SOON: Duration = Duration::from_secs(2);

#[tokio::test]
async fn an_unacknowledged_publish_is_sent_again_with_dup_and_stays_one_operation() {
    let (bench, mut client) = Bench::new().await;
    let options = Options::persistent();
    let mut stream = served(&bench, &mut client, &options, false).await;
    client.publish("t/1", 1, false, 0).await;
    assert_eq!(read(&mut stream).await.0, 0x32);
    drop(stream);
    assert!(!client.until(SOON, |client| client.open() == 0).await);
    let mut stream = served(&bench, &mut client, &options, true).await;
    let (first, body) = read(&mut stream).await;
    assert_eq!(first, 0x3a, "DUP");
    let pid = mqtt::publish_body(Version::V5, first, &body).expect("PUBLISH").pid;
    stream
        .write_all(&frame(0x40, &pid.to_be_bytes()))
        .await
        .expect("PUBACK");
    assert!(client.until(SOON, |client| client.open() == 0).await);
    assert_eq!(
        bench.story(),
        [
            "connect invoke",
            "connect ok",
            "publish invoke",
            "conn-lost info",
            "connect invoke",
            "connect ok",
            "resend info",
            "publish ok"
        ]
    );
    let last = bench.events().pop().expect("events");
    assert!(
        matches!(
            last.op,
            Op::Publish {
                sends: Some(2),
                conn: 2,
                ..
            }
        ),
        "{last:?}"
    );
}

#[tokio::test]
async fn a_session_that_is_gone_makes_what_was_open_unknown() {
    let (bench, mut client) = Bench::new().await;
    let stream = served(&bench, &mut client, &Options::persistent(), false).await;
    client.publish("t/1", 2, false, 0).await;
    drop(stream);
    client.until(SOON, |client| !client.is_connected()).await;
    let _stream = served(&bench, &mut client, &Options::persistent(), false).await;
    assert_eq!(client.open(), 0);
    assert_eq!(bench.story().last().expect("events"), "publish info");
}

#[tokio::test]
async fn a_qos_2_message_is_handed_once_until_its_identifier_is_released() {
    let (bench, mut client) = Bench::new().await;
    let mut stream = served(&bench, &mut client, &Options::persistent(), false).await;
    for _ in 0..2 {
        stream.write_all(&delivery(2, 9)).await.expect("PUBLISH");
        client.pass(Duration::from_millis(50)).await;
        assert_eq!(read(&mut stream).await, (0x50, vec![0, 9]));
    }
    stream.write_all(&frame(0x62, &[0, 9])).await.expect("PUBREL");
    client.pass(Duration::from_millis(50)).await;
    assert_eq!(read(&mut stream).await, (0x70, vec![0, 9]));
    stream.write_all(&delivery(2, 9)).await.expect("PUBLISH");
    client.pass(Duration::from_millis(50)).await;
    let handed: Vec<bool> = bench
        .events()
        .iter()
        .filter_map(|event| match event.op {
            Op::Recv { handed, .. } => Some(handed),
            _ => None,
        })
        .collect();
    assert_eq!(handed, [true, false, true]);
}

#[tokio::test]
async fn a_clean_connect_that_reached_nobody_forgets_nothing() {
    let (bench, mut client) = Bench::new().await;
    let options = Options::persistent();
    let mut stream = served(&bench, &mut client, &options, false).await;
    stream.write_all(&delivery(2, 9)).await.expect("PUBLISH");
    client.pass(Duration::from_millis(50)).await;
    client.cut();
    let unreachable = client.connect("n2", &Options::clean()).await;
    assert_eq!(unreachable, Connected::Unreachable);
    let clean = Options::clean();
    let (_refused, connected) = tokio::join!(bench.answer(false, 0x87), client.connect("n1", &clean));
    assert_eq!(connected, Connected::Refused(0x87));
    let mut stream = served(&bench, &mut client, &options, true).await;
    stream.write_all(&delivery(2, 9)).await.expect("PUBLISH");
    client.pass(Duration::from_millis(50)).await;
    let last = bench.events().into_iter().rev().find_map(|event| match event.op {
        Op::Recv { handed, .. } => Some(handed),
        _ => None,
    });
    assert_eq!(last, Some(false));
}

#[tokio::test]
async fn a_client_that_forgot_says_so_until_a_node_has_answered() {
    let (bench, mut client) = Bench::new().await;
    let options = Options::persistent();
    drop(served(&bench, &mut client, &options, false).await);
    client.crash();
    assert_eq!(client.connect("n2", &options).await, Connected::Unreachable);
    let _stream = served(&bench, &mut client, &options, false).await;
    let last = bench.events().into_iter().rev().find_map(|event| match event.op {
        Op::Connect { clean, .. } => Some(clean),
        _ => None,
    });
    assert_eq!(last, Some(true));
}

#[tokio::test]
async fn withheld_acknowledgements_are_sent_when_they_may_be() {
    let (bench, mut client) = Bench::new().await;
    let mut stream = served(&bench, &mut client, &Options::persistent(), false).await;
    client.acks.withhold = true;
    stream
        .write_all(&[delivery(1, 4), delivery(1, 5)].concat())
        .await
        .expect("PUBLISH");
    client.pass(Duration::from_millis(50)).await;
    assert!(!bench.story().contains(&"ack-sent info".to_owned()));
    client.acknowledge_withheld();
    client.pass(Duration::from_millis(50)).await;
    assert_eq!(read(&mut stream).await, (0x40, vec![0, 4]));
    assert_eq!(read(&mut stream).await, (0x40, vec![0, 5]));
    assert!(matches!(
        bench
            .events()
            .iter()
            .rfind(|event| matches!(event.op, Op::Recv { .. }))
            .expect("one")
            .op,
        Op::Recv { in_flight: 2, .. }
    ));
}

#[tokio::test]
async fn an_abandoned_clean_start_makes_a_client_doubtful() {
    let (bench, mut client) = Bench::new().await;
    let accept = async { bench.listener.accept().await.expect("a connection") };
    let options = Options::clean();
    let (held, connected) = tokio::join!(accept, client.connect("n1", &options));
    assert_eq!(connected, Connected::Abandoned);
    assert!(client.is_doubtful());
    assert_eq!(bench.story(), ["connect invoke", "connect info"]);
    drop(held);
}

#[tokio::test]
async fn a_clean_start_that_a_node_could_not_serve_makes_a_client_doubtful() {
    let (bench, mut client) = Bench::new().await;
    for (reason, doubtful) in [(0x87, false), (0x88, true)] {
        let options = Options::clean();
        let (_held, connected) = tokio::join!(bench.answer(false, reason), client.connect("n1", &options));
        assert_eq!(connected, Connected::Refused(reason));
        assert_eq!(client.is_doubtful(), doubtful, "{reason:#x}");
    }
    assert_eq!(bench.story().last().expect("events"), "connect info");
}

#[tokio::test]
async fn a_disconnect_is_ok_only_when_the_close_follows_it() {
    let (bench, mut client) = Bench::new().await;
    let mut stream = served(&bench, &mut client, &Options::persistent(), false).await;
    let server = async {
        assert_eq!(read(&mut stream).await.0, 0xe0);
        drop(stream);
    };
    let (surely, ()) = tokio::join!(client.disconnect(0, None), server);
    assert!(surely);
    let stream = served(&bench, &mut client, &Options::persistent(), true).await;
    // As the kernel does for a killed node: FIN first, RST to what comes then.
    drop(stream);
    assert!(!client.disconnect(0, None).await);
    assert_eq!(bench.story().last().expect("events"), "disconnect info");
}

#[tokio::test]
async fn bytes_that_no_server_may_send_are_a_finding() {
    let (bench, mut client) = Bench::new().await;
    let mut stream = served(&bench, &mut client, &Options::persistent(), false).await;
    stream.write_all(&[0x36, 0, 0]).await.expect("bytes");
    assert!(!client.until(SOON, |_| false).await);
    let bad = bench.events().into_iter().find_map(|event| match event.op {
        Op::Recv { bad, .. } => bad,
        _ => None,
    });
    assert!(bad.is_some_and(|reason| reason.contains("PUBLISH flags")));
    assert_eq!(bench.story().last().expect("events"), "conn-lost info");
}

#[tokio::test]
async fn a_crash_forgets_and_the_next_connect_is_clean() {
    let (bench, mut client) = Bench::new().await;
    let _stream = served(&bench, &mut client, &Options::persistent(), false).await;
    client.publish("t/1", 1, false, 0).await;
    client.crash();
    let _second = served(&bench, &mut client, &Options::persistent(), false).await;
    assert_eq!(
        bench.story()[2..],
        [
            "publish invoke",
            "conn-lost info",
            "crash-client info",
            "publish info",
            "connect invoke",
            "connect ok"
        ]
    );
    assert!(
        bench
            .events()
            .iter()
            .any(|event| matches!(event.op, Op::Connect { clean: true, .. }))
    );
}
