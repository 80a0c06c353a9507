//! The client-facing port: HTTP/1.1 with upgrade.
//!
//!     GET /mqtt   MQTT over WebSocket, see `ws.rs`; without an upgrade 426. A listener may have another path.
//!     …           404
//!
//! A connection is served on its worker's thread, and handed over there, socket and all. The head of a request and its
//! answer get no more time than a CONNECT.
//!
//! Which handshakes are taken: RFC 6455 4.2.1, version 13, of pages that `websocket.origins` admits and of clients that
//! send no Origin. Subprotocols: `mqtt` [MQTT-6.0.0-4] or, for clients that know no other, `mqttv3.1`; a client that
//! offers none gets none, one that offers only others is refused.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::future::ready;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use bytes::BytesMut;

use hyper::body::Body;
use hyper::header::{
    ALLOW, CONNECTION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, ORIGIN, SEC_WEBSOCKET_ACCEPT,
    SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use tokio::time::timeout_at;

use super::peer::Peer;
use super::proxy::forwarded;
use super::socket::{HttpIo, Stream};
use super::ws::{self, WebSocket};
use crate::config::WebOrigin;
use crate::limits::admission::Place;
use crate::metrics::UpgradeRefusal;
use crate::worker::{ListenerConfig, Worker};

/// Serves a connection until it ends: requests, then MQTT if one of them asks for it.
pub async fn serve(
    worker: Rc<Worker>,
    config: Arc<ListenerConfig>,
    peer: Peer,
    stream: Stream,
    accepted: Instant,
    place: Option<Place>,
    guard: impl Sized,
) {
    let (upgraded, peer) = (Cell::new(false), RefCell::new(peer));
    let service = service_fn(|request| {
        let outcome = handshake(&request, &config.path, &config.origins);
        match &outcome {
            Ok(_) => {
                upgraded.set(true);
                forwarded(&mut peer.borrow_mut(), request.headers(), &config);
            }
            Err(refused) => worker.metrics.upgrade_refused(refused.reason),
        }
        ready(Ok::<_, Infallible>(answer(outcome)))
    });
    let received = BytesMut::new();
    let requests = http1::Builder::new()
        .max_buf_size(HEAD_MAX)
        .serve_connection(HttpIo { stream, received }, service)
        .without_shutdown();
    let deadline = accepted + config.connect_timeout;
    let Ok(Ok(parts)) = timeout_at(deadline.into(), requests).await else {
        return worker.metrics.upgrade_refused(UpgradeRefusal::NoRequest);
    };
    let HttpIo { stream, received } = parts.io;
    match upgraded.get() {
        false => stream.close(),
        true => {
            let early = [&parts.read_buf[..], &received].concat();
            let transport = WebSocket::new(stream, &early, super::received_max(&config));
            let peer = peer.into_inner();
            super::run(worker.clone(), config.clone(), peer, transport, accepted, place, guard).await;
        }
    }
}

/// The client's address, where proxies that are trusted tell another one.
fn forwarded(peer: &mut Peer, headers: &HeaderMap, config: &ListenerConfig) {
    let Some(address) = peer.address.filter(|_| !config.trusted_proxies.is_empty()) else {
        return;
    };
    // What is no text is an address neither.
    let lines = headers.get_all(FORWARDED_FOR).into_iter();
    let lines: Vec<&str> = lines.map(|line| line.to_str().unwrap_or_default()).collect();
    let client = forwarded::client(address.ip(), lines.into_iter(), &config.trusted_proxies);
    if client != address.ip() {
        peer.address = Some(SocketAddr::new(client.to_canonical(), 0));
    }
}

fn answer(outcome: Result<Accepted, Refused>) -> Response<String> {
    match outcome {
        Ok(accepted) => {
            let mut answer = Response::new(String::new());
            *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            let headers = answer.headers_mut();
            headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
            headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
            headers.insert(SEC_WEBSOCKET_ACCEPT, accepted.key);
            if let Some(subprotocol) = accepted.subprotocol {
                headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(subprotocol));
            }
            answer
        }
        Err(refused) => {
            tracing::debug!(
                status = refused.status.as_u16(),
                hint = &*refused.hint,
                "an HTTP request was refused"
            );
            let mut answer = Response::new(format!("{}\n", refused.hint));
            *answer.status_mut() = refused.status;
            let headers = answer.headers_mut();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
            headers.extend(refused.headers);
            answer
        }
    }
}

#[derive(Debug)]
struct Accepted {
    key: HeaderValue,
    subprotocol: Option<&'static str>,
}

/// Why a request does not become a WebSocket, and what its sender can do.
#[derive(Debug)]
struct Refused {
    reason: UpgradeRefusal,
    status: StatusCode,
    hint: Cow<'static, str>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

fn handshake<B: Body>(request: &Request<B>, path: &str, origins: &[WebOrigin]) -> Result<Accepted, Refused> {
    let headers = request.headers();
    if request.uri().path() != path {
        let hint = format!("nothing is here: MQTT over WebSocket is at {path}");
        return refuse(UpgradeRefusal::Path, StatusCode::NOT_FOUND, hint);
    }
    if request.method() != Method::GET {
        let hint = "MQTT over WebSocket begins with a GET";
        let allow = [(ALLOW, "GET")];
        return refuse_with(UpgradeRefusal::Method, StatusCode::METHOD_NOT_ALLOWED, hint, &allow);
    }
    if !has_token(headers, UPGRADE, "websocket") || !has_token(headers, CONNECTION, "upgrade") {
        let hint = "this is MQTT over WebSocket: connect with a WebSocket client, subprotocol mqtt";
        let upgrade = [(UPGRADE, "websocket"), (CONNECTION, "Upgrade")];
        return refuse_with(UpgradeRefusal::NoUpgrade, StatusCode::UPGRADE_REQUIRED, hint, &upgrade);
    }
    if headers
        .get(SEC_WEBSOCKET_VERSION)
        .is_none_or(|version| version != VERSION)
    {
        let hint = "Sec-WebSocket-Version must be 13";
        let version = [
            (SEC_WEBSOCKET_VERSION, VERSION),
            (UPGRADE, "websocket"),
            (CONNECTION, "Upgrade"),
        ];
        return refuse_with(UpgradeRefusal::Version, StatusCode::UPGRADE_REQUIRED, hint, &version);
    }
    let key = headers.get(SEC_WEBSOCKET_KEY).map(HeaderValue::as_bytes);
    let Some(key) = key.filter(|key| is_nonce(key)) else {
        let hint = "Sec-WebSocket-Key must be 16 bytes in base64";
        return refuse(UpgradeRefusal::Key, StatusCode::BAD_REQUEST, hint);
    };
    if !request.body().is_end_stream() {
        let hint = "a WebSocket handshake has no body";
        return refuse(UpgradeRefusal::Body, StatusCode::BAD_REQUEST, hint);
    }
    if !is_admitted(headers, origins) {
        let hint = "pages of this origin may not connect: the operator can add it to websocket.origins";
        return refuse(UpgradeRefusal::Origin, StatusCode::FORBIDDEN, hint);
    }
    let offered = headers.contains_key(SEC_WEBSOCKET_PROTOCOL);
    let subprotocol = SUBPROTOCOLS
        .into_iter()
        .find(|subprotocol| tokens(headers, SEC_WEBSOCKET_PROTOCOL).any(|token| token == *subprotocol));
    if offered && subprotocol.is_none() {
        let hint = "none of the subprotocols offered is served: offer mqtt or mqttv3.1";
        return refuse(UpgradeRefusal::Subprotocol, StatusCode::BAD_REQUEST, hint);
    }
    let key = HeaderValue::try_from(ws::accept_key(key)).expect("base64 is a header value");
    Ok(Accepted { key, subprotocol })
}

fn refuse(reason: UpgradeRefusal, status: StatusCode, hint: impl Into<Cow<'static, str>>) -> Result<Accepted, Refused> {
    refuse_with(reason, status, hint, &[])
}

fn refuse_with(
    reason: UpgradeRefusal,
    status: StatusCode,
    hint: impl Into<Cow<'static, str>>,
    headers: &[(HeaderName, &'static str)],
) -> Result<Accepted, Refused> {
    let headers = headers.iter().cloned();
    Err(Refused {
        reason,
        status,
        hint: hint.into(),
        headers: headers
            .map(|(name, value)| (name, HeaderValue::from_static(value)))
            .collect(),
    })
}

/// A request without an Origin is no browser's.
fn is_admitted(headers: &HeaderMap, origins: &[WebOrigin]) -> bool {
    let mut given = headers.get_all(ORIGIN).iter();
    given.all(|origin| {
        let origin = origin.to_str().unwrap_or_default();
        origins.iter().any(|entry| entry.admits(origin))
    })
}

/// The elements of a header that is a list, over all its lines.
fn tokens(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &str> {
    let lines = headers.get_all(name).into_iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(str::trim)
}

fn has_token(headers: &HeaderMap, name: HeaderName, wanted: &str) -> bool {
    tokens(headers, name).any(|token| token.eq_ignore_ascii_case(wanted))
}

/// 16 bytes in base64.
fn is_nonce(key: &[u8]) -> bool {
    let of_base64 = |byte: &u8| byte.is_ascii_alphanumeric() || b"+/".contains(byte);
    key.len() == 24 && key.ends_with(b"==") && key[..22].iter().all(of_base64)
}

const FORWARDED_FOR: &str = "x-forwarded-for";
/// The one that is preferred comes first.
const SUBPROTOCOLS: [&str; 2] = ["mqtt", "mqttv3.1"];
const VERSION: &str = "13";
/// The head of a request; browsers send cookies. hyper takes no less.
const HEAD_MAX: usize = 16 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &[(&str, &str)] = &[
        ("upgrade", "WebSocket"),
        ("connection", "keep-alive, Upgrade"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ("sec-websocket-protocol", "mqtt"),
    ];

    /// The answer to GET /mqtt with `GOOD` changed: an empty value takes a header away.
    fn answer_to(changes: &[(&str, &str)]) -> Response<String> {
        let mut request = Request::get("/mqtt?a=b").body(String::new()).expect("a request");
        for (name, value) in GOOD.iter().chain(changes) {
            let name = HeaderName::try_from(*name).expect("a name");
            match *value {
                "" => drop(request.headers_mut().remove(name)),
                value => drop(
                    request
                        .headers_mut()
                        .insert(name, HeaderValue::from_str(value).expect("a value")),
                ),
            }
        }
        answer(handshake(&request, "/mqtt", &[WebOrigin::Loopback]))
    }

    fn check(changes: &[(&str, &str)], status: u16) {
        let answer = answer_to(changes);
        assert_eq!(answer.status(), status, "{changes:?}: {}", answer.body());
    }

    #[test]
    fn a_handshake_is_answered_as_the_rfc_says() {
        let answer = answer_to(&[]);
        assert_eq!(answer.status(), 101);
        let header = |name: &str| answer.headers()[name].to_str().expect("text").to_owned();
        assert_eq!(header("sec-websocket-accept"), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_eq!(header("upgrade"), "websocket");
        assert_eq!(header("connection"), "Upgrade");
        assert_eq!(header("sec-websocket-protocol"), "mqtt");
    }

    #[test]
    fn what_is_no_handshake_is_refused() {
        check(&[("upgrade", "")], 426);
        check(&[("upgrade", "h2c")], 426);
        check(&[("connection", "keep-alive")], 426);
        check(&[("sec-websocket-version", "")], 426);
        check(&[("sec-websocket-version", "8")], 426);
        check(&[("sec-websocket-key", "")], 400);
        check(&[("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ")], 400);
        check(&[("sec-websocket-key", "dGhlIHNhbXBsZSBub25j\tQ==")], 400);
        let old = answer_to(&[("sec-websocket-version", "8")]);
        assert_eq!(old.headers()["sec-websocket-version"], "13");
    }

    #[test]
    fn other_paths_and_methods_are_told_where_to_go() {
        let elsewhere = Request::get("/").body(String::new()).expect("a request");
        let elsewhere = answer(handshake(&elsewhere, "/mqtt", &[]));
        assert_eq!(elsewhere.status(), 404);
        assert!(elsewhere.body().contains("/mqtt"), "{}", elsewhere.body());
        let post = Request::post("/mqtt").body(String::new()).expect("a request");
        let post = answer(handshake(&post, "/mqtt", &[]));
        assert_eq!(
            (post.status().as_u16(), &post.headers()["allow"]),
            (405, &HeaderValue::from_static("GET"))
        );
        let body = Request::get("/mqtt").body("a body".to_owned()).expect("a request");
        assert_eq!(answer(handshake(&body, "/mqtt", &[])).status(), 426);
    }

    #[test]
    fn the_subprotocol_is_mqtt_or_mqttv3_1_or_none() {
        let chosen = |offered: &str| {
            let answer = answer_to(&[("sec-websocket-protocol", offered)]);
            assert_eq!(answer.status(), 101, "{offered}");
            answer.headers().get("sec-websocket-protocol").cloned()
        };
        assert_eq!(chosen("chat, mqttv3.1 , mqtt"), Some(HeaderValue::from_static("mqtt")));
        assert_eq!(chosen("mqttv3.1"), Some(HeaderValue::from_static("mqttv3.1")));
        assert_eq!(chosen(""), None);
        check(&[("sec-websocket-protocol", "chat")], 400);
        check(&[("sec-websocket-protocol", "MQTT")], 400);
    }

    #[test]
    fn only_pages_of_admitted_origins_connect() {
        check(&[("origin", "http://localhost:3000")], 101);
        check(&[("origin", "https://example.org")], 403);
        check(&[("origin", "null")], 403);
    }
}
