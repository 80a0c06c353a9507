//! `run --matrix`: every workload under every family of faults, on 3 and on 5 nodes; a cell is a run of at most five minutes
//! with a result of its own, so that a matrix that was interrupted goes on where it stopped.

use super::{Common, numbers, summary};
use crate::cluster::BackEnd;
use crate::nemesis::Family;
use crate::runner::{Finished, date, run};
use crate::workload;
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::time::SystemTime;

/// What of a cell the table shows; `cell.json` in its directory.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Row {
    cell: String,
    date: String,
    seed: u64,
    result: String,
    seconds: u64,
    classes: Vec<String>,
    numbers: String,
}

/// Which part of the matrix.
#[derive(Clone, Debug)]
pub struct Part {
    pub workloads: Vec<String>,
    pub families: Vec<String>,
    pub nodes: Vec<usize>,
    pub seconds: u64,
}

impl Part {
    pub fn whole(seconds: u64) -> Part {
        let families = std::iter::once("none").chain(Family::ALL.iter().map(|family| family.name()));
        Part {
            workloads: workload::NAMES.iter().map(|name| (*name).into()).collect(),
            families: families.map(Into::into).collect(),
            nodes: vec![3, 5],
            seconds,
        }
    }
}

/// Runs the cells that have no result yet, prints the table; whether every cell is valid.
pub async fn matrix(common: &Common, part: &Part) -> bool {
    for nodes in &part.nodes {
        for workload in &part.workloads {
            for family in &part.families {
                cell(common, part, workload, family, *nodes).await;
            }
        }
    }
    let rows = rows(&common.dir);
    println!("{}", table(&rows));
    rows.iter().all(|row| row.result == "valid")
}

async fn cell(common: &Common, part: &Part, workload: &str, family: &str, nodes: usize) {
    let lacks = |known: Family| known.lacks(common.back_end == BackEnd::Root, nodes).is_some();
    if family.parse().is_ok_and(lacks) {
        return;
    }
    let families: &[&str] = if family == "none" { &[] } else { &[family] };
    let mut settings = common.settings(workload, families, part.seconds);
    settings.nodes = nodes;
    settings.dir = common.dir.join(settings.cell());
    let result = settings.dir.join("cell.json");
    if result.exists() {
        return;
    }
    // What an interrupted run left.
    std::fs::remove_dir_all(&settings.dir).ok();
    let finished = run(settings).await;
    print!("{}", summary(&finished));
    let row = row(&finished);
    let text = serde_json::to_string_pretty(&row).expect("a row has only JSON's types");
    std::fs::write(&result, text).unwrap_or_else(|error| panic!("{}: {error}", result.display()));
    if finished.exit_code() == 0 {
        // A valid cell is told by its numbers; its data would fill the disk.
        std::fs::remove_dir_all(finished.settings.dir.join("cluster")).ok();
        std::fs::remove_file(finished.settings.dir.join("history.jsonl")).ok();
    }
}

fn row(finished: &Finished) -> Row {
    Row {
        cell: finished.settings.cell(),
        date: date(SystemTime::now()),
        seed: finished.settings.seed,
        result: finished.word().into(),
        seconds: finished.took.as_secs(),
        classes: finished.verdict.classes().into_iter().map(Into::into).collect(),
        numbers: numbers(finished),
    }
}

fn rows(dir: &Path) -> Vec<Row> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let texts = entries.filter_map(|entry| std::fs::read_to_string(entry.path().join("cell.json")).ok());
    let mut rows: Vec<Row> = texts.filter_map(|text| serde_json::from_str(&text).ok()).collect();
    rows.sort_by(|a, b| a.cell.cmp(&b.cell));
    rows
}

fn table(rows: &[Row]) -> String {
    let mut text =
        String::from("| workload-faults-nodes | date | seed | result | s | numbers |\n|---|---|---:|---|---:|---|\n");
    for row in rows {
        let result = match row.classes.is_empty() {
            true => row.result.clone(),
            false => format!("{}: {}", row.result, row.classes.join(", ")),
        };
        let Row {
            cell,
            date,
            seed,
            seconds,
            numbers,
            ..
        } = row;
        text += &format!("| {cell} | {date} | {seed} | {result} | {seconds} | {numbers} |\n");
    }
    text
}
