//! Links in one process over loopback. No sleeps: conditions are waited for, with a deadline.

mod memory_group;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::BufMut;
use futures_util::StreamExt;
use futures_util::future::{BoxFuture, join_all};
use lontra_storage::ids::GroupId;
use lontra_storage::raft_types::{
    Command, Entry, EntryPayload, LeaderId, LogId, Membership, SnapshotMeta, StoredMembership, Vote,
};
use openraft::alias::SnapshotOf;
use openraft::async_runtime::WatchReceiver;
use openraft::entry::RaftEntry;
use openraft::errors::{RPCError, ReplicationClosed, StreamingError};
use openraft::impls::EmptyNode;
use openraft::network::v2::RaftNetworkV2;
use openraft::network::{RPCOption, RaftNetworkFactory as _};
use openraft::raft::{AppendEntriesRequest, StreamAppendError, VoteRequest};
use openraft::{Config, Raft, SnapshotPolicy};
use rcgen::{
    CertificateParams, CertificateRevocationListParams, ExtendedKeyUsagePurpose, Issuer, KeyIdMethod, KeyPair,
    KeyUsagePurpose, RevokedCertParams, SerialNumber, date_time_ymd,
};
use tokio::sync::Notify;

use self::memory_group::{MemoryLog, MemoryMachine};
use super::connect::{describe, dial};
use super::handshake::Hello;
use super::wire::{FrameReader, FrameWriter};
use super::*;
use crate::group::shut_down;

const LONG: Duration = Duration::from_secs(30);
const CLUSTER: &str = "otters";

/// Waits until `condition` holds; the watched state pokes `changed`.
async fn until(what: &str, changed: &Notify, condition: impl Fn() -> bool) {
    let waiting = async {
        loop {
            let poked = changed.notified();
            if condition() {
                return;
            }
            // Some conditions (link states) have no poke of their own.
            let _ = tokio::time::timeout(Duration::from_millis(20), poked).await;
        }
    };
    assert!(
        tokio::time::timeout(LONG, waiting).await.is_ok(),
        "waited in vain: {what}"
    );
}

/// Certificates of one cluster.
struct Certificates {
    directory: tempfile::TempDir,
    authority: tls::Authority,
}

impl Certificates {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let authority = tls::create_authority(directory.path()).unwrap();
        Certificates { directory, authority }
    }

    fn issue(&self, cluster: &str, node: NodeId) -> TlsFiles {
        tls::issue_node(self.directory.path(), &self.authority, cluster, node).unwrap()
    }
}

/// What a node's handler saw. Requests are answered with their own payload.
#[derive(Default)]
struct Seen {
    requests: Mutex<Vec<(NodeId, u8, u64)>>,
    forwarded: Mutex<Vec<(Peer, u64)>>,
    /// Instead of done.
    held: Mutex<Option<Vec<ForwardDone>>>,
    sinks: Mutex<Vec<(NodeId, u8, Bytes, FrameSink)>>,
    links: Mutex<Vec<(NodeId, bool)>>,
    changed: Notify,
}

/// A request of this kind is never answered.
const KIND_DROPPED: u8 = 200;
/// A request of this kind stays with the handler.
const KIND_KEPT: u8 = 201;

struct Recorder {
    seen: Arc<Seen>,
    kept: Mutex<Vec<ReplySender>>,
}

impl PeerHandler for Recorder {
    fn request(&self, from: NodeId, kind: u8, payload: Bytes, reply: ReplySender) {
        self.seen.requests.lock().unwrap().push((from, kind, number(&payload)));
        self.seen.changed.notify_waiters();
        match kind {
            KIND_DROPPED => drop(reply),
            KIND_KEPT => self.kept.lock().unwrap().push(reply),
            // Out of order, now and then.
            _ if number(&payload).is_multiple_of(3) => {
                tokio::spawn(async move { reply.send(payload) });
            }
            _ => reply.send(payload),
        }
    }

    fn forwarded(&self, from: Peer, frame: Bytes, done: ForwardDone) {
        self.seen.forwarded.lock().unwrap().push((from, number(&frame)));
        match self.seen.held.lock().unwrap().as_mut() {
            Some(held) => held.push(done),
            None => done.done(),
        }
        self.seen.changed.notify_waiters();
    }

    fn stream(&self, from: NodeId, kind: u8, hello: Bytes, sink: FrameSink) {
        self.seen.sinks.lock().unwrap().push((from, kind, hello, sink));
        self.seen.changed.notify_waiters();
    }

    fn link_changed(&self, peer: NodeId, up: bool) {
        self.seen.links.lock().unwrap().push((peer, up));
        self.seen.changed.notify_waiters();
    }
}

fn payload(number: u64) -> Bytes {
    Bytes::copy_from_slice(&number.to_be_bytes())
}

fn number(payload: &Bytes) -> u64 {
    payload.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes))
}

/// One node of a test.
struct Node {
    links: Arc<Links>,
    seen: Arc<Seen>,
    rafts: Arc<RaftRegistry<MemoryMachine>>,
    _spool: tempfile::TempDir,
}

fn config(certificates: &Certificates, cluster: &str, node: NodeId, start: u64) -> LinkConfig {
    LinkConfig {
        node,
        cluster: cluster.to_owned(),
        start,
        listen: "127.0.0.1:0".parse().unwrap(),
        peers: BTreeMap::new(),
        tls: certificates.issue(cluster, node),
        silence_max: LinkConfig::SILENCE_MAX,
    }
}

async fn start(config: LinkConfig) -> Node {
    let seen = Arc::new(Seen::default());
    let spool = tempfile::tempdir().unwrap();
    let rafts = Arc::new(RaftRegistry::new(spool.path().join("incoming"), Arc::new(Checked)));
    let metrics = LinkMetrics::new(&prometheus::Registry::new()).unwrap();
    let handler = Arc::new(Recorder {
        seen: seen.clone(),
        kept: Mutex::default(),
    });
    let links = Links::start(config, handler, rafts.clone(), metrics).await.unwrap();
    Node {
        links,
        seen,
        rafts,
        _spool: spool,
    }
}

/// Refuses what holds a [`DAMAGED`] chunk.
struct Checked;

impl StageSnapshot for Checked {
    fn stage(
        &self,
        _: GroupId,
        _: SnapshotMeta,
        arrived: SnapshotData,
    ) -> BoxFuture<'_, std::io::Result<SnapshotData>> {
        Box::pin(async move {
            let mut arrived = arrived.into_chunks();
            let mut chunks = Vec::new();
            while let Some(chunk) = arrived.recv().await {
                chunks.push(chunk.map(|chunk| (chunk != DAMAGED).then_some(chunk))?);
            }
            let (sender, receiver) = tokio::sync::mpsc::channel(chunks.len() + 1);
            for chunk in chunks {
                let chunk = chunk.ok_or(std::io::ErrorKind::InvalidData)?;
                sender.try_send(Ok(chunk)).unwrap();
            }
            Ok(SnapshotData::from_chunks(receiver))
        })
    }
}

const DAMAGED: &[u8] = b"damaged";

fn introduce(nodes: &[&Node]) {
    for one in nodes {
        for other in nodes {
            let node = other.links.shared.config.node;
            one.links.add_peer(node, other.links.local_addr().to_string());
        }
    }
}

impl Node {
    async fn up(&self, peer: NodeId) {
        until("link up", &self.seen.changed, || self.links.is_up(peer)).await;
    }

    fn break_link(&self, peer: NodeId, lane: Lane) {
        if let Some(connection) = self.links.shared.peer(peer).and_then(|peer| peer.connection(lane)) {
            connection.close(connect::CLOSE_VIOLATION, b"test");
        }
    }
}

/// Nodes 1 … count, linked.
async fn cluster(certificates: &Certificates, count: u64) -> Vec<Node> {
    let mut nodes = Vec::new();
    for node in 1..=count {
        nodes.push(start(config(certificates, CLUSTER, node, node * 100)).await);
    }
    introduce(&nodes.iter().collect::<Vec<_>>());
    for (one, other) in (1..=count).flat_map(|one| (1..=count).map(move |other| (one, other))) {
        if one != other {
            nodes[one as usize - 1].up(other).await;
        }
    }
    nodes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_go_both_ways_in_order() {
    let certificates = Certificates::new();
    let nodes = cluster(&certificates, 3).await;
    for (from, to) in [(1, 2), (2, 1), (3, 1)] {
        for (lane, kind) in [(Lane::Control, 1), (Lane::Data, 2)] {
            let links = &nodes[from as usize - 1].links;
            let answers: Vec<_> = (0..1000)
                .map(|n| links.request_queued(to, lane, kind, payload(n), LONG))
                .collect();
            for (n, answer) in join_all(answers).await.into_iter().enumerate() {
                assert_eq!(answer.map(|answer| number(&answer)), Ok(n as u64));
            }
            let seen = nodes[to as usize - 1].seen.requests.lock().unwrap();
            let order: Vec<u64> = seen
                .iter()
                .filter(|(node, k, _)| (*node, *k) == (from, kind))
                .map(|(_, _, n)| *n)
                .collect();
            assert_eq!(order, (0..1000).collect::<Vec<_>>(), "from {from} to {to} on {lane:?}");
        }
    }
    let large = Bytes::from(vec![7; 5 << 20]);
    let answer = nodes[0].links.request(2, Lane::Data, 3, large.clone(), LONG).await;
    assert_eq!(answer, Ok(large));
    assert_eq!(nodes[0].links.peer_start(2), Some(200));
    until("silence is sampled", &nodes[0].seen.changed, || {
        nodes[0].links.silent_for(2).is_some()
    })
    .await;
    assert!(nodes[0].links.silent_for(2).unwrap() < LinkConfig::SILENCE_MAX);
    assert_eq!(nodes[0].links.silent_for(9), None);
    assert_eq!(
        *nodes[2]
            .seen
            .links
            .lock()
            .unwrap()
            .iter()
            .collect::<BTreeSet<_>>()
            .first()
            .unwrap(),
        &(1, true)
    );
    for node in &nodes {
        node.links.close().await;
    }
    assert!(
        nodes[0].seen.links.lock().unwrap().ends_with(&[(2, false), (3, false)])
            || nodes[0].seen.links.lock().unwrap().ends_with(&[(3, false), (2, false)])
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_tell_not_sent_from_unknown() {
    let certificates = Certificates::new();
    let nodes = cluster(&certificates, 2).await;
    let links = &nodes[0].links;
    let request = |kind, wait| links.request(2, Lane::Data, kind, payload(1), wait);
    assert_eq!(
        request(KIND_DROPPED, LONG).await,
        Err(RequestError::Dropped { peer: 2 })
    );
    let wait = Duration::from_millis(50);
    assert_eq!(
        request(KIND_KEPT, wait).await,
        Err(RequestError::Unanswered { peer: 2, waited: wait })
    );

    let kept = links.request_queued(2, Lane::Data, KIND_KEPT, payload(77), LONG);
    until("the request arrived", &nodes[1].seen.changed, || {
        nodes[1]
            .seen
            .requests
            .lock()
            .unwrap()
            .last()
            .is_some_and(|(_, _, n)| *n == 77)
    })
    .await;
    nodes[1].break_link(1, Lane::Data);
    assert_eq!(kept.await, Err(RequestError::LinkLost { peer: 2 }));

    nodes[1].links.close().await;
    until("link down", &nodes[0].seen.changed, || !links.is_up(2)).await;
    let error = request(1, LONG).await.unwrap_err();
    assert!(!error.is_outcome_unknown(), "{error}");
    assert_eq!(
        links.request(9, Lane::Data, 1, Bytes::new(), LONG).await,
        Err(RequestError::UnknownPeer { peer: 9 })
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forwarded_frames_survive_broken_links_once_and_in_order() {
    const FRAMES: u64 = 10_000;
    let certificates = Certificates::new();
    let nodes = cluster(&certificates, 2).await;
    // Both directions at once: node 1 dials, node 2 accepts.
    let acked = [Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0))];
    for n in 0..FRAMES {
        for (node, acked) in nodes.iter().zip(&acked) {
            let to = 3 - node.links.shared.config.node;
            let acked = acked.clone();
            let mut frame = payload(n).to_vec();
            frame.put_bytes(1, (n % 700) as usize);
            node.links
                .forward(to, frame.into(), move |ok| {
                    assert!(ok);
                    acked.fetch_add(1, Ordering::SeqCst);
                })
                .unwrap();
        }
        if n % 1000 == 999 {
            // Frames are on their way, and the break hits them there.
            let far = n.saturating_sub(500);
            until("half of it arrived", &nodes[1].seen.changed, || {
                nodes[1]
                    .seen
                    .forwarded
                    .lock()
                    .unwrap()
                    .last()
                    .is_some_and(|(_, seen)| *seen >= far)
            })
            .await;
            nodes[(n / 1000 % 2) as usize].break_link(1 + (n / 1000 + 1) % 2, Lane::Data);
        }
    }
    for (node, acked) in nodes.iter().zip(&acked) {
        until("all acknowledged", &node.seen.changed, || {
            acked.load(Ordering::SeqCst) == FRAMES as usize
        })
        .await;
    }
    for node in &nodes {
        let peer = 3 - node.links.shared.config.node;
        let from = Peer {
            node: peer,
            start: peer * 100,
        };
        let seen = node.seen.forwarded.lock().unwrap();
        assert_eq!(*seen, (0..FRAMES).map(|n| (from, n)).collect::<Vec<_>>());
    }
}

/// Frames 0 … count forwarded from 1 to 2; how each completed.
fn forward_numbers(node: &Node, count: u64) -> Arc<Mutex<Vec<(u64, bool)>>> {
    let completed = Arc::new(Mutex::new(Vec::new()));
    for n in 0..count {
        let (completed, seen) = (completed.clone(), node.seen.clone());
        let on_acked = move |ok| {
            completed.lock().unwrap().push((n, ok));
            seen.changed.notify_waiters();
        };
        node.links.forward(2, payload(n), on_acked).unwrap();
    }
    completed
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forgotten_peer_completes_frames_with_false() {
    let certificates = Certificates::new();
    let nodes = cluster(&certificates, 2).await;
    *nodes[1].seen.held.lock().unwrap() = Some(Vec::new());
    let completed = forward_numbers(&nodes[0], 10);
    until("all arrived", &nodes[1].seen.changed, || {
        nodes[1].seen.forwarded.lock().unwrap().len() == 10
    })
    .await;
    // Done out of order: the acknowledgement is cumulative.
    let mut held = nodes[1].seen.held.lock().unwrap().replace(Vec::new()).unwrap();
    held.swap(0, 2);
    held.drain(..3).for_each(ForwardDone::done);
    until("three acknowledged", &nodes[0].seen.changed, || {
        completed.lock().unwrap().len() == 3
    })
    .await;
    nodes[0].links.forget_peer(2);
    let expected: Vec<_> = (0..10).map(|n| (n, n < 3)).collect();
    assert_eq!(*completed.lock().unwrap(), expected);
    // Late, and of no consequence.
    held.drain(..).for_each(ForwardDone::done);
    *nodes[1].seen.held.lock().unwrap() = None;
    let again = forward_numbers(&nodes[0], 5);
    until("the link goes on", &nodes[0].seen.changed, || {
        again.lock().unwrap().len() == 5
    })
    .await;
    assert!(again.lock().unwrap().iter().all(|(_, ok)| *ok));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_peer_completes_old_frames_with_false() {
    let certificates = Certificates::new();
    let nodes = cluster(&certificates, 2).await;
    *nodes[1].seen.held.lock().unwrap() = Some(Vec::new());
    let old = forward_numbers(&nodes[0], 10);
    until("all arrived", &nodes[1].seen.changed, || {
        nodes[1].seen.forwarded.lock().unwrap().len() == 10
    })
    .await;
    let address = nodes[1].links.local_addr();
    nodes[1].links.close().await;
    until("link down", &nodes[0].seen.changed, || !nodes[0].links.is_up(2)).await;
    assert!(old.lock().unwrap().is_empty(), "a broken link alone completes nothing");

    let mut restarted = config(&certificates, CLUSTER, 2, 201);
    restarted.peers.insert(1, nodes[0].links.local_addr().to_string());
    let restarted = start(restarted).await;
    assert_ne!(restarted.links.local_addr(), address);
    nodes[0].links.add_peer(2, restarted.links.local_addr().to_string());
    nodes[0].up(2).await;
    assert_eq!(*old.lock().unwrap(), (0..10).map(|n| (n, false)).collect::<Vec<_>>());
    assert_eq!(nodes[0].links.peer_start(2), Some(201));

    let new = forward_numbers(&nodes[0], 10);
    until("new ones are acknowledged", &nodes[0].seen.changed, || {
        new.lock().unwrap().len() == 10
    })
    .await;
    assert_eq!(*new.lock().unwrap(), (0..10).map(|n| (n, true)).collect::<Vec<_>>());
    let from = Peer { node: 1, start: 100 };
    assert_eq!(
        *restarted.seen.forwarded.lock().unwrap(),
        (0..10).map(|n| (from, n)).collect::<Vec<_>>()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_pushes_until_either_end_drops_it() {
    let certificates = Certificates::new();
    let nodes = cluster(&certificates, 2).await;
    let take_sink = async || {
        let sinks = &nodes[0].seen.sinks;
        until("the sink arrived", &nodes[0].seen.changed, || {
            !sinks.lock().unwrap().is_empty()
        })
        .await;
        sinks.lock().unwrap().remove(0)
    };
    let mut source = nodes[1]
        .links
        .open_stream(1, 5, Bytes::from_static(b"from 17"))
        .await
        .unwrap();
    let (from, kind, hello, sink) = take_sink().await;
    assert_eq!((from, kind, &hello[..]), (2, 5, &b"from 17"[..]));

    // Nobody reads: windows and queue fill, then the sink refuses.
    let frame = |n: u64| {
        let mut frame = payload(n).to_vec();
        frame.put_bytes(0, 100_000);
        Bytes::from(frame)
    };
    let mut sent = 0;
    let filling = async {
        loop {
            match sink.try_send(frame(sent)) {
                Ok(()) => sent += 1,
                Err(SinkError::Full) if sent > 80 => break,
                Err(error) => assert_eq!(error, SinkError::Full),
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LONG, filling).await.expect("the sink is bounded");
    let reading = async {
        let mut seen = Vec::new();
        while let Some(frame) = source.next().await.unwrap() {
            seen.push(number(&frame));
        }
        seen
    };
    let sending = async {
        sink.send(frame(sent)).await.unwrap();
        drop(sink);
    };
    let (seen, ()) = tokio::time::timeout(LONG, async { tokio::join!(reading, sending) })
        .await
        .unwrap();
    assert_eq!(seen, (0..=sent).collect::<Vec<_>>());
    assert!(source.next().await.unwrap().is_none(), "the end stays the end");

    let source = nodes[1].links.open_stream(1, 5, Bytes::new()).await.unwrap();
    let (_, _, _, sink) = take_sink().await;
    drop(source);
    tokio::time::timeout(LONG, sink.closed())
        .await
        .expect("the pusher learns that nobody listens");
    assert_eq!(sink.send(payload(1)).await, Err(SinkError::Closed));

    let mut source = nodes[1].links.open_stream(1, 5, Bytes::new()).await.unwrap();
    let (_, _, _, sink) = take_sink().await;
    nodes[0].break_link(2, Lane::Data);
    assert!(source.next().await.is_err(), "a broken link is no end");
    tokio::time::timeout(LONG, sink.closed())
        .await
        .expect("the pusher learns that the link is gone");
}

/// What node 1 hears when it dials `other` as node 2.
async fn dial_error(one: &Node, other: &Node) -> String {
    let shared = &one.links.shared;
    let address = other.links.local_addr().to_string();
    let (peer, _offered) = PeerLink::new(2, address, shared.handler.clone(), shared.metrics.peer(2));
    let dialled = tokio::time::timeout(LONG, dial(shared, &peer, Lane::Control))
        .await
        .unwrap();
    describe(&dialled.map(|_| ()).unwrap_err())
}

#[tokio::test]
async fn strangers_are_refused() {
    let certificates = Certificates::new();
    let one = start(config(&certificates, CLUSTER, 1, 100)).await;
    let check = |error: String, expected: &str| assert!(error.contains(expected), "{error:?}: no {expected:?}");

    // Another node, another cluster: TLS names differ. Same TLS name, another cluster: the handshake tells.
    let three = start(config(&certificates, CLUSTER, 3, 300)).await;
    check(dial_error(&one, &three).await, "not valid for name");
    let beaver = start(config(&certificates, "beavers", 2, 200)).await;
    check(dial_error(&one, &beaver).await, "not valid for name");
    let shouting = start(config(&certificates, "OTTERS", 2, 200)).await;
    check(
        dial_error(&one, &shouting).await,
        r#"peer belongs to cluster "otters", this node to "OTTERS""#,
    );

    // Another authority.
    let foreign = start(config(&Certificates::new(), CLUSTER, 2, 200)).await;
    check(
        dial_error(&one, &foreign).await,
        "check node id, cluster name, ca.pem and clock",
    );

    // Known to the dialler, unknown to the acceptor.
    let two = start(config(&certificates, CLUSTER, 2, 200)).await;
    check(dial_error(&one, &two).await, "node 1 is not among the peers of node 2");

    // A certificate of node 3, and claims to be node 1.
    two.links.add_peer(1, one.links.local_addr().to_string());
    let shared = &three.links.shared;
    let dialled = shared.endpoint.connect_with(
        shared.certified().client.clone(),
        two.links.local_addr(),
        &tls::node_name(2, CLUSTER),
    );
    let connection = dialled.unwrap().await.unwrap();
    let (send, receive) = connection.open_bi().await.unwrap();
    let metrics = three.links.shared.metrics.nobody();
    let mut writer = FrameWriter::new(send, metrics::Traffic::Request, metrics.clone());
    let mut reader = FrameReader::new(receive, metrics::Traffic::Request, metrics);
    let hello = Hello {
        cluster: CLUSTER.to_owned(),
        node: 1,
        start: 1,
        lane: Lane::Control,
    };
    writer.write_frame(&frame::Frame::Hello(hello.encode())).await.unwrap();
    let Some(frame::Frame::Refused(reason)) = reader.next().await.unwrap() else {
        panic!("not refused")
    };
    check(
        String::from_utf8(reason.to_vec()).unwrap(),
        "its certificate is for another name",
    );
    assert!(!two.links.is_up(1));
}

impl Certificates {
    /// Node 2's, with this serial number, over those that it has.
    fn issue_numbered(&self, serial: u64) {
        let name = tls::node_name(2, CLUSTER);
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name]).unwrap();
        params.serial_number = Some(SerialNumber::from(serial));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        tls::set_dates(&mut params, Duration::from_secs(3600));
        let certificate = params.signed_by(&key, &self.issuer()).unwrap();
        let file = |name: &str| self.directory.path().join(name);
        tls::write_file(&file("node-2-key.pem"), &key.serialize_pem(), 0o600).unwrap();
        tls::write_file(&file("node-2.pem"), &certificate.pem(), 0o644).unwrap();
    }

    fn revoke(&self, serials: &[u64]) -> std::path::PathBuf {
        let revoked = serials.iter().map(|serial| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: date_time_ymd(2024, 1, 1),
            reason_code: None,
            invalidity_date: None,
        });
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2024, 1, 1),
            next_update: date_time_ymd(2100, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let path = self.directory.path().join("crl.pem");
        let pem = list.signed_by(&self.issuer()).unwrap().pem().unwrap();
        tls::write_file(&path, &pem, 0o644).unwrap();
        path
    }

    fn issuer(&self) -> Issuer<'static, KeyPair> {
        let key = std::fs::read_to_string(&self.authority.key).unwrap();
        Issuer::new(tls::authority_params(), KeyPair::from_pem(&key).unwrap())
    }
}

impl Node {
    fn reload(&self) {
        self.links.use_tls(self.links.read_tls().unwrap());
    }

    async fn down(&self, peer: NodeId) {
        until("link down", &self.seen.changed, || !self.links.is_up(peer)).await;
    }
}

/// Without a restart: links that stand stay, new ones are made by the new files.
#[tokio::test]
async fn certificates_are_renewed_and_taken_back_while_links_stand() {
    let certificates = Certificates::new();
    let mut nodes = Vec::new();
    for node in 1..=2 {
        let mut config = config(&certificates, CLUSTER, node, node * 100);
        config.tls.crl = Some(certificates.revoke(&[]));
        nodes.push(start(config).await);
    }
    introduce(&nodes.iter().collect::<Vec<_>>());
    let (one, two) = (&nodes[0], &nodes[1]);
    one.up(2).await;
    two.up(1).await;

    certificates.issue_numbered(7);
    two.reload();
    one.reload();
    assert!(one.links.is_up(2) && two.links.is_up(1), "what stands stays");
    for lane in Lane::ALL {
        one.break_link(2, lane);
    }
    one.down(2).await;
    one.up(2).await;

    // Node 1 hears of it, node 2 does not.
    certificates.revoke(&[7]);
    one.reload();
    one.down(2).await;
    let error = dial_error(one, two).await;
    assert!(
        error.contains("check node id, cluster name, ca.pem and clock"),
        "{error}"
    );
    assert!(!one.links.is_up(2));
    let refused = two.links.read_tls().map(drop).unwrap_err();
    assert!(describe(&refused).contains("is revoked by"), "{refused:?}");

    certificates.issue_numbered(8);
    two.reload();
    one.up(2).await;
}

/// The other way round: who dials is held against the list, too.
#[tokio::test]
async fn a_dialler_whose_certificate_was_taken_back_is_refused() {
    let certificates = Certificates::new();
    let mut three = config(&certificates, CLUSTER, 3, 300);
    let two = config(&certificates, CLUSTER, 2, 200);
    certificates.issue_numbered(7);
    three.tls.crl = Some(certificates.revoke(&[7]));
    let (two, three) = (start(two).await, start(three).await);
    introduce(&[&two, &three]);
    let shared = &two.links.shared;
    let address = three.links.local_addr().to_string();
    let (peer, _offered) = PeerLink::new(3, address, shared.handler.clone(), shared.metrics.peer(3));
    let dialled = dial(shared, &peer, Lane::Control);
    let dialled = tokio::time::timeout(LONG, dialled).await.unwrap();
    let error = describe(&dialled.map(|_| ()).unwrap_err());
    assert!(
        error.contains("check node id, cluster name, ca.pem and clock"),
        "{error}"
    );
    assert!(!three.links.is_up(2));
}

/// A node on a runtime of its own, which can stop turning: a process that hangs, then dies without a farewell.
struct Hanging {
    address: SocketAddr,
    hang: Option<tokio::sync::oneshot::Sender<()>>,
    die: Option<std::sync::mpsc::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Hanging {
    fn start(config: LinkConfig) -> Self {
        let (started, address) = std::sync::mpsc::channel();
        let (hang, hung) = tokio::sync::oneshot::channel();
        let (die, death) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            let node = runtime.block_on(async {
                let node = start(config).await;
                started.send(node.links.local_addr()).unwrap();
                let _ = hung.await;
                node
            });
            let _ = death.recv();
            drop(runtime);
            drop(node);
        });
        let address = address.recv().unwrap();
        Hanging {
            address,
            hang: Some(hang),
            die: Some(die),
            thread: Some(thread),
        }
    }

    fn hang(&mut self) {
        self.hang.take().unwrap().send(()).unwrap();
    }

    fn die(&mut self) {
        self.die.take();
        self.thread.take().unwrap().join().unwrap();
    }
}

#[tokio::test]
async fn a_silent_peer_is_dropped() {
    let certificates = Certificates::new();
    let mut impatient = config(&certificates, CLUSTER, 1, 100);
    impatient.silence_max = Duration::from_millis(300);
    let one = start(impatient).await;
    let mut two = config(&certificates, CLUSTER, 2, 200);
    two.peers.insert(1, one.links.local_addr().to_string());
    let mut two = Hanging::start(two);
    one.links.add_peer(2, two.address.to_string());
    one.up(2).await;
    two.hang();
    until("the silence is noticed", &one.seen.changed, || !one.links.is_up(2)).await;
    until("the silence grows", &one.seen.changed, || {
        one.links
            .silent_for(2)
            .is_some_and(|silent| silent >= Duration::from_millis(300))
    })
    .await;
    two.die();
}

#[tokio::test]
async fn a_process_that_died_is_known_by_its_stateless_reset() {
    let certificates = Certificates::new();
    let mut patient = config(&certificates, CLUSTER, 1, 100);
    patient.silence_max = Duration::from_secs(60);
    let one = start(patient).await;
    let mut two = config(&certificates, CLUSTER, 2, 200);
    // The shorter of the two would count.
    two.silence_max = Duration::from_secs(60);
    two.peers.insert(1, one.links.local_addr().to_string());
    let again = two.clone();
    let mut two = Hanging::start(two);
    one.links.add_peer(2, two.address.to_string());
    one.up(2).await;
    two.hang();
    two.die();
    let mut again = LinkConfig {
        start: 201,
        listen: two.address,
        ..again
    };
    again.peers.insert(1, one.links.local_addr().to_string());
    let _again = start(again).await;
    // Long before a minute of silence.
    until("the new process is linked", &one.seen.changed, || {
        one.links.peer_start(2) == Some(201) && one.links.is_up(2)
    })
    .await;
}

const GROUP: GroupId = GroupId(4);

async fn start_group(node: &Node, log: MemoryLog, machine: MemoryMachine) -> Raft<TypeConfig, MemoryMachine> {
    let config = Config {
        heartbeat_interval: 100,
        election_timeout_min: 300,
        election_timeout_max: 500,
        enable_pre_vote: Some(true),
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: 0,
        install_snapshot_timeout: 60_000,
        backoff: "50ms 100ms 200ms ..2s".to_owned(),
        ..Config::default()
    };
    let network = node.rafts.network(GROUP, Duration::from_secs(1));
    let id = node.links.shared.config.node;
    let raft = Raft::new(id, Arc::new(config.validate().unwrap()), network, log, machine)
        .await
        .unwrap();
    node.rafts.insert(GROUP, raft.clone());
    raft
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_elects_replicates_and_installs_a_snapshot_over_the_links() {
    const ENTRIES: u64 = 1000;
    let certificates = Certificates::new();
    let nodes = cluster(&certificates, 3).await;
    let machines: Vec<MemoryMachine> = (0..3).map(|_| MemoryMachine::default()).collect();
    let first = start_group(&nodes[0], MemoryLog::default(), machines[0].clone()).await;
    let _second = start_group(&nodes[1], MemoryLog::default(), machines[1].clone()).await;
    // Node 3 does not run the group yet: unreachable, and no quorum without 1 and 2.
    first.initialize(BTreeSet::from([1, 2, 3])).await.unwrap();
    let leader = first
        .wait(Some(LONG))
        .metrics(|metrics| metrics.current_leader.is_some(), "elected")
        .await
        .unwrap();
    let leader = leader.current_leader.unwrap();
    let leading = nodes[leader as usize - 1].rafts.get(GROUP).unwrap();
    leading
        .wait(Some(LONG))
        .metrics(|metrics| metrics.last_quorum_acked.is_some(), "leads")
        .await
        .unwrap();

    let write = |n: u64| {
        let leading = leading.clone();
        let mut command = payload(n).to_vec();
        command.put_bytes(n as u8, 6000);
        async move {
            leading
                .client_write(Command(command.into()))
                .await
                .unwrap()
                .log_id
                .index
        }
    };
    let written = tokio::time::timeout(LONG, join_all((0..ENTRIES).map(write)))
        .await
        .unwrap();
    let index = written.into_iter().max().unwrap();
    leading
        .wait(Some(LONG))
        .applied_index_at_least(Some(index), "applied")
        .await
        .unwrap();
    leading.trigger().snapshot().await.unwrap();
    leading
        .wait(Some(LONG))
        .metrics(|metrics| metrics.snapshot.is_some(), "built")
        .await
        .unwrap();
    leading
        .wait(Some(LONG))
        .metrics(|metrics| metrics.purged.is_some(), "purged")
        .await
        .unwrap();

    // The log is gone: only a snapshot can bring the late node up. Afterwards entries do.
    let third = start_group(&nodes[2], MemoryLog::default(), machines[2].clone()).await;
    third
        .wait(Some(LONG))
        .applied_index_at_least(Some(index), "caught up")
        .await
        .unwrap();
    assert_eq!(machines[2].installed(), 1);
    nodes[leader as usize - 1].break_link(3, Lane::Data);
    let written = tokio::time::timeout(LONG, join_all((ENTRIES..ENTRIES + 100).map(write)))
        .await
        .unwrap();
    let index = written.into_iter().max().unwrap();
    for node in &nodes {
        let raft = node.rafts.get(GROUP).unwrap();
        raft.wait(Some(LONG))
            .applied_index_at_least(Some(index), "applied")
            .await
            .unwrap();
    }
    let expected: BTreeSet<u64> = (0..ENTRIES + 100).collect();
    for machine in &machines {
        let commands = machine.commands();
        assert_eq!(commands.len(), expected.len());
        assert_eq!(commands.iter().map(number).collect::<BTreeSet<_>>(), expected);
        assert_eq!(
            commands,
            machines[0].commands(),
            "every replica applied the same in the same order"
        );
    }

    // Leadership moves to the node of choice, over the control lane.
    let to = leader % 3 + 1;
    leading.trigger().transfer_leader(to).await.unwrap();
    leading
        .wait(Some(LONG))
        .current_leader(to, "transferred")
        .await
        .unwrap();
    for node in &nodes {
        node.rafts.remove(GROUP).unwrap().shutdown().await.unwrap();
    }
}

/// Append requests of one entry each, from a leader that node 2 does not know yet.
fn append_request(index: u64) -> AppendEntriesRequest<TypeConfig> {
    let id = |index| LogId::new(LeaderId { term: 1, node_id: 1 }, index);
    AppendEntriesRequest {
        vote: Vote::new_committed(1, 1),
        prev_log_id: index.checked_sub(1).map(id),
        entries: vec![Entry::new(id(index), EntryPayload::Blank)],
        leader_commit: None,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn append_streams_are_pipelined_and_stall_no_longer_than_allowed() {
    let certificates = Certificates::new();
    let nodes = cluster(&certificates, 2).await;
    let answer_max = Duration::from_millis(300);
    let mut factory = nodes[0].rafts.network(GROUP, answer_max);
    let option = || RPCOption::new(Duration::from_millis(100));
    let first_result = async |network: &mut RaftNetwork, pulled: Arc<AtomicUsize>| {
        let input = futures_util::stream::iter(0..100).map(move |index| {
            pulled.fetch_add(1, Ordering::SeqCst);
            append_request(index)
        });
        let mut results = network.stream_append(input, option()).await?;
        results.next().await.unwrap()
    };
    let pulled = Arc::new(AtomicUsize::new(0));

    let mut network = factory.new_client(2, &EmptyNode {}).await;
    let result = first_result(&mut network, pulled.clone()).await;
    assert!(
        matches!(result, Err(RPCError::Unreachable(_))),
        "unknown group: {result:?}"
    );
    let mut nowhere = factory.new_client(9, &EmptyNode {}).await;
    let result = first_result(&mut nowhere, Arc::default()).await;
    assert!(
        matches!(result, Err(RPCError::Unreachable(_))),
        "unknown peer: {result:?}"
    );

    // The follower's disk never answers.
    let raft = start_group(&nodes[1], MemoryLog::stuck(), MemoryMachine::default()).await;
    pulled.store(0, Ordering::SeqCst);
    let result = first_result(&mut network, pulled.clone()).await;
    assert!(
        matches!(&result, Err(RPCError::Timeout(timeout)) if timeout.timeout == answer_max),
        "{result:?}"
    );
    assert_eq!(pulled.load(Ordering::SeqCst), 8, "in flight");
    let mut heartbeats = factory.new_heartbeat_client(2, &EmptyNode {}).await;
    let result = first_result(&mut heartbeats, Arc::default()).await;
    assert!(matches!(result, Err(RPCError::Timeout(_))), "{result:?}");
    raft.shutdown().await.unwrap();
    let result = first_result(&mut network, pulled).await;
    assert!(matches!(result, Err(RPCError::Unreachable(_))), "stopped: {result:?}");
}

/// A disk that is slower than the node's patience when it stops.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_whose_shutdown_is_not_waited_for_answers_late_requests() {
    let certificates = Certificates::new();
    let node = start(config(&certificates, CLUSTER, 1, 100)).await;
    let (fail, fails) = tokio::sync::watch::channel(false);
    let raft = start_group(&node, MemoryLog::failing_votes(fails), MemoryMachine::default()).await;
    let asked = |term| VoteRequest::<TypeConfig>::new(Vote::new(term, 2), None);
    let (voting, request) = (raft.clone(), asked(5));
    let voting = tokio::spawn(async move { voting.vote(request).await });
    let changed = Notify::new();
    until("the core stores its vote", &changed, || fail.receiver_count() > 1).await;
    let waited = tokio::time::timeout(Duration::from_millis(50), shut_down(raft.clone())).await;
    assert!(waited.is_err(), "the core waits for the disk");
    fail.send_replace(true);
    assert!(voting.await.unwrap().is_err());
    assert!(raft.pre_vote(asked(6)).await.is_err());
    assert!(raft.vote(asked(7)).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_breaks_off_does_not_harm_the_group() {
    let certificates = Certificates::new();
    let nodes = cluster(&certificates, 2).await;
    let machine = MemoryMachine::default();
    let raft = start_group(&nodes[1], MemoryLog::default(), machine.clone()).await;
    let mut network = nodes[0]
        .rafts
        .network(GROUP, Duration::from_secs(1))
        .new_snapshot_client(2, &EmptyNode {})
        .await;
    let option = || RPCOption::new(LONG);
    let vote = Vote::new_committed(1, 1);
    let snapshot = |chunks: Vec<std::io::Result<Bytes>>, ends: bool| {
        let membership = Membership::new_with_defaults(vec![BTreeSet::from([1, 2])], []);
        let id = LogId::new(LeaderId { term: 1, node_id: 1 }, 50);
        let meta = SnapshotMeta {
            last_log_id: Some(id),
            last_membership: StoredMembership::new(Some(id), membership),
        };
        let (sender, receiver) = tokio::sync::mpsc::channel(chunks.len() + 1);
        for chunk in chunks {
            sender.try_send(chunk).unwrap();
        }
        let kept = (!ends).then_some(sender);
        (
            SnapshotOf::<TypeConfig, SnapshotData> {
                meta,
                snapshot: SnapshotData::from_chunks(receiver),
            },
            kept,
        )
    };
    let never = std::future::pending::<ReplicationClosed>;

    let (torn, _) = snapshot(vec![Ok(payload(1)), Err(std::io::Error::other("disk"))], true);
    let result = network.full_snapshot(vote, torn, never(), option()).await;
    assert!(matches!(result, Err(StreamingError::Unreachable(_))), "{result:?}");

    // Such as a bit that flipped in the spool file: refused here, not by the group.
    let (damaged, _) = snapshot(vec![Ok(payload(1)), Ok(Bytes::from_static(DAMAGED))], true);
    let result = network.full_snapshot(vote, damaged, never(), option()).await;
    assert!(result.is_err(), "{result:?}");
    assert!(raft.metrics().borrow_watched().running_state.is_ok());

    let (endless, _kept) = snapshot(vec![Ok(payload(1))], false);
    let cancel = async { ReplicationClosed::new("test") };
    let result = network.full_snapshot(vote, endless, cancel, option()).await;
    assert!(matches!(result, Err(StreamingError::Closed(_))), "{result:?}");

    let (broken, _kept) = snapshot(vec![Ok(payload(1))], false);
    let breaking = async {
        nodes[0].break_link(2, Lane::Data);
        std::future::pending::<()>().await;
    };
    let result = tokio::select! {
        result = network.full_snapshot(vote, broken, never(), option()) => result,
        () = breaking => unreachable!(),
    };
    assert!(result.is_err(), "{result:?}");
    assert_eq!(machine.installed(), 0);

    nodes[0].up(2).await;
    let (whole, _) = snapshot((0..100).map(|n| Ok(payload(n))).collect(), true);
    let response = network.full_snapshot(vote, whole, never(), option()).await.unwrap();
    assert_eq!(response.vote, vote);
    assert_eq!(machine.installed(), 1);
    assert_eq!(machine.commands(), (0..100).map(payload).collect::<Vec<_>>());

    // A deposed leader is told so, in whatever order the answer and the end of its stream cross.
    for _ in 0..50 {
        let (stale, _) = snapshot((0..5).map(|n| Ok(payload(n))).collect(), true);
        let response = network
            .full_snapshot(Vote::new_committed(0, 1), stale, never(), option())
            .await
            .unwrap();
        assert_eq!(response.vote, vote);
    }
    assert_eq!(machine.installed(), 1);

    // So is one whose append requests do not fit, however many it has in flight.
    let mut network = nodes[0].rafts.network(GROUP, LONG).new_client(2, &EmptyNode {}).await;
    for _ in 0..50 {
        let input = futures_util::stream::iter(100..200).map(append_request);
        let mut results = network.stream_append(input, option()).await.unwrap();
        let result = results.next().await.unwrap();
        assert!(matches!(result, Ok(Err(StreamAppendError::Conflict(_)))), "{result:?}");
        assert!(results.next().await.is_none());
    }
    raft.shutdown().await.unwrap();
}
