//! The HTTP server for operators: metrics, health, status.
//!
//!     GET /metrics         Prometheus's text format
//!     GET /health/live     200 while this process can answer at all
//!     GET /health/ready    200 or 503, with what is missing
//!     GET /api/v1/status   what the node says of itself
//!     /api/v1/…            see `admin.rs`; who may: `guard.rs`
//!
//! What is ready and what there is to say, only the node knows: it implements [`Probe`].

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{ConnectInfo, Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router, middleware};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus::{IntCounterVec, Opts, Registry};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tower_service::Service;

use crate::admin::{self, Admin, Refusal};
use crate::audit::Audit;
use crate::guard::{self, Ends, MetricsFor};
use crate::metrics;
use crate::places::{Place, Places};

/// What the node tells operators about itself. Called for each request: answers at once, from memory; what takes time is
/// [`Admin`]'s.
pub trait Probe: Admin {
    /// Whether clients are served with all promises now, and if not, why.
    fn ready(&self) -> Readiness;

    /// The body of `/api/v1/status`.
    fn status(&self) -> Value;

    /// Brings gauges that are not kept up to date by themselves up to date; called before each exposition.
    fn before_scrape(&self) {}

    /// The body of `/api/v1/sessions/{client_id}`; `None` if the cluster knows no such session.
    ///
    /// # Errors
    /// The node cannot know now.
    fn session(&self, client_id: &str) -> Result<Option<Value>, Refusal>;
}

/// Whether clients can be sent here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Readiness {
    pub ready: bool,
    /// What is missing, in an operator's words; empty when ready.
    pub reasons: Vec<String>,
}

/// Why the HTTP server is not there.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    #[error("cannot listen on {listen} (http.listen): {source}; {}", advice(source))]
    Listen { listen: SocketAddr, source: io::Error },
}

/// A listener that has its port: what is left to do is to serve.
#[derive(Debug)]
pub struct HttpServer {
    listener: TcpListener,
    listen: SocketAddr,
    head_max: Duration,
    metrics_for: MetricsFor,
}

impl HttpServer {
    /// Takes the port.
    ///
    /// # Errors
    /// The port is in use, or not this user's to take.
    pub async fn bind(listen: SocketAddr) -> Result<Self, HttpError> {
        let failed = |source| HttpError::Listen { listen, source };
        let listener = TcpListener::bind(listen).await.map_err(failed)?;
        let listen = listener.local_addr().map_err(failed)?;
        Ok(Self {
            listener,
            listen,
            head_max: HEAD_MAX,
            metrics_for: MetricsFor::default(),
        })
    }

    /// Who may read `/metrics`.
    pub fn with_metrics_for(mut self, metrics_for: MetricsFor) -> Self {
        self.metrics_for = metrics_for;
        self
    }

    /// The address taken.
    pub fn local_addr(&self) -> SocketAddr {
        self.listen
    }

    /// Serves until `shutdown` is done, then lets the requests that are being answered finish, if they do soon.
    ///
    /// # Errors
    /// None so far: what a listener tells passes, or ends with the process.
    pub async fn serve(
        self,
        registry: Registry,
        probe: Arc<dyn Probe>,
        audit: Audit,
        shutdown: impl Future<Output = ()> + Send + 'static,
    ) -> Result<(), HttpError> {
        let denied = Refusals::new(&registry);
        let router = router(Shown {
            registry,
            probe,
            audit,
            denied: denied.clone(),
            scans: Arc::new(Semaphore::new(SCANS_MAX)),
            metrics_for: self.metrics_for,
        });
        let (stop, stopped) = watch::channel(false);
        let (places, mut connections) = (Arc::new(Places::default()), JoinSet::new());
        let mut shutdown = pin!(shutdown);
        loop {
            let accepted = tokio::select! {
                biased;
                () = &mut shutdown => break,
                Some(_) = connections.join_next(), if !connections.is_empty() => continue,
                accepted = self.listener.accept() => accepted,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) if is_of_one_connection(&error) => continue,
                Err(error) => {
                    // As many files are open as may be: others will close theirs.
                    tracing::error!(%error, listen = %self.listen, "the HTTP port accepts nobody for a moment");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Ok(remote) = stream.peer_addr() else { continue };
            let Some(place) = places.enter(remote.ip()) else {
                denied.count("connections");
                continue;
            };
            let ends = Ends {
                remote,
                local: stream.local_addr().ok(),
            };
            connections.spawn(connection(
                stream,
                ends,
                router.clone(),
                self.head_max,
                stopped.clone(),
                place,
            ));
        }
        drop(self.listener);
        stop.send_replace(true);
        while connections.join_next().await.is_some() {}
        Ok(())
    }
}

/// One connection, to its end.
async fn connection(
    stream: TcpStream,
    ends: Ends,
    router: Router,
    head_max: Duration,
    mut stopped: watch::Receiver<bool>,
    _place: Place,
) {
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(ConnectInfo(ends));
        router.clone().call(request)
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(head_max);
    let mut serving = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let served = tokio::select! {
        served = serving.as_mut() => served,
        () = async { drop(stopped.wait_for(|stopped| *stopped).await) } => {
            serving.as_mut().graceful_shutdown();
            let Ok(served) = tokio::time::timeout(STOP_MAX, serving).await else {
                return;
            };
            served
        }
    };
    if let Err(error) = served {
        tracing::debug!(%error, remote = %ends.remote, "an HTTP connection ended");
    }
}

/// What `accept` tells of one connection that was gone before it was taken.
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset
    )
}

/// A head takes no longer, nor the wait for the next one on a connection that stands.
const HEAD_MAX: Duration = Duration::from_secs(10);
/// What is being answered when the node stops.
const STOP_MAX: Duration = Duration::from_secs(10);
/// Requests that read many rows, at once.
const SCANS_MAX: usize = 4;
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Counts of requests and connections that were turned away.
#[derive(Clone)]
pub(crate) struct Refusals(IntCounterVec);

impl Refusals {
    fn new(registry: &Registry) -> Self {
        let options = Opts::new(
            "lontra_http_denied_total",
            "Requests that the API denied, and connections that the HTTP port turned away, by reason.",
        );
        let counts = IntCounterVec::new(options, &["reason"]).expect("a name and a label");
        for reason in guard::REASONS.into_iter().chain(["connections"]) {
            counts.with_label_values(&[reason]);
        }
        registry
            .register(Box::new(counts.clone()))
            .expect("metric names are unique");
        Refusals(counts)
    }

    pub(crate) fn count(&self, reason: &str) {
        self.0.with_label_values(&[reason]).inc();
    }
}

/// What an operator can do about a port that was not to be had; for the messages of all listeners.
pub fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "another process has this port: stop it, or set another port",
        io::ErrorKind::PermissionDenied => "this user may not take this port: set one above 1023, or grant it",
        io::ErrorKind::AddrNotAvailable => "this machine has no such address: set one of its own",
        _ => "set another address",
    }
}

#[derive(Clone)]
pub(crate) struct Shown {
    registry: Registry,
    pub(crate) probe: Arc<dyn Probe>,
    pub(crate) audit: Audit,
    pub(crate) denied: Refusals,
    pub(crate) scans: Arc<Semaphore>,
    pub(crate) metrics_for: MetricsFor,
}

fn router(shown: Shown) -> Router {
    Router::new()
        .route("/metrics", get(show_metrics))
        .route("/health/live", get(async || Json(json!({ "live": true }))))
        .route("/health/ready", get(show_ready))
        .route("/api/v1/status", get(show_status))
        .route("/api/v1/sessions/{client_id}", get(show_session))
        .merge(admin::routes())
        .fallback(admin::wrong_path)
        .method_not_allowed_fallback(admin::wrong_method)
        .layer(middleware::from_fn_with_state(shown.clone(), guard::guard))
        .with_state(shown)
}

async fn show_metrics(State(shown): State<Shown>) -> Response {
    shown.probe.before_scrape();
    match metrics::text(&shown.registry) {
        Ok(text) => ([(header::CONTENT_TYPE, metrics::TEXT_TYPE)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn show_ready(State(shown): State<Shown>) -> Response {
    let Readiness { ready, reasons } = shown.probe.ready();
    let status = if ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (status, Json(json!({ "ready": ready, "reasons": reasons }))).into_response()
}

async fn show_status(State(shown): State<Shown>) -> Response {
    Json(shown.probe.status()).into_response()
}

async fn show_session(State(shown): State<Shown>, Path(client_id): Path<String>) -> Response {
    match shown.probe.session(&client_id) {
        Err(refusal) => refusal.into_response(),
        Ok(Some(session)) => Json(session).into_response(),
        Ok(None) => admin::refuse(StatusCode::NOT_FOUND, "no session of this client id"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::{AccessRequest, Answer};
    use crate::guard::{Caller, Known, Role};
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;
    use tokio::sync::oneshot;
    use tokio::task::JoinHandle;

    #[derive(Default)]
    struct Node(Mutex<Readiness>, AtomicBool, Arc<(AtomicUsize, AtomicUsize)>);

    impl Probe for Node {
        fn ready(&self) -> Readiness {
            self.0.lock().unwrap().clone()
        }

        fn status(&self) -> Value {
            json!({ "node": 7 })
        }

        fn session(&self, client_id: &str) -> Result<Option<Value>, Refusal> {
            match client_id {
                "unknowable" => Err(Refusal::Unavailable("no lease".to_owned())),
                _ => Ok((client_id == "c").then(|| json!({ "owner": 7 }))),
            }
        }
    }

    impl Admin for Node {
        fn cluster(&self) -> Answer {
            ready(Ok(json!({ "asked": 7 })))
        }

        fn groups(&self) -> Value {
            json!({ "groups": [] })
        }

        fn digest(&self, group: String) -> Answer {
            let scans = self.2.clone();
            let now = scans.0.fetch_add(1, Ordering::SeqCst) + 1;
            scans.1.fetch_max(now, Ordering::SeqCst);
            if group == "slow" {
                return Box::pin(async move {
                    for _ in 0..100 {
                        tokio::task::yield_now().await;
                    }
                    scans.0.fetch_sub(1, Ordering::SeqCst);
                    Ok(json!({}))
                });
            }
            scans.0.fetch_sub(1, Ordering::SeqCst);
            ready(match &*group {
                "meta" => Ok(json!({ "applied": 5 })),
                _ => Err(Refusal::NotFound("no such group".to_owned())),
            })
        }

        fn keys(&self, _: String) -> Answer {
            ready(Err(Refusal::Failed("torn".to_owned())))
        }

        fn snapshot(&self, group: String) -> Answer {
            ready(Ok(json!({ "snapshot of": group })))
        }

        fn transfer(&self, group: String, to: u64) -> Answer {
            ready(match to {
                2 => Ok(json!({ "leader of": group })),
                _ => Err(Refusal::Conflict("not moved".to_owned())),
            })
        }

        fn pending(&self, _: String) -> Answer {
            ready(Err(Refusal::Unavailable("not now".to_owned())))
        }

        /// Keys are the names of roles, once there are any.
        fn known(&self, token: Option<&str>) -> Known {
            if !self.1.load(Ordering::Relaxed) {
                return Known::NoKeys(Role::Admin);
            }
            let role = Role::ALL.into_iter().find(|role| Some(role.name()) == token);
            role.map_or(Known::Nobody, |role| {
                Known::Caller(Caller {
                    key: token.map(str::to_owned),
                    role,
                })
            })
        }

        fn access(&self, request: AccessRequest, caller: Caller) -> Answer {
            ready(Ok(json!({ "asked": format!("{request:?}"), "by": caller.name() })))
        }
    }

    fn ready(answer: Result<Value, Refusal>) -> Answer {
        Box::pin(std::future::ready(answer))
    }

    struct Running {
        address: SocketAddr,
        node: Arc<Node>,
        stop: oneshot::Sender<()>,
        served: JoinHandle<Result<(), HttpError>>,
    }

    async fn start() -> Running {
        start_with(Audit::default()).await
    }

    async fn start_with(audit: Audit) -> Running {
        let mut server = HttpServer::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        server.head_max = Duration::from_secs(5);
        let (address, node) = (server.local_addr(), Arc::new(Node::default()));
        let (stop, stopped) = oneshot::channel::<()>();
        let shutdown = async move { drop(stopped.await) };
        let served = tokio::spawn(server.serve(metrics::registry(), node.clone(), audit, shutdown));
        Running {
            address,
            node,
            stop,
            served,
        }
    }

    async fn fetch(address: SocketAddr, path: &str) -> String {
        ask(address, &format!("GET {path}"), "", "").await
    }

    /// `headers` end in a line break each.
    async fn ask(address: SocketAddr, what: &str, headers: &str, body: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let length = body.len();
        let request = format!(
            "{what} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n{body}"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn each_page_answers() {
        let running = start().await;
        let metrics = fetch(running.address, "/metrics").await;
        assert!(
            metrics.starts_with("HTTP/1.1 200") && metrics.contains("text/plain"),
            "{metrics}"
        );
        assert!(metrics.contains("lontra_process_resident_bytes "), "{metrics}");
        let live = fetch(running.address, "/health/live").await;
        assert!(
            live.starts_with("HTTP/1.1 200") && live.ends_with(r#"{"live":true}"#),
            "{live}"
        );
        let status = fetch(running.address, "/api/v1/status").await;
        assert!(
            status.starts_with("HTTP/1.1 200") && status.ends_with(r#"{"node":7}"#),
            "{status}"
        );
        assert!(fetch(running.address, "/nowhere").await.starts_with("HTTP/1.1 404"));
    }

    #[tokio::test]
    async fn admin_answers_and_refusals_have_their_codes() {
        let running = start().await;
        let leader = "POST /api/v1/groups/meta/leader";
        for (what, body, code, part) in [
            ("GET /api/v1/cluster", "", 200, r#"{"asked":7}"#),
            ("GET /api/v1/groups", "", 200, r#"{"groups":[]}"#),
            ("GET /api/v1/groups/meta/digest", "", 200, r#"{"applied":5}"#),
            ("GET /api/v1/groups/x/digest", "", 404, r#"{"error":"no such group"}"#),
            ("GET /api/v1/groups/x/keys", "", 500, r#"{"error":"torn"}"#),
            ("GET /api/v1/sessions/c/pending", "", 503, r#"{"error":"not now"}"#),
            (
                "POST /api/v1/groups/meta/snapshot",
                "",
                200,
                r#"{"snapshot of":"meta"}"#,
            ),
            (leader, r#"{"to":2}"#, 200, r#"{"leader of":"meta"}"#),
            (leader, r#"{"to":3}"#, 409, r#"{"error":"not moved"}"#),
            (leader, r#"{"to":"2"}"#, 400, "as in"),
            (leader, "", 400, "as in"),
            ("GET /api/v1/groups/meta/leader", "", 405, "POST"),
            ("POST /metrics", "", 405, "GET"),
            ("GET /api/v2", "", 404, "operating.md"),
        ] {
            let answer = ask(running.address, what, "", body).await;
            assert!(
                answer.starts_with(&format!("HTTP/1.1 {code}")),
                "{what} {body}: {answer}"
            );
            assert!(
                answer.contains(part) && answer.contains("application/json"),
                "{what} {body}: {answer}"
            );
        }
    }

    #[tokio::test]
    async fn a_web_page_of_another_site_changes_nothing() {
        let running = start().await;
        for what in ["POST /api/v1/groups/meta/snapshot", "POST /api/v1/groups/meta/leader"] {
            for (origin, code) in [
                ("http://elsewhere", 403),
                ("null", 403),
                ("https://localhost", 403),
                ("http://localhost", 200),
            ] {
                let answer = ask(running.address, what, &format!("origin: {origin}\r\n"), r#"{"to":2}"#).await;
                assert!(
                    answer.starts_with(&format!("HTTP/1.1 {code}")),
                    "{what} from {origin}: {answer}"
                );
            }
        }
    }

    /// Every route of the server, as a request, with the lowest role that it takes.
    const ROUTES: &[(&str, &str, Role)] = &[
        ("GET /api/v1/status", "", Role::Read),
        ("GET /api/v1/cluster", "", Role::Read),
        ("GET /api/v1/groups", "", Role::Read),
        ("GET /api/v1/groups/meta/digest", "", Role::Read),
        ("GET /api/v1/groups/meta/keys", "", Role::Read),
        ("GET /api/v1/sessions/c", "", Role::Read),
        ("GET /api/v1/sessions/c/pending", "", Role::Read),
        ("GET /api/v1/users", "", Role::Read),
        ("GET /api/v1/rules", "", Role::Read),
        ("GET /api/v1/bans", "", Role::Read),
        ("POST /api/v1/groups/meta/snapshot", "", Role::Operate),
        ("POST /api/v1/groups/meta/leader", r#"{"to":2}"#, Role::Operate),
        ("POST /api/v1/bans", "{}", Role::Operate),
        ("DELETE /api/v1/bans?client=c", "", Role::Operate),
        ("PUT /api/v1/users/al", r#"{"password":"hunter2"}"#, Role::Admin),
        ("DELETE /api/v1/users/al", "", Role::Admin),
        ("PUT /api/v1/rules", "{}", Role::Admin),
        ("GET /api/v1/keys", "", Role::Admin),
        ("POST /api/v1/keys", "{}", Role::Admin),
        ("DELETE /api/v1/keys/k?even_last=true", "", Role::Admin),
    ];

    #[tokio::test]
    async fn each_endpoint_takes_its_role_and_those_above_and_no_other() {
        let running = start().await;
        // Without keys this machine may do everything.
        for (what, body, _) in ROUTES {
            let answer = ask(running.address, what, "", body).await;
            assert!(
                !answer.contains(" 401 ") && !answer.contains(" 403 "),
                "{what}: {answer}"
            );
            assert!(
                !answer.contains(" 404 ") && !answer.contains(" 405 "),
                "{what}: {answer}"
            );
        }
        running.node.1.store(true, Ordering::Relaxed);
        for (what, body, needed) in ROUTES {
            for role in Role::ALL {
                let shown = format!("authorization: Bearer {}\r\n", role.name());
                let answer = ask(running.address, what, &shown, body).await;
                let is_denied = answer.starts_with("HTTP/1.1 403");
                assert_eq!(is_denied, role < *needed, "{what} as {role:?}: {answer}");
                assert!(!answer.starts_with("HTTP/1.1 401"), "{what} as {role:?}: {answer}");
            }
            for shown in ["", "authorization: Bearer other\r\n", "authorization: Basic admin\r\n"] {
                let answer = ask(running.address, what, shown, body).await;
                assert!(answer.starts_with("HTTP/1.1 401"), "{what} with {shown}: {answer}");
                assert!(answer.to_lowercase().contains("www-authenticate: bearer"), "{answer}");
            }
        }
        for open in ["/metrics", "/health/live"] {
            assert!(fetch(running.address, open).await.starts_with("HTTP/1.1 200"), "{open}");
        }
        let nowhere = fetch(running.address, "/api/v1/nowhere").await;
        assert!(
            nowhere.starts_with("HTTP/1.1 401"),
            "what there is, is not told either: {nowhere}"
        );
    }

    #[tokio::test]
    async fn lists_come_in_pages_and_what_cannot_be_known_is_not_told() {
        let running = start().await;
        let pages = [
            ("users", "limit: 1000, after: None"),
            ("bans?limit=7", "limit: 7, after: None"),
            ("keys?limit=10000&after=a%2Fb", r#"limit: 10000, after: Some(\"a/b\")"#),
        ];
        for (path, page) in pages {
            let answer = fetch(running.address, &format!("/api/v1/{path}")).await;
            assert!(
                answer.starts_with("HTTP/1.1 200") && answer.contains(page),
                "{path}: {answer}"
            );
        }
        for path in ["users?limit=0", "users?limit=10001", "bans?limit=x", "keys?from=a"] {
            let answer = fetch(running.address, &format!("/api/v1/{path}")).await;
            assert!(answer.starts_with("HTTP/1.1 400"), "{path}: {answer}");
        }
        let answer = fetch(running.address, "/api/v1/sessions/unknowable").await;
        assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    }

    #[tokio::test]
    async fn metrics_behind_a_proxy_need_a_key_of_any_role() {
        let running = start().await;
        let proxy = "x-forwarded-for: 10.0.0.1\r\n";
        let answer = ask(running.address, "GET /metrics", proxy, "").await;
        assert!(
            answer.starts_with("HTTP/1.1 403") && answer.contains("http.metrics"),
            "{answer}"
        );
        running.node.1.store(true, Ordering::Relaxed);
        let answer = ask(running.address, "GET /metrics", proxy, "").await;
        assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
        let key = format!("{proxy}authorization: Bearer read\r\n");
        let answer = ask(running.address, "GET /metrics", &key, "").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(fetch(running.address, "/metrics").await.starts_with("HTTP/1.1 200"));
    }

    #[tokio::test]
    async fn what_was_done_and_what_was_denied_is_recorded_without_secrets() {
        let file = std::env::temp_dir().join(format!("lontra-audit-{}", std::process::id()));
        let running = start_with(Audit::new(&file).unwrap()).await;
        let put = "PUT /api/v1/users/al";
        ask(running.address, put, "", r#"{"password":"hunter2","groups":["g"]}"#).await;
        ask(
            running.address,
            "POST /api/v1/bans",
            "",
            r#"{"client":"c","seconds":5}"#,
        )
        .await;
        running.node.1.store(true, Ordering::Relaxed);
        ask(
            running.address,
            put,
            "authorization: Bearer read\r\n",
            r#"{"password":"hunter2"}"#,
        )
        .await;
        ask(
            running.address,
            "DELETE /api/v1/users/al",
            "authorization: Bearer admin\r\n",
            "",
        )
        .await;
        ask(
            running.address,
            "DELETE /api/v1/keys/k",
            "authorization: Bearer hunter3\r\n",
            "",
        )
        .await;
        fetch(running.address, "/api/v1/status").await;
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::remove_file(&file).unwrap();
        let records: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let told: Vec<String> = records
            .iter()
            .map(|record| {
                let part = |key: &str| record[key].as_str().unwrap_or("-").to_owned();
                [part("who"), part("what"), part("subject"), part("outcome")].join("; ")
            })
            .collect();
        assert_eq!(
            told,
            [
                "local; PUT /api/v1/users/al; password set groups=[\"g\"]; done",
                "local; POST /api/v1/bans; client=\"c\" seconds=5; done",
                "key:read; PUT /api/v1/users/al; -; denied",
                "key:admin; DELETE /api/v1/users/al; -; done",
                "nobody; DELETE /api/v1/keys/k; -; denied",
            ]
        );
        assert!(!text.contains("hunter"), "{text}");
        assert!(
            records
                .iter()
                .all(|record| record["from"].as_str().unwrap().starts_with("127.0.0.1:"))
        );
    }

    #[tokio::test]
    async fn ready_tells_what_is_missing_until_nothing_is() {
        let running = start().await;
        running.node.0.lock().unwrap().reasons = vec!["no lease".to_owned()];
        let waiting = fetch(running.address, "/health/ready").await;
        assert!(waiting.starts_with("HTTP/1.1 503"), "{waiting}");
        assert!(
            waiting.ends_with(r#"{"ready":false,"reasons":["no lease"]}"#),
            "{waiting}"
        );

        *running.node.0.lock().unwrap() = Readiness {
            ready: true,
            reasons: Vec::new(),
        };
        let ready = fetch(running.address, "/health/ready").await;
        assert!(
            ready.starts_with("HTTP/1.1 200") && ready.ends_with(r#"{"ready":true,"reasons":[]}"#),
            "{ready}"
        );
    }

    #[tokio::test]
    async fn shutdown_ends_serving_and_frees_the_port() {
        let running = start().await;
        running.stop.send(()).unwrap();
        running.served.await.unwrap().unwrap();
        HttpServer::bind(running.address).await.unwrap();
    }

    /// From an address of its own, so that it has places of its own.
    async fn open_from(from: &str, to: SocketAddr) -> TcpStream {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind(format!("{from}:0").parse().unwrap()).unwrap();
        socket.connect(to).await.unwrap()
    }

    #[tokio::test]
    async fn whoever_opens_many_connections_and_says_little_keeps_nobody_out() {
        let running = start().await;
        let mut slow = Vec::new();
        for _ in 0..crate::places::OF_ADDRESS_MAX {
            let mut stream = open_from("127.0.0.2", running.address).await;
            stream
                .write_all(b"GET /health/live HTTP/1.1\r\nhost: loc")
                .await
                .unwrap();
            slow.push(stream);
        }
        let live = fetch(running.address, "/health/live").await;
        assert!(live.starts_with("HTTP/1.1 200"), "{live}");
        // Each is let go when its head has not come in time; until then there is no place for one more.
        let mut surplus = open_from("127.0.0.2", running.address).await;
        assert!(
            matches!(surplus.read(&mut [0; 64]).await, Ok(0) | Err(_)),
            "turned away"
        );
        for mut stream in slow {
            let ended = tokio::time::timeout(Duration::from_secs(30), async {
                let mut rest = Vec::new();
                drop(stream.read_to_end(&mut rest).await);
                rest
            });
            let told = ended.await.expect("let go");
            assert!(!told.starts_with(b"HTTP/1.1 200"), "{told:?}");
        }
        let metrics = fetch(running.address, "/metrics").await;
        assert!(
            metrics.contains("lontra_http_denied_total{reason=\"connections\"} 1\n"),
            "{metrics}"
        );
        // Its places are free again, once their tasks have seen that.
        let again = tokio::time::timeout(Duration::from_secs(30), async {
            loop {
                let mut stream = open_from("127.0.0.2", running.address).await;
                let asked = b"GET /health/live HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
                let mut answer = Vec::new();
                if stream.write_all(asked).await.is_ok()
                    && stream.read_to_end(&mut answer).await.is_ok()
                    && answer.starts_with(b"HTTP/1.1 200")
                {
                    return;
                }
            }
        });
        again.await.expect("served again");
    }

    #[tokio::test]
    async fn denied_requests_are_counted_each_and_recorded_as_far_as_there_is_room() {
        let file = std::env::temp_dir().join(format!("lontra-audit-denied-{}", std::process::id()));
        let running = start_with(Audit::new(&file).unwrap()).await;
        running.node.1.store(true, Ordering::Relaxed);
        let flood = 3 * crate::audit::DENIED_BURST;
        for _ in 0..flood {
            ask(running.address, "DELETE /api/v1/users/al", "", "").await;
        }
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::remove_file(&file).unwrap();
        let records = text.lines().count() as u32;
        assert!((crate::audit::DENIED_BURST..flood).contains(&records), "{records}");
        let metrics = fetch(running.address, "/metrics").await;
        let counted = format!("lontra_http_denied_total{{reason=\"no_key\"}} {flood}\n");
        assert!(metrics.contains(&counted), "{metrics}");
    }

    #[tokio::test]
    async fn what_reads_many_rows_is_done_a_few_at_a_time() {
        let running = start().await;
        let asked: Vec<_> = (0..3 * SCANS_MAX)
            .map(|_| {
                let address = running.address;
                tokio::spawn(async move { fetch(address, "/api/v1/groups/slow/digest").await })
            })
            .collect();
        for one in asked {
            let answer = one.await.unwrap();
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        }
        let most = running.node.2.1.load(Ordering::SeqCst);
        assert!((1..=SCANS_MAX).contains(&most), "{most} at once");
    }

    #[tokio::test]
    async fn a_port_in_use_is_named_with_its_key() {
        let running = start().await;
        let error = HttpServer::bind(running.address).await.unwrap_err().to_string();
        let parts = [
            &running.address.to_string(),
            "http.listen",
            "another process has this port",
        ];
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    }
}
