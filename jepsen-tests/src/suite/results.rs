//! What a matrix found, as `cell.json` in each cell's directory, and the page of it that is committed.

use super::matrix::Cell;
use super::numbers;
use crate::runner::{Finished, broker_version, commit, date};
use crate::workload;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::SystemTime;

/// The last result of a cell.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Row {
    pub cell: String,
    pub workload: String,
    pub family: String,
    /// Nodes, with the replicas of a shard where they are fewer.
    pub nodes: String,
    pub date: String,
    pub seed: u64,
    /// Of the broker, and of the tree that it was built from; empty in rows of harnesses that did not tell.
    #[serde(default)]
    pub lontra: String,
    #[serde(default)]
    pub commit: String,
    pub result: String,
    pub seconds: u64,
    pub classes: Vec<String>,
    /// Why it is unknown, the first reason.
    pub unknown: Option<String>,
    pub numbers: String,
}

impl Row {
    pub fn new(finished: &Finished, cell: &Cell) -> Row {
        let verdict = &finished.verdict;
        Row {
            cell: finished.settings.cell(),
            workload: cell.workload.into(),
            family: cell.family.into(),
            nodes: Row::nodes_of(cell),
            date: date(SystemTime::now()),
            seed: finished.settings.seed,
            lontra: broker_version(&finished.settings.binary),
            commit: commit(),
            result: finished.word().into(),
            seconds: finished.took.as_secs(),
            classes: verdict.classes().into_iter().map(Into::into).collect(),
            unknown: finished.failure.clone().or(verdict.unknown.first().cloned()),
            numbers: numbers(finished),
        }
    }

    fn nodes_of(cell: &Cell) -> String {
        let replicas = cell
            .replicas
            .map_or(String::new(), |count| format!(" ({count} replicas)"));
        format!("{}{replicas}", cell.nodes)
    }

    fn is_of(&self, cell: &Cell) -> bool {
        self.workload == cell.workload && self.family == cell.family && self.nodes == Row::nodes_of(cell)
    }

    fn told(&self) -> String {
        let why = match (&self.unknown, self.classes.is_empty()) {
            (_, false) => self.classes.join(", "),
            (Some(reason), true) if self.result != "valid" => reason.chars().take(120).collect(),
            _ => return self.result.clone(),
        };
        format!("{}: {}", self.result, why.replace('|', "/").replace('\n', " "))
    }
}

/// The results in a matrix's directory, by the names of their cells.
pub fn rows(dir: &Path) -> Vec<Row> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let texts = entries.filter_map(|entry| std::fs::read_to_string(entry.path().join("cell.json")).ok());
    let mut rows: Vec<Row> = texts.filter_map(|text| serde_json::from_str(&text).ok()).collect();
    rows.sort_by(|a, b| a.cell.cmp(&b.cell));
    rows
}

pub fn table(rows: &[Row]) -> String {
    let head = "| workload | fault | nodes | date | commit | seed | result | s | numbers |\n|---|---|---|---|---|---:|---|---:|---|\n";
    let lines = rows.iter().map(|row| {
        let told = row.told();
        let Row {
            workload,
            family,
            nodes,
            date,
            seed,
            commit,
            seconds,
            numbers,
            ..
        } = row;
        format!("| {workload} | {family} | {nodes} | {date} | {commit} | {seed} | {told} | {seconds} | {numbers} |\n")
    });
    head.to_owned() + &lines.collect::<String>()
}

/// Which workload × fault checked which promise, with the last results.
fn promises(rows: &[Row]) -> String {
    let mut text = "| promise | checked by: workload × fault → last result |\n|---|---|\n".to_owned();
    for promise in PROMISES {
        let mut by_workload: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for row in rows.iter().filter(|row| checks(row, promise)) {
            let nodes = if row.nodes == "3" {
                String::new()
            } else {
                format!(" on {}", row.nodes)
            };
            let entry = format!("{}{nodes} → {}", row.family, row.result);
            by_workload.entry(&row.workload).or_default().push(entry);
        }
        let cells = by_workload
            .iter()
            .map(|(workload, entries)| format!("**{workload}** × {}", entries.join(", ")));
        text += &format!("| {promise} | {} |\n", cells.collect::<Vec<_>>().join("<br>"));
    }
    text
}

fn checks(row: &Row, promise: &str) -> bool {
    workload::promises(&row.workload).contains(&promise)
        || promise == "P9"
        || (promise == "P10" && crate::checker::back_quickly::JUDGED.contains(&row.family.as_str()))
}

/// As it is committed.
pub fn page(dir: &Path) -> String {
    let rows = rows(dir);
    let valid = rows.iter().filter(|row| row.result == "valid").count();
    let known = super::matrix::cells();
    let missing = known.iter().filter(|cell| !rows.iter().any(|row| row.is_of(cell)));
    let missing: Vec<String> = missing.map(ToString::to_string).collect();
    let missing = match missing.is_empty() {
        true => String::new(),
        false => format!(" Without a result: {}.", missing.join(", ")),
    };
    format!(
        "# The last results of the matrix\n\nWritten by `lontra-jepsen results DIR`, not by hand. {} of {} cells have a result, {valid} of them are valid.{missing} How \
         they are run, and what *unknown* means: [jepsen.md](jepsen.md).\n\n## By promise\n\n{}\n## By cell\n\n{}",
        rows.len(),
        known.len(),
        promises(&rows),
        table(&rows)
    )
}

const PROMISES: [&str; 10] = ["P1", "P2", "P3", "P4", "P5", "P6", "P7", "P8", "P9", "P10"];
