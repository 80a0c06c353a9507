//! What was done to the cluster by people and their programs: one record per act, also of one that was denied.
//!
//! ```text
//!   act ─▶ who · what · subject · from · outcome ─┬─▶ a log line, target `audit`
//!                                                 └─▶ log.audit_file: one JSON object per line
//! ```
//!
//! Passwords, hashes and keys are no part of a record: it has the request's line, never its body.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

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
    pub(crate) fn denied() -> Outcome {
        Outcome {
            subject: None,
            outcome: "denied".to_owned(),
        }
    }

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
        })
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
