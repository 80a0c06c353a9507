//! `lontra bench` as its users run it: against a node, whose deliveries it has to count right, and against a broker that
//! loses, repeats and reorders, which it has to tell.

use crate::support::SOON;
use crate::support::cluster::{LONTRA, shared};
use crate::support::codec::{frame, take_frame};
use bytes::BytesMut;
use serde_json::Value;
use std::process::{Output, Stdio};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::time::timeout;

// ---- against a cluster ----

#[tokio::test]
async fn every_message_of_every_scenario_is_counted_once() {
    let cluster = shared();
    let brokers = [cluster.mqtt(0), cluster.mqtt(1), cluster.mqtt(2)].join(",");
    for (line, subscribers) in [
        ("pairs -n 3 -q 0 -V 3.1.1", 1),
        ("pairs -n 3 -q 1", 1),
        ("pairs -n 3 -q 2", 1),
        ("pairs -n 3 -q 1 --persistent -V 3.1.1", 1),
        ("pairs -n 3 -q 2 --persistent", 1),
        ("fan-out -n 5 -q 1 -w 4", 5),
        ("fan-in -n 4 -q 1", 1),
    ] {
        let options = format!("{line} --messages 50 --patience 20 -b {brokers} --json");
        let report = well(bench(&options).await);
        let publishers = report["publishers"].as_u64().expect("a number");
        let counts = &report["counts"];
        assert_eq!(counts["sent"], publishers * 50, "{line}");
        assert_eq!(counts["delivered"], publishers * 50 * subscribers, "{line}");
        let acknowledged = if report["qos"] == 0 { 0 } else { publishers * 50 };
        assert_eq!(counts["acknowledged"], acknowledged, "{line}");
        assert_eq!(report["latency_us"]["count"], counts["delivered"], "{line}");
    }
}

#[tokio::test]
async fn websocket_carries_the_same() {
    let cluster = shared();
    let brokers = [cluster.ws(0), cluster.ws(1)].join(",");
    for (line, count) in [
        ("pairs -n 3 -q 2", 150),
        ("fan-out -n 5 -q 0 --payload 70000 -V 3.1.1", 250),
    ] {
        let report = well(
            bench(&format!(
                "{line} --messages 50 --patience 20 --websocket -b {brokers} --json"
            ))
            .await,
        );
        assert_eq!(report["counts"]["delivered"], count, "{line}");
        assert_eq!(report["transport"], "WebSocket");
    }
    let told = failed(&bench(&format!("pairs --websocket=/nowhere -b {brokers}")).await);
    assert!(told.contains("no WebSocket there: HTTP/1.1 404"), "{told}");
}

#[tokio::test]
async fn a_schedule_sends_what_was_asked_for_and_the_report_has_its_shape() {
    let cluster = shared();
    let pid = cluster.pid(1).expect("runs");
    let broker = cluster.mqtt(0);
    let line = format!("pairs -n 2 -q 1 --rate 200 --warmup 0 --seconds 1 -b {broker} --pid {pid} --json");
    let report = well(bench(&line).await);
    let sent = report["counts"]["sent"].as_u64().expect("a number");
    // A second at this rate; a machine that stands still at its end sends less. A closed loop would send thousands.
    assert!((100..=210).contains(&sent), "{sent}");
    for (pointer, expected) in [
        ("/scenario", Value::from("pairs")),
        ("/version", Value::from("5")),
        ("/rate", Value::from(200.0)),
        ("/window", Value::Null),
        ("/processes/0/pid", Value::from(pid)),
        ("/as_sent", Value::from(true)),
    ] {
        assert_eq!(report.pointer(pointer), Some(&expected), "{pointer}");
    }
    for pointer in [
        "/delivered_per_second",
        "/latency_us/p50",
        "/latency_us/p99",
        "/acknowledge_us/p99",
        "/send_delay_us/max",
        "/bench/cpu_seconds",
        "/processes/0/rss_bytes",
        "/cpu_us_per_delivered",
    ] {
        assert!(report.pointer(pointer).is_some_and(Value::is_number), "{pointer}");
    }
}

#[tokio::test]
async fn idle_connections_are_counted_and_weighed() {
    let cluster = shared();
    let pid = cluster.pid(2).expect("runs");
    for kind in ["--raw", "", "--persistent", "--persistent -V 3.1.1"] {
        let broker = cluster.mqtt(1);
        let line = format!("idle --steps 20,60 --settle 0.2 {kind} -b {broker} --pid {pid} --json");
        let report = well(bench(&line).await);
        assert_eq!(report["steps"][1]["connections"], 60, "{kind}");
        assert!(report["steps"][1]["connects_per_second"].is_number(), "{kind}");
        assert!(report["rss_bytes_per_connection"].is_number(), "{kind}");
    }
}

#[tokio::test]
async fn who_is_not_there_is_named() {
    let free = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = free.local_addr().expect("bound").to_string();
    drop(free);
    let told = failed(&bench(&format!("pairs -b {address}")).await);
    assert!(told.contains(&address) && told.contains("refused"), "{told}");
    let told = failed(&bench(&format!("pairs -b {} --pid 4000000000", shared().mqtt(0))).await);
    assert!(told.contains("4000000000"), "{told}");
}

// ---- against a broker that does not keep its promises ----

#[tokio::test]
async fn a_broker_that_keeps_its_promises_passes() {
    for qos in 0..=1 {
        let report = well(bench_faulty(qos, |publish, _| vec![publish]).await);
        assert_eq!(report["counts"]["delivered"], 20);
    }
}

#[tokio::test]
async fn a_lost_message_is_told() {
    told("lost", 2, |publish, at| match at {
        3 | 7 => Vec::new(),
        _ => vec![publish],
    })
    .await;
}

#[tokio::test]
async fn a_repeated_message_is_told() {
    told("duplicates", 1, |publish, at| match at {
        5 => vec![publish.clone(), publish],
        _ => vec![publish],
    })
    .await;
}

#[tokio::test]
async fn messages_out_of_order_are_told() {
    let mut held = None;
    told("out_of_order", 1, move |publish, at| match at {
        5 => {
            held = Some(publish);
            Vec::new()
        }
        6 => vec![publish, held.take().expect("held before")],
        _ => vec![publish],
    })
    .await;
}

#[tokio::test]
async fn a_publisher_does_not_wait_for_what_was_lost_at_qos_0() {
    let output = bench_faulty(0, |publish, at| if at < 8 { Vec::new() } else { vec![publish] }).await;
    only("lost", 8, &output);
}

/// The one fault of this kind makes the run fail, and its report names nothing else.
async fn told(kind: &str, count: u64, fault: impl FnMut(Vec<u8>, usize) -> Vec<Vec<u8>> + Send + 'static) {
    only(kind, count, &bench_faulty(1, fault).await);
}

fn only(kind: &str, count: u64, output: &Output) {
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(report["as_sent"], false);
    for other in [
        "lost",
        "duplicates",
        "out_of_order",
        "refused",
        "unanswered",
        "foreign",
        "disconnected",
    ] {
        let expected = if other == kind { count } else { 0 };
        assert_eq!(report["counts"][other], expected, "{other}: {report}");
    }
}

/// One pair, 20 messages in a window of 4, over a broker that hands on what `fault` makes of each.
async fn bench_faulty(qos: u8, fault: impl FnMut(Vec<u8>, usize) -> Vec<Vec<u8>> + Send + 'static) -> Output {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let broker = tokio::spawn(faulty_broker(listener, fault));
    let line = format!("pairs -n 1 -q {qos} -V 3.1.1 -w 4 --messages 20 --patience 1.5 -b {address} --json");
    let output = bench(&line).await;
    broker.abort();
    output
}

/// The first connection subscribes, the second publishes.
async fn faulty_broker(listener: TcpListener, mut fault: impl FnMut(Vec<u8>, usize) -> Vec<Vec<u8>>) {
    let (to_subscriber, mut messages) = unbounded_channel::<Vec<u8>>();
    let (mut subscriber, _) = listener.accept().await.expect("the subscriber");
    tokio::spawn(async move {
        let mut received = BytesMut::new();
        loop {
            tokio::select! {
                message = messages.recv() => match message {
                    Some(message) => subscriber.write_all(&message).await.expect("written"),
                    None => return,
                },
                read = subscriber.read_buf(&mut received) => {
                    if read.unwrap_or(0) == 0 {
                        return;
                    }
                    while let Some((first, body)) = take_frame(&mut received).expect("frames") {
                        let answer: &[u8] = match first >> 4 {
                            1 => &[0x20, 2, 0, 0],
                            8 => &[0x90, 3, body[0], body[1], 1],
                            _ => continue,
                        };
                        subscriber.write_all(answer).await.expect("written");
                    }
                }
            }
        }
    });
    let (publisher, _) = listener.accept().await.expect("the publisher");
    serve_publisher(publisher, &to_subscriber, &mut fault).await;
}

async fn serve_publisher(
    mut publisher: TcpStream,
    to_subscriber: &UnboundedSender<Vec<u8>>,
    fault: &mut impl FnMut(Vec<u8>, usize) -> Vec<Vec<u8>>,
) {
    let mut received = BytesMut::new();
    let mut published = 0;
    while publisher.read_buf(&mut received).await.unwrap_or(0) > 0 {
        while let Some((first, body)) = take_frame(&mut received).expect("frames") {
            match first >> 4 {
                1 => publisher.write_all(&[0x20, 2, 0, 0]).await.expect("written"),
                3 => {
                    for message in fault(frame(first, &body), published) {
                        let _ = to_subscriber.send(message);
                    }
                    published += 1;
                    let is_qos_1 = first & 0b10 != 0;
                    let topic_bytes = usize::from(u16::from_be_bytes([body[0], body[1]]));
                    if let (true, [high, low, ..]) = (is_qos_1, &body[2 + topic_bytes..]) {
                        publisher.write_all(&[0x40, 2, *high, *low]).await.expect("written");
                    }
                }
                _ => {}
            }
        }
    }
}

async fn bench(options: &str) -> Output {
    let mut command = Command::new(LONTRA);
    command.arg("bench").args(options.split_whitespace());
    command.stdin(Stdio::null()).kill_on_drop(true);
    timeout(3 * SOON, command.output())
        .await
        .expect("it ends")
        .expect("it ran")
}

fn well(output: Output) -> Value {
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

fn failed(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}
