//! The same answers wherever a client comes in: over TLS, WebSocket, both, and a Unix socket, at one node and at three behind round
//! robin; and each frame of the table of frames at one node and at three.

use crate::support::cluster::{Cluster, shared, shared_single};
use crate::support::script::{answers, conforms_at};
use crate::support::{tls, websocket};

const FRAMES: &str = include_str!("../../src/protocol/codec/testdata/mqtt-frames.tsv");

/// Where bytes reach each node of a cluster over TLS, WebSocket, WSS and a Unix socket.
async fn places(cluster: &Cluster) -> Vec<(&'static str, Vec<String>)> {
    let [mut over_tls, mut over_ws, mut over_wss, mut over_unix] = [const { Vec::new() }; 4];
    for node in &cluster.nodes {
        let ca = ["-CAfile", node.ca.to_str().expect("text")];
        over_tls.push(tls::relay(&node.mqtts, &ca).await);
        over_ws.push(websocket::relay(&node.ws, usize::MAX).await);
        // Frames that end within packets.
        let below = tls::relay(&node.wss, &ca).await;
        over_wss.push(websocket::relay(&below, 3).await);
        over_unix.push(tls::to_unix(&node.unix).await);
    }
    vec![
        ("TLS", over_tls),
        ("WebSocket", over_ws),
        ("WSS", over_wss),
        ("Unix", over_unix),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn every_transport_answers_as_tcp_does() {
    let script = r##"
        == 345 each packet that a client sends
        a = @
        a > 82 {1234 [] "way/%" 02}
        a < 90 {1234 [] 02}
        b = @
        b > 30 {"way/%" [] 'zero'}
        a < 30 {"way/%" [] 'zero'}
        b > 32 {"way/%" 0001 [] 'one'}
        b < 40 {0001}
        a < 32 {"way/%" $one [] 'one'}
        a > 40 {$one}
        b > 34 {"way/%" 0002 [] 'two'}
        b < 50 {0002}
        b > 62 {0002}
        b < 70 {0002}
        a < 34 {"way/%" $two [] 'two'}
        a > 50 {$two}
        a < 62 {$two}
        a > 70 {$two}
        a > c000
        a < d000
        a > a2 {0003 [] "way/%"}
        a < b0 {0003 [] (00)}
        a > e000
        a !
        == 345 what is no packet
        a = @
        a > e100
        a ! 81
        == 345 what is none of this topic
        a = @
        a > 30 {"#" [] 'x'}
        a ! 90
        == 345 a second CONNECT
        a = @
        a > 10 {@ 02 003c [] "again"}
        a ! 82
        == 5 an alias that is none
        a = @
        a > 30 {"way" [23 0000] 'x'}
        a ! 94
        == 345 a will of who is gone
        a = @
        a > 82 {0001 [] "way/will/%" 00}
        a < 90 {0001 [] 00}
        b = raw
        b > 10 {@ 06 003c [] "way-%" [] "way/will/%" "gone"}
        b < 20 {00 00 [..]}
        b x
        a < 30 {"way/will/%" [] 'gone'}
    "##;
    for cluster in [shared_single(), shared()] {
        conforms_at(script, &places(cluster).await).await;
        cluster.assert_no_panic();
    }
}

/// What the table says of a frame is what its sender hears, whichever node it came to.
#[tokio::test(flavor = "multi_thread")]
async fn every_frame_of_the_table_is_answered_alike_by_one_node_and_by_three() {
    let addresses = |cluster: &Cluster| -> Vec<String> {
        let all = 0..cluster.nodes.len();
        all.map(|index| cluster.mqtt(index).to_owned()).collect()
    };
    let (one, three) = (addresses(shared_single()), addresses(shared()));
    let (mut wrong, mut looked_at) = (Vec::new(), 0);
    for row in FRAMES.lines().filter(|line| line.starts_with('v')) {
        let columns: Vec<&str> = row.split('\t').collect();
        let [id, version, direction, frame, expect, code, ..] = columns[..] else {
            panic!("a row of the table: {row}")
        };
        if direction != "c2s" || expect == "EITHER" {
            continue;
        }
        looked_at += 1;
        let version: u8 = version.parse().expect("a version");
        let frame = hex(frame);
        let (by_one, by_three) = tokio::join!(answers(&one, version, &frame), answers(&three, version, &frame));
        if by_one.is_err() || by_one != by_three {
            wrong.push(format!("{id}: one node {by_one:?}, three {by_three:?}"));
        } else if version == 5 && expect == "REJECT" && frame[0] >> 4 != 1 {
            let told = format!("e0 {}", code.trim_start_matches("0x").to_lowercase());
            let expected = [told.clone(), "end".to_owned()];
            if by_one.as_ref().is_ok_and(|answers| *answers != expected) {
                wrong.push(format!("{id}: {by_one:?}, not {told}"));
            }
        }
    }
    assert!(looked_at > 100, "{looked_at} rows");
    assert!(
        wrong.is_empty(),
        "{} of {looked_at}:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    shared().assert_no_panic();
    shared_single().assert_no_panic();
}

fn hex(text: &str) -> Vec<u8> {
    let digits = text.as_bytes().chunks(2);
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).expect("text"), 16).expect("hexadecimal");
    digits.map(byte).collect()
}
