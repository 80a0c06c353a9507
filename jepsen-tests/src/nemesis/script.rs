//! The schedule that took acknowledged messages from NATS JetStream (nats-server#7567):
//!
//!     1. M, a minority, are away; writes commit on X and the others
//!     2. X loses its power; M are back
//!     3. the others are away; X is started: X and M are a majority, of which only X saw the writes
//!
//! Away: cut off (`part-kill`), or stopped (`pause-kill`). A store that loses un-synced entries or votes fails this: M are
//! leaders of an older term that have not heard of the newer one, and only what X remembers speaks against them.

use super::family::Family;
use super::network::{both, others};
use super::power::cut_power;
use super::target::View;
use super::{Active, Begun, Nemesis, Trouble, Undo};
use crate::cluster::link::Rule;
use crate::history::Status;
use serde_json::{Value, json};
use std::time::Duration;

impl Nemesis {
    /// All of it, at once: about half a minute.
    pub(super) async fn script(&mut self, family: Family, view: &View) -> Begun {
        let nodes = self.random.sample(&view.nodes, view.nodes.len());
        if nodes.len() < 3 || view.up.len() < nodes.len() {
            return Err(Trouble::Nobody);
        }
        let (absent, rest) = nodes.split_at((nodes.len() - 1) / 2);
        let absent = absent.to_vec();
        let victim = vec![rest[0].clone()];
        let witnesses = others(view, &[absent.clone(), victim.clone()].concat());
        let value = json!({ "absent": absent, "victim": victim, "witnesses": witnesses });
        self.announce(family, "start", &nodes, view, value);

        self.step(family, "away", &absent, Value::Null);
        self.away(family, &absent, view).await;
        tokio::time::sleep(COMMIT).await;
        self.step(family, "power", &victim, Value::Null);
        let gone = cut_power(&self.cluster, &victim).await?;
        self.step(family, "lost", &victim, gone.clone());
        // First the witnesses away, then the absent back: else these would catch up.
        self.step(family, "away", &witnesses, Value::Null);
        self.away(family, &witnesses, view).await;
        self.step(family, "back", &absent, Value::Null);
        self.back(family, &absent).await;
        self.cluster.start_node(&victim[0]).await?;
        tokio::time::sleep(MAJORITY).await;
        self.step(family, "back", &witnesses, Value::Null);
        self.back(family, &witnesses).await;
        Ok(Active {
            outcome: gone,
            ..Active::new(family, victim, Undo::Start)
        })
    }

    async fn away(&mut self, family: Family, nodes: &[String], view: &View) {
        if family == Family::PauseKill {
            for node in nodes {
                self.cluster.pause(node).await;
            }
            let mut paused = Active::new(family, nodes.to_vec(), Undo::Resume);
            self.watch(&mut paused);
            self.active.push(paused);
            return;
        }
        let cut = Rule {
            cut: true,
            ..Rule::default()
        };
        let pairs = both(&self.between(nodes, &others(view, nodes)));
        self.active.push(Active {
            before: self.frames_so_far(&pairs),
            links: pairs.into_iter().map(|(from, to)| (from, to, cut.clone())).collect(),
            // Ended by `back`, or by whoever heals if the script fails.
            ..Active::new(family, nodes.to_vec(), Undo::Links)
        });
        self.set_rules();
    }

    async fn back(&mut self, family: Family, nodes: &[String]) {
        let of = |active: &&Active| active.family == family && active.nodes == nodes;
        if let Some(active) = self.active.iter().find(of) {
            let effect = self.tell_effect(active);
            self.record(family, "once", nodes, effect, Status::Installed);
        }
        for node in nodes {
            self.cluster.resume(node).await;
        }
        self.active
            .retain(|active| active.family != family || active.nodes != nodes);
        self.set_rules();
    }

    fn step(&self, family: Family, step: &str, nodes: &[String], detail: Value) {
        let value = json!({ "step": step, "detail": detail });
        self.record(family, "once", nodes, value, Status::Installed);
    }
}

/// Elections, and then writes for a while.
const COMMIT: Duration = Duration::from_secs(10);
const MAJORITY: Duration = Duration::from_secs(12);
