//! `run --soak`: epochs of chaos without end, each with a workload of its own in turn, fresh topics and clients, drained and
//! judged; memory is that of one epoch. It stops at the first epoch that is invalid, with everything kept.

use super::{Common, summary};
use crate::cluster::BackEnd;
use crate::nemesis::Family;
use crate::random::Random;
use crate::runner::run;
use crate::workload;
use std::time::{Duration, Instant};

/// Whether every epoch was valid, none unknown; ends after `limit`, where there is one.
pub async fn soak(common: &Common, seconds: u64, limit: Option<Duration>) -> bool {
    let started = Instant::now();
    let mut random = Random::new(common.seed);
    let mut all_valid = true;
    for epoch in 1.. {
        if limit.is_some_and(|limit| started.elapsed() >= limit) {
            break;
        }
        let workload = workload::NAMES[(epoch - 1) % workload::NAMES.len()];
        let nodes = *random.pick(&[3, 3, 5]);
        let possible = Family::ALL.iter();
        let possible = possible.filter(|family| family.lacks(common.back_end == BackEnd::Root, nodes).is_none());
        let possible: Vec<&str> = possible.map(|family| family.name()).collect();
        let families = random.sample(&possible, 3);
        let mut settings = common.settings(workload, &families, seconds);
        settings.seed = common.seed.wrapping_add(epoch as u64);
        settings.nodes = nodes;
        settings.prefix = format!("e{epoch}");
        settings.dir = common.dir.join(format!("epoch-{epoch}"));
        let finished = run(settings).await;
        print!("epoch {epoch}: {}", summary(&finished));
        match finished.exit_code() {
            0 => drop(std::fs::remove_dir_all(&finished.settings.dir)),
            1 => return false,
            // Chaos does not meet every requirement of coverage; the directory tells which was missed.
            _ => {
                all_valid = false;
                std::fs::remove_dir_all(finished.settings.dir.join("cluster")).ok();
            }
        }
    }
    all_valid
}
