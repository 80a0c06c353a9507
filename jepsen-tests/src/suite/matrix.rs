//! `run --matrix`: queues under every family of faults, every other workload under those that matter for its promise, some with
//! five nodes. A cell is a run with a result of its own, so that a matrix that was interrupted goes on where it stopped.

use super::results::Row;
use super::{Common, results, summary};
use crate::cluster::BackEnd;
use crate::nemesis::Family;
use crate::runner::run;

/// One run of the matrix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cell {
    pub workload: &'static str,
    /// `none`: no faults.
    pub family: &'static str,
    pub nodes: usize,
    pub replicas: Option<usize>,
}

/// All of them, what tells most first.
pub fn cells() -> Vec<Cell> {
    let cell = |workload, family, nodes, replicas| Cell {
        workload,
        family,
        nodes,
        replicas,
    };
    let aimed = AIMED
        .iter()
        .flat_map(|(workload, families)| families.iter().map(|family| cell(*workload, *family, 3, None)));
    let five = FIVE.iter().map(|family| cell("queue", *family, 5, None));
    let followed = FOLLOWED
        .iter()
        .map(|(workload, family)| cell(*workload, *family, 5, Some(3)));
    let all = Family::ALL.iter().map(|family| cell("queue", family.name(), 3, None));
    aimed.chain(followed).chain(five).chain(all).collect()
}

/// Runs those of `cells` that have no result yet, prints the table; whether all that have one are valid.
pub async fn matrix(common: &Common, cells: &[Cell], seconds: u64) -> bool {
    for cell in cells {
        run_cell(common, cell, seconds).await;
    }
    let rows = results::rows(&common.dir);
    println!("{}", results::table(&rows));
    rows.iter().all(|row| row.result == "valid")
}

async fn run_cell(common: &Common, cell: &Cell, seconds: u64) {
    let lacks = |known: Family| known.lacks(common.back_end == BackEnd::Root, cell.nodes).is_some();
    if cell.family.parse().is_ok_and(lacks) {
        return;
    }
    let families: &[&str] = if cell.family == "none" { &[] } else { &[cell.family] };
    let mut settings = common.settings(cell.workload, families, seconds);
    settings.nodes = cell.nodes;
    settings.replicas = cell.replicas;
    settings.dir = common.dir.join(settings.cell());
    let result = settings.dir.join("cell.json");
    if result.exists() {
        return;
    }
    // What an interrupted run left.
    std::fs::remove_dir_all(&settings.dir).ok();
    let finished = run(settings).await;
    print!("{}", summary(&finished));
    let row = Row::new(&finished, cell);
    let text = serde_json::to_string_pretty(&row).expect("a row has only JSON's types");
    std::fs::write(&result, text).unwrap_or_else(|error| panic!("{}: {error}", result.display()));
    if finished.exit_code() == 0 {
        // A valid cell is told by its numbers; its data would fill the disk.
        std::fs::remove_dir_all(finished.settings.dir.join("cluster")).ok();
        std::fs::remove_file(finished.settings.dir.join("history.jsonl")).ok();
    }
}

type Aimed = (&'static str, &'static [&'static str]);

/// With three nodes: the faults that matter for what a workload promises.
const AIMED: [Aimed; 6] = [
    (
        "register",
        &[
            "kill-leader",
            "pause",
            "partition-isolate",
            "partition-halves",
            "partition-stall",
            "slow-link",
            "power-all",
            "snapshot",
            "leader-transfer",
            "clock",
            "none",
        ],
    ),
    (
        "session",
        &[
            "kill-owner",
            "pause",
            "partition-meta-leader",
            "partition-stall",
            "partition-clients",
            "kill-all",
            "power-all",
            "clock",
        ],
    ),
    (
        "subbar",
        &[
            "pause",
            "kill-meta-leader",
            "partition-isolate",
            "partition-one-way",
            "partition-stall",
            "packet",
            "leader-transfer",
        ],
    ),
    (
        "will",
        &["kill-owner", "pause", "partition-clients", "kill-all", "clock"],
    ),
    (
        "shared",
        &[
            "kill",
            "partition-halves",
            "partition-stall",
            "pause",
            "power-all",
            "snapshot",
        ],
    ),
    ("flow", &["kill", "packet", "pause", "partition-clients"]),
];
/// Of queues, with five nodes and as many replicas.
const FIVE: [&str; 6] = [
    "kill",
    "partition-halves",
    "partition-ring",
    "partition-bridge",
    "part-kill",
    "pause-kill",
];
/// With five nodes and three replicas.
const FOLLOWED: [(&str, &str); 10] = [
    ("queue", "kill"),
    ("register", "kill"),
    ("queue", "partition-isolate"),
    ("session", "kill"),
    ("shared", "kill"),
    ("subbar", "pause"),
    ("queue", "kill-all"),
    ("will", "kill"),
    ("queue", "snapshot"),
    ("register", "pause"),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload;
    use std::collections::BTreeSet;

    #[test]
    fn the_matrix_is_affordable_and_its_cells_are_there_once() {
        let cells = cells();
        assert!(cells.len() <= 100, "{}", cells.len());
        let mut names = BTreeSet::new();
        for cell in &cells {
            assert!(workload::NAMES.contains(&cell.workload), "{cell:?}");
            assert!(
                cell.family == "none" || cell.family.parse::<Family>().is_ok(),
                "{cell:?}"
            );
            assert!(names.insert(format!("{cell:?}")), "twice: {cell:?}");
        }
        for family in Family::ALL {
            let queue = |cell: &Cell| cell.workload == "queue" && cell.family == family.name();
            assert!(cells.iter().any(queue), "{family}");
        }
    }
}
