//! What was done to the cluster by people and their programs: one record per act, also of one that was denied.
//!
//! ```text
//!   act ─▶ who · what · subject · from · outcome ─┬─▶ a log line, target `audit`
//!                                                 └─▶ log.audit_file: one JSON object per line
//! ```
//!
//! Whoever may not do anything must not fill the log or the disk either: of what is denied only so many are recorded, and the
//! next that is says how many were not. All are counted (`lontra_http_denied_total`).
//!
//! Passwords, hashes and keys are no part of a record: it has the request's line, never its body.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Value, json};

/// What is being done.
#[derive(Clone, Debug)]
pub(crate) struct Act {
    pub who: String,
    /// Method and path.
    pub what: String,
    pub from: SocketAddr,
}

/// What an act was about, where its path does not say it; an extension of the response.
#[derive(Clone, Debug)]
pub(crate) struct Subject(pub String);

/// How an act ended.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    subject: Option<String>,
    outcome: String,
}

impl Outcome {
    pub(crate) fn of(response: &Response) -> Outcome {
        Outcome {
            subject: response.extensions().get::<Subject>().map(|subject| subject.0.clone()),
            outcome: match response.status() {
                status if status.is_success() => "done".to_owned(),
                // Perhaps it was carried out.
                StatusCode::GATEWAY_TIMEOUT => "unknown".to_owned(),
                status => format!("refused ({})", status.as_u16()),
            },
        }
    }
}

/// Where records go.
#[derive(Clone, Debug, Default)]
pub struct Audit {
    file: Option<PathBuf>,
    denied: Arc<Mutex<Room>>,
}

/// For records of what was denied: a token bucket.
#[derive(Debug)]
struct Room {
    left: u32,
    /// Up to when it was filled.
    filled: Instant,
    /// Since the last that was recorded.
    left_out: u64,
}

impl Default for Room {
    fn default() -> Self {
        Room {
            left: DENIED_BURST,
            filled: Instant::now(),
            left_out: 0,
        }
    }
}

impl Room {
    /// How many were left out before this one; none if this one is, too.
    fn take(&mut self, now: Instant) -> Option<u64> {
        let since = now.saturating_duration_since(self.filled);
        let fresh = u32::try_from(since.as_millis() / DENIED_EVERY.as_millis()).unwrap_or(u32::MAX);
        if fresh > 0 {
            self.left = self.left.saturating_add(fresh).min(DENIED_BURST);
            self.filled = match self.left {
                DENIED_BURST => now,
                _ => self.filled + DENIED_EVERY * fresh,
            };
        }
        if self.left == 0 {
            self.left_out += 1;
            return None;
        }
        self.left -= 1;
        Some(std::mem::take(&mut self.left_out))
    }
}

impl Audit {
    /// Into the log, and into `file` if its name is not empty. It is opened for each record, so that it can be rotated by
    /// renaming it.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn new(file: &Path) -> io::Result<Audit> {
        if file.as_os_str().is_empty() {
            return Ok(Audit::default());
        }
        open(file)?;
        Ok(Audit {
            file: Some(file.to_owned()),
            ..Audit::default()
        })
    }

    /// Somebody asked for what they may not.
    pub(crate) async fn denied(&self, act: Act) {
        let taken = self
            .denied
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take(Instant::now());
        let subject = match taken {
            None => return,
            Some(0) => None,
            Some(left_out) => Some(format!("{left_out} more were denied before and are not recorded")),
        };
        let outcome = Outcome {
            subject,
            outcome: "denied".to_owned(),
        };
        self.record(act, outcome).await;
    }

    pub(crate) async fn record(&self, act: Act, outcome: Outcome) {
        let Act { who, what, from } = act;
        let Outcome { subject, outcome } = outcome;
        tracing::info!(
            target: "audit",
            who,
            what,
            subject = subject.as_deref().unwrap_or_default(),
            %from,
            outcome,
            "administration"
        );
        let Some(file) = self.file.clone() else { return };
        let line = json!({
            "unix_ms": SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64,
            "who": who,
            "what": what,
            "subject": subject,
            "from": from.to_string(),
            "outcome": outcome,
        });
        let path = file.clone();
        let written = tokio::task::spawn_blocking(move || append(&path, &line)).await;
        if let Ok(Err(error)) = written {
            tracing::error!(file = %file.display(), %error, "log.audit_file cannot be written: the record is in this log only");
        }
    }
}

/// One write: records of several acts do not mix.
fn append(path: &Path, line: &Value) -> io::Result<()> {
    open(path)?.write_all(format!("{line}\n").as_bytes())
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

/// Records of what was denied: so many at once, and one more each time that this has passed.
pub(crate) const DENIED_BURST: u32 = 100;
const DENIED_EVERY: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_denied_has_room_for_so_many_records_and_tells_what_is_left_out() {
        let (mut room, began) = (Room::default(), Instant::now());
        for _ in 0..DENIED_BURST {
            assert_eq!(room.take(began), Some(0));
        }
        assert_eq!((room.take(began), room.take(began)), (None, None));
        let later = began + DENIED_EVERY * 3 / 2;
        assert_eq!((room.take(later), room.take(later)), (Some(2), None));
        assert_eq!(room.take(began + DENIED_EVERY * 2), Some(1), "halves add up");
        let long_after = began + DENIED_EVERY * 100_000;
        for _ in 0..DENIED_BURST {
            assert_eq!(room.take(long_after), Some(0));
        }
        assert_eq!(room.take(long_after), None);
    }
}
