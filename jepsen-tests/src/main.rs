//! `lontra-jepsen`: see `--help`.

use clap::Parser;
use lontra_jepsen::cli::Cli;
use lontra_jepsen::cluster;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = Cli::parse();
    if cli.needs_isolation()
        && let Err(failure) = cluster::isolate()
    {
        eprintln!("{failure}");
        return ExitCode::from(2);
    }
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(cli.execute())
}
