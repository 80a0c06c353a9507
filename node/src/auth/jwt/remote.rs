//! A JWK set that is fetched: kept for a while, fetched again for a key that it does not have.
//!
//! ```text
//!   token ─▶ keys_for(kid) ─▶ due? unknown kid? ─▶ one fetch at a time ─▶ Kept
//! ```
//!
//! Invariants
//! - `bounded`: at most one fetch is under way, and one begins only ATTEMPT_GAP after the one before: tokens with made-up
//!   ids make no storm.
//! - a server that does not answer takes no key away.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use super::key::{Key, key_set};
use crate::auth::http_client::{HttpClient, HttpError};

/// The set of one URL.
pub struct RemoteKeys {
    client: HttpClient,
    url: String,
    refresh: Duration,
    kept: Arc<KeptKeys>,
}

/// What was fetched; outlives a reload.
pub struct KeptKeys {
    /// Guards what is read and replaced in a moment.
    state: Mutex<State>,
    /// Whose turn it is to fetch.
    turn: Semaphore,
}

#[derive(Default)]
struct State {
    keys: Arc<Vec<Key>>,
    fetched: Option<Instant>,
    attempted: Option<Instant>,
}

/// What is to be done for a token.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Use,
    Fetch,
    /// It is needed, and was tried a moment ago.
    TooSoon,
}

impl State {
    fn step(&self, key_id: Option<&str>, refresh: Duration, now: Instant) -> Step {
        let is_due = self.fetched.is_none_or(|fetched| now - fetched >= refresh);
        let is_known = !self.keys.is_empty() && self.keys.iter().any(|key| key.is_called(key_id));
        let is_soon = self.attempted.is_some_and(|attempted| now - attempted < ATTEMPT_GAP);
        match (is_due || !is_known, is_soon) {
            (false, _) => Step::Use,
            (true, false) => Step::Fetch,
            (true, true) => Step::TooSoon,
        }
    }

    /// Whether the last attempt brought what is there.
    fn is_fresh(&self) -> bool {
        self.fetched.is_some() && self.fetched == self.attempted
    }
}

impl Default for KeptKeys {
    fn default() -> Self {
        KeptKeys {
            state: Mutex::default(),
            turn: Semaphore::new(1),
        }
    }
}

impl KeptKeys {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics under it")
    }
}

impl RemoteKeys {
    pub fn new(client: HttpClient, url: &str, refresh: Duration, kept: Arc<KeptKeys>) -> Self {
        RemoteKeys {
            client,
            url: url.to_owned(),
            refresh,
            kept,
        }
    }

    /// What was fetched last.
    pub fn kept(&self) -> Arc<Vec<Key>> {
        self.kept.state().keys.clone()
    }

    /// The keys, fetched if they are too old or lack this one; and whether they are what the server has.
    pub async fn keys_for(self: &Arc<Self>, key_id: Option<&str>, runtime: &Handle) -> (Arc<Vec<Key>>, bool) {
        let step = || self.kept.state().step(key_id, self.refresh, Instant::now());
        if step() == Step::Fetch {
            let turn = self.kept.turn.acquire().await;
            // Whoever had the turn before may have fetched it.
            if turn.is_ok() && step() == Step::Fetch {
                let this = self.clone();
                let _ = runtime.spawn(async move { this.fetch().await }).await;
            }
        }
        let state = self.kept.state();
        (state.keys.clone(), state.is_fresh())
    }

    async fn fetch(&self) {
        let began = Instant::now();
        let had = {
            let mut state = self.kept.state();
            state.attempted = Some(began);
            state.keys.len()
        };
        match self.get().await {
            Ok(keys) => {
                tracing::debug!(url = self.url, keys = keys.len(), "a JWK set was fetched");
                let mut state = self.kept.state();
                state.keys = Arc::new(keys);
                state.fetched = Some(began);
            }
            Err(error) => {
                tracing::warn!(
                    url = self.url,
                    error,
                    had,
                    "the JWK set was not fetched: the keys that were there stay"
                );
            }
        }
    }

    async fn get(&self) -> Result<Vec<Key>, String> {
        let answer = self.client.get(&self.url, FETCH_MAX).await;
        let answer = answer.map_err(|error: HttpError| error.to_string())?;
        if answer.status != 200 {
            return Err(format!("it answers with status {}", answer.status));
        }
        key_set(&answer.body).map_err(|error| error.to_string())
    }
}

impl fmt::Debug for RemoteKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemoteKeys")
            .field("url", &self.url)
            .finish_non_exhaustive()
    }
}

const ATTEMPT_GAP: Duration = Duration::from_secs(5);
const FETCH_MAX: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    const REFRESH: Duration = Duration::from_secs(60);

    fn keys() -> Arc<Vec<Key>> {
        let set = br#"{"keys":[{"kty":"OKP","crv":"Ed25519","kid":"one","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;
        Arc::new(key_set(set).expect("a set"))
    }

    #[test]
    fn keys_are_fetched_when_they_are_old_or_unknown_and_not_too_often() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut state = State::default();
        assert_eq!(state.step(None, REFRESH, at(0)), Step::Fetch);
        state.attempted = Some(at(0));
        assert_eq!(state.step(None, REFRESH, at(4)), Step::TooSoon);
        assert!(!state.is_fresh());
        assert_eq!(state.step(None, REFRESH, at(5)), Step::Fetch);
        (state.keys, state.attempted, state.fetched) = (keys(), Some(at(5)), Some(at(5)));
        assert!(state.is_fresh());
        for (kid, seconds, step) in [
            (None, 6, Step::Use),
            (Some("one"), 64, Step::Use),
            (Some("one"), 65, Step::Fetch),
            (Some("two"), 6, Step::TooSoon),
            (Some("two"), 10, Step::Fetch),
        ] {
            assert_eq!(state.step(kid, REFRESH, at(seconds)), step, "{kid:?} at {seconds}");
        }
        state.attempted = Some(at(70));
        assert!(!state.is_fresh(), "the last attempt failed");
        assert_eq!(state.step(Some("one"), REFRESH, at(71)), Step::TooSoon);
    }
}
