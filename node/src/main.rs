//! The one binary, `lontra`. What it can do stands in `cli.rs`, what a node consists of in `start.rs`.

use std::process::ExitCode;

fn main() -> ExitCode {
    lontra::cli::main()
}
