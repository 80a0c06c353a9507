//! What the verdict of a workload under some faults needs, as data: which checkers, which limits, which coverage.

use crate::checker::{Limits, Profile, Requirement, damage};
use crate::nemesis::Family;
use std::time::Duration;

/// All checkers look at every history: what a workload did not aim at must hold too. Coverage and limits differ.
pub fn profile(workload: &str, nemeses: &[String], faults: Duration) -> Profile {
    let seconds = faults.as_secs();
    let mut coverage = of_workload(workload, seconds);
    for family in nemeses {
        coverage.extend(of_family(family));
    }
    // Replicas that nobody compared prove nothing.
    coverage.push(Requirement::Observed {
        about: "digest".into(),
        at_least: 3,
    });
    coverage.push(Requirement::Observed {
        about: "counters".into(),
        at_least: 3,
    });
    let name = match nemeses.is_empty() {
        true => workload.to_owned(),
        false => format!("{workload} × {}", nemeses.join("+")),
    };
    // P10 speaks of a majority that is alive: starting from nothing is measured only.
    let all_down = nemeses.iter().filter_map(|name| name.parse().ok()).any(Family::alone);
    Profile {
        name,
        checkers: Vec::new(),
        coverage,
        limits: Limits {
            // Each node serves again soon after the last fault; P10's 5 s are asserted where nothing else is done to it.
            heal: (!all_down).then_some(20.0),
            back: Some(5.0),
            recovery: nemeses.is_empty().then_some(5.0),
            will: Some(20.0),
            ..Limits::default()
        },
    }
}

fn of_workload(workload: &str, seconds: u64) -> Vec<Requirement> {
    let in_faults = |op: &str, a_second: f64| Requirement::Ops {
        op: op.into(),
        phase: Some("faults".into()),
        // Far less than the rate: faults stop the load for a while.
        at_least: ((seconds as f64 * a_second) as u64).max(1),
    };
    let deliveries = Requirement::Deliveries { at_least: seconds * 20 };
    match workload {
        "queue" => vec![
            in_faults("publish", 10.0),
            deliveries,
            Requirement::SessionsMoved { at_least: 2 },
        ],
        "flow" => vec![
            in_faults("publish", 5.0),
            deliveries,
            Requirement::SessionsMoved { at_least: 1 },
        ],
        "shared" => vec![in_faults("publish", 10.0), deliveries, in_faults("subscribe", 0.2)],
        "subbar" => vec![
            in_faults("subscribe", 0.5),
            in_faults("unsubscribe", 0.5),
            in_faults("publish", 1.0),
        ],
        "register" => vec![in_faults("publish", 2.0), in_faults("read-retained", 1.0)],
        "session" => vec![
            in_faults("connect", 0.5),
            in_faults("publish", 5.0),
            Requirement::TakeOvers { at_least: 3 },
            Requirement::SessionsMoved { at_least: 3 },
        ],
        "will" => vec![in_faults("connect", 0.5), Requirement::WillsDue { at_least: 5 }],
        _ => Vec::new(),
    }
}

fn of_family(family: &str) -> Vec<Requirement> {
    let mut needed = vec![Requirement::Faults {
        family: Some(family.into()),
        at_least: 1,
    }];
    if demands_effect(family) {
        // What was begun and did nothing proves nothing (`nemesis/effect.rs`).
        needed.push(Requirement::Observed {
            about: format!("effect {family}"),
            at_least: 1,
        });
    }
    if family.starts_with("power") {
        needed.push(Requirement::UnsyncedBytesLost { at_least: 1 });
    }
    if damage::FAMILIES.contains(&family) {
        needed.push(Requirement::Damaged { at_least: 1 });
    }
    if family == "snapshot" {
        needed.push(Requirement::Snapshots { at_least: 1 });
    }
    if matches!(family, "kill" | "kill-leader" | "kill-meta-leader") {
        needed.push(Requirement::Elections { at_least: 1 });
    }
    let hit = match family {
        "kill-leader" => Some("leader"),
        "kill-meta-leader" => Some("meta-leader"),
        "kill-owner" => Some("owner"),
        _ => None,
    };
    needed.extend(hit.map(|role| Requirement::Hit {
        role: role.into(),
        at_least: 1,
    }));
    needed
}

/// Faults whose effect is measured. Clients that are cut off are not among them: the back end `plain` cannot count that.
fn demands_effect(family: &str) -> bool {
    let kinds = [
        "partition-",
        "pause",
        "part-kill",
        "packet",
        "slow-",
        "flip-",
        "truncate-",
    ];
    let others = ["cpu-limit", "memory-limit", "old-snapshot", "fsync-error", "full-disk"];
    family != "partition-clients" && (kinds.iter().any(|kind| family.starts_with(kind)) || others.contains(&family))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_that_did_nothing_covers_nothing() {
        let demanded: Vec<&str> = Family::ALL
            .iter()
            .map(|family| family.name())
            .filter(|family| demands_effect(family))
            .collect();
        for family in [
            "pause-kill",
            "partition-stall",
            "slow-disk",
            "memory-limit",
            "flip-snapshot",
            "truncate-sst",
        ] {
            assert!(demanded.contains(&family), "{family}");
        }
        assert!(!demanded.contains(&"partition-clients") && !demanded.contains(&"kill"));
    }
}
