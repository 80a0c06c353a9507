//! The command line: `lontra serve | dev | cert | config`.
//!
//! Reads arguments and environment, hands over, and turns every failure into one paragraph on standard error and an
//! exit code: 0 done, 1 failed (the paragraph says what happened, to what, and what to do), 2 the command line was not
//! understood.

use std::error::Error;
use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use lontra_ops::telemetry;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::{Config, LogFormat};
use crate::pid_file::PidFile;
use crate::{cert, dev, start, stop_on_stdin_eof};

/// Lontra, a clustered MQTT broker.
#[derive(Parser)]
#[command(name = "lontra", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run one node until SIGTERM or SIGINT.
    Serve(ConfigFile),

    /// Run a cluster of N nodes on this machine, as child processes, for development.
    Dev(dev::Options),

    /// Make the certificates that nodes of a cluster show each other.
    #[command(subcommand)]
    Cert(cert::Command),

    /// Look at a configuration without running anything.
    #[command(subcommand)]
    Config(ConfigCommand),
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// Say whether a node would start with this configuration.
    Check(ConfigFile),

    /// Print the whole configuration that a node would run with: defaults, file and environment together.
    Show(ConfigFile),
}

#[derive(Args)]
struct ConfigFile {
    /// TOML file; without one, defaults and the environment (LONTRA__SECTION__KEY).
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl ConfigFile {
    fn load(&self) -> Result<Config, Failure> {
        Ok(Config::load(self.config.as_deref(), environment())?)
    }
}

/// Runs the command that the arguments name; never panics on what a user may do.
pub fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // Nobody may be reading: then the exit code alone tells it.
            let _ = writeln!(std::io::stderr(), "lontra: {failure}");
            ExitCode::FAILURE
        }
    }
}

/// Prints a line to standard output; a reader that has gone away is no reason to stop.
pub(crate) fn say(line: impl fmt::Display) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// Where a node of this configuration keeps its pid and lock.
pub(crate) fn pid_path(config: &Config) -> PathBuf {
    config.node.data_dir.join("lontra.pid")
}

/// The variables whose name and value are text; no other can be one of Lontra's.
pub(crate) fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
}

fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Serve(file) => serve(file.load()?),
        Command::Dev(options) => runtime()?.block_on(dev::run(&options)).map_err(Failure::from),
        Command::Cert(command) => cert::run(&command).map(say).map_err(Failure::from),
        Command::Config(ConfigCommand::Check(file)) => {
            let config = file.load()?;
            say(format_args!("ok: {}", summary(&config, file.config.as_deref())));
            Ok(())
        }
        Command::Config(ConfigCommand::Show(file)) => {
            let shown = file.load()?.effective_toml();
            std::io::stdout()
                .write_all(shown.as_bytes())
                .map_err(|error| Failure(format!("cannot print: {error}")))
        }
    }
}

fn serve(config: Config) -> Result<(), Failure> {
    telemetry::start(&config.log.level, log_format(&config))?;
    stop_on_stdin_eof::watch();
    raise_file_limit(config.mqtt.connections_max);
    let pid_file = PidFile::create(&pid_path(&config))?;
    runtime()?.block_on(start::serve(config))?;
    drop(pid_file);
    Ok(())
}

/// Each connection is a file descriptor, and shells give 1024 unless asked.
fn raise_file_limit(connections_max: u32) {
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
    let needed = u64::from(connections_max) + OTHER_FILES;
    if let Some(open_files_max) = getrlimit(Resource::Nofile).current.filter(|&limit| limit < needed) {
        tracing::warn!(
            open_files_max,
            needed,
            "too few open files for mqtt.connections_max: raise ulimit -n, or lower it"
        );
    }
}

fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    let built = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("lontra-main")
        .build();
    built.map_err(|error| {
        Failure(format!(
            "cannot start threads: {error}; raise this user's limit of processes"
        ))
    })
}

fn log_format(config: &Config) -> telemetry::Format {
    match config.log.format {
        LogFormat::Text => telemetry::Format::Text,
        LogFormat::Json => telemetry::Format::Json,
    }
}

fn summary(config: &Config, file: Option<&Path>) -> String {
    let source = file.map_or_else(|| "defaults".to_owned(), |file| file.display().to_string());
    format!(
        "{source}: node {} of {} in cluster {}, {} shards on {} nodes each, data in {}",
        config.node.id,
        config.cluster.node_count(),
        config.cluster.name,
        config.cluster.shards,
        config.cluster.replicas(),
        config.node.data_dir.display(),
    )
}

/// An error as one paragraph: its text, and that of its causes where it does not hold it already.
#[derive(Debug)]
struct Failure(String);

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<E: Error> From<E> for Failure {
    fn from(error: E) -> Self {
        let mut paragraph = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            let text = error.to_string();
            if !paragraph.contains(&text) {
                paragraph = format!("{paragraph}: {text}");
            }
            cause = error.source();
        }
        Self(paragraph.split_whitespace().collect::<Vec<_>>().join(" "))
    }
}

/// Databases, links, listeners: a few hundred.
const OTHER_FILES: u64 = 500;

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
        for line in [
            "lontra serve",
            "lontra serve --config a.toml",
            "lontra dev --nodes 3 --data-dir d",
            "lontra dev --nodes 3 --data-dir d --base-port 20000",
            "lontra cert authority --dir ca",
            "lontra cert node --authority ca --cluster lontra --node 2 --dir tls",
            "lontra config check --config a.toml",
            "lontra config show",
        ] {
            assert!(Cli::try_parse_from(line.split(' ')).is_ok(), "{line}");
        }
        for line in [
            "lontra",
            "lontra serve a.toml",
            "lontra dev --nodes 0 --data-dir d",
            "lontra dev --nodes 65 --data-dir d",
        ] {
            assert!(Cli::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
    }

    #[test]
    fn a_failure_is_one_paragraph_with_each_cause_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot start:\n {reason}")]
        struct Outer {
            reason: &'static str,
            source: Inner,
        }
        #[derive(Debug, thiserror::Error)]
        #[error("port taken")]
        struct Inner;

        let told = |reason| Failure::from(Outer { reason, source: Inner }).to_string();
        assert_eq!(told("port taken"), "cannot start: port taken");
        assert_eq!(told("node 1"), "cannot start: node 1: port taken");
    }
}
