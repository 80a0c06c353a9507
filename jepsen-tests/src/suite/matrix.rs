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
    let mut skipped = Vec::new();
    for cell in cells {
        if let Err(reason) = run_cell(common, cell, seconds).await {
            println!("{cell}: SKIPPED: {reason}");
            skipped.push(cell);
        }
    }
    let rows = results::rows(&common.dir);
    println!("{}", results::table(&rows));
    let now = crate::runner::commit();
    let older = rows.iter().filter(|row| row.commit != now).count();
    if older > 0 {
        println!("{older} of {} rows are of another commit than {now:?}", rows.len());
    }
    for cell in &skipped {
        println!("skipped: {cell}");
    }
    skipped.is_empty() && rows.iter().all(|row| row.result == "valid")
}

/// Those of `cells` that were asked for.
///
/// # Errors
/// A name that no cell has: it was to be run, and would not be.
pub fn chosen(
    mut cells: Vec<Cell>,
    workloads: &[String],
    families: &[String],
    nodes: &[usize],
) -> Result<Vec<Cell>, String> {
    let unknown = |kind: &str, names: &[String], known: &dyn Fn(&Cell, &str) -> bool| {
        let missing = names.iter().find(|name| !cells.iter().any(|cell| known(cell, name)));
        missing.map_or(Ok(()), |name| {
            Err(format!("no cell of the matrix has the {kind} `{name}`"))
        })
    };
    unknown("workload", workloads, &|cell, name| cell.workload == name)?;
    unknown("fault", families, &|cell, name| cell.family == name)?;
    if let Some(count) = nodes
        .iter()
        .find(|count| !cells.iter().any(|cell| cell.nodes == **count))
    {
        return Err(format!("no cell of the matrix has {count} nodes"));
    }
    let wanted = |of: &[String], name: &str| of.is_empty() || of.iter().any(|wanted| wanted == name);
    cells.retain(|cell| {
        wanted(workloads, cell.workload)
            && wanted(families, cell.family)
            && (nodes.is_empty() || nodes.contains(&cell.nodes))
    });
    match cells.is_empty() {
        true => Err("no cell of the matrix has all of that".into()),
        false => Ok(cells),
    }
}

/// # Errors
/// Why the cell cannot be run here.
async fn run_cell(common: &Common, cell: &Cell, seconds: u64) -> Result<(), String> {
    if cell.family != "none" {
        let family: Family = cell.family.parse()?;
        if let Some(reason) = family.lacks(common.back_end == BackEnd::Root, cell.nodes) {
            return Err(reason.into());
        }
    }
    let families: &[&str] = if cell.family == "none" { &[] } else { &[cell.family] };
    let mut settings = common.settings(cell.workload, families, seconds);
    settings.nodes = cell.nodes;
    settings.replicas = cell.replicas;
    settings.dir = common.dir.join(settings.cell());
    let result = settings.dir.join("cell.json");
    // One that was cut off in the middle of being written is none.
    let text = std::fs::read_to_string(&result).unwrap_or_default();
    if serde_json::from_str::<Row>(&text).is_ok() {
        return Ok(());
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
    Ok(())
}

impl std::fmt::Display for Cell {
    fn fmt(&self, to: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(to, "{} × {} on {}", self.workload, self.family, self.nodes)?;
        self.replicas.map_or(Ok(()), |count| write!(to, " ({count} replicas)"))
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
const FOLLOWED: [(&str, &str); 14] = [
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
    ("queue", "power-all"),
    ("queue", "flip-kill"),
    ("flow", "kill"),
    ("subbar", "partition-isolate"),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload;
    use std::collections::BTreeSet;

    #[test]
    fn what_no_cell_has_is_an_error_not_an_empty_matrix() {
        let names = |name: &str| vec![name.to_owned()];
        let chosen = |workloads: &[String], families: &[String], nodes: &[usize]| {
            super::chosen(cells(), workloads, families, nodes)
        };
        assert!(chosen(&names("queues"), &[], &[]).is_err());
        assert!(chosen(&[], &names("killl"), &[]).is_err());
        assert!(chosen(&[], &[], &[4]).is_err());
        assert!(
            chosen(&names("flow"), &names("flip-wal"), &[]).is_err(),
            "each is known, not both together"
        );
        let some = chosen(&names("will"), &names("pause"), &[3]).expect("a cell");
        assert_eq!(some.len(), 1, "{some:?}");
        assert_eq!(chosen(&[], &[], &[]).expect("all"), cells());
    }

    #[test]
    fn the_matrix_is_affordable_and_its_cells_are_there_once() {
        let cells = cells();
        assert!(cells.len() <= 110, "{}", cells.len());
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
