//! Files of one node that are not what it wrote, found when it starts. `flip-kill` damages them under a node that runs, and
//! kills it some seconds later.
//!
//!     kill ─▶ damage (remembered) ─▶ start ─┬─▶ ready: it repaired itself, or has not read it yet
//!                                           └─▶ refused, with its message ─▶ damage undone ─▶ start
//!
//! Only ever one node: the others have the data. The way out that the broker's message names, to join again under a new
//! node id, is not there yet (members of a cluster cannot change), so the harness takes the damage back, as if the disk had
//! been read wrongly. Damage that a node only finds later, while it runs, is taken back when it is healed.

use super::family::Family;
use super::target::{Role, View};
use super::{Active, Begun, Nemesis, Trouble, Undo};
use crate::cluster::Failure;
use crate::cluster::layout::{run, text};
use crate::random::Random;
use serde_json::{Value, json};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What was done, and takes it back.
pub(super) enum Corruption {
    Flipped(Flip),
    /// The whole directory was copied before: a database that has seen the cut goes on in other files.
    Truncated {
        path: PathBuf,
        kept: u64,
        lost: u64,
    },
    /// `old` is what the data directory was at the start of the fault; `part` of it is put back at the end.
    Old {
        old: PathBuf,
        part: &'static str,
    },
    /// A snapshot that is yet to arrive.
    Arriving(Blow),
    /// There was nothing to damage.
    Nothing,
}

#[derive(Clone, Copy)]
pub(super) enum Blow {
    Flip,
    Truncate,
}

#[derive(Clone)]
pub(super) struct Flip {
    path: PathBuf,
    at: u64,
    mask: u8,
}

impl Nemesis {
    pub(super) async fn corrupt(&mut self, family: Family, view: &View) -> Begun {
        let node = view.one(Role::Any, &mut self.random).ok_or(Trouble::Nobody)?;
        let nodes = vec![node.clone()];
        let data = self.cluster.layout(&node).data();
        self.announce(family, "start", &nodes, view, json!({}));
        if family != Family::FlipKill {
            self.cluster.kill(&node).await;
        }
        let (raft, state) = (data.join("raft"), data.join("state"));
        let random = &mut self.random;
        let corruption = match family {
            Family::FlipWal => flip(&files(&[raft], "log"), random)?,
            Family::FlipSst => flip(&files(&[raft, state], "sst"), random)?,
            Family::FlipKill => match random.chance(0.5) {
                true => flip(&files(&[raft], "log"), random)?,
                false => flip(&files(&[raft, state], "sst"), random)?,
            },
            Family::TruncateWal => {
                copy(&data, &data.with_file_name(BEFORE))?;
                truncate(&files(&[raft], "log"), random)?
            }
            Family::TruncateSst => {
                copy(&data, &data.with_file_name(BEFORE))?;
                truncate(&files(&[raft, state], "sst"), random)?
            }
            Family::FlipSnapshot => Corruption::Arriving(Blow::Flip),
            Family::TruncateSnapshot => Corruption::Arriving(Blow::Truncate),
            _ => {
                let old = data.with_file_name("old");
                copy(&data, &old)?;
                let part = *random.pick(&["raft", "raft", ""]);
                // It goes on with the present one until the fault ends.
                self.cluster.start_node(&node).await?;
                Corruption::Old { old, part }
            }
        };
        Ok(Active::new(family, nodes, Undo::Corruption(corruption)))
    }

    /// Starts the node with its damage, and answers what became of it; takes the damage back if it refused.
    pub(super) async fn judge(&mut self, node: &str, corruption: Corruption) -> Result<Value, Failure> {
        let data = self.cluster.layout(node).data();
        let before = data.with_file_name(BEFORE);
        let mut told = json!({});
        if self.cluster.running(node) && matches!(corruption, Corruption::Flipped(_)) {
            told["lived_with_it"] = json!(true);
            self.cluster.kill(node).await;
        }
        match &corruption {
            Corruption::Old { old, part } => {
                self.cluster.kill(node).await;
                copy(&data, &before)?;
                copy(&old.join(part), &data.join(part))?;
                remove(old)?;
                told["restored"] = json!(if part.is_empty() { "all" } else { part });
            }
            Corruption::Arriving(_) => {
                let view = self.view().await;
                for other in view.up.iter().filter(|other| *other != node) {
                    // Who cannot purge now just does not send a snapshot.
                    self.purge(other, &view).await.ok();
                }
            }
            Corruption::Flipped(flip) => {
                // What the kernel still has of it says nothing of who reads it from here on.
                flip.forget();
                told["flipped"] = json!(flip.describe());
            }
            Corruption::Truncated { path, kept, lost } => {
                told["truncated"] = json!({ "file": name(path), "at": kept, "bytes": lost });
            }
            Corruption::Nothing => told["skipped"] = json!("it has no such file"),
        }
        self.cluster.start_node(node).await?;
        if let Corruption::Arriving(blow) = corruption {
            let hit = self.hit_arriving(node, blow).await;
            told[blow.word()] = json!(hit);
        }
        let ready = self.cluster.wait_ready(node, STARTS).await;
        told["outcome"] = json!(match (ready, self.cluster.running(node)) {
            (true, _) => "ready",
            (false, false) => "refused",
            (false, true) => "neither ready nor ended",
        });
        if let Corruption::Flipped(flip) = &corruption {
            told["read"] = told_of_read(flip.was_read());
        }
        if ready {
            if let Corruption::Flipped(flip) = corruption {
                self.latent.push((node.to_owned(), flip));
            }
            remove(&before)?;
            return Ok(told);
        }
        // The last line is the message of a node that ended over it; the whole log stays in the node's directory.
        let log = self.cluster.layout(node).log_tail();
        told["message"] = json!(log.lines().last().unwrap_or_default());
        self.cluster.kill(node).await;
        match corruption {
            Corruption::Flipped(flip) => flip.again()?,
            Corruption::Old { .. } | Corruption::Truncated { .. } => copy(&before, &data)?,
            Corruption::Arriving(_) | Corruption::Nothing => {}
        }
        remove(&before)?;
        told["repaired"] = json!("the damage was taken back");
        self.cluster.start_node(node).await?;
        Ok(told)
    }

    /// Takes back damage of nodes that have ended over it since; answers whose.
    pub(super) fn take_back_latent(&mut self) -> Result<Vec<String>, Failure> {
        let latent = std::mem::take(&mut self.latent);
        let (over, still): (Vec<_>, Vec<_>) = latent.into_iter().partition(|(node, _)| !self.cluster.running(node));
        self.latent = still;
        for (_, flip) in &over {
            flip.again()?;
        }
        Ok(over.into_iter().map(|(node, _)| node).collect())
    }

    /// Arriving snapshots are in a file without a name, which the process has open.
    async fn hit_arriving(&mut self, node: &str, blow: Blow) -> Option<Value> {
        let deadline = Instant::now() + ARRIVES;
        while let Some(pid) = self.cluster.pid(node).filter(|_| Instant::now() < deadline) {
            for entry in std::fs::read_dir(format!("/proc/{pid}/fd"))
                .into_iter()
                .flatten()
                .flatten()
            {
                let Ok(target) = std::fs::read_link(entry.path()) else {
                    continue;
                };
                if !target.to_string_lossy().contains("/incoming-") {
                    continue;
                }
                let length = std::fs::metadata(entry.path()).map_or(0, |file| file.len());
                if length == 0 {
                    continue;
                }
                let at = self.random.number() % length;
                let done = match blow {
                    Blow::Flip => flip_bit(&entry.path(), at, 1),
                    Blow::Truncate => cut(&entry.path(), at),
                };
                if done.is_ok() {
                    return Some(json!({ "file": target.display().to_string(), "at": at, "length": length }));
                }
            }
            tokio::time::sleep(ARRIVING_POLL).await;
        }
        None
    }
}

impl Blow {
    fn word(self) -> &'static str {
        match self {
            Blow::Flip => "flipped",
            Blow::Truncate => "truncated",
        }
    }
}

impl Flip {
    pub(super) fn describe(&self) -> Value {
        json!({ "file": name(&self.path), "at": self.at, "mask": self.mask })
    }

    /// Takes the damaged page out of the kernel's memory, so that [`Flip::was_read`] can tell. Best of all while nobody has
    /// the file open.
    fn forget(&self) {
        let Ok(file) = File::open(&self.path) else { return };
        // Only what is on the disk can be forgotten.
        if file.sync_data().is_ok() {
            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).ok();
        }
    }

    /// Whether the damaged page was read since it was forgotten (pages around one that is read may come with it); `None`: the
    /// file is gone, or its file system cannot tell.
    pub(super) fn was_read(&self) -> Option<bool> {
        let file = File::open(&self.path).ok()?;
        let mut byte = [0];
        let mut buffers = [std::io::IoSliceMut::new(&mut byte)];
        match rustix::io::preadv2(&file, &mut buffers, self.at, rustix::io::ReadWriteFlags::NOWAIT) {
            Ok(_) => Some(true),
            Err(rustix::io::Errno::AGAIN) => Some(false),
            Err(_) => None,
        }
    }

    /// The second flip takes the first back. A file that compaction has removed took the damage with it.
    fn again(&self) -> Result<(), Failure> {
        match self.path.exists() {
            true => flip_bit(&self.path, self.at, self.mask),
            false => Ok(()),
        }
    }
}

fn flip(files: &[PathBuf], random: &mut Random) -> Result<Corruption, Failure> {
    let Some((path, length)) = choose(files, random) else {
        return Ok(Corruption::Nothing);
    };
    let flip = Flip {
        path,
        at: random.number() % length,
        mask: 1 << random.below(8),
    };
    flip_bit(&flip.path, flip.at, flip.mask)?;
    Ok(Corruption::Flipped(flip))
}

fn flip_bit(path: &Path, at: u64, mask: u8) -> Result<(), Failure> {
    let flipped = || {
        let file = File::options().read(true).write(true).open(path)?;
        let mut byte = [0];
        file.read_exact_at(&mut byte, at)?;
        file.write_all_at(&[byte[0] ^ mask], at)
    };
    flipped().map_err(Failure::io(path.display().to_string()))
}

fn truncate(files: &[PathBuf], random: &mut Random) -> Result<Corruption, Failure> {
    let Some((path, length)) = choose(files, random) else {
        return Ok(Corruption::Nothing);
    };
    let kept = random.number() % length;
    cut(&path, kept)?;
    let lost = length - kept;
    Ok(Corruption::Truncated { path, kept, lost })
}

fn cut(path: &Path, kept: u64) -> Result<(), Failure> {
    let cut = || File::options().write(true).open(path)?.set_len(kept);
    cut().map_err(Failure::io(path.display().to_string()))
}

/// For the history.
pub(super) fn told_of_read(read: Option<bool>) -> Value {
    match read {
        Some(true) => json!("read"),
        Some(false) => json!("not read"),
        None => json!("the file is gone, or cannot tell"),
    }
}

/// One that has bytes.
fn choose(files: &[PathBuf], random: &mut Random) -> Option<(PathBuf, u64)> {
    let sized = files
        .iter()
        .filter_map(|path| Some((path.clone(), path.metadata().ok()?.len())));
    let sized: Vec<(PathBuf, u64)> = sized.filter(|(_, length)| *length > 0).collect();
    (!sized.is_empty()).then(|| random.pick(&sized).clone())
}

/// In a fixed order, so that a seed chooses the same.
fn files(directories: &[PathBuf], extension: &str) -> Vec<PathBuf> {
    let entries = directories
        .iter()
        .flat_map(|directory| std::fs::read_dir(directory).into_iter().flatten());
    let paths = entries.flatten().map(|entry| entry.path());
    let mut found: Vec<PathBuf> = paths
        .filter(|path| path.extension().is_some_and(|it| it == extension))
        .collect();
    found.sort();
    found
}

/// Replaces the directory `to`.
fn copy(from: &Path, to: &Path) -> Result<(), Failure> {
    remove(to)?;
    run(Path::new("cp"), &["-a", text(from), text(to)]).map(drop)
}

fn remove(directory: &Path) -> Result<(), Failure> {
    match std::fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Failure::io(directory.display().to_string())(error))
        }
        _ => Ok(()),
    }
}

fn name(path: &Path) -> String {
    let parts: Vec<_> = path.iter().rev().take(2).map(|part| part.to_string_lossy()).collect();
    parts.into_iter().rev().collect::<Vec<_>>().join("/")
}

/// What a data directory was before it was damaged, beside it.
const BEFORE: &str = "before";
/// Recovery of a small database, and what a node waits for before it is ready.
const STARTS: Duration = Duration::from_secs(30);
const ARRIVES: Duration = Duration::from_secs(10);
const ARRIVING_POLL: Duration = Duration::from_millis(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_is_done_and_taken_back() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("1.log");
        std::fs::write(&path, b"what was written").expect("a file");
        let mut random = Random::new(1);
        let found = files(&[dir.path().to_owned()], "log");
        let read = || std::fs::read(&path).expect("the file");
        let Ok(Corruption::Flipped(flip)) = flip(&found, &mut random) else {
            panic!("there is a file");
        };
        assert_ne!(read(), b"what was written");
        flip.again().expect("it is there");
        assert_eq!(read(), b"what was written");
        flip.forget();
        read();
        assert_ne!(flip.was_read(), Some(false), "it was; not every file system can tell");
        let Ok(Corruption::Truncated { kept, lost, .. }) = truncate(&found, &mut random) else {
            panic!("there is a file");
        };
        assert_eq!((read().len() as u64, kept + lost), (kept, 16));
        assert!(matches!(truncate(&[], &mut random), Ok(Corruption::Nothing)));
    }
}
