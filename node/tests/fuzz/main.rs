//! Bytes from outside: clients, browsers, proxies, files. What each target holds is in its file; how inputs are made, in
//! `cluster/tests/fuzzing`. Frames of other nodes are fuzzed there too.

#[path = "../../../cluster/tests/fuzzing/mod.rs"]
mod fuzzing;

mod config;
mod connection;
mod decoders;
mod frames;
mod proxy;
mod topics;
mod websocket;

use std::path::PathBuf;

fn corpus(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fuzz/corpus/{name}.hex"))
}
