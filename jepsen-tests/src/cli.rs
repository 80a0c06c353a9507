//! The command line. Exit status: 0 valid, 1 invalid, 2 unknown or a harness that failed.

use crate::checker::{self, Profile, Validity};
use crate::cluster::BackEnd;
use crate::nemesis::Family;
use crate::runner::{self, Settings, binary, run};
use crate::suite::{Common, ci, matrix, mutants, results, soak, summary};
use crate::{export, history, report, workload};
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// Fault tests for Lontra: drives real nodes, breaks things, judges what clients saw.
#[derive(Parser)]
#[command(version)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// One run, or a set of them.
    Run(Box<Run>),
    /// Each bug on purpose with the run that must catch it (LONTRA_BUGGY_BIN, or --binary).
    Mutants {
        /// All, if none is named.
        names: Vec<String>,
        #[command(flatten)]
        shared: Shared,
    },
    /// Workloads, families of faults, checkers and mutants.
    List,
    /// Judges a history again.
    Check {
        history: PathBuf,
        /// A profile (JSON), for example that of `run.json`; without: all checkers, no coverage.
        #[arg(long)]
        profile: Option<PathBuf>,
        /// Writes the report here.
        #[arg(long)]
        report: Option<PathBuf>,
    },
    /// Writes `report.html` of a run directory again.
    Report { directory: PathBuf },
    /// The last results of a matrix, as the Markdown page that is committed.
    Results {
        directory: PathBuf,
        /// Writes it here, whole (ops/docs/jepsen-results.md); without: to standard output.
        #[arg(long, value_name = "FILE")]
        write: Option<PathBuf>,
    },
    /// A history for checkers of others.
    Export {
        history: PathBuf,
        #[arg(long, value_enum)]
        format: Format,
        /// Where files go, one per register or session; without: to standard output, each after a line `;; NAME`.
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Jepsen's maps, all events.
    Edn,
    /// Knossos: a register per retained topic.
    Knossos,
    /// Jepsen's set-full: what a session received.
    SetFull,
    /// porcupine: call and return events of a register per retained topic.
    Porcupine,
}

#[derive(Args)]
struct Shared {
    /// The broker; without: LONTRA_BIN.
    #[arg(long)]
    binary: Option<PathBuf>,
    /// Where run directories go.
    #[arg(long, default_value = "jepsen-runs")]
    out: PathBuf,
    /// Without: the clock.
    #[arg(long)]
    seed: Option<u64>,
    /// Messages a second, in total.
    #[arg(long, default_value_t = 300)]
    rate: u32,
    #[arg(long, value_enum, default_value_t = Ground::Plain)]
    back_end: Ground,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Ground {
    /// Namespaces and a file system per node; needs root.
    Root,
    /// Loopback with relays.
    Plain,
}

#[derive(Args)]
struct Run {
    #[command(flatten)]
    shared: Shared,
    #[arg(long, default_value = "queue")]
    workload: String,
    /// Families, comma-separated; without: none.
    #[arg(long, value_delimiter = ',')]
    nemesis: Vec<String>,
    #[arg(long, default_value_t = 3)]
    nodes: usize,
    /// Of each shard: 1, 3 or 5; without: as many as nodes.
    #[arg(long)]
    replicas: Option<usize>,
    /// Of faults; a cell of the matrix and an epoch of the soak have as many.
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// Ends with so many faults; `--seconds` is the longest that it may take. Fewer are too few: unknown.
    #[arg(long, value_name = "COUNT")]
    faults_min: Option<u64>,
    /// One fault at a time, the families in turn: outages are those of one fault each.
    #[arg(long)]
    in_turn: bool,
    /// A bug on purpose (a binary built with `test-bugs`, LONTRA_BUGGY_BIN).
    #[arg(long)]
    bug: Option<String>,
    /// The set for CI: `full` (ten minutes) or `quick` (one).
    #[arg(long, value_name = "SIZE", num_args = 0..=1, default_missing_value = "full", conflicts_with_all = ["matrix", "soak"])]
    ci: Option<String>,
    /// The cells of the matrix; only those named with --only-… if any.
    #[arg(long)]
    matrix: bool,
    /// Goes on in this directory, instead of --out.
    #[arg(long)]
    resume: Option<PathBuf>,
    #[arg(long, value_delimiter = ',')]
    only_workloads: Vec<String>,
    #[arg(long, value_delimiter = ',')]
    only_families: Vec<String>,
    #[arg(long, value_delimiter = ',')]
    only_nodes: Vec<usize>,
    /// Epochs of chaos without end.
    #[arg(long)]
    soak: bool,
    /// Ends a soak.
    #[arg(long)]
    minutes: Option<u64>,
}

impl Cli {
    /// Whether namespaces are to be entered before any thread is started.
    pub fn needs_isolation(&self) -> bool {
        match &self.command {
            Command::Run(run) => run.shared.back_end == Ground::Root,
            Command::Mutants { shared, .. } => shared.back_end == Ground::Root,
            _ => false,
        }
    }

    pub async fn execute(self) -> ExitCode {
        let status = match self.command {
            Command::Run(run) => self::run_command(*run).await,
            Command::Mutants { names, shared } => match shared.common(true) {
                Ok(common) => mutants::mutants(&common, &names).await.map(|caught| i32::from(!caught)),
                Err(reason) => Err(reason),
            },
            Command::List => list(),
            Command::Check {
                history,
                profile,
                report,
            } => check(&history, profile, report),
            Command::Report { directory } => runner::write_report(&directory).map(|()| 0),
            Command::Results { directory, write } => results(&directory, write),
            Command::Export { history, format, out } => export_command(&history, format, out),
        };
        match status {
            Ok(status) => ExitCode::from(status as u8),
            Err(reason) => {
                eprintln!("{reason}");
                ExitCode::from(2)
            }
        }
    }
}

impl Shared {
    fn common(self, bug: bool) -> Result<Common, String> {
        Ok(Common {
            binary: binary(self.binary, bug)?,
            dir: self.out,
            seed: self.seed.unwrap_or_else(clock_seed),
            rate: self.rate,
            back_end: match self.back_end {
                Ground::Root => BackEnd::Root,
                Ground::Plain => BackEnd::Plain,
            },
        })
    }
}

async fn run_command(args: Run) -> Result<i32, String> {
    let mut common = args.shared.common(args.bug.is_some())?;
    if let Some(size) = args.ci {
        return match size.as_str() {
            "full" | "quick" => Ok(i32::from(!ci::ci(&common, size == "quick").await)),
            _ => Err(format!("there is no set for CI of size `{size}`: full, quick")),
        };
    }
    if args.matrix {
        common.dir = args.resume.unwrap_or(common.dir);
        let cells = matrix::chosen(
            matrix::cells(),
            &args.only_workloads,
            &args.only_families,
            &args.only_nodes,
        )?;
        return Ok(i32::from(!matrix::matrix(&common, &cells, args.seconds.min(240)).await));
    }
    if args.soak {
        let limit = args.minutes.map(|minutes| Duration::from_secs(60 * minutes));
        return Ok(i32::from(!soak::soak(&common, args.seconds, limit).await));
    }
    if !workload::NAMES.contains(&args.workload.as_str()) {
        return Err(format!(
            "there is no workload `{}`: {}",
            args.workload,
            workload::NAMES.join(", ")
        ));
    }
    let families = families(&args.nemesis)?;
    if families.is_empty() && args.faults_min.is_some() {
        return Err("--faults-min without --nemesis: there is nothing to count".into());
    }
    let base: Settings = common.settings(&args.workload, &families, args.seconds);
    let mut settings = Settings {
        nodes: args.nodes,
        replicas: args.replicas,
        in_turn: args.in_turn,
        faults_min: args.faults_min,
        bug: args.bug,
        ..base
    };
    settings.dir = common.dir.join(format!("{}-{}", settings.cell(), settings.seed));
    let finished = run(settings).await;
    print!("{}", summary(&finished));
    Ok(finished.exit_code())
}

/// `partition-*` is all families that begin so; `none` is none.
fn families(names: &[String]) -> Result<Vec<&'static str>, String> {
    let mut families = Vec::new();
    for name in names.iter().filter(|name| *name != "none") {
        match name.strip_suffix('*') {
            Some(beginning) => {
                let all = Family::ALL.iter().map(|family| family.name());
                let before = families.len();
                families.extend(all.filter(|known| known.starts_with(beginning)));
                if families.len() == before {
                    return Err(format!("no family of faults begins with `{beginning}`"));
                }
            }
            None => families.push(name.parse::<Family>()?.name()),
        }
    }
    Ok(families)
}

fn list() -> Result<i32, String> {
    println!("workloads: {}", workload::NAMES.join(", "));
    println!("faults:");
    for family in Family::ALL {
        println!(
            "  {family}{}",
            if family.lacks(false, 5).is_some() {
                " (root)"
            } else {
                ""
            }
        );
    }
    let checkers: Vec<&str> = checker::CHECKERS.iter().map(|(name, _)| *name).collect();
    println!("checkers: {}", checkers.join(", "));
    println!("mutants:");
    for mutant in &mutants::MUTANTS {
        let (name, workload) = (mutant.name, mutant.workload);
        println!(
            "  {name}: {workload} × [{}] {} s",
            mutant.nemeses.join(", "),
            mutant.seconds
        );
    }
    Ok(0)
}

fn results(directory: &Path, write: Option<PathBuf>) -> Result<i32, String> {
    if results::rows(directory).is_empty() {
        return Err(format!("{}: no cell has a result there", directory.display()));
    }
    let page = results::page(directory);
    match write {
        None => print!("{page}"),
        Some(path) => std::fs::write(&path, page).map_err(|error| format!("{}: {error}", path.display()))?,
    }
    Ok(0)
}

fn export_command(path: &Path, format: Format, out: Option<PathBuf>) -> Result<i32, String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let events = history::parse(&text).map_err(|malformed| malformed.to_string())?;
    let model = checker::model::Model::new(&events, &checker::Limits::default());
    let parts = match format {
        Format::Edn => vec![("history".to_owned(), export::edn(&events))],
        Format::Knossos => export::knossos(&model),
        Format::SetFull => export::set_full(&model),
        Format::Porcupine => export::porcupine(&model),
    };
    let extension = if format == Format::Porcupine { "json" } else { "edn" };
    let Some(out) = out else {
        for (name, text) in &parts {
            // A comment of EDN; a history of one part is just that.
            if parts.len() > 1 || format != Format::Edn {
                println!(";; {name}");
            }
            println!("{}", text.trim_end());
        }
        return Ok(0);
    };
    let failed = |path: &Path| format!("{}: cannot be written", path.display());
    std::fs::create_dir_all(&out).map_err(|error| format!("{}: {error}", failed(&out)))?;
    for (number, (name, text)) in parts.iter().enumerate() {
        // Topics hold slashes; the number keeps two names apart that become one.
        let plain = |letter: char| if letter.is_ascii_alphanumeric() { letter } else { '-' };
        let name: String = name.chars().map(plain).collect();
        let path = out.join(format!("{number}-{name}.{extension}"));
        std::fs::write(&path, text).map_err(|error| format!("{}: {error}", failed(&path)))?;
    }
    println!("{} files in {}", parts.len(), out.display());
    Ok(0)
}

fn check(path: &PathBuf, profile: Option<PathBuf>, to: Option<PathBuf>) -> Result<i32, String> {
    let read = |path: &PathBuf| std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()));
    let events = history::parse(&read(path)?).map_err(|malformed| malformed.to_string())?;
    let profile = match profile {
        None => Profile::default(),
        Some(path) => {
            let json: serde_json::Value = serde_json::from_str(&read(&path)?).map_err(|error| error.to_string())?;
            // `run.json` has it under a key.
            let profile = json.get("profile").unwrap_or(&json).clone();
            serde_json::from_value(profile).map_err(|error| error.to_string())?
        }
    };
    let verdict = checker::judge(&events, &profile);
    println!("{}", verdict.to_json());
    if let Some(to) = to {
        std::fs::write(&to, report::render(&events, &verdict)).map_err(|error| error.to_string())?;
    }
    Ok(Validity::exit_code(verdict.valid))
}

fn clock_seed() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    // Short enough to be typed.
    now.map_or(1, |since| since.as_micros() as u64 % 1_000_000_000)
}
