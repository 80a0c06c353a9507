//! Open files: each connection is one, and shells give 1024 unless asked.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the limit as far as this process may.
pub fn raise() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            ..limit
        },
    ) {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}

/// Warns if there are too few for `connections_max`.
pub fn check(connections_max: u32) {
    let needed = u64::from(connections_max) + OTHER_FILES;
    if let Some(open_files_max) = getrlimit(Resource::Nofile).current.filter(|&limit| limit < needed) {
        tracing::warn!(
            open_files_max,
            needed,
            "too few open files for mqtt.connections_max: raise ulimit -n, or lower it"
        );
    }
}

/// Databases, links, listeners: a few hundred.
const OTHER_FILES: u64 = 500;
