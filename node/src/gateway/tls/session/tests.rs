//! Against rustls's own client, by memory alone.

use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::server::NoServerSessionStorage;
use rustls::{ClientConfig, ClientConnection, RootCertStore, SupportedProtocolVersion};
use std::io::{Read, Write};

use super::*;

struct Pair {
    client: ClientConnection,
    server: Session,
    /// In pieces of so many bytes.
    piece: usize,
    to_client: BytesMut,
    at_server: BytesMut,
}

fn configs(version: &'static SupportedProtocolVersion) -> (Arc<ServerConfig>, Arc<ClientConfig>) {
    let key = KeyPair::generate().expect("a key");
    let certificate = CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
    let certificate = certificate.self_signed(&key).expect("a certificate");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let private = PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
    let mut server = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[version])
        .expect("a version")
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], private)
        .expect("a certificate");
    server.alpn_protocols = vec![b"mqtt".to_vec()];
    server.session_storage = Arc::new(NoServerSessionStorage {});
    server.ticketer = rustls::crypto::ring::Ticketer::new().expect("a key");
    let mut roots = RootCertStore::empty();
    roots.add(certificate.der().clone()).expect("a certificate");
    let client = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .expect("a version")
        .with_root_certificates(roots)
        .with_no_client_auth();
    (Arc::new(server), Arc::new(client))
}

impl Pair {
    fn new(configs: &(Arc<ServerConfig>, Arc<ClientConfig>), piece: usize) -> Self {
        let name = ServerName::try_from("localhost").expect("a name");
        Pair {
            client: ClientConnection::new(configs.1.clone(), name).expect("a client"),
            server: Session::new(configs.0.clone()).expect("a server"),
            piece,
            to_client: BytesMut::new(),
            at_server: BytesMut::new(),
        }
    }

    /// Moves bytes until there are none.
    fn turn(&mut self) -> Result<(), Error> {
        loop {
            let mut wire = Vec::new();
            while self.client.wants_write() {
                self.client.write_tls(&mut wire).expect("memory");
            }
            let mut failed = Ok(());
            for piece in wire.chunks_mut(self.piece) {
                let mut outgoing = BytesMut::new();
                let taken = self.server.received(piece, &mut self.at_server, &mut outgoing);
                self.to_client.extend_from_slice(&outgoing);
                if taken.is_err() {
                    failed = taken;
                    break;
                }
            }
            let back = std::mem::take(&mut self.to_client);
            let is_quiet = wire.is_empty() && back.is_empty();
            let mut back = &back[..];
            while !back.is_empty() {
                self.client.read_tls(&mut back).expect("memory");
                self.client.process_new_packets()?;
            }
            failed?;
            if is_quiet {
                return Ok(());
            }
        }
    }

    fn say(&mut self, text: &[u8]) {
        self.client.set_buffer_limit(None);
        self.client.writer().write_all(text).expect("memory");
        self.turn().expect("it goes on");
    }

    fn answer(&mut self, text: &[u8]) -> Vec<u8> {
        let mut outgoing = BytesMut::new();
        self.server.encrypt(text, &mut outgoing).expect("it goes on");
        let mut answered = vec![0; text.len()];
        let (mut at, mut wire) = (0, &outgoing[..]);
        while !wire.is_empty() {
            self.client.read_tls(&mut wire).expect("memory");
            self.client.process_new_packets().expect("good records");
            while let Ok(read) = self.client.reader().read(&mut answered[at..])
                && read > 0
            {
                at += read;
            }
        }
        assert_eq!(at, text.len());
        answered
    }
}

const VERSIONS: [&SupportedProtocolVersion; 2] = [&rustls::version::TLS12, &rustls::version::TLS13];

#[test]
fn bytes_come_through_however_they_are_cut_and_nothing_is_kept() {
    for version in VERSIONS {
        let configs = configs(version);
        for piece in [1, 5, 100, 16_384, usize::MAX] {
            let mut pair = Pair::new(&configs, piece);
            pair.turn().expect("a handshake");
            assert!(!pair.server.is_handshaking());
            for size in [1, 100, 20_000, 100_000] {
                let text = vec![size as u8; size];
                pair.say(&text);
                assert_eq!(std::mem::take(&mut pair.at_server), text, "{piece} {size}");
                assert_eq!(pair.answer(&text), text, "{piece} {size}");
                assert_eq!(pair.server.incoming.capacity(), 0, "an idle connection keeps nothing");
            }
        }
    }
}

#[test]
fn a_client_comes_back_by_its_ticket() {
    for version in VERSIONS {
        let configs = configs(version);
        for is_resumed in [false, true, true] {
            let mut pair = Pair::new(&configs, usize::MAX);
            pair.turn().expect("a handshake");
            pair.say(b"hello");
            assert_eq!(pair.answer(b"hello"), b"hello");
            assert_eq!(pair.server.is_resumed(), is_resumed);
        }
    }
}

#[test]
fn the_end_is_told_both_ways_after_what_came_before_it() {
    for version in VERSIONS {
        let mut pair = Pair::new(&configs(version), 7);
        pair.turn().expect("a handshake");
        pair.client.writer().write_all(b"last words").expect("memory");
        pair.client.send_close_notify();
        pair.turn().expect("an end");
        assert_eq!(&pair.at_server[..], b"last words");
        assert!(pair.server.has_ended());
        // The other half is still open.
        pair.server.close(&mut pair.to_client).expect("an alert");
        pair.turn().expect("an end");
        assert_eq!(pair.client.reader().read(&mut [0; 1]).expect("a clean end"), 0);
    }
}

#[test]
fn a_client_that_asks_for_new_keys_gets_them() {
    let mut pair = Pair::new(&configs(&rustls::version::TLS13), 3);
    pair.turn().expect("a handshake");
    for _ in 0..3 {
        pair.client.refresh_traffic_keys().expect("TLS 1.3");
        pair.say(b"after");
        assert_eq!(pair.answer(b"back"), b"back");
    }
    assert_eq!(&pair.at_server[..], b"afterafterafter");
}

#[test]
fn what_is_no_tls_is_answered_with_an_alert() {
    let configs = configs(&rustls::version::TLS13);
    for bytes in [
        &b"\x10\x0c\0\x04MQTT\x05\x02\0\x3c\0\0"[..],
        b"GET /mqtt HTTP/1.1\r\n\r\n",
        &[0x16, 3, 1, 0xff, 0xff],
    ] {
        let mut session = Session::new(configs.0.clone()).expect("a server");
        let mut outgoing = BytesMut::new();
        let refused = session.received(&mut bytes.to_vec(), &mut BytesMut::new(), &mut outgoing);
        assert!(refused.is_err());
        assert_eq!(outgoing.first(), Some(&21), "an alert");
    }
}

#[test]
fn a_protocol_that_is_not_spoken_is_refused() {
    let (server, client) = configs(&rustls::version::TLS13);
    for (offered, is_taken) in [(&[][..], true), (&[b"mqtt".to_vec()], true), (&[b"h2".to_vec()], false)] {
        let mut client = ClientConfig::clone(&client);
        client.alpn_protocols = offered.to_vec();
        let mut pair = Pair::new(&(server.clone(), Arc::new(client)), usize::MAX);
        assert_eq!(pair.turn().is_ok(), is_taken, "{offered:?}");
    }
}

/// A thousand damaged handshakes and records: no panic, no endless loop, nothing that grows.
#[test]
fn damaged_bytes_are_refused_or_waited_for() {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as usize
    };
    let configs = configs(&rustls::version::TLS13);
    for round in 0..1000 {
        let mut pair = Pair::new(&configs, usize::MAX);
        if round % 4 == 0 {
            pair.turn().expect("a handshake");
            pair.client.writer().write_all(&[7; 3000]).expect("memory");
        }
        let mut wire = Vec::new();
        while pair.client.wants_write() {
            pair.client.write_tls(&mut wire).expect("memory");
        }
        for _ in 0..1 + random() % 3 {
            let at = random() % wire.len();
            wire[at] = random() as u8;
        }
        for piece in wire.chunks_mut(1 + random() % 500) {
            let (mut plaintext, mut outgoing) = (BytesMut::new(), BytesMut::new());
            if pair.server.received(piece, &mut plaintext, &mut outgoing).is_err() {
                let mut outgoing = BytesMut::new();
                assert!(pair.server.encrypt(b"too late", &mut outgoing).is_err());
                assert!(pair.server.close(&mut outgoing).is_err());
                break;
            }
            assert!(pair.server.incoming.len() <= INCOMING_MAX);
        }
    }
}
