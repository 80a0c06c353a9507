//! Mutators that insert a small scene, with clients and topics of its own.

use super::{Expect, Mutator, Spoil};
use crate::history::{End, Event, Kind, Message, Op, Process, Will};
use crate::synthetic::{Subscribing, Writer, message};
use serde_json::json;

type Scene = fn(&mut Spoil) -> Option<Vec<Event>>;

pub fn mutators() -> Vec<Mutator> {
    let all = subscriptions()
        .into_iter()
        .chain(registers())
        .chain(connections())
        .chain(sessions())
        .chain(wills())
        .chain(groups())
        .chain(others());
    all.map(|(name, expect, apply)| Mutator { name, expect, apply })
        .collect()
}

fn class(class: &'static str) -> Expect {
    Expect::Class(class, &[])
}

// ── the cast ──

fn qos(qos: u8) -> Subscribing {
    Subscribing {
        qos,
        ..Subscribing::default()
    }
}

/// A publisher and a persistent subscriber of `z/#`.
fn pair(write: &mut Writer) -> (u64, u64) {
    let publisher = write.connect("zp", "n1", true, 0, false);
    let subscriber = write.connect("zs", "n2", false, 600, false);
    write.subscribe("zs", subscriber, "z/#", &qos(1));
    (publisher, subscriber)
}

fn z(seq: u64) -> Message {
    message("zp", "z/a", seq)
}

fn write_retained(write: &mut Writer, client: &str, conn: u64, message: &Message) {
    let op = write.publish(client, conn, message, 1, true);
    write.published(op, Kind::Ok, conn, 1);
}

fn delete_retained(write: &mut Writer, conn: u64, message: &Message) {
    let (process, mut op) = write.publish("zp", conn, message, 1, true);
    let invoked = write.events.len() - 1;
    for op in [&mut write.events[invoked].op, &mut op] {
        if let Op::Publish { delete, .. } = op {
            *delete = true;
        }
    }
    write.published((process, op), Kind::Ok, conn, 1);
}

fn begin_read(write: &mut Writer, topic: &str) -> (Process, Op) {
    let conn = write.connect(&format!("zx{}", write.events.len()), "n3", true, 0, false);
    let op = Op::ReadRetained {
        client: "zx".into(),
        conn,
        node: "n3".into(),
        topic: topic.into(),
        value: None,
        absent: false,
    };
    (write.invoke(op.clone()), op)
}

fn end_read(write: &mut Writer, (process, mut op): (Process, Op), read: Option<&Message>) {
    if let Op::ReadRetained { value, absent, .. } = &mut op {
        (*value, *absent) = (read.cloned(), read.is_none());
    }
    write.event(process, Kind::Ok, op);
}

fn read(write: &mut Writer, topic: &str, value: Option<&Message>) {
    let begun = begin_read(write, topic);
    end_read(write, begun, value);
}

fn disconnect(write: &mut Writer, client: &str, conn: u64, reason: u8, kind: Kind) {
    let op = || Op::Disconnect {
        client: client.into(),
        conn,
        node: "n1".into(),
        reason,
        expiry: None,
    };
    let process = write.invoke(op());
    write.event(process, kind, op());
}

// ── subscriptions, order ──

fn subscriptions() -> Vec<(&'static str, Expect, Scene)> {
    vec![
        (
            "deliver what was sent after UNSUBACK",
            class("after-unsubscribe"),
            |spoil| {
                spoil.scene(|write| {
                    let (publisher, subscriber) = pair(write);
                    write.unsubscribe("zs", subscriber, "z/#");
                    write.publish_ok("zp", publisher, &z(1), 1);
                    write.receive("zs", subscriber, &z(1), 1, 1);
                })
            },
        ),
        ("deliver what was sent before UNSUBACK", Expect::Valid, |spoil| {
            spoil.scene(|write| {
                let (publisher, subscriber) = pair(write);
                let op = write.publish("zp", publisher, &z(1), 1, false);
                write.unsubscribe("zs", subscriber, "z/#");
                write.published(op, Kind::Ok, publisher, 1);
                write.receive("zs", subscriber, &z(1), 1, 1);
            })
        }),
        (
            "deliver what was acknowledged before SUBSCRIBE",
            class("before-subscribe"),
            |spoil| {
                spoil.scene(|write| {
                    let publisher = write.connect("zp", "n1", true, 0, false);
                    let subscriber = write.connect("zs", "n2", false, 600, false);
                    write.publish_ok("zp", publisher, &z(1), 1);
                    write.subscribe("zs", subscriber, "z/a", &qos(1));
                    write.receive("zs", subscriber, &z(1), 1, 1);
                })
            },
        ),
        ("publish beside SUBSCRIBE, and deliver it", Expect::Valid, |spoil| {
            beside_subscribe(spoil, true)
        }),
        (
            "publish beside SUBSCRIBE, and do not deliver it",
            Expect::Valid,
            |spoil| beside_subscribe(spoil, false),
        ),
        ("deliver to a topic never subscribed", class("unmatched"), |spoil| {
            spoil.scene(|write| {
                let (publisher, subscriber) = pair(write);
                let other = message("zp", "y/a", 1);
                write.publish_ok("zp", publisher, &other, 1);
                write.receive("zs", subscriber, &other, 1, 1);
            })
        }),
        ("deliver its own in spite of No Local", class("no-local"), |spoil| {
            spoil.scene(|write| {
                let conn = write.connect("zp", "n1", false, 600, false);
                let options = Subscribing {
                    no_local: true,
                    ..qos(1)
                };
                write.subscribe("zp", conn, "z/#", &options);
                write.publish_ok("zp", conn, &z(1), 1);
                write.receive("zp", conn, &z(1), 1, 1);
            })
        }),
        (
            "replace a subscription and lose a message",
            class("lost-postfix"),
            |spoil| {
                spoil.scene(|write| {
                    let (publisher, subscriber) = pair(write);
                    write.publish_ok("zp", publisher, &z(1), 1);
                    write.receive("zs", subscriber, &z(1), 1, 1);
                    let op = write.publish("zp", publisher, &z(2), 1, false);
                    write.subscribe("zs", subscriber, "z/#", &qos(2));
                    write.published(op, Kind::Ok, publisher, 1);
                })
            },
        ),
        (
            "replace a subscription by QoS 0 and lose a message",
            Expect::Valid,
            |spoil| {
                spoil.scene(|write| {
                    let (publisher, subscriber) = pair(write);
                    let op = write.publish("zp", publisher, &z(1), 1, false);
                    write.subscribe("zs", subscriber, "z/#", &qos(0));
                    write.published(op, Kind::Ok, publisher, 1);
                })
            },
        ),
        (
            "miss a message while subscribed for long, and unsubscribe",
            class("missed-after-suback"),
            |spoil| missed_before_unsubscribe(spoil, 12.0),
        ),
        ("miss a message and unsubscribe soon", Expect::Valid, |spoil| {
            missed_before_unsubscribe(spoil, 5.0)
        }),
        (
            "let all sessions see real time reversed",
            class("real-time-order"),
            |spoil| {
                spoil.scene(|write| {
                    let (publisher, subscriber) = pair(write);
                    let second = write.connect("zq", "n3", true, 0, false);
                    write.publish_ok("zp", publisher, &z(1), 1);
                    let later = message("zq", "z/a", 1);
                    write.publish_ok("zq", second, &later, 1);
                    write.receive("zs", subscriber, &later, 1, 1);
                    write.receive("zs", subscriber, &z(1), 1, 2);
                })
            },
        ),
        (
            "see the order of two connections of a publisher reversed",
            Expect::Valid,
            |spoil| {
                spoil.scene(|write| {
                    let (publisher, subscriber) = pair(write);
                    let given_up = write.publish("zp", publisher, &z(1), 1, false);
                    write.lost("zp", publisher, "n1", End::Cut);
                    write.published(given_up, Kind::Info, publisher, 1);
                    let publisher = write.connect("zp", "n2", true, 0, false);
                    write.publish_ok("zp", publisher, &z(2), 1);
                    write.receive("zs", subscriber, &z(2), 1, 1);
                    write.receive("zs", subscriber, &z(1), 1, 2);
                })
            },
        ),
        (
            "repeat after PUBACK was surely settled",
            class("unexplained-duplicate"),
            |spoil| {
                spoil.scene(|write| {
                    let (publisher, subscriber) = pair(write);
                    write.publish_ok("zp", publisher, &z(1), 1);
                    write.receive("zs", subscriber, &z(1), 1, 1);
                    write.acknowledge("zs", subscriber, &z(1), 1, "puback");
                    write.ping("zs", subscriber);
                    write.wait(1.0);
                    write.ping("zs", subscriber);
                    write.lost("zs", subscriber, "n2", End::Cut);
                    let subscriber = write.connect("zs", "n3", false, 600, true);
                    write.received("zs", subscriber, &z(1), (1, 1, true, false, true), 1);
                })
            },
        ),
        ("repeat after PUBACK was long on a slow link", Expect::Valid, |spoil| {
            spoil.scene(|write| {
                let (publisher, subscriber) = pair(write);
                write.publish_ok("zp", publisher, &z(1), 1);
                write.receive("zs", subscriber, &z(1), 1, 1);
                write.acknowledge("zs", subscriber, &z(1), 1, "puback");
                // PUBACK and PINGREQ arrive together.
                write.wait(1.0);
                write.ping("zs", subscriber);
                write.lost("zs", subscriber, "n2", End::Cut);
                let subscriber = write.connect("zs", "n3", false, 600, true);
                write.received("zs", subscriber, &z(1), (1, 1, true, false, true), 1);
            })
        }),
        ("resend in another order", class("resend-order"), |spoil| {
            spoil.scene(|write| {
                let (publisher, subscriber) = pair(write);
                for seq in 1..3 {
                    write.publish_ok("zp", publisher, &z(seq), 1);
                    write.receive("zs", subscriber, &z(seq), 1, seq as u16);
                }
                write.lost("zs", subscriber, "n2", End::Cut);
                let subscriber = write.connect("zs", "n3", false, 600, true);
                write.received("zs", subscriber, &z(2), (1, 2, true, false, true), 1);
                write.received("zs", subscriber, &z(1), (1, 1, true, false, true), 2);
            })
        }),
        (
            "acknowledge two PUBLISH in another order",
            class("ack-order"),
            |spoil| {
                spoil.scene(|write| {
                    let publisher = write.connect("zp", "n1", true, 0, false);
                    let first = write.publish("zp", publisher, &z(1), 1, false);
                    let second = write.publish("zp", publisher, &z(2), 1, false);
                    write.published(second, Kind::Ok, publisher, 1);
                    write.published(first, Kind::Ok, publisher, 1);
                })
            },
        ),
    ]
}

fn missed_before_unsubscribe(spoil: &mut Spoil, after: f64) -> Option<Vec<Event>> {
    spoil.scene(|write| {
        let (publisher, subscriber) = pair(write);
        write.publish_ok("zp", publisher, &z(1), 1);
        write.wait(after);
        write.ping("zs", subscriber);
        write.unsubscribe("zs", subscriber, "z/#");
    })
}

fn beside_subscribe(spoil: &mut Spoil, deliver: bool) -> Option<Vec<Event>> {
    spoil.scene(|write| {
        let publisher = write.connect("zp", "n1", true, 0, false);
        let subscriber = write.connect("zs", "n2", false, 600, false);
        let op = write.publish("zp", publisher, &z(1), 1, false);
        write.subscribe("zs", subscriber, "z/a", &qos(1));
        write.published(op, Kind::Ok, publisher, 1);
        if deliver {
            write.receive("zs", subscriber, &z(1), 1, 1);
        }
    })
}

// ── retained messages ──

fn registers() -> Vec<(&'static str, Expect, Scene)> {
    vec![
        (
            "read a value before it is written",
            class("read-before-write"),
            |spoil| {
                spoil.scene(|write| {
                    let publisher = write.connect("zp", "n1", true, 0, false);
                    read(write, "z/a", Some(&z(1)));
                    write_retained(write, "zp", publisher, &z(1));
                })
            },
        ),
        ("read nothing after a write", class("stale-read"), |spoil| {
            spoil.scene(|write| {
                let publisher = write.connect("zp", "n1", true, 0, false);
                write_retained(write, "zp", publisher, &z(1));
                read(write, "z/a", None);
            })
        }),
        ("read a write of unknown outcome", Expect::Valid, |spoil| {
            spoil.scene(|write| {
                let publisher = write.connect("zp", "n1", true, 0, false);
                write_retained(write, "zp", publisher, &z(1));
                let op = write.publish("zp", publisher, &z(2), 1, true);
                write.lost("zp", publisher, "n1", End::Cut);
                write.published(op, Kind::Info, publisher, 1);
                read(write, "z/a", Some(&z(1)));
                read(write, "z/a", Some(&z(2)));
            })
        }),
        ("read an older value after a newer", class("stale-read"), |spoil| {
            spoil.scene(|write| {
                let publisher = write.connect("zp", "n1", true, 0, false);
                write_retained(write, "zp", publisher, &z(1));
                let op = write.publish("zp", publisher, &z(2), 1, true);
                read(write, "z/a", Some(&z(2)));
                read(write, "z/a", Some(&z(1)));
                write.published(op, Kind::Ok, publisher, 1);
            })
        }),
        ("read what was deleted", class("not-linearizable"), |spoil| {
            spoil.scene(|write| {
                let publisher = write.connect("zp", "n1", true, 0, false);
                write_retained(write, "zp", publisher, &z(1));
                delete_retained(write, publisher, &z(2));
                read(write, "z/a", Some(&z(1)));
            })
        }),
        ("delete, and read nothing", Expect::Valid, |spoil| {
            spoil.scene(|write| {
                let publisher = write.connect("zp", "n1", true, 0, false);
                write_retained(write, "zp", publisher, &z(1));
                let begun = begin_read(write, "z/a");
                delete_retained(write, publisher, &z(2));
                end_read(write, begun, Some(&z(1)));
                read(write, "z/a", None);
            })
        }),
        (
            "withhold the retained message from a late subscriber",
            class("retained-missed"),
            |spoil| late_subscriber(spoil, &[]),
        ),
        ("give a late subscriber the retained message", Expect::Valid, |spoil| {
            late_subscriber(spoil, &[(2, true)])
        }),
        (
            "give a late subscriber an older value last",
            class("retained-not-last"),
            |spoil| late_subscriber(spoil, &[(2, false), (1, true)]),
        ),
        ("give a late subscriber both values in order", Expect::Valid, |spoil| {
            late_subscriber(spoil, &[(1, true), (2, false)])
        }),
        (
            "end a subscriber with another value than is retained",
            class("retained-not-last"),
            |spoil| {
                spoil.scene(|write| {
                    let (publisher, subscriber) = pair(write);
                    let second = write.connect("zq", "n3", true, 0, false);
                    let other = message("zq", "z/a", 1);
                    let first = write.publish("zp", publisher, &z(1), 1, true);
                    write_retained(write, "zq", second, &other);
                    write.published(first, Kind::Ok, publisher, 1);
                    write.receive("zs", subscriber, &other, 1, 1);
                    write.receive("zs", subscriber, &z(1), 1, 2);
                    read(write, "z/a", Some(&other));
                })
            },
        ),
    ]
}

/// A value is written; a second one is being written when a subscriber comes; `gets`: what it gets, and whether stored.
fn late_subscriber(spoil: &mut Spoil, gets: &[(u64, bool)]) -> Option<Vec<Event>> {
    spoil.scene(|write| {
        let publisher = write.connect("zp", "n1", true, 0, false);
        write_retained(write, "zp", publisher, &z(1));
        let second = write.publish("zp", publisher, &z(2), 1, true);
        let subscriber = write.connect("zs", "n2", false, 600, false);
        write.subscribe("zs", subscriber, "z/#", &qos(1));
        write.published(second, Kind::Ok, publisher, 1);
        for (seq, stored) in gets {
            write.received("zs", subscriber, &z(*seq), (1, *seq as u16, false, *stored, true), 1);
            write.acknowledge("zs", subscriber, &z(*seq), *seq as u16, "puback");
        }
        read(write, "z/a", Some(&z(2)));
    })
}

// ── connections ──

/// A connection that is taken over.
fn taken_over(write: &mut Writer) -> (u64, u64) {
    let old = write.connect("zs", "n1", false, 600, false);
    write.subscribe("zs", old, "z/#", &qos(1));
    (old, write.connect("zs", "n2", false, 600, true))
}

fn connections() -> Vec<(&'static str, Expect, Scene)> {
    vec![
        ("answer a ping after the take-over", class("zombie-ack"), |spoil| {
            spoil.scene(|write| {
                let (old, _) = taken_over(write);
                write.ping("zs", old);
                write.lost("zs", old, "n1", End::Closed);
            })
        }),
        (
            "acknowledge a PUBLISH after the take-over",
            class("zombie-ack"),
            |spoil| {
                spoil.scene(|write| {
                    let (old, new) = taken_over(write);
                    let own = message("zs", "z/a", 1);
                    write.publish_ok("zs", old, &own, 1);
                    write.lost("zs", old, "n1", End::Closed);
                    write.receive("zs", new, &own, 1, 1);
                })
            },
        ),
        (
            "acknowledge what was sent before the take-over",
            Expect::Valid,
            |spoil| {
                spoil.scene(|write| {
                    let old = write.connect("zs", "n1", false, 600, false);
                    let op = write.publish("zs", old, &message("zs", "z/a", 1), 1, false);
                    write.connect("zs", "n2", false, 600, true);
                    write.published(op, Kind::Ok, old, 1);
                    write.lost("zs", old, "n1", End::Closed);
                })
            },
        ),
        (
            "deliver to the old connection after the take-over",
            class("zombie-delivery"),
            |spoil| {
                spoil.scene(|write| {
                    let (old, _) = taken_over(write);
                    let publisher = write.connect("zp", "n3", true, 0, false);
                    write.publish_ok("zp", publisher, &z(1), 1);
                    write.receive("zs", old, &z(1), 1, 1);
                    write.lost("zs", old, "n1", End::Closed);
                })
            },
        ),
        ("leave the old connection open", class("not-closed"), |spoil| {
            spoil.scene(|write| {
                taken_over(write);
                write.wait(70.0);
            })
        }),
        (
            "serve both of two concurrent connections",
            class("two-served"),
            |spoil| {
                spoil.scene(|write| {
                    let (a, b) = concurrently(write, (false, true));
                    write.ping("zs", a);
                    write.ping("zs", b);
                    write.lost("zs", a, "n1", End::Closed);
                })
            },
        ),
        ("create one session twice", class("inexplicable-connacks"), |spoil| {
            spoil.scene(|write| {
                let (a, _) = concurrently(write, (false, false));
                write.lost("zs", a, "n1", End::Closed);
            })
        }),
        ("connect twice at once", Expect::Valid, |spoil| {
            spoil.scene(|write| {
                let (a, b) = concurrently(write, (true, false));
                write.lost("zs", b, "n2", End::Closed);
                write.ping("zs", a);
            })
        }),
    ]
}

fn concurrently(write: &mut Writer, present: (bool, bool)) -> (u64, u64) {
    let (first, a) = write.connecting("zs", "n1", false, 600, None);
    let (second, b) = write.connecting("zs", "n2", false, 600, None);
    write.connack(first, a, Some(present.0));
    write.connack(second, b, Some(present.1));
    (a, b)
}

// ── sessions ──

fn again_after(spoil: &mut Spoil, seconds: f64, present: bool) -> Option<Vec<Event>> {
    spoil.scene(|write| {
        let conn = write.connect("zs", "n1", false, 3, false);
        write.lost("zs", conn, "n1", End::Cut);
        write.wait(seconds);
        write.connect("zs", "n2", false, 3, present);
    })
}

/// A CONNECT with Clean Start is not answered; the next one is, and finds a session or none.
fn clean_unanswered(spoil: &mut Spoil, present: bool) -> Option<Vec<Event>> {
    spoil.scene(|write| {
        let (publisher, subscriber) = pair(write);
        write.lost("zs", subscriber, "n2", End::Cut);
        let (process, conn) = write.connecting("zs", "n1", true, 600, None);
        write.connack(process, conn, None);
        write.publish_ok("zp", publisher, &z(1), 1);
        let subscriber = write.connect("zs", "n3", false, 600, present);
        if present && publisher % 2 == 0 {
            write.receive("zs", subscriber, &z(1), 1, 1);
        }
    })
}

fn sessions() -> Vec<(&'static str, Expect, Scene)> {
    vec![
        ("forget a session before it expires", class("amnesia"), |spoil| {
            again_after(spoil, 1.0, false)
        }),
        ("resume a session before it expires", Expect::Valid, |spoil| {
            again_after(spoil, 1.0, true)
        }),
        ("resume a session about when it expires", Expect::Valid, |spoil| {
            again_after(spoil, 3.0, true)
        }),
        ("forget a session about when it expires", Expect::Valid, |spoil| {
            again_after(spoil, 3.0, false)
        }),
        (
            "resume a session long after it expired",
            class("phantom-session"),
            |spoil| again_after(spoil, 9.0, true),
        ),
        ("expire a session in time", Expect::Valid, |spoil| {
            again_after(spoil, 9.0, false)
        }),
        (
            "find a session after an unanswered Clean Start",
            Expect::Valid,
            |spoil| clean_unanswered(spoil, true),
        ),
        ("find none after an unanswered Clean Start", Expect::Valid, |spoil| {
            clean_unanswered(spoil, false)
        }),
        (
            "lose messages of a session that is never resumed",
            Expect::Unknown,
            |spoil| {
                spoil.scene(|write| {
                    let (publisher, subscriber) = pair(write);
                    write.lost("zs", subscriber, "n2", End::Cut);
                    write.publish_ok("zp", publisher, &z(1), 1);
                })
            },
        ),
        ("hand QoS 2 on again after the client forgot", Expect::Valid, |spoil| {
            spoil.scene(|write| {
                let publisher = write.connect("zp", "n1", true, 0, false);
                let subscriber = write.connect("zs", "n2", false, 600, false);
                write.subscribe("zs", subscriber, "z/#", &qos(2));
                write.publish_ok("zp", publisher, &z(1), 2);
                write.receive("zs", subscriber, &z(1), 2, 1);
                write.note("zs", Op::CrashClient { client: "zs".into() });
                write.lost("zs", subscriber, "n2", End::Cut);
                let subscriber = write.connect("zs", "n3", false, 600, true);
                write.received("zs", subscriber, &z(1), (2, 1, true, false, true), 1);
            })
        }),
    ]
}

// ── wills ──

/// An observer and a connection with a will.
fn with_will(write: &mut Writer, delay: u32) -> (u64, u64, Message) {
    let observer = write.connect("zo", "n3", false, 600, false);
    write.subscribe("zo", observer, "zw", &qos(1));
    let conn = write.next_conn();
    let will = Will {
        message: message(&format!("zc/{conn}"), "zw", 0),
        qos: 1,
        retain: false,
        delay,
    };
    let message = will.message.clone();
    let (process, conn) = write.connecting("zc", "n1", false, 600, Some(will));
    write.connack(process, conn, Some(false));
    (observer, conn, message)
}

fn wills() -> Vec<(&'static str, Expect, Scene)> {
    vec![
        (
            "publish a will after DISCONNECT",
            class("will-after-disconnect"),
            |spoil| {
                spoil.scene(|write| {
                    let (observer, conn, will) = with_will(write, 0);
                    disconnect(write, "zc", conn, 0, Kind::Ok);
                    write.receive("zo", observer, &will, 1, 1);
                })
            },
        ),
        (
            "publish a will after DISCONNECT that may have been lost",
            Expect::Valid,
            |spoil| {
                spoil.scene(|write| {
                    let (observer, conn, will) = with_will(write, 0);
                    disconnect(write, "zc", conn, 0, Kind::Info);
                    write.receive("zo", observer, &will, 1, 1);
                })
            },
        ),
        (
            "publish a will after DISCONNECT to a node that was killed then",
            Expect::Valid,
            |spoil| {
                spoil.scene(|write| {
                    let (observer, conn, will) = with_will(write, 0);
                    let killed = Op::Node {
                        node: "n1".into(),
                        event: "killed".into(),
                        detail: None,
                    };
                    write.note("harness", killed);
                    disconnect(write, "zc", conn, 0, Kind::Ok);
                    write.receive("zo", observer, &will, 1, 1);
                })
            },
        ),
        (
            "publish no will after DISCONNECT 0x04",
            class("missing-will"),
            |spoil| {
                spoil.scene(|write| {
                    let (_, conn, _) = with_will(write, 0);
                    disconnect(write, "zc", conn, 4, Kind::Ok);
                })
            },
        ),
        ("publish a will before its delay", class("early-will"), |spoil| {
            spoil.scene(|write| {
                let (observer, conn, will) = with_will(write, 2);
                write.lost("zc", conn, "n1", End::Cut);
                write.wait(1.0);
                write.receive("zo", observer, &will, 1, 1);
            })
        }),
        (
            "publish a will while its connection is served",
            class("early-will"),
            |spoil| {
                spoil.scene(|write| {
                    let (observer, conn, will) = with_will(write, 0);
                    write.receive("zo", observer, &will, 1, 1);
                    write.ping("zc", conn);
                    write.lost("zc", conn, "n1", End::Cut);
                })
            },
        ),
        ("publish a will after its delay", Expect::Valid, |spoil| {
            spoil.scene(|write| {
                let (observer, conn, will) = with_will(write, 2);
                write.lost("zc", conn, "n1", End::Silent);
                write.wait(2.5);
                write.receive("zo", observer, &will, 1, 1);
            })
        }),
        ("publish a will far too late", class("late-will"), |spoil| {
            spoil.scene(|write| {
                let (observer, conn, will) = with_will(write, 0);
                write.lost("zc", conn, "n1", End::Cut);
                write.wait(70.0);
                write.receive("zo", observer, &will, 1, 1);
            })
        }),
        (
            "publish a will though its session was resumed",
            class("will-after-resume"),
            |spoil| {
                spoil.scene(|write| {
                    let (observer, conn, will) = with_will(write, 2);
                    write.lost("zc", conn, "n1", End::Cut);
                    write.connect("zc", "n2", false, 600, true);
                    write.wait(3.0);
                    write.receive("zo", observer, &will, 1, 1);
                })
            },
        ),
        (
            "withhold a will that is due shortly before the drain ends",
            class("missing-will"),
            |spoil| due_before_the_end(spoil, 0.7),
        ),
        ("withhold a will that is not yet surely due", Expect::Valid, |spoil| {
            due_before_the_end(spoil, 0.3)
        }),
        ("publish no will when its session was resumed", Expect::Valid, |spoil| {
            spoil.scene(|write| {
                let (_, conn, _) = with_will(write, 2);
                write.lost("zc", conn, "n1", End::Cut);
                write.connect("zc", "n2", false, 600, true);
            })
        }),
    ]
}

fn due_before_the_end(spoil: &mut Spoil, before: f64) -> Option<Vec<Event>> {
    spoil.scene_before("final", |write| {
        let (_, conn, _) = with_will(write, 0);
        write.lost("zc", conn, "n1", End::Cut);
        write.wait(before);
    })
}

// ── groups ──

fn group(write: &mut Writer) -> (u64, u64, u64) {
    let publisher = write.connect("zp", "n1", true, 0, false);
    let (a, b) = (
        write.connect("za", "n2", false, 600, false),
        write.connect("zb", "n3", false, 600, false),
    );
    write.subscribe("za", a, "$share/zg/z/#", &qos(2));
    write.subscribe("zb", b, "$share/zg/z/#", &qos(2));
    (publisher, a, b)
}

/// Both members get it; what happens to the first member in between is told.
fn both(spoil: &mut Spoil, qos: u8, between: fn(&mut Writer, u64)) -> Option<Vec<Event>> {
    spoil.scene(|write| {
        let (publisher, a, b) = group(write);
        write.publish_ok("zp", publisher, &z(1), qos);
        write.receive("za", a, &z(1), qos, 1);
        between(write, a);
        write.receive("zb", b, &z(1), qos, 1);
        write.ping("za", a);
    })
}

fn groups() -> Vec<(&'static str, Expect, Scene)> {
    vec![
        (
            "give a group's message to two connected members",
            class("shared-twice"),
            |spoil| both(spoil, 1, |_, _| {}),
        ),
        (
            "give a group's QoS 2 message to two members",
            class("shared-qos2-twice"),
            |spoil| both(spoil, 2, |_, _| {}),
        ),
        (
            "give a refused message to another member",
            class("shared-after-nack"),
            |spoil| {
                both(spoil, 1, |write, a| {
                    let index = write.acknowledge("za", a, &z(1), 1, "puback");
                    if let Op::AckSent { reason, .. } = &mut write.events[index].op {
                        *reason = 0x80;
                    }
                    write.ping("za", a);
                })
            },
        ),
        (
            "give a group's message to another member after a cut",
            Expect::Valid,
            |spoil| {
                spoil.scene(|write| {
                    let (publisher, a, b) = group(write);
                    write.publish_ok("zp", publisher, &z(1), 1);
                    write.receive("za", a, &z(1), 1, 1);
                    write.lost("za", a, "n2", End::Cut);
                    write.receive("zb", b, &z(1), 1, 1);
                })
            },
        ),
        (
            "give a settled message to another member after a cut",
            class("shared-twice"),
            |spoil| {
                spoil.scene(|write| {
                    let (publisher, a, b) = group(write);
                    write.publish_ok("zp", publisher, &z(1), 1);
                    write.receive("za", a, &z(1), 1, 1);
                    write.acknowledge("za", a, &z(1), 1, "puback");
                    write.ping("za", a);
                    write.wait(1.0);
                    write.ping("za", a);
                    write.lost("za", a, "n2", End::Cut);
                    write.receive("zb", b, &z(1), 1, 1);
                })
            },
        ),
        ("lose a group's QoS 1 message", class("shared-lost"), |spoil| {
            spoil.scene(|write| {
                let (publisher, ..) = group(write);
                write.publish_ok("zp", publisher, &z(1), 1);
            })
        }),
        (
            "lose a QoS 2 message with a member that unsubscribed",
            class("shared-lost"),
            |spoil| {
                spoil.scene(|write| {
                    let (publisher, a, _) = group(write);
                    write.publish_ok("zp", publisher, &z(1), 2);
                    write.unsubscribe("za", a, "$share/zg/z/#");
                })
            },
        ),
        ("lose a QoS 2 message with a member's session", Expect::Valid, |spoil| {
            spoil.scene(|write| {
                let (publisher, a, _) = group(write);
                write.publish_ok("zp", publisher, &z(1), 2);
                write.lost("za", a, "n2", End::Cut);
                write.connect("za", "n1", true, 600, false);
            })
        }),
    ]
}

// ── recovery ──

fn node_event(write: &mut Writer, event: &str) {
    let op = Op::Node {
        node: "n3".into(),
        event: event.into(),
        detail: None,
    };
    write.note("harness", op);
}

/// All is well, and then n3 is killed.
fn well_then_killed(write: &mut Writer) {
    write.wait(3.0);
    write.fault("kill", "start", "n3", json!({}));
}

fn topic_back_after(spoil: &mut Spoil, seconds: f64) -> Option<Vec<Event>> {
    spoil.scene_before("heal", |write| {
        let publisher = write.connect("zp", "n1", true, 0, false);
        well_then_killed(write);
        let op = write.publish("zp", publisher, &z(1), 1, false);
        write.wait(seconds);
        write.published(op, Kind::Ok, publisher, 1);
    })
}

fn client_back_after(spoil: &mut Spoil, asks: &str) -> Option<Vec<Event>> {
    spoil.scene_before("heal", |write| {
        let conn = write.connect("zs", "n3", false, 600, false);
        well_then_killed(write);
        write.lost("zs", conn, "n3", End::Closed);
        let (process, tried) = write.connecting("zs", asks, false, 600, None);
        write.wait(12.0);
        write.connack(process, tried, None);
        write.connect("zs", "n2", false, 600, true);
    })
}

fn let_go(spoil: &mut Spoil, how: End) -> Option<Vec<Event>> {
    spoil.scene_before("heal", |write| {
        let conn = write.connect("zs", "n1", false, 600, false);
        well_then_killed(write);
        write.wait(1.0);
        write.lost("zs", conn, "n1", how);
    })
}

fn others() -> Vec<(&'static str, Expect, Scene)> {
    vec![
        (
            "leave a topic without service after a fault",
            Expect::Class("slow-topic", &["slow-recovery"]),
            |spoil| {
                spoil.scene_before("heal", |write| {
                    let publisher = write.connect("zp", "n1", true, 0, false);
                    write.fault("kill", "once", "n3", json!({}));
                    let op = write.publish("zp", publisher, &z(1), 1, false);
                    write.wait(30.0);
                    write.published(op, Kind::Ok, publisher, 1);
                })
            },
        ),
        (
            "leave a client without service after a fault",
            Expect::Class("slow-client", &["slow-topic", "slow-recovery"]),
            |spoil| {
                spoil.scene_before("heal", |write| {
                    let conn = write.connect("zs", "n3", false, 600, false);
                    write.fault("kill", "once", "n3", json!({}));
                    write.lost("zs", conn, "n3", End::Closed);
                    let (process, tried) = write.connecting("zs", "n1", false, 600, None);
                    write.wait(30.0);
                    write.connack(process, tried, None);
                    write.connect("zs", "n2", false, 600, true);
                })
            },
        ),
        (
            "leave a topic too long without service after a kill",
            class("slow-recovery"),
            |spoil| topic_back_after(spoil, 12.0),
        ),
        ("leave a topic without service for a moment", Expect::Valid, |spoil| {
            topic_back_after(spoil, 8.0)
        }),
        (
            "leave a client too long without service after a kill",
            class("slow-recovery"),
            |spoil| client_back_after(spoil, "n1"),
        ),
        ("let a client ask the killed node for long", Expect::Valid, |spoil| {
            client_back_after(spoil, "n3")
        }),
        (
            "let a client of a healthy node go",
            class("healthy-disconnected"),
            |spoil| let_go(spoil, End::Closed),
        ),
        ("let a client of a healthy node leave", Expect::Valid, |spoil| {
            let_go(spoil, End::Cut)
        }),
        (
            "acknowledge nothing for long",
            Expect::Class("unavailable", &["slow-topic", "late-will", "slow-recovery"]),
            |spoil| {
                spoil.scene_before("heal", |write| {
                    let publisher = write.connect("zp", "n1", true, 0, false);
                    let op = write.publish("zp", publisher, &z(1), 1, false);
                    write.wait(90.0);
                    write.published(op, Kind::Ok, publisher, 1);
                })
            },
        ),
        ("let a node serve nobody after healing", class("no-recovery"), |spoil| {
            spoil.scene_before("drain", |write| {
                let (process, conn) = write.connecting("zs", "n9", true, 0, None);
                write.wait(2.0);
                write.connack(process, conn, None);
            })
        }),
        ("let a node end by itself", class("unexpected-exit"), |spoil| {
            spoil.scene_before("heal", |write| node_event(write, "exited"))
        }),
        ("let a node end that was killed", Expect::Valid, |spoil| {
            spoil.scene_before("heal", |write| {
                node_event(write, "killed");
                node_event(write, "started");
                node_event(write, "exited");
            })
        }),
        (
            "let a node serve late after healing",
            Expect::Class("slow-heal", &["slow-topic", "late-will", "slow-recovery"]),
            |spoil| {
                spoil.scene_before("recovery", |write| {
                    write.wait(70.0);
                    write.connect("zs", "n9", true, 0, false);
                })
            },
        ),
    ]
}
