//! Wall clocks that jump, by libfaketime: one process at a time, the machine's own clock is never touched.
//!
//! Monotonic time stays true: libfaketime's would hang a program of tokio's at its start; that time stands still is what
//! pauses are for.

use super::family::Family;
use super::target::View;
use super::{Active, Begun, Nemesis, Undo};
use crate::cluster::layout::CLOCK;
use crate::cluster::{Cluster, Failure, Spec};
use serde_json::json;
use std::path::Path;

/// What families need of the nodes' environment from their first start on; to be called before [`Cluster::start`].
pub fn prepare(spec: &mut Spec, families: &[Family]) {
    if families.contains(&Family::Clock) && Path::new(LIBRARY).exists() {
        let file = format!("{{dir}}/{CLOCK}");
        for (key, value) in [
            ("LD_PRELOAD", LIBRARY),
            (FILE, &file),
            ("DONT_FAKE_MONOTONIC", "1"),
            // How long a jump may go unnoticed.
            ("FAKETIME_CACHE_DURATION", "1"),
        ] {
            spec.environment.push((key.into(), value.into()));
        }
    }
}

impl Nemesis {
    /// Of one node or of several, by a tenth of a second to ten minutes.
    pub(super) fn clock(&mut self, view: &View) -> Begun {
        if !is_prepared(&self.cluster) {
            return Err(Failure::unsupported("clock", format!("there is no {LIBRARY} (package faketime)")).into());
        }
        let count = 1 + self.random.below(view.nodes.len());
        let nodes = self.random.sample(&view.nodes, count);
        // From 100 ms to 600 s, small and large ones equally often.
        let size = 100.0 * 6_000_f64.powf(self.random.fraction());
        let jump = match self.random.chance(0.5) {
            true => size as i64,
            false => -(size as i64),
        };
        self.announce(Family::Clock, "start", &nodes, view, json!({ "jump_ms": jump }));
        self.set_clocks(&nodes, jump)?;
        Ok(Active::new(Family::Clock, nodes, Undo::Clock).harmless())
    }

    /// How far from the truth, in milliseconds.
    pub(super) fn set_clocks(&self, nodes: &[String], offset: i64) -> Result<(), Failure> {
        let text = format!("{}{:.3}\n", if offset < 0 { "" } else { "+" }, offset as f64 / 1_000.0);
        for node in nodes {
            let file = self.cluster.layout(node).dir.join(CLOCK);
            let new = file.with_extension("new");
            // A half-written offset would be another one.
            std::fs::write(&new, &text)
                .and_then(|()| std::fs::rename(&new, &file))
                .map_err(Failure::io(file.display().to_string()))?;
        }
        Ok(())
    }
}

fn is_prepared(cluster: &Cluster) -> bool {
    cluster.spec().environment.iter().any(|(key, _)| key == FILE)
}

const FILE: &str = "FAKETIME_TIMESTAMP_FILE";
const LIBRARY: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";
