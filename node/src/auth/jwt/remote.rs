//! A JWK set that is fetched: kept for a while, fetched again for a key that it does not have.
//!
//! ```text
//!   token ─▶ keys_for(kid) ─▶ due? unknown kid? ─▶ one fetch at a time ─▶ Kept
//! ```
//!
//! Invariants
//! - `bounded`: at most one fetch is under way, and one begins only ATTEMPT_GAP after the end of the one before; few wait for
//!   it: tokens with made-up ids make no storm, and no queue.
//! - a server that does not answer takes no key away, and holds nobody up whose key is there.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

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
    turn: Arc<Semaphore>,
    /// Who waits for it.
    waiting: Semaphore,
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
    fn has(&self, key_id: Option<&str>) -> bool {
        self.keys.iter().any(|key| key.is_called(key_id))
    }

    fn step(&self, key_id: Option<&str>, refresh: Duration, now: Instant) -> Step {
        let is_due = self.fetched.is_none_or(|fetched| now - fetched >= refresh);
        let is_known = self.has(key_id);
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
            turn: Arc::new(Semaphore::new(1)),
            waiting: Semaphore::new(WAITING_MAX),
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
            let (has, turn) = (self.kept.state().has(key_id), self.kept.turn.clone());
            if has {
                // Beside: what is there is good until something else is.
                if let Ok(turn) = turn.try_acquire_owned() {
                    runtime.spawn(self.clone().fetch(turn));
                }
            } else if let Ok(_waiting) = self.kept.waiting.try_acquire()
                && let Ok(turn) = turn.acquire_owned().await
                // Whoever had the turn before may have fetched it.
                && step() == Step::Fetch
            {
                let _ = runtime.spawn(self.clone().fetch(turn)).await;
            }
        }
        let state = self.kept.state();
        (state.keys.clone(), state.is_fresh())
    }

    async fn fetch(self: Arc<Self>, _turn: OwnedSemaphorePermit) {
        let got = self.get().await;
        let ended = Some(Instant::now());
        match got {
            Ok(keys) => {
                tracing::debug!(url = self.url, keys = keys.len(), "a JWK set was fetched");
                let mut state = self.kept.state();
                state.keys = Arc::new(keys);
                (state.fetched, state.attempted) = (ended, ended);
            }
            Err(error) => {
                let had = {
                    let mut state = self.kept.state();
                    state.attempted = ended;
                    state.keys.len()
                };
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
/// Beyond, a token with a key that is not there is refused at once, as while the server does not answer.
const WAITING_MAX: usize = 64;

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
