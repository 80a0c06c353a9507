//! `run --soak`: epochs of chaos without end, each with a workload of its own in turn, fresh topics and clients, drained and
//! judged; memory is that of one epoch. It stops at the first epoch that is invalid, with everything kept; of those that are
//! unknown the last [`KEPT_MAX`] are kept, without their data.
//!
//! SIGINT or SIGTERM end it in order: the epoch's faults end, it is healed, drained and judged. The second ends it at once.

use super::{Common, summary};
use crate::cluster::BackEnd;
use crate::nemesis::Family;
use crate::random::Random;
use crate::runner::run;
use crate::workload;
use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// Whether every epoch was valid, none unknown; ends after `limit`, where there is one.
pub async fn soak(common: &Common, seconds: u64, limit: Option<Duration>) -> bool {
    let started = Instant::now();
    let mut random = Random::new(common.seed);
    let mut all_valid = true;
    let mut kept = VecDeque::new();
    let ending = until_signalled();
    for epoch in 1.. {
        if *ending.borrow() || limit.is_some_and(|limit| started.elapsed() >= limit) {
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
        settings.ending = Some(ending.clone());
        settings.prefix = format!("e{epoch}");
        settings.dir = common.dir.join(format!("epoch-{epoch}"));
        let finished = run(settings).await;
        print!("epoch {epoch}: {}", summary(&finished));
        match finished.exit_code() {
            0 => drop(std::fs::remove_dir_all(&finished.settings.dir)),
            1 => return false,
            // An epoch that was cut short need not have covered anything.
            _ if *ending.borrow() => drop(std::fs::remove_dir_all(&finished.settings.dir)),
            // Chaos does not meet every requirement of coverage; the directory tells which was missed.
            _ => {
                all_valid = false;
                std::fs::remove_dir_all(finished.settings.dir.join("cluster")).ok();
                if let Some(oldest) = keep(&mut kept, finished.settings.dir.clone()) {
                    std::fs::remove_dir_all(oldest).ok();
                }
            }
        }
    }
    all_valid
}

/// Remembers one more directory; answers the one that is one too many.
fn keep(kept: &mut VecDeque<PathBuf>, dir: PathBuf) -> Option<PathBuf> {
    kept.push_back(dir);
    (kept.len() > KEPT_MAX).then(|| kept.pop_front()).flatten()
}

/// True from the first signal on.
fn until_signalled() -> watch::Receiver<bool> {
    let (tell, ending) = watch::channel(false);
    tokio::spawn(async move {
        let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
        else {
            return;
        };
        for first in [true, false] {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if !first {
                // As a signal would have done: nodes go with their harness.
                std::process::exit(130);
            }
            println!("ending after this epoch");
            tell.send(true).ok();
        }
    });
    ending
}

/// Directories of a soak that runs for days.
const KEPT_MAX: usize = 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_than_twenty_directories_are_kept_and_the_oldest_go() {
        let mut kept = VecDeque::new();
        let gone: Vec<PathBuf> = (0..25)
            .filter_map(|at| keep(&mut kept, PathBuf::from(format!("{at}"))))
            .collect();
        assert_eq!(gone, ["0", "1", "2", "3", "4"].map(PathBuf::from));
        assert_eq!(kept.len(), KEPT_MAX);
    }
}
