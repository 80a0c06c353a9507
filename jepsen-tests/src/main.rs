//! `lontra-jepsen`: see `--help`.

fn main() {}
