//! Wall clocks that jump, one process at a time: the machine's own clock is never touched.
//!
//!     clock.c ──cc──▶ DIR/clock.so ──LD_PRELOAD──▶ node ──reads──▶ DIR/n1/clock (mapped: a jump is seen at once)
//!
//! Not libfaketime: told to leave monotonic time alone (0.9.10), it makes `clock_nanosleep` fail with EINVAL; told to fake
//! it, it hangs a program of tokio's at its start. That time stands still is what pauses are for.

use super::family::Family;
use super::target::View;
use super::{Active, Begun, Nemesis, Undo};
use crate::cluster::layout::{CLOCK, run, text};
use crate::cluster::{Cluster, Failure, Spec};
use serde_json::json;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// What families need of the nodes' environment from their first start on; to be called before [`Cluster::start`].
///
/// # Errors
/// The run's directory cannot be written, or there is no C compiler; without this, the family `clock` is skipped.
pub fn prepare(spec: &mut Spec, families: &[Family]) -> Result<(), Failure> {
    if !families.contains(&Family::Clock) {
        return Ok(());
    }
    let failed = |error| Failure::io(spec.dir.display().to_string())(error);
    std::fs::create_dir_all(&spec.dir).map_err(failed)?;
    let dir = spec.dir.canonicalize().map_err(failed)?;
    let (source, library) = (dir.join("clock.c"), dir.join("clock.so"));
    std::fs::write(&source, SHIM).map_err(failed)?;
    let arguments = ["-shared", "-fPIC", "-O2", "-o", text(&library), text(&source), "-ldl"];
    run(Path::new("cc"), &arguments)?;
    spec.environment.push(("LD_PRELOAD".into(), text(&library).into()));
    spec.environment.push((FILE.into(), format!("{{dir}}/{CLOCK}")));
    Ok(())
}

impl Nemesis {
    /// Of one node or of several, by a tenth of a second to ten minutes.
    pub(super) fn clock(&mut self, view: &View) -> Begun {
        if !is_prepared(&self.cluster) {
            return Err(Failure::unsupported("clock", "the nodes run without its library (`prepare`)").into());
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
        let nanoseconds = offset * 1_000_000;
        for node in nodes {
            let path = self.cluster.layout(node).dir.join(CLOCK);
            // In place: the node has this very file mapped, and sees all eight bytes at once.
            let file = File::options().write(true).open(&path);
            file.and_then(|file| file.write_all_at(&nanoseconds.to_ne_bytes(), 0))
                .map_err(Failure::io(path.display().to_string()))?;
        }
        Ok(())
    }
}

fn is_prepared(cluster: &Cluster) -> bool {
    cluster.spec().environment.iter().any(|(key, _)| key == FILE)
}

const SHIM: &str = include_str!("clock.c");
const FILE: &str = "LONTRA_JEPSEN_CLOCK";
