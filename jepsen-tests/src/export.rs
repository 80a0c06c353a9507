//! The same history for checkers of others: nothing here decides, so that a mistake of ours does not decide twice.
//!
//! | text                  | for                                        |
//! |-----------------------|--------------------------------------------|
//! | [`edn`]               | people and tools that read Jepsen's maps   |
//! | [`knossos`]           | Knossos: a register per retained topic     |
//! | [`set_full`]          | Jepsen's set-full: what a session received |
//! | [`porcupine`]         | porcupine: call and return events          |

use crate::checker::model::{Index, Model, NEVER};
use crate::checker::register::{Access, registers};
use crate::history::{Event, Process};
use serde_json::{Value, json};
use std::fmt::Write;

/// All events as maps with keywords, one a line.
pub fn edn(history: &[Event]) -> String {
    let mut text = String::new();
    for event in history {
        let value = serde_json::to_value(event).unwrap_or_default();
        text.push_str(&to_edn(&value, true));
        text.push('\n');
    }
    text
}

/// Keys become keywords; of an event also its type, function and the name of a process.
fn to_edn(value: &Value, event: bool) -> String {
    match value {
        Value::Null => "nil".into(),
        Value::Bool(_) | Value::Number(_) => value.to_string(),
        Value::String(text) => quoted(text),
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(|item| to_edn(item, false)).collect();
            format!("[{}]", items.join(" "))
        }
        Value::Object(fields) => {
            let fields: Vec<String> = fields
                .iter()
                .map(|(key, value)| match value {
                    Value::String(word) if event && ["type", "f", "process"].contains(&key.as_str()) => {
                        format!("{} {}", keyword(key), keyword(word))
                    }
                    _ => format!("{} {}", keyword(key), to_edn(value, false)),
                })
                .collect();
            format!("{{{}}}", fields.join(", "))
        }
    }
}

/// Keys that are no keyword, a group's name with a space, stay strings.
fn keyword(word: &str) -> String {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "-_.".contains(letter);
    let starts = word.starts_with(|letter: char| letter.is_ascii_alphabetic());
    if starts && word.chars().all(plain) {
        format!(":{}", word.replace('_', "-"))
    } else {
        quoted(word)
    }
}

/// EDN has of JSON's escapes these and `\uXXXX`, which JSON's own text has too.
fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

/// The histories of registers: topic, and its operations in Knossos' form. Values are numbers of messages.
pub fn knossos(model: &Model) -> Vec<(String, String)> {
    each_register(model, |accesses| {
        let mut text = String::new();
        for (_, at, kind) in steps(accesses) {
            let access = &accesses[at];
            let process = process(model, access, at);
            let function = if access.write { ":write" } else { ":read" };
            let known = access.write || kind == Step::Return;
            let value = match access.value {
                Some(value) if known => value.to_string(),
                _ => "nil".into(),
            };
            let kind = match kind {
                Step::Call => ":invoke",
                Step::Return if access.end == NEVER => ":info",
                Step::Return => ":ok",
            };
            let _ = writeln!(
                text,
                "{{:process {process}, :type {kind}, :f {function}, :value {value}}}"
            );
        }
        text
    })
}

/// The histories of registers: topic, and a JSON array of call and return events. What did not complete returns at the end.
pub fn porcupine(model: &Model) -> Vec<(String, String)> {
    each_register(model, |accesses| {
        let events: Vec<Value> = steps(accesses)
            .into_iter()
            .map(|(_, at, kind)| {
                let access = &accesses[at];
                let known = access.write || kind == Step::Return;
                json!({
                    "kind": if kind == Step::Call { "call" } else { "return" },
                    "client": process(model, access, at),
                    "id": at,
                    "op": if access.write { "write" } else { "read" },
                    "value": access.value.filter(|_| known),
                })
            })
            .collect();
        let mut text = Value::Array(events).to_string();
        text.push('\n');
        text
    })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Call,
    Return,
}

fn each_register(model: &Model, render: impl Fn(&[Access]) -> String) -> Vec<(String, String)> {
    let mut texts = Vec::new();
    for (topic, register) in registers(model).iter().enumerate() {
        if register.accesses.iter().any(|access| !access.write) {
            texts.push((model.topics.name(topic as u32).to_owned(), render(&register.accesses)));
        }
    }
    texts
}

/// Calls and returns in the order of the history; [`NEVER`] sorts last.
fn steps(accesses: &[Access]) -> Vec<(Index, usize, Step)> {
    let mut steps: Vec<(Index, usize, Step)> = accesses
        .iter()
        .enumerate()
        .flat_map(|(at, access)| [(access.invoke, at, Step::Call), (access.end, at, Step::Return)])
        .collect();
    steps.sort_unstable_by_key(|(index, at, step)| (*index, *step, *at));
    steps
}

fn process(model: &Model, access: &Access, at: usize) -> u64 {
    match model.events.get(access.invoke).map(|event| &event.process) {
        Some(Process::Number(process)) => *process,
        // Wills have no process of their own.
        _ => 1_000_000 + at as u64,
    }
}

/// Of each persistent session: what was added to the topics it held, and what it had when the drain ended.
pub fn set_full(model: &Model) -> Vec<(String, String)> {
    let end = model.phases.drain_end;
    let mut texts = Vec::new();
    for (life, session) in model.lives.iter().enumerate() {
        let life = life as u32;
        if !session.persistent || session.until_possible < end {
            continue;
        }
        let mut steps: Vec<(Index, String)> = Vec::new();
        let mut has: Vec<u32> = Vec::new();
        for (number, published) in model.messages.iter().enumerate() {
            let number = number as u32;
            let held = model.surely_held(life, published.topic, published.invoke, end.saturating_sub(1));
            if published.will || held.is_none_or(|hold| hold.least_qos(published.invoke, NEVER) == 0) {
                continue;
            }
            let process = match &model.events[published.invoke].process {
                Process::Number(process) => *process,
                Process::Name(_) => continue,
            };
            let add = |kind: &str| format!("{{:process {process}, :type {kind}, :f :add, :value {number}}}");
            steps.push((published.invoke, add(":invoke")));
            steps.push(match published.outcome {
                crate::checker::model::Outcome::Ok => (published.end, add(":ok")),
                crate::checker::model::Outcome::Fail => (published.end, add(":fail")),
                crate::checker::model::Outcome::Info => (end, add(":info")),
            });
            if model.copies(life, number).any(|copy| copy.index < end) {
                has.push(number);
            }
        }
        steps.sort_by_key(|(index, _)| *index);
        let has: Vec<String> = has.iter().map(u32::to_string).collect();
        let mut text: String = steps.into_iter().map(|(_, line)| line + "\n").collect();
        let _ = writeln!(text, "{{:process 9999999, :type :invoke, :f :read, :value nil}}");
        let _ = writeln!(
            text,
            "{{:process 9999999, :type :ok, :f :read, :value #{{{}}}}}",
            has.join(" ")
        );
        texts.push((model.client_of(life).to_owned(), text));
    }
    texts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{Kind, Op};
    use crate::synthetic::{Plan, Writer, generate, message, profile};

    #[test]
    fn an_event_becomes_a_map_with_keywords() {
        let mut write = Writer::new();
        write.phase("setup");
        assert_eq!(
            edn(&write.events),
            "{:f :phase, :index 0, :process :harness, :time 0, :type :info, :value \"setup\"}\n"
        );
    }

    #[test]
    fn a_register_becomes_calls_and_returns() {
        let mut write = Writer::new();
        let conn = write.connect("p", "n1", true, 0, false);
        let value = message("p", "r", 1);
        let open = write.publish("p", conn, &value, 1, true);
        let read = |value| Op::ReadRetained {
            client: "x".into(),
            conn,
            node: "n1".into(),
            topic: "r".into(),
            value,
            absent: false,
        };
        let reader = write.invoke(read(None));
        write.event(reader, Kind::Ok, read(Some(value.clone())));
        write.published(open, Kind::Info, conn, 1);
        let model = Model::new(&write.events, &profile().limits);
        let [(topic, text)] = &knossos(&model)[..] else {
            panic!("one topic");
        };
        assert_eq!(topic, "r");
        assert_eq!(
            text,
            "{:process 1, :type :invoke, :f :write, :value 0}\n{:process 2, :type :invoke, :f :read, :value nil}\n\
             {:process 2, :type :ok, :f :read, :value 0}\n{:process 1, :type :info, :f :write, :value 0}\n"
        );
        let events: Vec<Value> = serde_json::from_str(&porcupine(&model)[0].1).expect("it is JSON");
        let kinds: Vec<&str> = events.iter().filter_map(|event| event["kind"].as_str()).collect();
        assert_eq!(kinds, ["call", "call", "return", "return"]);
    }

    #[test]
    fn sessions_become_sets() {
        let history = generate(&Plan::new(2));
        let sets = set_full(&Model::new(&history, &profile().limits));
        assert!(sets.iter().any(|(client, _)| client == "s0"));
        assert!(
            sets.iter()
                .all(|(_, text)| text.contains(":f :read") && text.contains("#{"))
        );
    }
}
