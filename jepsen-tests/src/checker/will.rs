//! (g) A will is published once after an ungraceful end, not after DISCONNECT 0x00, and not before its delay.
//!
//! | end of the connection                                    | wills           |
//! |----------------------------------------------------------|-----------------|
//! | DISCONNECT 0x00, processed                                | 0               |
//! | DISCONNECT 0x00, and the connection broke                 | 0 or 1          |
//! | DISCONNECT 0x04, cut, silent, its node killed, taken over | 1               |
//! | any of these, and resumed before the delay passed         | 0               |
//!
//! Each connection's will is a message of its own; persistent observers at QoS ≥ 1 count the copies.

use super::model::{Connection, Delivery, Index, Model, NEVER, Outcome, Published};
use super::{Findings, Limits};

/// How many times a will is to be seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    Never(&'static str),
    Once,
    Perhaps,
}

pub fn check(model: &Model, limits: &Limits) -> Findings {
    let mut findings = Findings::default();
    let mut copies: Vec<Vec<&Delivery>> = vec![Vec::new(); model.messages.len()];
    for delivery in &model.deliveries {
        if let Some(number) = delivery.message.filter(|number| model.messages[*number as usize].will)
            && model.is_live(delivery)
        {
            copies[number as usize].push(delivery);
        }
    }
    let mut by_client: Vec<Vec<&Connection>> = vec![Vec::new(); model.clients.len()];
    for connection in &model.connections {
        by_client[connection.client as usize].push(connection);
    }
    let mut times = Vec::new();
    for connection in &model.connections {
        let Some(number) = connection.will.and_then(|will| model.message(&will.message)) else {
            continue;
        };
        let case = Case {
            model,
            limits,
            connection,
            published: &model.messages[number as usize],
            number,
            others: &by_client[connection.client as usize],
        };
        times.extend(case.check(&copies[number as usize], &mut findings));
    }
    findings.percentiles("will.seconds_after_end", times);
    findings
}

struct Case<'m, 'h> {
    model: &'m Model<'h>,
    limits: &'m Limits,
    connection: &'m Connection<'h>,
    published: &'m Published<'h>,
    number: u32,
    /// All connections of the client.
    others: &'m [&'m Connection<'h>],
}

impl Case<'_, '_> {
    /// Answers how long after the end of its connection the will was first seen.
    fn check(&self, copies: &[&Delivery], findings: &mut Findings) -> Option<f64> {
        let model = self.model;
        let expected = self.expected();
        let first = copies.first().map(|copy| copy.index);
        findings.count("will.connections", 1.0);
        if let (Expected::Never(why), Some(seen)) = (expected, first) {
            let class = if why == RESUMED {
                "will-after-resume"
            } else {
                "will-after-disconnect"
            };
            self.report(findings, class, &format!("was published though {why}"), &[seen]);
        } else if let Some(seen) = first
            && model.seconds(seen) < self.earliest()
        {
            self.report(findings, "early-will", "was published before its time", &[seen]);
        }
        if expected == Expected::Once {
            findings.count("will.due", 1.0);
            self.missing(copies, findings);
        }
        self.repeated(copies, findings);
        let seen = first?;
        findings.count("will.seen", 1.0);
        let late = model.seconds(seen) - self.end_seconds() - self.delay();
        if self.limits.will.is_some_and(|limit| late > limit) {
            let what = format!("was seen {late:.1} s after it was due");
            self.report(findings, "late-will", &what, &[seen]);
        }
        Some(late)
    }

    fn expected(&self) -> Expected {
        let connection = self.connection;
        if connection.outcome != Outcome::Ok {
            return Expected::Perhaps;
        }
        let Some(end) = connection.end else {
            return Expected::Perhaps;
        };
        if let Some(disconnect) = connection.disconnect.filter(|disconnect| disconnect.reason == 0) {
            // A take-over or the loss of the node may have come first.
            let alone = disconnect.processed && !self.others_within(connection.proof, disconnect.end);
            let first = connection.lost.is_none_or(|lost| lost > disconnect.invoke);
            return match alone && first {
                true => Expected::Never("its connection ended with DISCONNECT 0x00"),
                false => Expected::Perhaps,
            };
        }
        if self.delay() == 0.0 {
            return Expected::Once;
        }
        let next = self
            .others
            .iter()
            .find(|other| other.invoke > connection.answer && other.outcome != Outcome::Fail);
        let Some(next) = next else {
            return if self.due() < self.model.seconds(self.model.events.len()) {
                Expected::Once
            } else {
                Expected::Perhaps
            };
        };
        let model = self.model;
        let resumed = !next.clean && next.session_present == Some(true);
        if resumed && model.seconds(next.answer) < self.earliest() {
            return Expected::Never(RESUMED);
        }
        // Clean Start ends the session, and the will is published with its end [MQTT-3.1.3-9].
        let replaced = next.clean && next.outcome == Outcome::Ok;
        let passed = model.seconds(next.invoke) > self.due() && model.seconds(end) < model.seconds(next.invoke);
        if replaced || passed {
            Expected::Once
        } else {
            Expected::Perhaps
        }
    }

    /// Another CONNECT of the client id was on its way between two events.
    fn others_within(&self, from: Index, until: Index) -> bool {
        let late = self.limits.late_effect;
        self.others.iter().any(|other| {
            let answered = match other.outcome {
                Outcome::Info => self.model.index_at(self.model.seconds(other.answer) + late),
                _ => other.answer,
            };
            other.number != self.connection.number && other.invoke < until && answered > from
        })
    }

    /// Will Delay Interval, or the session's end where that is earlier.
    fn delay(&self) -> f64 {
        let delay = self.connection.will.map_or(0, |will| will.delay);
        let expiry = self.connection.disconnect.and_then(|disconnect| disconnect.expiry);
        delay.min(expiry.unwrap_or(u32::MAX)).min(self.connection.expiry).into()
    }

    /// Before this time, in seconds, nobody may see it: the connection was served, or the delay had not passed.
    fn earliest(&self) -> f64 {
        // A session that is ended by Clean Start ends its delay too.
        let replaced = self
            .others
            .iter()
            .any(|other| other.clean && other.invoke > self.connection.answer && other.outcome != Outcome::Fail);
        let delay = if replaced { 0.0 } else { self.delay() };
        // A take-over ends it from when it is asked for: the old node may answer on until the fence.
        let taken_over = self
            .others
            .iter()
            .filter(|other| other.invoke > self.connection.answer && other.outcome != Outcome::Fail);
        let asked = taken_over.map(|other| other.invoke).min().unwrap_or(NEVER);
        let served = match self.connection.outcome {
            Outcome::Ok => self.connection.proof.min(asked),
            // It may have been carried out, and ended, at any time since.
            _ => self.connection.invoke,
        };
        // 0.1 s: the clock of the log is not that of the harness.
        self.model.seconds(served) + (delay - 0.1).max(0.0)
    }

    fn end_seconds(&self) -> f64 {
        self.model.seconds(self.connection.end.unwrap_or(NEVER))
    }

    /// From this time on it must have been published, if nothing prevented it.
    fn due(&self) -> f64 {
        self.end_seconds() + self.limits.detection + self.delay()
    }

    /// Persistent observers that were there from before the connection until the will was surely due: to the end of the drain, or
    /// served for longer.
    fn missing(&self, copies: &[&Delivery], findings: &mut Findings) {
        let model = self.model;
        let end = model.phases.drain_end;
        if !model.phases.has_drain {
            return;
        }
        let drained = self.due() <= model.seconds(end);
        let mut lives: Vec<u32> = Vec::new();
        for number in model.holds_of_topic(self.published.topic) {
            let hold = &model.holds[*number as usize];
            let life = &model.lives[hold.life as usize];
            let observes = hold.group.is_none()
                && life.persistent
                && hold.from_sure < self.connection.proof.max(self.connection.answer)
                && hold.until_possible >= end
                && (drained || model.seconds(hold.until_possible) > self.due() + self.limits.arrival)
                && hold.least_qos(self.connection.invoke, if drained { end } else { NEVER }) > 0
                && hold.client != self.connection.client;
            if observes && self.published.qos > 0 && !lives.contains(&hold.life) {
                lives.push(hold.life);
            }
        }
        for life in lives {
            let seen = copies.iter().any(|copy| copy.life == Some(life));
            let served = match drained {
                true => model.serving(life, end).is_some(),
                false => self.served_beyond(life),
            };
            if !seen && served {
                let what = format!("never came to {}", model.client_of(life));
                self.report(findings, "missing-will", &what, &[]);
            }
        }
    }

    /// One connection of an observer that the broker answered long after the will was due, and before it: nothing was lost with it.
    fn served_beyond(&self, life: u32) -> bool {
        let model = self.model;
        let connections = &model.lives[life as usize].connections;
        connections.iter().any(|number| {
            let observer = &model.connections[*number as usize];
            let spans = observer.outcome == Outcome::Ok && observer.answer < self.connection.end.unwrap_or(NEVER);
            spans && model.seconds(observer.proof) > self.due() + self.limits.arrival
        })
    }

    fn repeated(&self, copies: &[&Delivery], findings: &mut Findings) {
        let mut lives: Vec<Option<u32>> = copies.iter().map(|copy| copy.life).collect();
        lives.sort_unstable();
        lives.dedup();
        for life in lives {
            let of_life = || copies.iter().filter(|copy| copy.life == life);
            // A copy with DUP is the same will once more.
            let handed: Vec<Index> = of_life()
                .filter(|copy| copy.handed && (!copy.dup || copy.qos == 2))
                .map(|copy| copy.index)
                .collect();
            let groups = life.is_some_and(|life| self.model.is_shared(life, self.published.topic));
            let forgot = handed.last().is_some_and(|last| {
                let client = life.map(|life| self.model.lives[life as usize].client);
                client.is_some_and(|client| self.model.forgot_between(client, handed[0], *last))
            });
            if handed.len() > 1 && !groups && !forgot {
                let what = format!(
                    "came {} times to {}",
                    handed.len(),
                    self.model.clients.name(copies[0].client)
                );
                self.report(findings, "extra-will", &what, &handed);
                return;
            }
        }
    }

    fn report(&self, findings: &mut Findings, class: &str, what: &str, seen: &[Index]) {
        let connection = self.connection;
        let message = format!(
            "the will {} of connection {} of {} to {} {what}",
            self.number,
            connection.number,
            self.model.clients.name(connection.client),
            self.model.nodes.name(connection.node),
        );
        let end = connection.disconnect.map_or(NEVER, |disconnect| disconnect.end);
        let events = [
            connection.answer,
            connection.proof,
            connection.end.unwrap_or(NEVER),
            end,
        ];
        findings.violation(
            ("will", class, "P7"),
            message,
            events.into_iter().chain(seen.iter().copied()),
        );
    }
}

const RESUMED: &str = "its session was resumed before the delay had passed";
