//! Who may use the admin API: keys with roles, asked before anything under `/api` is routed.
//!
//! ```text
//!   request ─▶ another site's page? 403 ─▶ who? ─┬─ keys exist: Authorization: Bearer, else 401
//!                                                └─ none yet: whoever is on this machine, else 403
//!          ─▶ role below what the endpoint needs? 403 ─▶ the endpoint ─▶ audit, of what changes something
//! ```
//!
//! Invariants
//! - `admin-by-default`: an endpoint without a line in [`role_needed`] needs the highest role.
//! - an act goes on, and is audited, also when whoever asked has gone.

use std::net::{IpAddr, SocketAddr};

use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::admin::refuse;
use crate::audit::{Act, Outcome};
use crate::http::Shown;

/// What a caller may do; each may what the one before may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// See everything but keys.
    Read,
    /// And what heals by itself or can be taken back: snapshots, leaderships, bans.
    Operate,
    /// And users, rules and keys.
    Admin,
}

impl Role {
    pub const ALL: [Role; 3] = [Role::Read, Role::Operate, Role::Admin];

    pub fn name(self) -> &'static str {
        match self {
            Role::Read => "read",
            Role::Operate => "operate",
            Role::Admin => "admin",
        }
    }
}

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Id of the key that was shown; none: whoever is on this machine, while there is no key.
    pub key: Option<String>,
    pub role: Role,
}

impl Caller {
    /// For audit records.
    pub fn name(&self) -> String {
        match &self.key {
            Some(id) => format!("key:{id}"),
            None => "local".to_owned(),
        }
    }
}

/// What the node knows of keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Known {
    /// The key that was shown is this one.
    Caller(Caller),
    /// There are keys, and none of them was shown.
    Nobody,
    /// There is no key: whoever is on this machine has this role.
    NoKeys(Role),
}

/// The two ends of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Ends {
    pub remote: SocketAddr,
    pub local: Option<SocketAddr>,
}

impl Ends {
    /// Whether both are this machine.
    fn is_here(&self) -> bool {
        let is_loopback = |address: SocketAddr| address.ip().to_canonical().is_loopback();
        is_loopback(self.remote) && self.local.is_some_and(is_loopback)
    }
}

/// Who may read `/metrics`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MetricsFor {
    /// Whoever is on this machine; from elsewhere, whoever shows a key.
    #[default]
    Keys,
    Everybody,
}

/// Whether this machine asks, for itself.
fn asks_here(headers: &HeaderMap, ends: &Ends) -> bool {
    ends.is_here() && is_host_here(headers) && !is_forwarded(headers)
}

/// Names of clients, groups and peers are in no metric, but how busy a site is, and with what: that is its own matter.
fn decide_metrics(metrics_for: MetricsFor, headers: &HeaderMap, ends: &Ends, known: &Known) -> Result<(), Denied> {
    if metrics_for == MetricsFor::Everybody || asks_here(headers, ends) || matches!(known, Known::Caller(_)) {
        return Ok(());
    }
    Err(match known {
        Known::NoKeys(_) => Denied::MetricsNotHere,
        Known::Caller(_) | Known::Nobody => Denied::NoKey,
    })
}

/// The role that a request needs.
pub fn role_needed(method: &Method, path: &str) -> Role {
    let Some(path) = path.strip_prefix("/api/v1/") else {
        return Role::Admin;
    };
    let segments: Vec<&str> = path.split('/').collect();
    // axum serves HEAD where it serves GET.
    let method = if method == Method::HEAD { "GET" } else { method.as_str() };
    match (method, &segments[..]) {
        ("GET", ["status" | "cluster" | "groups" | "users" | "rules" | "bans"])
        | ("GET", ["groups", _, "digest" | "keys"])
        | ("GET", ["sessions", _] | ["sessions", _, "pending"]) => Role::Read,
        ("POST", ["groups", _, "snapshot" | "leader"]) | ("POST" | "DELETE", ["bans"]) => Role::Operate,
        _ => Role::Admin,
    }
}

/// Why a request goes no further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Denied {
    OtherSite,
    NoKey,
    NotHere,
    MetricsNotHere,
    Role(Role),
}

/// As `lontra_http_denied_total` names them.
pub(crate) const REASONS: [&str; 4] = ["other_site", "no_key", "not_here", "role"];

impl Denied {
    fn name(self) -> &'static str {
        let [other_site, no_key, not_here, role] = REASONS;
        match self {
            Denied::OtherSite => other_site,
            Denied::NoKey => no_key,
            Denied::NotHere | Denied::MetricsNotHere => not_here,
            Denied::Role(_) => role,
        }
    }

    fn status(self) -> StatusCode {
        match self {
            Denied::NoKey => StatusCode::UNAUTHORIZED,
            Denied::OtherSite | Denied::NotHere | Denied::MetricsNotHere | Denied::Role(_) => StatusCode::FORBIDDEN,
        }
    }

    fn why(self) -> String {
        match self {
            Denied::OtherSite => {
                "web pages of other sites may not do this: use curl, or leave out the Origin header".to_owned()
            }
            Denied::NoKey => "show a key of this cluster: `Authorization: Bearer KEY` (lontra key create)".to_owned(),
            Denied::NotHere => "there is no key yet, so that only whoever is on this machine is answered, at a loopback address and \
                                under the name localhost or that address: make one there, with `lontra key create --role admin`"
                .to_owned(),
            Denied::MetricsNotHere => "there is no key yet, so that metrics are for this machine alone, at a loopback address and under the name \
                                       localhost or that address: make a key for whoever scrapes (lontra key create --role read), or set \
                                       http.metrics = \"open\""
                .to_owned(),
            Denied::Role(needed) => format!("this needs a key of the role {}", needed.name()),
        }
    }
}

/// Who asks, and whether they may.
fn decide(
    method: &Method,
    path: &str,
    headers: &HeaderMap,
    ends: &Ends,
    known: Known,
) -> (Option<Caller>, Result<(), Denied>) {
    let is_change = !is_safe(method);
    if is_change && is_of_another_site(headers) {
        return (None, Err(Denied::OtherSite));
    }
    let caller = match known {
        Known::Caller(caller) => caller,
        Known::Nobody => return (None, Err(Denied::NoKey)),
        // A token that nothing can be compared with is no mistake to be silent about.
        Known::NoKeys(_) if headers.contains_key(header::AUTHORIZATION) => return (None, Err(Denied::NoKey)),
        // A name that is not this machine's in Host is a web page whose name was pointed here: its requests count as its own.
        // So is a proxy's on this machine, for whoever is behind it.
        Known::NoKeys(_) if !asks_here(headers, ends) => {
            return (None, Err(Denied::NotHere));
        }
        Known::NoKeys(role) => Caller { key: None, role },
    };
    let needed = role_needed(method, path);
    let may = if caller.role >= needed {
        Ok(())
    } else {
        Err(Denied::Role(needed))
    };
    (Some(caller), may)
}

/// No longer than any path of ours: what nobody may do must not fill the log.
fn act_text(method: &Method, path: &str) -> String {
    let mut end = path.len().min(PATH_BYTES_MAX);
    while !path.is_char_boundary(end) {
        end -= 1;
    }
    format!("{method} {}", &path[..end])
}

/// The key that is shown.
pub(crate) fn token(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

fn is_forwarded(headers: &HeaderMap) -> bool {
    let forwarded = ["forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-real-ip"];
    forwarded.iter().any(|name| headers.contains_key(*name))
}

pub(crate) async fn guard(
    State(shown): State<Shown>,
    ConnectInfo(ends): ConnectInfo<Ends>,
    mut request: Request,
    next: Next,
) -> Response {
    let path = request.uri().path();
    if path == "/metrics" {
        let known = shown.probe.known(token(request.headers()));
        return match decide_metrics(shown.metrics_for, request.headers(), &ends, &known) {
            Ok(()) => next.run(request).await,
            Err(denied) => refused(&shown, denied),
        };
    }
    if path != "/api" && !path.starts_with("/api/") {
        return next.run(request).await;
    }
    let (method, headers) = (request.method().clone(), request.headers());
    let known = shown.probe.known(token(headers));
    let (caller, may) = decide(&method, path, headers, &ends, known);
    let act = (!is_safe(&method)).then(|| Act {
        who: caller.as_ref().map_or_else(|| "nobody".to_owned(), Caller::name),
        what: act_text(&method, request.uri().path_and_query().map_or("", |path| path.as_str())),
        from: ends.remote,
    });
    let Some(caller) = caller.filter(|_| may.is_ok()) else {
        let denied = may.err().unwrap_or(Denied::NoKey);
        if let Some(act) = act {
            shown.audit.denied(act).await;
        }
        return refused(&shown, denied);
    };
    request.extensions_mut().insert(caller);
    let Some(act) = act else { return next.run(request).await };
    let acting = tokio::spawn(async move {
        let response = next.run(request).await;
        let outcome = Outcome::of(&response);
        shown.audit.record(act, outcome).await;
        response
    });
    acting
        .await
        .unwrap_or_else(|_| StatusCode::INTERNAL_SERVER_ERROR.into_response())
}

fn refused(shown: &Shown, denied: Denied) -> Response {
    shown.denied.count(denied.name());
    let mut response = refuse(denied.status(), &denied.why());
    if denied == Denied::NoKey {
        let bearer = header::HeaderValue::from_static("Bearer");
        response.headers_mut().insert(header::WWW_AUTHENTICATE, bearer);
    }
    response
}

fn is_safe(method: &Method) -> bool {
    method == Method::GET || method == Method::HEAD
}

/// Whether a browser sends this for a page that did not come from here: those name their origin with every POST.
fn is_of_another_site(headers: &HeaderMap) -> bool {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    match (headers.get(header::ORIGIN), text(header::HOST)) {
        (None, _) => false,
        (Some(_), host) => text(header::ORIGIN).and_then(|origin| origin.strip_prefix("http://")) != host,
    }
}

/// Whether the request names this machine by an address or as localhost; or nothing, as HTTP/1.0 may.
fn is_host_here(headers: &HeaderMap) -> bool {
    let Some(host) = headers.get(header::HOST) else {
        return true;
    };
    let Ok(host) = host.to_str() else { return false };
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok()
}

/// Longer than any path of the API.
const PATH_BYTES_MAX: usize = 512;

#[cfg(test)]
mod tests {
    use super::*;

    /// Every endpoint there is, with the role it needs; `http.rs` tests that the server knows no other.
    const ENDPOINTS: &[(&str, &str, Role)] = &[
        ("GET", "/api/v1/status", Role::Read),
        ("HEAD", "/api/v1/status", Role::Read),
        ("GET", "/api/v1/cluster", Role::Read),
        ("GET", "/api/v1/groups", Role::Read),
        ("GET", "/api/v1/groups/meta/digest", Role::Read),
        ("GET", "/api/v1/groups/meta/keys", Role::Read),
        ("GET", "/api/v1/sessions/c", Role::Read),
        ("GET", "/api/v1/sessions/c/pending", Role::Read),
        ("GET", "/api/v1/users", Role::Read),
        ("GET", "/api/v1/rules", Role::Read),
        ("GET", "/api/v1/bans", Role::Read),
        ("POST", "/api/v1/groups/meta/snapshot", Role::Operate),
        ("POST", "/api/v1/groups/meta/leader", Role::Operate),
        ("POST", "/api/v1/bans", Role::Operate),
        ("DELETE", "/api/v1/bans", Role::Operate),
        ("PUT", "/api/v1/users/al", Role::Admin),
        ("DELETE", "/api/v1/users/al", Role::Admin),
        ("PUT", "/api/v1/rules", Role::Admin),
        ("GET", "/api/v1/keys", Role::Admin),
        ("POST", "/api/v1/keys", Role::Admin),
        ("DELETE", "/api/v1/keys/k", Role::Admin),
        // What there is not.
        ("GET", "/api/v2/status", Role::Admin),
        ("GET", "/api/v1/status/", Role::Admin),
        ("GET", "/api/v1//status", Role::Admin),
        ("POST", "/api/v1/status", Role::Admin),
        ("OPTIONS", "/api/v1/users", Role::Admin),
    ];

    const HERE: &str = "127.0.0.1:9";

    fn ends(remote: &str, local: &str) -> Ends {
        Ends {
            remote: remote.parse().unwrap(),
            local: Some(local.parse().unwrap()),
        }
    }

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &'static str)| {
            (
                header::HeaderName::from_static(name),
                header::HeaderValue::from_static(value),
            )
        };
        pairs.iter().map(pair).collect()
    }

    fn check(
        method: &str,
        path: &str,
        pairs: &[(&'static str, &'static str)],
        ends: Ends,
        known: Known,
    ) -> Result<(), Denied> {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        decide(&method, path, &headers(pairs), &ends, known).1
    }

    #[test]
    fn no_role_reaches_beyond_itself() {
        for (method, path, needed) in ENDPOINTS {
            for role in Role::ALL {
                let caller = Caller {
                    key: Some("k".into()),
                    role,
                };
                for (known, remote) in [(Known::Caller(caller), "10.0.0.1:5"), (Known::NoKeys(role), HERE)] {
                    let expected = if role >= *needed {
                        Ok(())
                    } else {
                        Err(Denied::Role(*needed))
                    };
                    let found = check(method, path, &[], ends(remote, HERE), known);
                    assert_eq!(found, expected, "{method} {path} as {role:?}");
                }
            }
            let nobody = check(method, path, &[], ends(HERE, HERE), Known::Nobody);
            assert_eq!(nobody, Err(Denied::NoKey), "{method} {path}: this machine is no key");
        }
    }

    #[test]
    fn metrics_are_for_this_machine_and_for_keys_unless_they_are_for_everybody() {
        let reader = || {
            Known::Caller(Caller {
                key: Some("k".into()),
                role: Role::Read,
            })
        };
        let no_keys = || Known::NoKeys(Role::Admin);
        let (there, forwarded) = ("10.0.0.1:5", [("x-forwarded-for", "10.0.0.1")]);
        let host = [("host", "evil.example")];
        for (pairs, remote, local, known, expected) in [
            (&[][..], HERE, HERE, no_keys(), Ok(())),
            (&[], HERE, HERE, Known::Nobody, Ok(())),
            (&[], "[::ffff:127.0.0.2]:5", HERE, Known::Nobody, Ok(())),
            (&[], there, "10.0.0.2:9", reader(), Ok(())),
            (&[], there, "10.0.0.2:9", Known::Nobody, Err(Denied::NoKey)),
            (&[], there, "10.0.0.2:9", no_keys(), Err(Denied::MetricsNotHere)),
            (&[], "10.0.0.2:5", "10.0.0.2:9", no_keys(), Err(Denied::MetricsNotHere)),
            // A proxy on this machine, for whoever is behind it; a page whose name was pointed here.
            (&forwarded, HERE, HERE, Known::Nobody, Err(Denied::NoKey)),
            (&host, HERE, HERE, no_keys(), Err(Denied::MetricsNotHere)),
        ] {
            let (ends, headers) = (ends(remote, local), headers(pairs));
            let found = decide_metrics(MetricsFor::Keys, &headers, &ends, &known);
            assert_eq!(found, expected, "{remote} {known:?}");
            let open = decide_metrics(MetricsFor::Everybody, &headers, &ends, &known);
            assert_eq!(open, Ok(()), "{remote} {known:?}");
        }
    }

    #[test]
    fn without_keys_only_this_machine_is_answered() {
        let known = || Known::NoKeys(Role::Admin);
        let ask = |pairs: &[(&'static str, &'static str)], remote, local| {
            check("GET", "/api/v1/status", pairs, ends(remote, local), known())
        };
        assert_eq!(ask(&[], HERE, "127.0.0.1:18083"), Ok(()));
        assert_eq!(ask(&[], "[::1]:9", "[::1]:18083"), Ok(()));
        assert_eq!(ask(&[], "[::ffff:127.0.0.1]:9", "[::ffff:127.0.0.1]:18083"), Ok(()));
        for (remote, local) in [
            ("10.0.0.1:9", "10.0.0.2:18083"),
            ("10.0.0.2:9", "10.0.0.2:18083"),
            ("10.0.0.1:9", "127.0.0.1:18083"),
        ] {
            assert_eq!(ask(&[], remote, local), Err(Denied::NotHere), "{remote} {local}");
        }
        for host in ["localhost:18083", "LOCALHOST", "127.0.0.1:18083", "[::1]:18083"] {
            assert_eq!(ask(&[("host", host)], HERE, HERE), Ok(()), "{host}");
        }
        for host in ["evil.example:18083", "localhost.evil.example", "[evil]:1", ""] {
            assert_eq!(ask(&[("host", host)], HERE, HERE), Err(Denied::NotHere), "{host}");
        }
        assert_eq!(ask(&[("authorization", "Bearer x")], HERE, HERE), Err(Denied::NoKey));
    }

    #[test]
    fn a_key_is_the_bearer_token() {
        let of = |value: &'static str| token(&headers(&[("authorization", value)])).map(str::to_owned);
        assert_eq!(of("Bearer lontra_a_b").as_deref(), Some("lontra_a_b"));
        assert_eq!(of("bearer  x ").as_deref(), Some("x"));
        assert_eq!((of("Basic x"), of("Bearer")), (None, None));
    }
}
