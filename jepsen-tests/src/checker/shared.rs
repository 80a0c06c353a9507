//! (h) A group that shares a subscription gets each QoS 1 and 2 message once, whoever of its members gets it.
//!
//! - h1: while the group has a subscription, none is lost; but a QoS 2 message stays with the session it was given to, and
//!   may be lost with that. [MQTT-4.8.2-4] [MQTT-4.8.2-5]
//! - h2: at QoS 1 another member gets it only if the first one's connection ended before its PUBACK was surely settled.
//! - h3: at QoS 2 never.
//! - h4: what a member refused goes to nobody. [MQTT-4.8.2-6]

use super::model::{Delivery, Hold, Index, Map, Model, NEVER, Published};
use super::{Findings, Limits};
use std::collections::BTreeMap;

pub fn check(model: &Model, limits: &Limits) -> Findings {
    let mut findings = Findings::default();
    let mut groups: BTreeMap<&str, Vec<u32>> = BTreeMap::new();
    for (number, hold) in model.holds.iter().enumerate() {
        if let Some(group) = &hold.group {
            groups.entry(group).or_default().push(number as u32);
        }
    }
    if groups.is_empty() {
        return findings;
    }
    let mut copies: Map<u32, Vec<u32>> = Map::default();
    for (at, delivery) in model.deliveries.iter().enumerate() {
        if let Some(number) = delivery.message.filter(|_| model.is_live(delivery)) {
            copies.entry(number).or_default().push(at as u32);
        }
    }
    for (name, holds) in &groups {
        let group = Group {
            model,
            limits,
            name,
            holds: holds.iter().map(|number| &model.holds[*number as usize]).collect(),
        };
        group.check(&copies, &mut findings);
    }
    findings
}

struct Group<'m, 'h> {
    model: &'m Model<'h>,
    limits: &'m Limits,
    name: &'m str,
    holds: Vec<&'m Hold<'h>>,
}

impl<'m, 'h> Group<'m, 'h> {
    fn check(&self, copies: &Map<u32, Vec<u32>>, findings: &mut Findings) {
        let model = self.model;
        let established = self.established();
        let ended = self.ended_sessions();
        let levels = self.name.split_once('/').map_or("", |(_, levels)| levels);
        let matching: Vec<bool> = model
            .topics
            .iter()
            .map(|(_, topic)| super::model::matches(levels, topic))
            .collect();
        let mut shares: BTreeMap<u32, usize> = BTreeMap::new();
        for (number, published) in model.messages.iter().enumerate() {
            if !matching[published.topic as usize] || published.qos == 0 || published.will {
                continue;
            }
            let all: Vec<&Delivery> = copies
                .get(&(number as u32))
                .into_iter()
                .flatten()
                .map(|at| &model.deliveries[*at as usize])
                .filter(|copy| {
                    self.holds
                        .iter()
                        .any(|hold| copy.life.is_some_and(|life| is_of(hold, life)))
                })
                .collect();
            if all.is_empty() {
                self.lost(published, &established, &ended, findings);
                continue;
            }
            // What a member also gets by another subscription says nothing about the group.
            let surely: Vec<&Delivery> = all
                .into_iter()
                .filter(|copy| self.is_only_source(copy, published))
                .collect();
            if let Some(first) = surely.first() {
                *shares.entry(first.client).or_default() += 1;
            }
            if published.send_count == 1 || published.qos == 2 {
                self.several(published, &surely, findings);
            }
        }
        if let (Some(least), Some(most)) = (shares.values().min(), shares.values().max()) {
            findings.count("shared.delivered", shares.values().sum::<usize>() as f64);
            findings.greatest("shared.most_to_least", *most as f64 / *least as f64);
        }
    }

    /// Stretches of the history in which the group surely had a member.
    fn established(&self) -> Vec<(Index, Index)> {
        let mut stretches: Vec<(Index, Index)> = self
            .holds
            .iter()
            .filter(|hold| hold.from_sure < hold.until_possible)
            .map(|hold| (hold.from_sure, hold.until_possible))
            .collect();
        stretches.sort_unstable();
        let mut joined: Vec<(Index, Index)> = Vec::new();
        for (from, until) in stretches {
            match joined.last_mut() {
                Some((_, last)) if from < *last => *last = (*last).max(until),
                _ => joined.push((from, until)),
            }
        }
        joined
    }

    /// Where members may have taken QoS 2 messages with them: from when on, until when. Only a session that *ended* takes them
    /// along, and only what was given to it while it was connected; who merely unsubscribed still gets what was given to it.
    fn ended_sessions(&self) -> Vec<(Index, Index)> {
        let model = self.model;
        let ended = self.holds.iter().filter_map(|hold| {
            let life = &model.lives[hold.life as usize];
            if life.until_possible == NEVER {
                return None;
            }
            let ends = life
                .connections
                .iter()
                .map(|at| model.connections[*at as usize].end.unwrap_or(NEVER));
            let last = ends.max().unwrap_or(NEVER);
            // The broker may believe longer than the client that it is connected.
            let noticed = match last {
                NEVER => NEVER,
                last => model.index_at(model.seconds(last) + self.limits.detection),
            };
            Some((hold.from_possible, noticed.min(life.until_sure)))
        });
        ended.collect()
    }

    fn lost(
        &self,
        published: &Published,
        established: &[(Index, Index)],
        ended: &[(Index, Index)],
        findings: &mut Findings,
    ) {
        if !self.model.phases.has_drain {
            return;
        }
        let end = self.model.phases.drain_end;
        let kept = |(from, until): &(Index, Index)| *from < published.invoke && *until >= end;
        let Some((since, _)) = established.iter().find(|stretch| kept(stretch)) else {
            return;
        };
        let takes = |(from, until): &(Index, Index)| *from < published.end && *until > published.invoke;
        let with_session = published.qos == 2 && ended.iter().any(takes);
        let at_qos_0 = self
            .holds
            .iter()
            .any(|hold| hold.grants.iter().any(|grant| grant.qos == 0));
        if !published.is_kept() || published.doubtful || with_session || at_qos_0 || self.only_publisher(published) {
            return;
        }
        let served = self
            .holds
            .iter()
            .any(|hold| hold.until_possible >= end && self.model.serving(hold.life, end).is_some());
        let what = format!(
            "nobody of group {} got {} {} of {} (QoS {})",
            self.name, published.message.topic, published.message.seq, published.message.publisher, published.qos,
        );
        if served {
            let events = [*since, published.invoke, published.end];
            findings.violation(("shared", "shared-lost", "P8"), what, events);
        } else {
            findings
                .unknown
                .push(format!("{what}, and no member was connected when the drain ended"));
        }
    }

    fn only_publisher(&self, published: &Published) -> bool {
        self.holds.iter().all(|hold| hold.client == published.client)
            && self
                .holds
                .iter()
                .any(|hold| hold.grants.iter().any(|grant| grant.no_local))
    }

    fn is_only_source(&self, copy: &Delivery, published: &Published) -> bool {
        let Some(life) = copy.life else { return false };
        let mut holds = self.model.holds_of(life, published.topic);
        holds.all(|hold| hold.group.as_deref() == Some(self.name))
    }

    /// h2, h3 and h4 of one message.
    fn several(&self, published: &Published, copies: &[&Delivery], findings: &mut Findings) {
        for (at, later) in copies.iter().enumerate() {
            let Some(earlier) = copies[..at].iter().rfind(|earlier| earlier.client != later.client) else {
                continue;
            };
            let nacked = |copy: &&&Delivery| {
                copy.acknowledged.is_some_and(|(index, reason)| {
                    reason >= 0x80 && index < later.index && self.model.surely_read(copy.connection, index)
                })
            };
            let refused = copies[..at]
                .iter()
                .find(|copy| copy.client != later.client && nacked(copy));
            let (class, why) = if let Some(refused) = refused {
                (
                    "shared-after-nack",
                    format!("{} had refused it", self.model.clients.name(refused.client)),
                )
            } else if earlier.qos == 2 && later.qos == 2 {
                (
                    "shared-qos2-twice",
                    format!("{} had got it, QoS 2", self.model.clients.name(earlier.client)),
                )
            } else if self.surely_kept(earlier, later.index) {
                (
                    "shared-twice",
                    format!(
                        "{} had it and kept its connection",
                        self.model.clients.name(earlier.client)
                    ),
                )
            } else if self.surely_settled(earlier) {
                (
                    "shared-twice",
                    format!("{} had acknowledged it", self.model.clients.name(earlier.client)),
                )
            } else {
                findings.count("shared.rerouted", 1.0);
                continue;
            };
            let message = format!(
                "{} of group {} got {} {} of {} after {why}",
                self.model.clients.name(later.client),
                self.name,
                published.message.topic,
                published.message.seq,
                published.message.publisher,
            );
            let acknowledged = earlier.acknowledged.map_or(NEVER, |(index, _)| index);
            let events = [published.invoke, earlier.index, acknowledged, later.index];
            findings.violation(("shared", class, "P8"), message, events);
        }
    }

    /// The earlier member was served, and subscribed, when the later one got the message.
    fn surely_kept(&self, earlier: &Delivery, until: Index) -> bool {
        let connection = &self.model.connections[earlier.connection as usize];
        let subscribed = self
            .holds
            .iter()
            .any(|hold| hold.client == earlier.client && hold.from_sure < until && hold.until_possible > until);
        connection.proof > until && subscribed
    }

    fn surely_settled(&self, earlier: &Delivery) -> bool {
        let acknowledged = earlier.acknowledged.map(|(index, _)| index);
        acknowledged.is_some_and(|index| self.model.surely_settled(earlier.connection, index, self.limits))
    }
}

fn is_of(hold: &Hold, life: u32) -> bool {
    (hold.life..=hold.last_life).contains(&life)
}
