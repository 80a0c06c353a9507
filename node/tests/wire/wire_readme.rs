//! README's commands, literally, as a new user would type them: `ops/checks/readme.py` says how.

use std::process::Command;

#[test]
fn its_commands_do_what_it_says() {
    if std::env::var("LONTRA_SKIP_ROOT_TESTS").is_ok_and(|value| value == "1") {
        println!("SKIPPED: LONTRA_SKIP_ROOT_TESTS=1");
        return;
    }
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../ops/checks/readme.py");
    let status = Command::new("python3")
        .args([script, env!("CARGO_BIN_EXE_lontra")])
        .status()
        .expect("python3 runs");
    assert!(status.success(), "{status}; it needs root for a network namespace");
}
