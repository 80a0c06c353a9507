//! `lontra cluster status`: asks one running node for the whole cluster, and prints it for people or for scripts.
//!
//!     GET /api/v1/cluster ─▶ --json: as it came    else: problems, nodes, groups, sessions, in columns
//!
//! The exit code: 0 all is well, 1 something is degraded, 2 no answer.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use lontra_ops::client::{Endpoint, FetchError};
use serde_json::Value;

use crate::config::{Config, ConfigError, environment};
use crate::operator::{self, KeyFile, OperatorError};

/// What to ask, and how to show it.
#[derive(Args)]
#[command(after_help = AFTER_HELP)]
pub struct Options {
    /// HTTP address (http.listen) of any running node of the cluster.
    #[arg(
        long,
        value_name = "URL",
        default_value = "http://127.0.0.1:18083",
        conflicts_with = "config"
    )]
    url: String,

    /// Ask the node that runs with this configuration file instead.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Print the answer as JSON, for scripts: the body of /api/v1/cluster, described in ops/docs/operating.md.
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    key: KeyFile,
}

/// Why nothing can be said of the cluster.
#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error(transparent)]
    Key(#[from] OperatorError),
    #[error("node at {at} answers what this version of lontra does not understand: is it of another version?")]
    NotUnderstood { at: String },
}

/// What is to be printed, and the exit code.
pub struct Shown {
    pub text: String,
    pub code: ExitCode,
}

/// Asks, and puts together what to print.
///
/// # Errors
/// No node answers: the exit code is [`NO_ANSWER`].
pub fn run(options: &Options) -> Result<Shown, StatusError> {
    let endpoint = match &options.config {
        Some(file) => of_config(file)?,
        None => Endpoint::parse(&options.url)?,
    };
    let endpoint = endpoint.with_key(operator::key(options.key.file())?)?;
    let body = endpoint.get("/api/v1/cluster", PATIENCE)?;
    let not_understood = || StatusError::NotUnderstood {
        at: endpoint.authority().to_owned(),
    };
    let status: Value = serde_json::from_str(&body).map_err(|_| not_understood())?;
    let ok = status["ok"].as_bool().ok_or_else(not_understood)?;
    Ok(Shown {
        text: match options.json {
            true => format!("{status:#}\n"),
            false => table(&status, endpoint.authority()),
        },
        code: if ok {
            ExitCode::SUCCESS
        } else {
            ExitCode::from(DEGRADED)
        },
    })
}

fn of_config(file: &Path) -> Result<Endpoint, StatusError> {
    let mut listen = Config::load(Some(file), environment())?.http.listen;
    if listen.ip().is_unspecified() {
        // Every address of the machine is meant: the nearest one.
        listen.set_ip(match listen {
            std::net::SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            std::net::SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        });
    }
    Ok(Endpoint::parse(&format!("http://{listen}"))?)
}

/// The status for people.
fn table(status: &Value, asked: &str) -> String {
    let list = |key: &str| status[key].as_array().map(Vec::as_slice).unwrap_or_default();
    let problems = list("problems");
    let mut text = format!(
        "Cluster {}, as node {} at {asked} sees it: {}\n",
        plain(&status["cluster"]),
        plain(&status["asked"]),
        match problems.len() {
            0 => "all is well".to_owned(),
            1 => "1 problem".to_owned(),
            count => format!("{count} problems"),
        }
    );
    for problem in problems {
        text += &format!("  - {}\n", plain(problem));
    }
    let mut nodes = Columns::new(&[
        "<NODE",
        "<STATE",
        ">LEASE LEFT",
        ">CLIENTS",
        "<DISK",
        "<CLIENT ADDRESS",
        "<HTTP ADDRESS",
        "<PEER ADDRESS",
        ">INCARNATION",
    ]);
    for node in list("nodes") {
        nodes.row(vec![
            plain(&node["node"]),
            state(node),
            milliseconds(&node["lease_left_ms"]),
            plain(&node["clients"]),
            match node["disk_low"].as_bool() {
                Some(true) => "low".to_owned(),
                Some(false) => "ok".to_owned(),
                None => UNKNOWN.to_owned(),
            },
            plain(&node["client_address"]),
            plain(&node["http_address"]),
            plain(&node["peer_address"]),
            plain(&node["incarnation"]),
        ]);
    }
    let mut groups = Columns::new(&[
        "<GROUP",
        ">LEADER",
        ">TERM",
        ">LAST LOG",
        ">COMMITTED",
        ">APPLIED",
        "<ENTRIES BEHIND, BY NODE",
    ]);
    for group in list("groups") {
        let replicas = group["replicas"].as_array().map(Vec::as_slice).unwrap_or_default();
        let lags: Vec<String> = replicas
            .iter()
            .map(|replica| format!("{}: {}", plain(&replica["node"]), plain(&replica["lag"])))
            .collect();
        groups.row(vec![
            plain(&group["group"]),
            plain(&group["leader"]),
            plain(&group["term"]),
            plain(&group["last_log"]),
            plain(&group["committed"]),
            plain(&group["applied"]),
            lags.join("  "),
        ]);
    }
    let sessions = &status["sessions"];
    text += &format!("\n{}\n{}\n", nodes.finish(), groups.finish());
    text += &format!(
        "Sessions: {}, of them {} durable; {} connected\n",
        plain(&sessions["all"]),
        plain(&sessions["durable"]),
        plain(&sessions["connected"])
    );
    if !list("unanswered").is_empty() {
        text += &format!("{UNKNOWN} stands for what only a node that did not answer knows.\n");
    }
    text
}

fn state(node: &Value) -> String {
    let (up, serving) = (node["up"] == true, node["serving"].as_str());
    match (up, serving) {
        (true, Some("serving")) => "up".to_owned(),
        (true, Some(serving)) => format!("up, {serving}"),
        (true, None) => "up, silent".to_owned(),
        (false, Some(serving)) => format!("down, {serving}"),
        (false, None) => "down".to_owned(),
    }
}

fn milliseconds(value: &Value) -> String {
    value
        .as_u64()
        .map_or_else(|| UNKNOWN.to_owned(), |milliseconds| format!("{milliseconds} ms"))
}

/// A value as people write it.
fn plain(value: &Value) -> String {
    match value {
        Value::Null => UNKNOWN.to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Rows whose columns stand under each other: `<` left, `>` right.
struct Columns {
    right: Vec<bool>,
    rows: Vec<Vec<String>>,
}

impl Columns {
    fn new(heads: &[&str]) -> Columns {
        Columns {
            right: heads.iter().map(|head| head.starts_with('>')).collect(),
            rows: vec![heads.iter().map(|head| head[1..].to_owned()).collect()],
        }
    }

    fn row(&mut self, cells: Vec<String>) {
        debug_assert_eq!(cells.len(), self.right.len());
        self.rows.push(cells);
    }

    fn finish(&self) -> String {
        let width = |column: usize| {
            self.rows
                .iter()
                .map(|row| row[column].chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.right.len()).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let cells = row
                .iter()
                .zip(&widths)
                .zip(&self.right)
                .map(|((cell, width), right)| match right {
                    true => format!("{cell:>width$}"),
                    false => format!("{cell:<width$}"),
                });
            let line = cells.collect::<Vec<_>>().join("  ");
            text += line.trim_end();
            text.push('\n');
        }
        text
    }
}

/// Exit code 1: it answers, and says what is wrong.
const DEGRADED: u8 = 1;
/// Exit code 2: nothing is known.
pub const NO_ANSWER: u8 = 2;
/// The node gives its peers a second; this is for a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(5);
const UNKNOWN: &str = "?";
const AFTER_HELP: &str = "\
Exit codes: 0 all is well; 1 something is degraded, named under \"problems\"; 2 no node answered.

The node that is asked collects the answers of all others. LEASE LEFT is as the leader of meta sees it; ENTRIES BEHIND is
how far a replica's log is known to lag behind its leader's; a node that does not answer within a second is named.";

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_table_stands_in_columns() {
        let status = json!({
            "cluster": "lontra", "asked": 1, "ok": false, "meta_leader": 1,
            "problems": ["node 2 is down"], "unanswered": [2],
            "nodes": [
                { "node": 1, "up": true, "answers": true, "serving": "serving", "incarnation": 8192,
                  "lease_left_ms": 1850, "disk_low": false, "clients": 12, "peer_address": "10.0.0.1:17883",
                  "client_address": "127.0.0.1:1883", "http_address": "127.0.0.1:18083" },
                { "node": 2, "up": false, "answers": false, "serving": null, "incarnation": 12288,
                  "lease_left_ms": null, "disk_low": null, "clients": 0, "peer_address": "10.0.0.2:17883",
                  "client_address": null, "http_address": null },
            ],
            "groups": [{ "group": "meta", "leader": 1, "term": 3, "last_log": 120, "committed": 120, "applied": 119,
                "replicas": [{ "node": 1, "lag": 0 }, { "node": 2, "lag": null }] }],
            "sessions": { "all": 20, "durable": 4, "connected": 12 },
        });
        assert_eq!(
            table(&status, "127.0.0.1:18083"),
            "\
Cluster lontra, as node 1 at 127.0.0.1:18083 sees it: 1 problem
  - node 2 is down

NODE  STATE  LEASE LEFT  CLIENTS  DISK  CLIENT ADDRESS  HTTP ADDRESS     PEER ADDRESS    INCARNATION
1     up        1850 ms       12  ok    127.0.0.1:1883  127.0.0.1:18083  10.0.0.1:17883         8192
2     down            ?        0  ?     ?               ?                10.0.0.2:17883        12288

GROUP  LEADER  TERM  LAST LOG  COMMITTED  APPLIED  ENTRIES BEHIND, BY NODE
meta        1     3       120        120      119  1: 0  2: ?

Sessions: 20, of them 4 durable; 12 connected
? stands for what only a node that did not answer knows.
"
        );
    }
}
