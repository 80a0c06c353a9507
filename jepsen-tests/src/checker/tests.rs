//! What holds for all checkers together: scripts by hand, size, and the words of the verdict. Each class has its mutators
//! in [`crate::mutate`].

use super::*;
use crate::history::Kind;
use crate::synthetic::{Plan, Subscribing, Writer, generate, message, profile};
use std::time::Duration;

fn subscriber(write: &mut Writer) -> u64 {
    let conn = write.connect("s", "n2", false, 600, false);
    let options = Subscribing {
        qos: 1,
        ..Subscribing::default()
    };
    write.subscribe("s", conn, "t", &options);
    conn
}

fn end(write: &mut Writer) {
    for phase in ["drain", "final", "end"] {
        write.phase(phase);
    }
}

#[test]
fn a_lost_message_is_named_with_its_place() {
    let mut write = Writer::new();
    let s = subscriber(&mut write);
    let p = write.connect("p", "n1", true, 0, false);
    for seq in 1..=3 {
        write.publish_ok("p", p, &message("p", "t", seq), 1);
        if seq != 2 {
            write.receive("s", s, &message("p", "t", seq), 1, seq as u16);
        }
    }
    end(&mut write);
    let verdict = judge(&write.events, &profile());
    assert_eq!(verdict.classes(), ["lost-middle"]);
    assert_eq!(verdict.violations[0].promise, "P1");
    assert!(
        verdict.violations[0].message.contains("t 2 of p"),
        "{:?}",
        verdict.violations
    );
    assert_eq!(verdict.metrics["delivery.lost.taken_by.n1"], 1.0);
}

#[test]
fn an_unanswered_publish_owes_nothing() {
    let mut write = Writer::new();
    subscriber(&mut write);
    let p = write.connect("p", "n1", true, 0, false);
    let open = write.publish("p", p, &message("p", "t", 1), 1, false);
    write.published(open, Kind::Info, p, 1);
    end(&mut write);
    assert_eq!(judge(&write.events, &profile()).valid, Validity::True);
}

#[test]
fn missing_coverage_makes_a_run_unknown() {
    let mut write = Writer::new();
    write.phase("faults");
    end(&mut write);
    let needs = Requirement::Ops {
        op: "publish".into(),
        phase: Some("faults".into()),
        at_least: 1,
    };
    let profile = Profile {
        coverage: vec![needs],
        ..profile()
    };
    let verdict = judge(&write.events, &profile);
    assert_eq!((verdict.valid, verdict.covered), (Validity::Unknown, false));
    assert_eq!(verdict.valid.exit_code(), 2);
    assert!(verdict.unknown[0].contains("found 0 of 1"), "{:?}", verdict.unknown);
}

#[test]
fn coverage_counts_what_a_generated_history_has() {
    let requirements: Vec<Requirement> = serde_json::from_str(
        r#"[{"what":"ops","op":"publish","phase":"faults","at_least":20},{"what":"ops","op":"connect","at_least":9},
            {"what":"faults","at_least":0},{"what":"deliveries","at_least":100},{"what":"wills-due","at_least":1},
            {"what":"observed","about":"digest","at_least":3},{"what":"sessions-moved","at_least":1}]"#,
    )
    .expect("requirements are data");
    let profile = Profile {
        coverage: requirements,
        ..profile()
    };
    let verdict = judge(&generate(&Plan::new(4)), &profile);
    assert!(verdict.covered, "{:#?}", verdict.coverage);
}

#[test]
fn an_unknown_checker_is_not_passed_over() {
    let profile = Profile {
        checkers: vec!["deliverance".into()],
        ..Profile::default()
    };
    assert_eq!(judge(&[], &profile).valid, Validity::Unknown);
}

#[test]
fn a_verdict_survives_its_text() {
    let verdict = judge(&generate(&Plan::new(5)), &profile());
    let read: Verdict = serde_json::from_str(&verdict.to_json()).expect("it was written as JSON");
    assert_eq!(read.valid, Validity::True);
    assert!(verdict.to_json().contains("\"valid\": true"));
}

/// The time stands for linear work: a quadratic checker takes minutes.
#[test]
fn two_hundred_thousand_messages_to_three_sessions_are_judged_in_time() {
    let mut write = Writer::new();
    let subscribers: Vec<(String, u64)> = (0..3)
        .map(|at| {
            let client = format!("s{at}");
            let conn = write.connect(&client, "n2", false, 600, false);
            let options = Subscribing {
                qos: 1,
                ..Subscribing::default()
            };
            write.subscribe(&client, conn, "t/#", &options);
            (client, conn)
        })
        .collect();
    let publishers: Vec<(String, u64)> = (0..8)
        .map(|at| (format!("p{at}"), write.connect(&format!("p{at}"), "n1", true, 0, false)))
        .collect();
    for seq in 0..200_000_u64 {
        let (client, conn) = &publishers[seq as usize % 8];
        let message = message(client, &format!("t/{}", seq % 16), seq + 1);
        write.publish_ok(client, *conn, &message, 1);
        for (client, conn) in &subscribers {
            let pid = 1 + (seq % 60_000) as u16;
            write.receive(client, *conn, &message, 1, pid);
            write.acknowledge(client, *conn, &message, pid, "puback");
        }
    }
    end(&mut write);
    let began = processor_time();
    let verdict = judge(&write.events, &profile());
    assert_eq!(
        verdict.valid,
        Validity::True,
        "{:?} {:?}",
        verdict.violations.first(),
        verdict.unknown
    );
    let took = processor_time() - began;
    assert!(took < Duration::from_secs(20), "{took:?}");
}

/// Of this thread: other jobs of the machine do not count.
fn processor_time() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}
