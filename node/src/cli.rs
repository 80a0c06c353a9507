//! The command line: `lontra serve | dev | pub | sub | bench | cert | user | acl | ban | key | config | cluster |
//! completions`.
//!
//! Reads arguments and environment, hands over, and turns every failure into one paragraph on standard error and an
//! exit code: 0 done, 1 failed (the paragraph says what happened, to what, and what to do), 2 the command line was not
//! understood. `lontra cluster status` has codes of its own (`cluster_status.rs`), `lontra pub` and `sub` have those of
//! mosquitto_pub and mosquitto_sub (`cli/mqtt_options.rs`), `lontra bench` has one for losses (`bench/mod.rs`).

mod format;
mod mqtt_options;
mod property;
mod publish;
mod subscribe;

use std::error::Error;
use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use lontra_ops::telemetry;
use rustix::fs::Mode;

use self::mqtt_options::MqttError;
pub use self::mqtt_options::TlsArguments;
use crate::auth::command as user;
use crate::auth::lasting::Lasting;
use crate::config::{Config, LogFormat, Machine, Source, show};
use crate::limits::Protection;
use crate::pid_file::PidFile;
use crate::worker::WorkerConfig;
use crate::{bench, cert, cluster_status, dev, file_limit, operator, start, stop_on_stdin_eof};

/// Lontra, a clustered MQTT broker.
#[derive(Parser)]
#[command(name = "lontra", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run one node until SIGTERM or SIGINT; SIGHUP reads its configuration again.
    Serve(ConfigFile),

    /// Run a cluster of N nodes on this machine, as child processes, for development.
    Dev(dev::Options),

    /// Publish messages: mosquitto_pub's options.
    Pub(Box<publish::Options>),

    /// Subscribe and print messages: mosquitto_sub's options.
    Sub(Box<subscribe::Options>),

    /// Put load on any MQTT broker and measure it.
    Bench(Box<bench::Options>),

    /// Make the certificates that nodes of a cluster show each other.
    #[command(subcommand)]
    Cert(cert::Command),

    /// Users and their passwords: in a file, or with --node in a cluster that runs.
    #[command(subcommand)]
    User(user::Command),

    /// Access rules that a cluster keeps, by a node that runs.
    #[command(subcommand)]
    Acl(operator::Acl),

    /// Who is banned from a cluster, by a node that runs.
    #[command(subcommand)]
    Ban(operator::Ban),

    /// Keys of a cluster's admin API, by a node that runs.
    #[command(subcommand)]
    Key(operator::Key),

    /// Look at a configuration without running anything.
    #[command(subcommand)]
    Config(ConfigCommand),

    /// Look at a running cluster.
    #[command(subcommand)]
    Cluster(ClusterCommand),

    /// Print the completions of a shell.
    #[command(after_help = COMPLETIONS_HELP)]
    Completions {
        /// Which shell.
        shell: Shell,
    },
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// Say whether a node would start with this configuration.
    Check(ConfigFile),

    /// Print the whole configuration that a node would run with, and where each value comes from.
    Show(ConfigFile),
}

#[derive(Subcommand)]
enum ClusterCommand {
    /// Show nodes, leases, leaders, how far replicas lag, and sessions.
    Status(cluster_status::Options),
}

#[derive(Args)]
struct ConfigFile {
    /// TOML file; without one, defaults and the environment (LONTRA__SECTION__KEY).
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl ConfigFile {
    fn load(&self) -> Result<Config, Failure> {
        Ok(self.source().load()?)
    }

    fn source(&self) -> Source {
        Source {
            file: self.config.clone(),
        }
    }
}

/// Runs the command that the arguments name; never panics on what a user may do.
pub fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(code) => code,
        Err(failure) => {
            complain(&failure);
            ExitCode::FAILURE
        }
    }
}

fn complain(failure: &Failure) {
    // Nobody may be reading: then the exit code alone tells it.
    let _ = writeln!(std::io::stderr(), "lontra: {failure}");
}

/// Prints a line to standard output; a reader that has gone away is no reason to stop.
pub(crate) fn say(line: impl fmt::Display) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// Where a node of this configuration keeps its pid and lock.
pub(crate) fn pid_path(config: &Config) -> PathBuf {
    config.node.data_dir.join("lontra.pid")
}

fn run(command: Command) -> Result<ExitCode, Failure> {
    let done = match command {
        Command::Cluster(ClusterCommand::Status(options)) => return Ok(status(&options)),
        Command::Pub(options) => return Ok(spoken(publish::publish(&options))),
        Command::Sub(options) => return Ok(spoken(subscribe::subscribe(&options))),
        Command::Bench(options) => {
            file_limit::raise();
            return Ok(bench::run(&options)?);
        }
        Command::Completions { shell } => print(&completions(shell)),
        Command::Serve(file) => serve(file.source()),
        Command::Dev(options) => runtime()?.block_on(dev::run(&options)).map_err(Failure::from),
        Command::Cert(command) => cert::run(&command).map(say).map_err(Failure::from),
        Command::User(command) => user::run(&command).map(say).map_err(Failure::from),
        Command::Acl(command) => operator::acl(&command).map(say).map_err(Failure::from),
        Command::Ban(command) => operator::ban(&command).map(say).map_err(Failure::from),
        Command::Key(command) => operator::keys(&command).map(say).map_err(Failure::from),
        Command::Config(ConfigCommand::Check(file)) => {
            let config = file.load()?;
            // What a listener shows to clients must be there, too, and whom it believes.
            WorkerConfig::load(&config, &Lasting::for_cores(1), &Protection::new(&config))?;
            say(format_args!("ok: {}", summary(&config, file.config.as_deref())));
            Ok(())
        }
        Command::Config(ConfigCommand::Show(file)) => {
            let loaded = file.source().load_with_origins()?;
            print(show(&loaded, &Machine::here()).as_bytes())
        }
    };
    done.map(|()| ExitCode::SUCCESS)
}

fn print(bytes: &[u8]) -> Result<(), Failure> {
    std::io::stdout()
        .write_all(bytes)
        .map_err(|error| Failure(format!("cannot print: {error}")))
}

/// What `lontra pub` and `lontra sub` end with.
fn spoken(done: Result<ExitCode, MqttError>) -> ExitCode {
    done.unwrap_or_else(|error| {
        let code = error.exit_code();
        complain(&error.into());
        code
    })
}

fn completions(shell: Shell) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "lontra", &mut script);
    script
}

/// Scripts tell by the code whether the cluster is degraded or nobody answered.
fn status(options: &cluster_status::Options) -> ExitCode {
    match cluster_status::run(options) {
        Ok(shown) => {
            let _ = write!(std::io::stdout(), "{}", shown.text);
            shown.code
        }
        Err(error) => {
            complain(&error.into());
            ExitCode::from(cluster_status::NO_ANSWER)
        }
    }
}

fn serve(source: Source) -> Result<(), Failure> {
    let config = source.load()?;
    let log = telemetry::start(&config.log.level, log_format(&config))?;
    stop_on_stdin_eof::watch();
    file_limit::raise();
    file_limit::check(config.mqtt.connections_max);
    // What a node writes holds what clients say, and hashes of what they know: nobody else's to read.
    rustix::process::umask(Mode::RWXG | Mode::RWXO);
    let pid_file = PidFile::create(&pid_path(&config))?;
    runtime()?.block_on(start::serve(config, source, log))?;
    drop(pid_file);
    Ok(())
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

const COMPLETIONS_HELP: &str = "\
Examples:
  lontra completions bash > ~/.local/share/bash-completion/completions/lontra
  lontra completions zsh > ~/.zfunc/_lontra          with fpath+=~/.zfunc before compinit in ~/.zshrc
  lontra completions fish > ~/.config/fish/completions/lontra.fish";

#[cfg(test)]
mod tests {
    use super::*;

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
            "lontra cluster status",
            "lontra cluster status --url http://127.0.0.1:18083 --json",
            "lontra cluster status --config a.toml",
            "lontra pub -h 10.0.0.1 -p 1884 -t a -m x -q 2 -r -i id -c -k 5 -x -1 -u u -P -p- -V 5 -d",
            "lontra pub -t a -l -M 7 -I prefix- -D publish user-property a b -D publish content-type c",
            "lontra pub -t a -n --repeat 3 --repeat-delay 0.5 -V mqttv311",
            "lontra pub -t a -m -5 --will-topic w --will-payload -x --will-qos 2 --will-retain",
            "lontra sub -t a -t b/# -T b/c -C 5 -W 10 -q 1 -v -R -N -V mqttv31",
            "lontra sub -U a -c -i id -E",
            "lontra sub -t a -F %t-%p --retained-only --remove-retained",
            "lontra bench pairs",
            "lontra bench fan-out -b a:1883,[::1]:18800 -n 200 -q 2 -V 3.1.1 --persistent -w 100 -s 0.5 --pid 1,2 --json",
            "lontra bench fan-in --rate 1000 --warmup 0 --patience 1 --payload 28",
            "lontra bench pairs --messages 10",
            "lontra bench pairs --websocket",
            "lontra bench pairs --websocket=/ws --json",
            "lontra bench idle --steps 1000,19000 --raw --sources 250 --settle 1",
            "lontra completions bash",
            "lontra user add users alice --groups a,b",
            "lontra user add --node http://127.0.0.1:18083 alice --groups a,b",
            "lontra user add alice --api http://127.0.0.1:18083 --key-file key",
            "lontra user remove users alice",
            "lontra user remove alice --node http://127.0.0.1:18083",
            "lontra user list users",
            "lontra user list --node http://127.0.0.1:18083",
            "lontra acl list --node http://127.0.0.1:18083",
            "lontra acl set rules --key-file key",
            "lontra ban add --client c --seconds 60 --reason noise",
            "lontra ban remove --address 10.0.0.0/8",
            "lontra key create --role read --label ci",
            "lontra key remove 0123 --even-last",
            "lontra cluster status --key-file key",
        ] {
            assert!(Cli::try_parse_from(line.split(' ')).is_ok(), "{line}");
        }
        for line in [
            "lontra",
            "lontra serve a.toml",
            "lontra cluster",
            "lontra cluster status --url http://127.0.0.1:18083 --config a.toml",
            "lontra dev --nodes 0 --data-dir d",
            "lontra dev --nodes 65 --data-dir d",
            "lontra pub -t a",
            "lontra pub -m x",
            "lontra pub -t a/# -m x",
            "lontra pub -t a -m x -n",
            "lontra pub -t a -m x -q 3",
            "lontra pub -t a -m x -c",
            "lontra pub -t a -l --repeat 2",
            "lontra pub -t a -m x --will-retain",
            "lontra sub",
            "lontra sub -t a/#/b",
            "lontra sub -t a -F %k",
            "lontra sub -t a -W 0",
            "lontra bench",
            "lontra bench pairs -q 3",
            "lontra bench pairs -n 0",
            "lontra bench pairs --rate 0",
            "lontra bench pairs --rate 10 -w 10",
            "lontra bench pairs --payload 27",
            "lontra bench pairs --messages 10 -s 10",
            "lontra bench pairs -s -1",
            "lontra bench idle --raw --persistent",
            "lontra completions tcsh",
            "lontra user add alice",
            "lontra user add users alice --node http://127.0.0.1:18083",
            "lontra user remove alice",
            "lontra user list",
            "lontra user list users --node http://127.0.0.1:18083",
            "lontra acl add allow",
            "lontra ban add",
            "lontra ban add --client c --user u",
            "lontra ban add --client c --seconds 0",
            "lontra key create",
            "lontra key create --role root",
        ] {
            assert!(Cli::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
    }

    #[test]
    fn completions_know_the_commands_and_their_options() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let script = String::from_utf8(completions(shell)).expect("text");
            for word in ["cluster", "sub", "remove-retained", "will-topic"] {
                assert!(script.contains(word), "{shell}: {word}");
            }
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
