//! Links that are cut, slow or unreliable. Every fault is a list of directed pairs with a rule; who carries it out is the
//! back end's matter.

use super::family::Family;
use super::target::{Role, View};
use super::{Active, Begun, Nemesis, Trouble, Undo};
use crate::cluster::BackEnd;
use crate::cluster::link::{CLIENTS, Parity, Port, Rule, Rules};
use serde_json::{Value, json};
use std::time::Duration;

impl Nemesis {
    pub(super) fn partition(&mut self, family: Family, view: &View) -> Begun {
        match family {
            Family::PartitionHalves => self.halves(view),
            Family::PartitionRing => self.ring(view),
            Family::PartitionBridge => self.bridge(family, view),
            Family::PartitionOneWay => self.one_way(view),
            Family::PartitionClients => self.clients(view),
            Family::PartitionFlap => self.flap(view),
            Family::PartitionStall => self.stall(view),
            Family::PartitionMetaLeader => {
                let leader = view.one(Role::MetaLeader, &mut self.random);
                self.isolate(family, vec![leader.ok_or(Trouble::Nobody)?], view)
            }
            _ => {
                let nodes = self.someone(view)?;
                self.isolate(family, nodes, view)
            }
        }
    }

    fn isolate(&mut self, family: Family, nodes: Vec<String>, view: &View) -> Begun {
        let pairs = both(&self.between(&nodes, &others(view, &nodes)));
        Ok(self.cut(family, nodes, pairs, view, json!({})))
    }

    /// The smaller part holds those that are impaired already.
    fn halves(&mut self, view: &View) -> Begun {
        let mut part: Vec<String> = view.impaired.iter().cloned().collect();
        let size = view.minority().max(1);
        let rest = self
            .random
            .sample(&others(view, &part), size.saturating_sub(part.len()));
        part.extend(rest);
        let pairs = both(&self.between(&part, &others(view, &part)));
        Ok(self.cut(Family::PartitionHalves, part, pairs, view, json!({})))
    }

    /// Neighbours in a random circle see each other: of five nodes each sees three, and no two the same three. Of three
    /// nodes all are neighbours, so that one pair is cut.
    fn ring(&mut self, view: &View) -> Begun {
        if !view.impaired.is_empty() || view.nodes.len() < 3 {
            return Err(Trouble::Nobody);
        }
        let circle = self.random.sample(&view.nodes, view.nodes.len());
        let size = circle.len();
        if size == 3 {
            return self.bridge(Family::PartitionRing, view);
        }
        let mut pairs = Vec::new();
        for (at, node) in circle.iter().enumerate() {
            let far = circle.iter().enumerate().filter(|(other, _)| {
                let distance = at.abs_diff(*other);
                distance > 1 && distance < size - 1
            });
            pairs.extend(far.map(|(_, other)| (self.cluster.port(node), self.cluster.port(other))));
        }
        let impaired = circle[..view.minority()].to_vec();
        Ok(self.cut(
            Family::PartitionRing,
            impaired,
            pairs,
            view,
            json!({ "circle": circle }),
        ))
    }

    fn bridge(&mut self, family: Family, view: &View) -> Begun {
        if !view.impaired.is_empty() || view.nodes.len() < 3 {
            return Err(Trouble::Nobody);
        }
        let nodes = self.random.sample(&view.nodes, view.nodes.len());
        let (bridge, halves) = nodes.split_first().ok_or(Trouble::Nobody)?;
        let (one, other) = halves.split_at(halves.len() / 2);
        let pairs = both(&self.between(one, other));
        let value = json!({ "bridge": bridge, "halves": [one, other] });
        Ok(self.cut(family, one.to_vec(), pairs, view, value))
    }

    /// To or from all others, or one of them.
    fn one_way(&mut self, view: &View) -> Begun {
        let nodes = self.someone(view)?;
        let mut peers = others(view, &nodes);
        if self.random.chance(0.3) {
            peers = self.random.sample(&peers, 1);
        }
        let into = self.random.chance(0.5);
        let pairs = match into {
            true => self.between(&peers, &nodes),
            false => self.between(&nodes, &peers),
        };
        let value = json!({ "lost": if into { "into" } else { "out of" }, "peers": peers });
        Ok(self.cut(Family::PartitionOneWay, nodes, pairs, view, value))
    }

    /// Some nodes, not all; both ways, or what one side sends.
    fn clients(&mut self, view: &View) -> Begun {
        let count = 1 + self.random.below(view.nodes.len().saturating_sub(1).max(1));
        let nodes = self.random.sample(&view.nodes, count);
        let ports: Vec<Port> = nodes.iter().map(|node| self.cluster.port(node)).collect();
        let to: Vec<(Port, Port)> = ports.iter().map(|port| (CLIENTS, *port)).collect();
        let (pairs, lost) = match self.random.below(3) {
            0 => (to, "from clients"),
            1 => (to.into_iter().map(|(from, to)| (to, from)).collect(), "to clients"),
            _ => (both(&to), "both"),
        };
        let value = json!({ "lost": lost });
        Ok(self.cut(Family::PartitionClients, nodes, pairs, view, value).harmless())
    }

    fn stall(&mut self, view: &View) -> Begun {
        let nodes = self.someone(view)?;
        let pairs = both(&self.between(&nodes, &others(view, &nodes)));
        let mut links = Vec::new();
        for (from, to) in pairs {
            let parity = *self.random.pick(&[Parity::Even, Parity::Odd]);
            let rule = Rule {
                stall: Some(parity),
                ..Rule::default()
            };
            links.push((from, to, rule));
        }
        let value: Vec<Value> = links
            .iter()
            .map(|(from, to, rule)| json!([from, to, format!("{:?}", rule.stall)]))
            .collect();
        self.announce(
            Family::PartitionStall,
            "start",
            &nodes,
            view,
            json!({ "stalled": value }),
        );
        Ok(Active {
            links,
            ..Active::new(Family::PartitionStall, nodes, Undo::Links)
        })
    }

    fn flap(&mut self, view: &View) -> Begun {
        let nodes = self.someone(view)?;
        let pairs = both(&self.between(&nodes, &others(view, &nodes)));
        let value = json!({ "pairs": pairs, "every_ms": FLAP.as_millis() as u64 });
        self.announce(Family::PartitionFlap, "start", &nodes, view, value);
        let before = self.frames_so_far(&pairs);
        let task = tokio::spawn(flap(self.cluster.rules().clone(), pairs));
        Ok(Active {
            before,
            ..Active::new(Family::PartitionFlap, nodes, Undo::Flap(task.abort_handle()))
        })
    }

    /// One or several of delay, loss, duplicates and another order; on the links of one node or of all.
    pub(super) fn packet(&mut self, view: &View) -> Begun {
        let random = &mut self.random;
        let mut rule = Rule::default();
        for kind in random.subset(&["delay", "loss", "duplicate", "reorder"]) {
            match kind {
                "delay" => (rule.delay, rule.jitter) = (Duration::from_millis(100), Duration::from_millis(50)),
                "loss" => rule.loss = *random.pick(&[0.01, 0.05, 0.1]),
                "duplicate" => rule.duplicate = 0.1,
                _ => {
                    // What is not late cannot be overtaken.
                    rule.delay = rule.delay.max(Duration::from_millis(10));
                    rule.reorder = 0.25;
                }
            }
        }
        Ok(self.everywhere(Family::Packet, rule, view).harmless())
    }

    pub(super) fn slow_link(&mut self, view: &View) -> Begun {
        // 1 Mbit/s.
        let rate = 125_000;
        let rule = Rule {
            rate,
            ..Rule::default()
        };
        Ok(self.everywhere(Family::SlowLink, rule, view).harmless())
    }

    /// The same rule both ways on all links of some nodes; of clients too where the back end can.
    fn everywhere(&mut self, family: Family, rule: Rule, view: &View) -> Active {
        let nodes = match self.random.chance(0.5) {
            true => view.nodes.clone(),
            false => self.random.sample(&view.nodes, 1),
        };
        let mut ends: Vec<Port> = view.nodes.iter().map(|node| self.cluster.port(node)).collect();
        // Relays for TCP can only cut (`relay.rs`).
        if self.cluster.spec().back_end == BackEnd::Root {
            ends.push(CLIENTS);
        }
        let mut links = Vec::new();
        for node in nodes.iter().map(|node| self.cluster.port(node)) {
            for end in ends.iter().copied().filter(|end| *end != node) {
                links.extend([(node, end, rule.clone()), (end, node, rule.clone())]);
            }
        }
        links.sort_by_key(|(from, to, _)| (*from, *to));
        links.dedup();
        let value = json!({ "rule": describe(&rule), "clients": ends.contains(&CLIENTS) });
        self.announce(family, "start", &nodes, view, value);
        Active {
            links,
            ..Active::new(family, nodes, Undo::Links)
        }
    }

    fn cut(
        &self,
        family: Family,
        nodes: Vec<String>,
        pairs: Vec<(Port, Port)>,
        view: &View,
        mut value: Value,
    ) -> Active {
        value["pairs"] = json!(pairs);
        self.announce(family, "start", &nodes, view, value);
        let rule = Rule {
            cut: true,
            ..Rule::default()
        };
        Active {
            links: pairs.into_iter().map(|(from, to)| (from, to, rule.clone())).collect(),
            ..Active::new(family, nodes, Undo::Links)
        }
    }

    /// One node; as often a leader as anybody.
    fn someone(&mut self, view: &View) -> Result<Vec<String>, Trouble> {
        let role = *self
            .random
            .pick(&[Role::Any, Role::Any, Role::Leader, Role::MetaLeader]);
        let node = view.one(role, &mut self.random).ok_or(Trouble::Nobody)?;
        Ok(vec![node])
    }

    pub(super) fn between(&self, from: &[String], to: &[String]) -> Vec<(Port, Port)> {
        let port = |node: &String| self.cluster.port(node);
        let pairs = from.iter().flat_map(|a| to.iter().map(move |b| (a, b)));
        pairs.map(|(a, b)| (port(a), port(b))).collect()
    }
}

pub(super) fn others(view: &View, without: &[String]) -> Vec<String> {
    let rest = view.nodes.iter().filter(|node| !without.contains(node));
    rest.cloned().collect()
}

pub(super) fn both(pairs: &[(Port, Port)]) -> Vec<(Port, Port)> {
    pairs.iter().flat_map(|(a, b)| [(*a, *b), (*b, *a)]).collect()
}

async fn flap(rules: Rules, pairs: Vec<(Port, Port)>) {
    let mut cut = false;
    loop {
        cut = !cut;
        for (from, to) in &pairs {
            rules.change(*from, *to, |rule| rule.cut = cut);
        }
        tokio::time::sleep(FLAP).await;
    }
}

fn describe(rule: &Rule) -> Value {
    json!({
        "delay_ms": rule.delay.as_millis() as u64,
        "jitter_ms": rule.jitter.as_millis() as u64,
        "loss": rule.loss,
        "duplicate": rule.duplicate,
        "reorder": rule.reorder,
        "bytes_per_second": rule.rate,
    })
}

const FLAP: Duration = Duration::from_millis(200);
