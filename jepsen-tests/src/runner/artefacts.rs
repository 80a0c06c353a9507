//! What a run leaves in its directory, and judging it again from that alone.

use super::Settings;
use crate::checker::{self, Profile, Validity, Verdict};
use crate::{history, report};
use serde_json::{Value, json};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// `run.json`.
pub(super) fn write_settings(settings: &Settings) {
    let read = |path: &str| {
        std::fs::read_to_string(path)
            .map(|text| text.trim().to_owned())
            .unwrap_or_default()
    };
    let run = json!({
        "date": date(SystemTime::now()),
        "seed": settings.seed,
        "workload": settings.workload,
        "nemeses": settings.nemeses,
        "nodes": settings.nodes,
        "seconds": settings.faults.as_secs(),
        "faults_min": settings.faults_min,
        "patience": settings.patience,
        "rate": settings.rate,
        "back_end": settings.back_end_name(),
        "bug": settings.bug,
        "lie": settings.lie.map(|(lie, every)| format!("{lie:?}, one in {every}")),
        "harness": env!("CARGO_PKG_VERSION"),
        "lontra": broker_version(&settings.binary),
        "commit": commit(),
        "profile": settings.profile(),
        "environment": {
            "kernel": read("/proc/sys/kernel/osrelease"),
            "cores": std::thread::available_parallelism().map_or(0, usize::from),
            "load": read("/proc/loadavg"),
        },
    });
    write(&settings.dir.join("run.json"), &format!("{run:#}\n"));
}

/// What the binary under test says that it is.
pub fn broker_version(binary: &Path) -> String {
    let output = std::process::Command::new(binary).arg("--version").output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    text.unwrap_or_default()
}

/// The commit that the binary is said to be of (`LONTRA_COMMIT`), else that of the tree that is worked in, with a `+` where
/// it was changed; empty: nobody knows.
pub fn commit() -> String {
    if let Ok(told) = std::env::var("LONTRA_COMMIT") {
        return told;
    }
    let git = |arguments: &[&str]| {
        let output = std::process::Command::new("git").args(arguments).output().ok()?;
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        output.status.success().then_some(text)
    };
    let Some(commit) = git(&["rev-parse", "--short", "HEAD"]) else {
        return String::new();
    };
    let changed = git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|files| !files.is_empty());
    if changed { commit + "+" } else { commit }
}

/// Reads `history.jsonl`, judges it, writes `results.json` and `report.html`.
///
/// # Panics
/// The directory cannot be read or written.
pub fn judge_directory(dir: &Path, profile: &Profile) -> Verdict {
    let text = std::fs::read_to_string(dir.join("history.jsonl")).expect("the history can be read");
    match history::parse(&text) {
        Ok(events) => {
            let verdict = checker::judge(&events, profile);
            write(&dir.join("results.json"), &results(dir, &verdict));
            write(&dir.join("report.html"), &report::render(&events, &verdict));
            verdict
        }
        Err(malformed) => unreadable(profile, malformed.to_string()),
    }
}

/// The verdict, with what it is a verdict of, as `run.json` has it.
fn results(dir: &Path, verdict: &Verdict) -> String {
    let run = std::fs::read_to_string(dir.join("run.json")).unwrap_or_default();
    let run: Value = serde_json::from_str(&run).unwrap_or_default();
    let mut results = serde_json::to_value(verdict).expect("a verdict has only JSON's types");
    for key in ["date", "seed", "lontra", "commit"] {
        if let Some(value) = run.get(key) {
            results[key] = value.clone();
        }
    }
    format!("{results:#}\n")
}

fn unreadable(profile: &Profile, reason: String) -> Verdict {
    Verdict {
        profile: profile.name.clone(),
        valid: Validity::Unknown,
        covered: false,
        recovered: false,
        violations: Vec::new(),
        unknown: vec![reason],
        coverage: Vec::new(),
        metrics: Default::default(),
    }
}

/// Writes `report.html` of a directory again.
///
/// # Errors
/// A file of it is missing or no such file.
pub fn write_report(dir: &Path) -> Result<(), String> {
    let read = |name: &str| std::fs::read_to_string(dir.join(name)).map_err(|error| format!("{name}: {error}"));
    let events = history::parse(&read("history.jsonl")?).map_err(|malformed| malformed.to_string())?;
    let verdict: Verdict = serde_json::from_str(&read("results.json")?).map_err(|error| error.to_string())?;
    write(&dir.join("report.html"), &report::render(&events, &verdict));
    Ok(())
}

fn write(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}

/// Day and time, UTC.
pub fn date(at: SystemTime) -> String {
    let seconds = at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    // Days to a date of the Gregorian calendar, in eras of 400 years that begin in March.
    let days = seconds / 86_400 + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let (hour, minute) = (seconds % 86_400 / 3_600, seconds % 3_600 / 60);
    format!("{}-{month:02}-{day:02} {hour:02}:{minute:02}", era * 400 + year + next)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn results_tell_the_broker_and_are_read_back() {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(
            dir.path().join("run.json"),
            r#"{"commit":"1234567","lontra":"lontra 1","seed":5}"#,
        )
        .expect("a file");
        std::fs::write(dir.path().join("history.jsonl"), "").expect("a file");
        judge_directory(dir.path(), &Profile::default());
        let text = std::fs::read_to_string(dir.path().join("results.json")).expect("results");
        let value: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!((&value["commit"], &value["seed"]), (&json!("1234567"), &json!(5)));
        assert!(serde_json::from_str::<Verdict>(&text).is_ok() && write_report(dir.path()).is_ok());
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, expected) in [
            (0, "1970-01-01 00:00"),
            (951_782_399, "2000-02-28 23:59"),
            (951_782_400, "2000-02-29 00:00"),
            (1_796_000_000, "2026-11-30 00:53"),
        ] {
            assert_eq!(date(UNIX_EPOCH + Duration::from_secs(seconds)), expected);
        }
    }
}
