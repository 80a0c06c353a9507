//! Mutators of what the harness did and saw from outside: damage, exits, counters, digests.

use super::{Expect, Mutator, Spoil, renumbered};
use crate::history::{End, Event, Kind, Op, Will};
use crate::synthetic::{Subscribing, Writer, message};
use serde_json::{Value, json};

type Scene = fn(&mut Spoil) -> Option<Vec<Event>>;

pub fn mutators() -> Vec<Mutator> {
    let all = damaged()
        .into_iter()
        .chain(exits())
        .chain(counted())
        .chain(partitions())
        .chain(tails());
    all.map(|(name, expect, apply)| Mutator { name, expect, apply })
        .collect()
}

fn class(class: &'static str) -> Expect {
    Expect::Class(class, &[])
}

fn observe(write: &mut Writer, about: &str, node: &str, value: Value) {
    let op = Op::Observe {
        about: about.into(),
        node: Some(node.into()),
        value,
    };
    write.note("harness", op);
}

fn node(write: &mut Writer, event: &str, detail: Option<&str>) {
    let op = Op::Node {
        node: "n3".into(),
        event: event.into(),
        detail: detail.map(Into::into),
    };
    write.note("harness", op);
}

// ── damage ──

/// A bit of n3's log, and what became of the start with it.
fn flipped(spoil: &mut Spoil, outcome: Value) -> Option<Vec<Event>> {
    let mut value = json!({ "flipped": { "file": "raft/000012.log", "at": 7, "mask": 1 } });
    value.as_object_mut()?.extend(outcome.as_object()?.clone());
    spoil.scene_before("heal", |write| {
        write.fault("flip-wal", "start", "n3", json!({}));
        write.fault("flip-wal", "stop", "n3", value);
    })
}

/// Without what n3 told after the drain.
fn without_digest(events: Vec<Event>) -> Vec<Event> {
    let of_n3 = |event: &Event| matches!(&event.op, Op::Observe { about, node, .. } if about == "digest" && node.as_deref() == Some("n3"));
    renumbered(events.into_iter().filter(|event| !of_n3(event)).collect())
}

fn damaged() -> Vec<(&'static str, Expect, Scene)> {
    vec![
        ("damage a file, and let the node name it", Expect::Valid, |spoil| {
            let message = "database /d/n3/data/raft is corrupt: checksum mismatch";
            flipped(spoil, json!({ "outcome": "refused", "message": message }))
        }),
        (
            "damage a file, and let the node refuse without naming it",
            class("unnamed-damage"),
            |spoil| flipped(spoil, json!({ "outcome": "refused", "message": "cannot start" })),
        ),
        (
            "damage a file that nobody notices, and compare replicas",
            Expect::Valid,
            |spoil| flipped(spoil, json!({ "outcome": "ready" })),
        ),
        (
            "damage a file that nobody notices, and compare nothing",
            Expect::Unknown,
            |spoil| flipped(spoil, json!({ "outcome": "ready" })).map(without_digest),
        ),
        (
            "damage a file that nobody notices, and compare other groups",
            Expect::Unknown,
            |spoil| {
                let mut events = flipped(spoil, json!({ "outcome": "ready" }))?;
                for event in &mut events {
                    if let Op::Observe { about, node, value } = &mut event.op
                        && about == "digest"
                        && node.as_deref() == Some("n3")
                    {
                        value["shard-0"] = json!({ "error": "no answer" });
                    }
                }
                Some(events)
            },
        ),
        ("damage a file, and tell nothing of it", Expect::Unknown, |spoil| {
            spoil.scene_before("heal", |write| {
                write.fault("flip-sst", "start", "n3", json!({}));
            })
        }),
        ("damage a file, and let the node hang", Expect::Unknown, |spoil| {
            flipped(spoil, json!({ "outcome": "neither ready nor ended" }))
        }),
        ("install a snapshot, and compare nothing", Expect::Unknown, |spoil| {
            spoil
                .scene_before("heal", |write| {
                    observe(write, "snapshots", "n3", json!({ "snapshots_installed": 1 }));
                })
                .map(without_digest)
        }),
        ("install a snapshot, and compare replicas", Expect::Valid, |spoil| {
            spoil.scene_before("heal", |write| {
                observe(write, "snapshots", "n3", json!({ "snapshots_installed": 1 }));
            })
        }),
    ]
}

// ── exits ──

/// n3 ends by itself after a fault.
fn ends(spoil: &mut Spoil, family: &str, value: Value, detail: &str) -> Option<Vec<Event>> {
    spoil.scene_before("heal", |write| {
        write.fault(family, "start", "n3", value);
        node(write, "exited", Some(detail));
    })
}

fn exits() -> Vec<(&'static str, Expect, Scene)> {
    vec![
        ("let a node end over a slow disk", class("unexpected-exit"), |spoil| {
            ends(spoil, "slow-disk", json!({}), "exit status: 1")
        }),
        (
            "let a node end over a disk with its reserve",
            class("unexpected-exit"),
            |spoil| ends(spoil, "full-disk", json!({ "left_bytes": 4096 }), "exit status: 1"),
        ),
        (
            "let a node end after a power cut of another kind",
            class("unexpected-exit"),
            |spoil| ends(spoil, "power-one", json!({}), "exit status: 1"),
        ),
        (
            "let a node crash over a limit of memory",
            class("unexpected-exit"),
            |spoil| ends(spoil, "memory-limit", json!({}), "signal: 11 (SIGSEGV)"),
        ),
        ("let the kernel kill a node for its memory", Expect::Valid, |spoil| {
            ends(spoil, "memory-limit", json!({}), "signal: 9 (SIGKILL)")
        }),
        ("let a node end with its file system", Expect::Valid, |spoil| {
            ends(spoil, "fsync-error", json!({}), "exit status: 1")
        }),
        (
            "let a node panic with its file system",
            class("unexpected-exit"),
            |spoil| ends(spoil, "fsync-error", json!({}), "exit status: 101"),
        ),
        (
            "let a node end long after its file system is back",
            class("unexpected-exit"),
            |spoil| {
                spoil.scene_before("heal", |write| {
                    write.fault("fsync-error", "start", "n3", json!({}));
                    node(write, "exited", Some("exit status: 1"));
                    node(write, "started", None);
                    node(write, "exited", Some("exit status: 1"));
                })
            },
        ),
        (
            "let a damaged node end over something else",
            class("unexpected-exit"),
            |spoil| {
                let mut events = flipped(spoil, json!({ "outcome": "ready" }))?;
                let spoil = Spoil::new(&events, &crate::synthetic::profile().limits, 0);
                events = spoil.scene_before("heal", |write| {
                    node(write, "exited", Some("exit status: 1; out of tokens"));
                })?;
                Some(events)
            },
        ),
        ("let a damaged node end over its damage later", Expect::Valid, |spoil| {
            let events = flipped(spoil, json!({ "outcome": "ready" }))?;
            let spoil = Spoil::new(&events, &crate::synthetic::profile().limits, 0);
            spoil.scene_before("heal", |write| {
                node(
                    write,
                    "exited",
                    Some("exit status: 1; database /d/raft is corrupt: block"),
                );
            })
        }),
        (
            "let a node refuse to start after healing",
            class("refused-start"),
            |spoil| {
                spoil.scene_before("recovery", |write| {
                    observe(
                        write,
                        "no-recovery",
                        "n3",
                        json!("n3 ended with exit status: 1:\nits log"),
                    );
                })
            },
        ),
        ("let a node hang after healing", class("no-recovery"), |spoil| {
            spoil.scene_before("recovery", |write| {
                observe(write, "no-recovery", "n3", json!("n3 not ready within 90s:\nits log"));
            })
        }),
    ]
}

// ── the broker's account ──

/// What n1 counts at the end, of one shard.
fn counted_as(spoil: &mut Spoil, counters: Value) -> Option<Vec<Event>> {
    spoil.scene_before("end", |write| observe(write, "counters", "n1", counters))
}

fn counted() -> Vec<(&'static str, Expect, Scene)> {
    vec![
        ("account for all messages", Expect::Valid, |spoil| {
            counted_as(
                spoil,
                json!({ "lontra_queue_enqueued_total{shard=\"0\"}": 9.0, "lontra_queue_messages{shard=\"0\"}": 2.0,
                    "lontra_queue_left_total{how=\"delivered\",shard=\"0\"}": 6.0, "lontra_queue_left_total{shard=\"0\",how=\"session_ended\"}": 1.0,
                    "lontra_messages_dropped_total{reason=\"outbox_full\"}": 3.0 }),
            )
        }),
        ("lose a message from the account", class("unaccounted"), |spoil| {
            counted_as(
                spoil,
                json!({ "lontra_queue_enqueued_total{shard=\"0\"}": 9.0, "lontra_queue_messages{shard=\"0\"}": 2.0,
                    "lontra_queue_left_total{how=\"delivered\",shard=\"0\"}": 6.0 }),
            )
        }),
        ("expire what has no expiry", class("dropped"), |spoil| {
            counted_as(
                spoil,
                json!({ "lontra_queue_enqueued_total{shard=\"0\"}": 9.0,
                    "lontra_queue_left_total{how=\"delivered\",shard=\"0\"}": 8.0, "lontra_queue_left_total{how=\"expired\",shard=\"0\"}": 1.0 }),
            )
        }),
        (
            "drop a message on its way to a worker's client",
            class("dropped"),
            |spoil| {
                counted_as(
                    spoil,
                    json!({ "lontra_queue_enqueued_total{shard=\"0\"}": 1.0, "lontra_queue_messages{shard=\"0\"}": 1.0,
                    "lontra_messages_dropped_total{reason=\"packet_too_large\"}": 1.0 }),
                )
            },
        ),
        ("account for nothing", Expect::Unknown, |spoil| {
            counted_as(spoil, json!({ "lontra_queue_enqueued_total{shard=\"0\"}": 0.0 }))
        }),
    ]
}

// ── partitions ──

/// n1 and n2 do not reach each other, n3 reaches both; `n3` takes a publish `seconds` later.
fn bridged(spoil: &mut Spoil, node: &str, seconds: f64) -> Option<Vec<Event>> {
    spoil.scene_before("heal", |write| {
        let publisher = write.connect("zp", node, true, 0, false);
        write.wait(3.0);
        let value = json!({ "bridge": "n3", "halves": [["n1"], ["n2"]] });
        write.fault("partition-ring", "start", "n1", value);
        let op = write.publish("zp", publisher, &message("zp", "z/a", 1), 1, false);
        write.wait(seconds);
        write.published(op, Kind::Ok, publisher, 1);
    })
}

/// A client of a node that the fault did not touch loses its connection.
fn stalled(spoil: &mut Spoil, how: End) -> Option<Vec<Event>> {
    spoil.scene_before("heal", |write| {
        let conn = write.connect("zs", "n1", false, 600, false);
        write.subscribe("zs", conn, "z/b", &Subscribing::default());
        write.wait(3.0);
        write.fault("partition-stall", "start", "n3", json!({}));
        write.wait(1.0);
        write.lost("zs", conn, "n1", how);
    })
}

fn partitions() -> Vec<(&'static str, Expect, Scene)> {
    vec![
        (
            "leave a topic too long without service at a bridge",
            class("slow-recovery"),
            |spoil| bridged(spoil, "n3", 12.0),
        ),
        (
            "leave a topic without service at a side of a bridge",
            Expect::Valid,
            |spoil| bridged(spoil, "n2", 12.0),
        ),
        (
            "let a client go that a stalled link does not touch",
            class("healthy-disconnected"),
            |spoil| stalled(spoil, End::Closed),
        ),
        ("let a client leave beside a stalled link", Expect::Valid, |spoil| {
            stalled(spoil, End::Cut)
        }),
    ]
}

// ── after the drain ──

/// A will of a client that is cut off after the drain, and an observer that is served for `seconds` more.
fn late_will(spoil: &mut Spoil, seconds: f64) -> Option<Vec<Event>> {
    spoil.scene_before("end", |write| {
        let observer = write.connect("zs", "n2", false, 600, false);
        write.subscribe(
            "zs",
            observer,
            "z/#",
            &Subscribing {
                qos: 1,
                ..Subscribing::default()
            },
        );
        let conn = write.next_conn();
        let will = Will {
            message: message(&format!("zw/{conn}"), "z/w", 0),
            qos: 1,
            retain: false,
            delay: 0,
        };
        let (process, conn) = write.connecting("zw", "n1", true, 0, Some(will));
        write.connack(process, conn, Some(false));
        write.lost("zw", conn, "n1", End::Cut);
        write.wait(seconds);
        write.ping("zs", observer);
    })
}

fn tails() -> Vec<(&'static str, Expect, Scene)> {
    vec![
        ("withhold a will in a long quiet tail", class("missing-will"), |spoil| {
            late_will(spoil, 20.0)
        }),
        ("end before a will is surely due", Expect::Valid, |spoil| {
            late_will(spoil, 2.0)
        }),
        ("answer no read after the drain", Expect::Unknown, |spoil| {
            let end = spoil.model.phases.drain_end;
            let mut events = spoil.events.to_vec();
            let mut changed = false;
            for (index, event) in events.iter_mut().enumerate() {
                if let Op::ReadRetained { value, .. } = &mut event.op
                    && index > end
                    && event.kind == Kind::Ok
                {
                    (event.kind, *value, changed) = (Kind::Info, None, true);
                }
            }
            changed.then_some(events)
        }),
    ]
}
