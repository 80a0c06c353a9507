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
//! The answers are the node's: it implements [`Admin`]. Every refusal is `{"error": …}` with a status code that says of
//! which kind it is. Nobody is authenticated: the port listens on loopback addresses only, and a POST that a web page
//! sent is refused.

use std::pin::Pin;

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};

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
    /// Not now: trying again may help.
    Unavailable(String),
    /// Something is broken here.
    Failed(String),
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let (status, error) = match self {
            Refusal::BadRequest(error) => (StatusCode::BAD_REQUEST, error),
            Refusal::NotFound(error) => (StatusCode::NOT_FOUND, error),
            Refusal::Conflict(error) => (StatusCode::CONFLICT, error),
            Refusal::Unavailable(error) => (StatusCode::SERVICE_UNAVAILABLE, error),
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
            get(async |State(shown): State<Shown>, Path(group)| answer(shown.probe.digest(group)).await),
        )
        .route(
            "/api/v1/groups/{group}/keys",
            get(async |State(shown): State<Shown>, Path(group)| answer(shown.probe.keys(group)).await),
        )
        .route("/api/v1/groups/{group}/snapshot", post(snapshot))
        .route("/api/v1/groups/{group}/leader", post(transfer))
        .route(
            "/api/v1/sessions/{client_id}/pending",
            get(async |State(shown): State<Shown>, Path(client_id)| answer(shown.probe.pending(client_id)).await),
        )
}

async fn snapshot(State(shown): State<Shown>, Path(group): Path<String>, headers: HeaderMap) -> Response {
    if is_of_another_site(&headers) {
        return other_site();
    }
    answer(shown.probe.snapshot(group)).await
}

async fn transfer(State(shown): State<Shown>, Path(group): Path<String>, headers: HeaderMap, body: Bytes) -> Response {
    if is_of_another_site(&headers) {
        return other_site();
    }
    let to = serde_json::from_slice::<Value>(&body)
        .ok()
        .and_then(|body| body.get("to")?.as_u64());
    match to {
        Some(to) => answer(shown.probe.transfer(group, to)).await,
        None => Refusal::BadRequest(r#"the body must name the new leader's node, as in {"to": 2}"#.to_owned())
            .into_response(),
    }
}

async fn answer(answer: Answer) -> Response {
    match answer.await {
        Ok(body) => Json(body).into_response(),
        Err(refusal) => refusal.into_response(),
    }
}

/// Whether a browser sends this for a page that did not come from here: those name their origin with every POST.
fn is_of_another_site(headers: &HeaderMap) -> bool {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    match (headers.get(header::ORIGIN), text(header::HOST)) {
        (None, _) => false,
        (Some(_), host) => text(header::ORIGIN).and_then(|origin| origin.strip_prefix("http://")) != host,
    }
}

fn other_site() -> Response {
    refuse(
        StatusCode::FORBIDDEN,
        "web pages of other sites may not do this: use curl, or leave out the Origin header",
    )
}

/// For paths that are there, with a method that is not.
pub(crate) async fn wrong_method(method: Method, uri: Uri) -> Response {
    let error = format!(
        "{method} is not served at {}: what changes nothing is asked by GET, the rest by POST",
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
