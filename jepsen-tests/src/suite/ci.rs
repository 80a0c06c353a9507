//! `run --ci`: a fixed list of short runs, and mutants that must be rejected; `quick` is a minute of it.

use super::{Common, mutants, summary};
use crate::cluster::BackEnd;
use crate::runner::{binary, run};

/// Workload, families, seconds of faults, nodes, whether it needs the root back end.
pub type Cell = (&'static str, &'static [&'static str], u64, usize, bool);

pub const FULL: [Cell; 10] = [
    ("queue", &["kill"], 25, 3, false),
    (
        "queue",
        &["partition-isolate", "partition-ring", "partition-one-way"],
        25,
        3,
        false,
    ),
    ("queue", &["power-one", "power-all"], 25, 3, true),
    ("register", &["pause", "partition-halves"], 20, 3, false),
    ("session", &["kill", "partition-halves"], 20, 3, false),
    ("will", &["kill"], 20, 3, false),
    ("shared", &["kill"], 20, 3, false),
    ("subbar", &["packet"], 20, 3, false),
    ("flow", &["pause"], 15, 3, false),
    ("queue", &["part-kill"], 40, 5, true),
];
pub const QUICK: [Cell; 1] = [("queue", &["kill"], 8, 3, false)];
/// Those that show themselves in a few seconds on any back end.
pub const MUTANTS: [&str; 3] = ["no_takeover_fence", "suback_before_commit", "ack_before_commit"];

/// P10's five seconds are those of a machine that runs a cluster, not of one whose two cores also compile: the matrix and
/// runs of one's own judge them as they are.
const PATIENCE: f64 = 2.0;

/// Whether all passed.
pub async fn ci(common: &Common, quick: bool) -> bool {
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    let cells: &[Cell] = if quick { &QUICK } else { &FULL };
    for (workload, families, seconds, nodes, needs_root) in cells {
        let mut settings = common.settings(workload, families, *seconds);
        settings.nodes = *nodes;
        settings.patience = PATIENCE;
        settings.dir = common.dir.join(settings.cell());
        if *needs_root && common.back_end != BackEnd::Root {
            println!("{}: SKIPPED, it needs the root back end", settings.cell());
            skipped += 1;
            continue;
        }
        let finished = run(settings).await;
        print!("{}", summary(&finished));
        match finished.exit_code() {
            0 => passed += 1,
            _ => failed += 1,
        }
    }
    let mutants = if quick { &MUTANTS[..1] } else { &MUTANTS };
    match binary(None, true) {
        Ok(buggy) => {
            let common = Common {
                binary: buggy,
                ..common.clone()
            };
            for name in mutants {
                match mutants::hunt(&common, name).await {
                    Ok(hunt) => {
                        println!("{}", hunt.row("-"));
                        match hunt.is_caught() {
                            true => passed += 1,
                            false => failed += 1,
                        }
                    }
                    Err(reason) => {
                        println!("{name}: {reason}");
                        failed += 1;
                    }
                }
            }
        }
        Err(reason) => {
            println!("mutants: {reason}");
            failed += mutants.len();
        }
    }
    println!("{passed} passed, {failed} failed, {skipped} skipped");
    failed == 0
}
