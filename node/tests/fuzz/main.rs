//! Bytes from outside: clients, browsers, proxies, other nodes, files. What each target holds is in its file; how inputs are
//! made, in `fuzzing`.

mod fuzzing;

mod config;
mod connection;
mod decoders;
mod frames;
mod links;
mod proxy;
mod topics;
mod websocket;

use std::path::PathBuf;

fn corpus(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fuzz/corpus/{name}.hex"))
}
