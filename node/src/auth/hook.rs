//! A server that is asked who a client is: POST of JSON, in the shape that EMQX made common.
//!
//! ```text
//!   { "clientid", "username", "password", "peerhost", "listener", "cert_common_name", "cert_subject" }
//!   200 { "result": "allow" | "deny" | "ignore", "is_superuser", "groups", "acl", "expire_at" }      204: allow
//! ```
//!
//! Invariants
//! - whatever is no such answer lets nobody in: a server that is down is no open door.
//! - `bounded`: so many requests are under way, so many wait, and none for longer than its time.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use hyper::header::HeaderValue;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use super::grants;
use super::http_client::{Answer, HttpClient};
use super::identity::{Identity, Proof, is_name};
use crate::config::auth::Http as Settings;

/// The server.
pub struct Hook {
    pub settings: Arc<Settings>,
    client: HttpClient,
    authorization: Option<HeaderValue>,
    running: Semaphore,
    /// Running or waiting.
    admitted: Arc<Semaphore>,
    /// Whether the last one asked answered, so that the log tells of changes.
    is_well: AtomicBool,
}

/// What it is asked.
#[derive(Serialize)]
pub struct Question {
    pub clientid: Box<str>,
    pub username: Option<Box<str>>,
    pub password: Option<String>,
    pub peerhost: Option<String>,
    pub listener: String,
    pub cert_common_name: Option<String>,
    pub cert_subject: Option<String>,
}

/// What it said.
#[derive(Debug)]
pub enum Verdict {
    Allow(Identity),
    Deny,
    /// Others may know the client.
    Ignore,
}

/// Why it is not known what it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoVerdict {
    Unavailable,
    Busy,
}

impl Hook {
    pub fn new(settings: Settings, client: HttpClient, authorization: Option<HeaderValue>) -> Self {
        let running = settings.requests_max as usize;
        Hook {
            settings: Arc::new(settings),
            client,
            authorization,
            running: Semaphore::new(running),
            admitted: Arc::new(Semaphore::new(running + WAITING_MAX)),
            is_well: AtomicBool::new(true),
        }
    }

    /// # Errors
    /// It has not answered, or not as agreed; or too many wait for it.
    pub async fn ask(self: &Arc<Self>, question: Question, runtime: &Handle) -> Result<Verdict, NoVerdict> {
        let admitted = self.admitted.clone().try_acquire_owned().map_err(|_| NoVerdict::Busy)?;
        let this = self.clone();
        let asked = runtime.spawn(async move {
            // The wait for a place counts too.
            let verdict = tokio::time::timeout(this.settings.timeout, this.post(question)).await;
            drop(admitted);
            let timeout = this.settings.timeout;
            this.told(verdict.unwrap_or_else(|_| Err(format!("it does not answer within {timeout:?}"))))
        });
        asked.await.unwrap_or(Err(NoVerdict::Unavailable))
    }

    async fn post(&self, question: Question) -> Result<Verdict, String> {
        let _running = self.running.acquire().await.map_err(|error| error.to_string())?;
        let user = question.username.clone();
        let body = serde_json::to_vec(&question).map_err(|error| error.to_string())?;
        let (url, timeout) = (&self.settings.url, self.settings.timeout);
        let answer = self.client.post_json(url, self.authorization.clone(), body, timeout);
        let answer = answer.await.map_err(|error| error.to_string())?;
        verdict(&answer, user, Proof::Http(self.settings.clone()))
    }

    /// The log tells when it fails, and when it is well again; each refusal is counted.
    fn told(&self, verdict: Result<Verdict, String>) -> Result<Verdict, NoVerdict> {
        let was_well = self.is_well.swap(verdict.is_ok(), Ordering::Relaxed);
        match &verdict {
            Err(error) if was_well => {
                tracing::warn!(
                    url = self.settings.url,
                    error,
                    "auth.http does not answer: it lets nobody in"
                );
            }
            Ok(_) if !was_well => tracing::info!(url = self.settings.url, "auth.http answers again"),
            _ => {}
        }
        verdict.map_err(|_| NoVerdict::Unavailable)
    }
}

/// As in the answer; what is not named here has no meaning for us.
#[derive(Deserialize)]
struct Body {
    result: Decision,
    #[serde(default)]
    is_superuser: bool,
    #[serde(default)]
    groups: Vec<String>,
    acl: Option<Value>,
    expire_at: Option<u64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Decision {
    Allow,
    Deny,
    Ignore,
}

/// What an answer means; `user` is the name that the client gave.
fn verdict(answer: &Answer, user: Option<Box<str>>, proof: Proof) -> Result<Verdict, String> {
    let allowed = |user: Option<Box<str>>| match user {
        Some(name) if !is_name(&name) => Verdict::Deny,
        user => Verdict::Allow(Identity {
            user,
            proof,
            ..Identity::anonymous()
        }),
    };
    let body: Body = match answer.status {
        200 => serde_json::from_slice(&answer.body).map_err(|error| format!("its answer is none: {error}"))?,
        204 => return Ok(allowed(user)),
        status => return Err(format!("it answers with status {status}")),
    };
    let identity = match body.result {
        Decision::Deny => return Ok(Verdict::Deny),
        Decision::Ignore => return Ok(Verdict::Ignore),
        Decision::Allow => match allowed(user) {
            Verdict::Allow(identity) => identity,
            other => return Ok(other),
        },
    };
    if body.groups.len() > GROUPS_MAX || !body.groups.iter().all(|group| is_name(group)) {
        return Err("its groups cannot be used".to_owned());
    }
    let rules = match &body.acl {
        None => None,
        Some(acl) => Some(grants::parse(acl).map_err(|error| format!("its acl cannot be used: {error}"))?),
    };
    Ok(Verdict::Allow(Identity {
        groups: body.groups.into_iter().map(Into::into).collect(),
        rules: rules.map(Into::into),
        is_superuser: body.is_superuser,
        expires: body.expire_at,
        ..identity
    }))
}

impl fmt::Debug for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hook")
            .field("url", &self.settings.url)
            .finish_non_exhaustive()
    }
}

/// Beyond those that are under way.
const WAITING_MAX: usize = 1000;
const GROUPS_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn told(status: u16, body: &str) -> Result<Verdict, String> {
        let answer = Answer {
            status,
            body: body.as_bytes().to_vec().into(),
        };
        verdict(&answer, Some("alice".into()), Proof::None)
    }

    fn allowed(status: u16, body: &str) -> Identity {
        match told(status, body) {
            Ok(Verdict::Allow(identity)) => identity,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_answer_allows_denies_or_knows_nothing() {
        assert_eq!(allowed(204, "").user.as_deref(), Some("alice"));
        let plain = allowed(200, r#"{"result":"allow","client_attrs":{"x":"y"}}"#);
        assert!(!plain.is_superuser && plain.rules.is_none() && plain.expires.is_none());
        let full = allowed(
            200,
            r#"{"result":"allow","is_superuser":true,"groups":["ops"],"expire_at":7,
                "acl":[{"permission":"allow","action":"publish","topic":"a/#"}]}"#,
        );
        assert!(full.is_superuser && full.expires == Some(7) && full.rules.is_some_and(|rules| rules.len() == 1));
        assert_eq!(full.groups.join(","), "ops");
        assert!(matches!(told(200, r#"{"result":"deny"}"#), Ok(Verdict::Deny)));
        assert!(matches!(told(200, r#"{"result":"ignore"}"#), Ok(Verdict::Ignore)));
    }

    #[test]
    fn whatever_else_comes_lets_nobody_in() {
        for (status, body) in [
            (200, ""),
            (200, "allow"),
            (200, "{}"),
            (200, r#"{"result":"ALLOW"}"#),
            (200, r#"{"result":"allow","acl":"all"}"#),
            (200, r#"{"result":"allow","expire_at":"never"}"#),
            (200, r#"{"result":"allow","groups":[""]}"#),
            (201, r#"{"result":"allow"}"#),
            (302, r#"{"result":"allow"}"#),
            (403, r#"{"result":"allow"}"#),
            (500, r#"{"result":"allow"}"#),
        ] {
            assert!(told(status, body).is_err(), "{status} {body}");
        }
    }
}
