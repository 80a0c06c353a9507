//! `lontra-jepsen`: see `--help`.

use clap::Parser;
use lontra_jepsen::cli::Cli;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = Cli::parse();
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(cli.execute())
}
