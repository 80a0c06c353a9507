//! What operators and fault tests ask of a cluster over HTTP beyond what one node has in memory; JSON both ways.
//!
//!     GET  /api/v1/cluster                     every node, group and session count, gathered from all nodes
//!     GET  /api/v1/groups                      the groups of this node as they stand here
//!     GET  /api/v1/groups/{group}/digest       digest over all rows of one group here
//!     GET  /api/v1/groups/{group}/keys         number of rows by kind
//!     POST /api/v1/groups/{group}/snapshot     checkpoint and purge now
//!     POST /api/v1/groups/{group}/leader       {"to": 2}: hand leadership over
//!     GET  /api/v1/sessions/{client_id}/pending
//!
//! Who may do what: users, rules, bans, keys. What the cluster keeps; a change is answered when it is in effect everywhere.
//!
//!     GET    /api/v1/users                     names and groups
//!     PUT    /api/v1/users/{name}              {"password": …} or {"hash": …}, {"groups": […]}
//!     DELETE /api/v1/users/{name}
//!     GET    /api/v1/rules                     with their version
//!     PUT    /api/v1/rules                     {"rules": […], "version": 7}
//!     GET    /api/v1/bans
//!     POST   /api/v1/bans                      {"client" | "user" | "address": …, "seconds": 60, "reason": …}
//!     DELETE /api/v1/bans?client=… | user=… | address=…
//!     GET    /api/v1/keys
//!     POST   /api/v1/keys                      {"role": "read" | "operate" | "admin", "label": …}: the key, once
//!     DELETE /api/v1/keys/{id}                 ?even_last=true
//!
//! The answers are the node's: it implements [`Admin`]. Every refusal is `{"error": …}` with a status code that says of
//! which kind it is. Who may ask for what is decided before, in `guard.rs`.

use std::collections::BTreeMap;
use std::pin::Pin;

use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post, put};
use axum::{Extension, Json, Router};
use serde_json::{Value, json};

use crate::audit::Subject;
use crate::guard::{Caller, Known};
use crate::http::Shown;

/// The body of an answer, once it is there.
pub type Answer = Pin<Box<dyn Future<Output = Result<Value, Refusal>> + Send>>;

/// What only the node can answer, in its own time.
pub trait Admin: Send + Sync {
    /// Gathered from all nodes; one that does not answer within a second is named.
    fn cluster(&self) -> Answer;

    /// The groups that this node holds, from memory.
    fn groups(&self) -> Value;

    /// Digest of a group's rows with the index that they show.
    fn digest(&self, group: String) -> Answer;

    /// Number of a group's rows by kind.
    fn keys(&self, group: String) -> Answer;

    /// Makes the state durable, and purges the log of the group up to it.
    fn snapshot(&self, group: String) -> Answer;

    /// Hands the leadership of the group to a node.
    fn transfer(&self, group: String, to: u64) -> Answer;

    /// Queue lengths of a client's session by shard.
    fn pending(&self, client_id: String) -> Answer;

    /// Whose key this is, or whether there are keys at all. From memory.
    fn known(&self, token: Option<&str>) -> Known;

    /// What is asked of, or done to, users, rules, bans and keys, by whom.
    fn access(&self, request: AccessRequest, caller: Caller) -> Answer;
}

/// Which part of a list is asked for. `bounded`: no answer holds more than [`Page::LIMIT_MAX`] of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    pub limit: usize,
    /// What a page before named as its `next`.
    pub after: Option<String>,
}

impl Page {
    pub const LIMIT: usize = 1000;
    pub const LIMIT_MAX: usize = 10_000;

    /// What the query of a request says.
    ///
    /// # Errors
    /// `limit` is no number within its bounds, or there is something else.
    fn of(mut query: BTreeMap<String, String>) -> Result<Page, Refusal> {
        let after = query.remove("after");
        let limit = match query.remove("limit") {
            None => Some(Page::LIMIT),
            Some(text) => text.parse().ok().filter(|limit| (1..=Page::LIMIT_MAX).contains(limit)),
        };
        match (limit, query.keys().next()) {
            (Some(limit), None) => Ok(Page { limit, after }),
            (None, _) => Err(Refusal::BadRequest(format!("limit is 1 to {}", Page::LIMIT_MAX))),
            (_, Some(key)) => Err(Refusal::BadRequest(format!(
                "`{key}` is not known here: there is limit and after"
            ))),
        }
    }
}

/// Of users, rules, bans and keys. Bodies are as they came: the node knows what may stand in them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AccessRequest {
    Users(Page),
    PutUser {
        name: String,
        body: Value,
    },
    RemoveUser {
        name: String,
    },
    Rules,
    SetRules {
        body: Value,
    },
    Bans(Page),
    PutBan {
        body: Value,
    },
    /// `body` has the target, as that of PutBan.
    RemoveBan {
        body: Value,
    },
    Keys(Page),
    PutKey {
        body: Value,
    },
    RemoveKey {
        id: String,
        even_last: bool,
    },
}

impl AccessRequest {
    /// What it is about, for the audit: no secret, and nothing that the path says already.
    fn subject(&self) -> Option<String> {
        let text = |body: &Value, keys: &[&str]| {
            let parts = keys.iter().filter_map(|key| Some(format!("{key}={}", body.get(key)?)));
            parts.collect::<Vec<_>>().join(" ")
        };
        match self {
            AccessRequest::PutUser { body, .. } => {
                let secret = ["password", "hash"].into_iter().find(|key| body.get(key).is_some());
                let secret = secret.map(|key| format!("{key} set")).into_iter();
                Some(secret.chain([text(body, &["groups"])]).collect::<Vec<_>>().join(" "))
            }
            AccessRequest::SetRules { body } => Some(text(body, &["rules"])),
            AccessRequest::PutBan { body } | AccessRequest::RemoveBan { body } => {
                Some(text(body, &["client", "user", "address", "seconds", "reason"]))
            }
            AccessRequest::PutKey { body } => Some(text(body, &["role", "label"])),
            AccessRequest::RemoveUser { .. }
            | AccessRequest::RemoveKey { .. }
            | AccessRequest::Users(_)
            | AccessRequest::Rules
            | AccessRequest::Bans(_)
            | AccessRequest::Keys(_) => None,
        }
    }
}

/// Why there is no answer; the text says what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Not understood: the request must be changed.
    BadRequest(String),
    /// No such thing, or not on this node.
    NotFound(String),
    /// Understood, and not to be had like this.
    Conflict(String),
    /// Not for whoever asks, by now.
    Forbidden(String),
    /// Not now: trying again may help. Nothing has changed.
    Unavailable(String),
    /// It may have been carried out: not known. Trying again is safe.
    Unknown(String),
    /// Something is broken here.
    Failed(String),
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let (status, error) = match self {
            Refusal::BadRequest(error) => (StatusCode::BAD_REQUEST, error),
            Refusal::NotFound(error) => (StatusCode::NOT_FOUND, error),
            Refusal::Conflict(error) => (StatusCode::CONFLICT, error),
            Refusal::Forbidden(error) => (StatusCode::FORBIDDEN, error),
            Refusal::Unavailable(error) => (StatusCode::SERVICE_UNAVAILABLE, error),
            Refusal::Unknown(error) => (StatusCode::GATEWAY_TIMEOUT, error),
            Refusal::Failed(error) => (StatusCode::INTERNAL_SERVER_ERROR, error),
        };
        refuse(status, &error)
    }
}

/// `{"error": …}` with a status code.
pub(crate) fn refuse(status: StatusCode, error: &str) -> Response {
    (status, Json(json!({ "error": error }))).into_response()
}

pub(crate) fn routes() -> Router<Shown> {
    Router::new()
        .route(
            "/api/v1/cluster",
            get(async |State(shown): State<Shown>| answer(shown.probe.cluster()).await),
        )
        .route(
            "/api/v1/groups",
            get(async |State(shown): State<Shown>| Json(shown.probe.groups())),
        )
        .route(
            "/api/v1/groups/{group}/digest",
            get(async |State(shown): State<Shown>, Path(group)| scan(&shown, || shown.probe.digest(group)).await),
        )
        .route(
            "/api/v1/groups/{group}/keys",
            get(async |State(shown): State<Shown>, Path(group)| scan(&shown, || shown.probe.keys(group)).await),
        )
        .route("/api/v1/groups/{group}/snapshot", post(snapshot))
        .route("/api/v1/groups/{group}/leader", post(transfer))
        .route(
            "/api/v1/sessions/{client_id}/pending",
            get(async |State(shown): State<Shown>, Path(client_id)| {
                scan(&shown, || shown.probe.pending(client_id)).await
            }),
        )
        .merge(access_routes())
}

type Asked = (State<Shown>, Extension<Caller>);

fn access_routes() -> Router<Shown> {
    Router::new()
        .route(
            "/api/v1/users",
            get(async |asked: Asked, query: PageQuery| listed(asked, query, AccessRequest::Users).await),
        )
        .route("/api/v1/users/{name}", put(put_user).delete(remove_user))
        .route(
            "/api/v1/rules",
            get(async |asked: Asked| access(asked, AccessRequest::Rules).await).put(set_rules),
        )
        .route(
            "/api/v1/bans",
            get(async |asked: Asked, query: PageQuery| listed(asked, query, AccessRequest::Bans).await)
                .post(put_ban)
                .delete(remove_ban),
        )
        .route(
            "/api/v1/keys",
            get(async |asked: Asked, query: PageQuery| listed(asked, query, AccessRequest::Keys).await).post(put_key),
        )
        .route("/api/v1/keys/{id}", delete(remove_key))
}

type PageQuery = Query<BTreeMap<String, String>>;

async fn listed(asked: Asked, Query(query): PageQuery, request: fn(Page) -> AccessRequest) -> Response {
    match Page::of(query) {
        Ok(page) => access(asked, request(page)).await,
        Err(refusal) => refusal.into_response(),
    }
}

async fn put_user(asked: Asked, Path(name): Path<String>, body: Bytes) -> Response {
    match json_of(&body) {
        Ok(body) => access(asked, AccessRequest::PutUser { name, body }).await,
        Err(refusal) => refusal.into_response(),
    }
}

async fn remove_user(asked: Asked, Path(name): Path<String>) -> Response {
    access(asked, AccessRequest::RemoveUser { name }).await
}

async fn set_rules(asked: Asked, body: Bytes) -> Response {
    match json_of(&body) {
        Ok(body) => access(asked, AccessRequest::SetRules { body }).await,
        Err(refusal) => refusal.into_response(),
    }
}

async fn put_ban(asked: Asked, body: Bytes) -> Response {
    match json_of(&body) {
        Ok(body) => access(asked, AccessRequest::PutBan { body }).await,
        Err(refusal) => refusal.into_response(),
    }
}

async fn remove_ban(asked: Asked, Query(query): Query<BTreeMap<String, String>>) -> Response {
    access(asked, AccessRequest::RemoveBan { body: json!(query) }).await
}

async fn put_key(asked: Asked, body: Bytes) -> Response {
    match json_of(&body) {
        Ok(body) => access(asked, AccessRequest::PutKey { body }).await,
        Err(refusal) => refusal.into_response(),
    }
}

async fn remove_key(asked: Asked, Path(id): Path<String>, Query(query): Query<BTreeMap<String, String>>) -> Response {
    let even_last = query.get("even_last").is_some_and(|value| value == "true");
    access(asked, AccessRequest::RemoveKey { id, even_last }).await
}

/// Its error says nothing of the body, which may hold a password.
fn json_of(body: &Bytes) -> Result<Value, Refusal> {
    serde_json::from_slice(body).map_err(|_| Refusal::BadRequest("the body is not JSON".to_owned()))
}

async fn access((State(shown), Extension(caller)): Asked, request: AccessRequest) -> Response {
    let subject = request.subject();
    let mut response = answer(shown.probe.access(request, caller)).await;
    if let Some(subject) = subject {
        response.extensions_mut().insert(Subject(subject));
    }
    response
}

async fn snapshot(State(shown): State<Shown>, Path(group): Path<String>) -> Response {
    answer(shown.probe.snapshot(group)).await
}

async fn transfer(State(shown): State<Shown>, Path(group): Path<String>, body: Bytes) -> Response {
    let to = serde_json::from_slice::<Value>(&body)
        .ok()
        .and_then(|body| body.get("to")?.as_u64());
    match to {
        Some(to) => answer(shown.probe.transfer(group, to)).await,
        None => Refusal::BadRequest(r#"the body must name the new leader's node, as in {"to": 2}"#.to_owned())
            .into_response(),
    }
}

/// What reads many rows: a few at a time, so that whoever may only read takes no more of the disk than that. Those that wait are
/// bounded by the places of the port.
async fn scan(shown: &Shown, ask: impl FnOnce() -> Answer) -> Response {
    // Never closed.
    let _place = shown.scans.acquire().await;
    answer(ask()).await
}

async fn answer(answer: Answer) -> Response {
    match answer.await {
        Ok(body) => Json(body).into_response(),
        Err(refusal) => refusal.into_response(),
    }
}

/// For paths that are there, with a method that is not.
pub(crate) async fn wrong_method(method: Method, uri: Uri) -> Response {
    let error = format!(
        "{method} is not served at {}: what changes nothing is asked by GET, the rest by POST, PUT or DELETE",
        uri.path()
    );
    refuse(StatusCode::METHOD_NOT_ALLOWED, &error)
}

/// For paths that are not there.
pub(crate) async fn wrong_path(uri: Uri) -> Response {
    let error = format!(
        "nothing is served at {}: the paths are listed in ops/docs/operating.md",
        uri.path()
    );
    refuse(StatusCode::NOT_FOUND, &error)
}
