//! Why the environment could not do what it was asked. None of these says anything about the broker's promises, but for
//! `NodeEnded` and `NotReady`, which a run judges by what was done to the node before.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

#[derive(Debug)]
pub enum Failure {
    /// A file, socket or system call of the harness failed.
    Io { what: String, source: std::io::Error },
    /// A program that the harness needs failed; `detail` is what it said.
    Program { program: String, detail: String },
    /// A node ended by itself; `log` is the end of its log.
    NodeEnded { node: String, status: String, log: String },
    /// A node did not become ready in time; `log` is the end of its log.
    NotReady {
        node: String,
        waited: Duration,
        log: String,
    },
    /// The back end, or this machine, cannot do it: a run that needs it is unknown.
    Unsupported { what: String, why: String },
    /// The admin API refused, or nobody answered.
    Refused { what: String, detail: String },
    /// No free block of ports was found.
    NoPorts,
    /// A file that should be there is not.
    Missing { path: PathBuf, advice: &'static str },
}

impl Failure {
    pub fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Failure {
        let what = what.into();
        |source| Failure::Io { what, source }
    }

    pub fn unsupported(what: impl Into<String>, why: impl Into<String>) -> Failure {
        Failure::Unsupported {
            what: what.into(),
            why: why.into(),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, to: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Failure::Io { what, source } => write!(to, "{what}: {source}"),
            Failure::Program { program, detail } => write!(to, "{program}: {detail}"),
            Failure::NodeEnded { node, status, log } => write!(to, "{node} ended with {status}:\n{log}"),
            Failure::NotReady { node, waited, log } => write!(to, "{node} not ready within {waited:?}:\n{log}"),
            Failure::Unsupported { what, why } => write!(to, "{what} cannot be had here: {why}"),
            Failure::Refused { what, detail } => write!(to, "{what} was refused: {detail}"),
            Failure::NoPorts => write!(to, "no free block of ports on loopback"),
            Failure::Missing { path, advice } => write!(to, "{} is not there: {advice}", path.display()),
        }
    }
}

impl std::error::Error for Failure {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Failure::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}
