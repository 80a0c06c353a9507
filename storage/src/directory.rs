//! The data directory: its lock, its identity, and a witness of how far the logs once reached.
//!
//!     <data>/LOCK       held while a process uses the directory
//!     <data>/identity   whose directory it is; text, written once
//!     <data>/synced     per group, an entry that was committed and durable here; text, rewritten at checkpoints
//!     <data>/marks      per group, the last entry and vote that were durable here (`marks.rs`)
//!     <data>/raft  <data>/state   the databases (`rocks.rs`)
//!
//! Invariants
//! - A file here is replaced by rename and the directory fsynced: old or new, never torn (`marks` apart).
//! - A directory that was formed and has no raft database is refused: the node has lost its memory.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use crate::error::OpenError;
use crate::ids::{GroupId, NodeId};
use crate::test_bugs::{Bug, has};

/// Whose data it is. Fixed when the directory is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub cluster: String,
    pub node: NodeId,
    pub shards: u16,
    pub replication_factor: u8,
    /// Nodes that formed the cluster; not compared, membership changes later.
    pub nodes: Vec<NodeId>,
}

/// A locked data directory. Dropped, it is free for others.
pub(crate) struct Directory {
    path: PathBuf,
    _lock: File,
}

impl Directory {
    /// Makes the directory if it is missing, and locks it.
    pub fn lock(path: &Path) -> Result<Directory, OpenError> {
        let not_writable = |source| OpenError::NotWritable {
            path: path.to_owned(),
            source,
        };
        std::fs::create_dir_all(path).map_err(not_writable)?;
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path.join("LOCK"));
        let lock = lock.map_err(not_writable)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(OpenError::Locked { path: path.to_owned() }),
            Err(TryLockError::Error(source)) => return Err(not_writable(source)),
        }
        Ok(Directory {
            path: path.to_owned(),
            _lock: lock,
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Compares with what is stored; a new directory takes `expected`. Answers the stored identity, and whether the
    /// databases were once there.
    pub fn identify(&self, expected: &Identity) -> Result<(Identity, bool), OpenError> {
        let path = self.path.join(IDENTITY);
        match std::fs::read_to_string(&path) {
            Ok(text) => {
                let (found, formed) = parse_identity(&path, &text)?;
                self.compare(&found, expected)?;
                Ok((found, formed))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if self.path.join("raft").exists() || self.path.join("state").exists() {
                    return Err(OpenError::BadIdentity {
                        path,
                        why: "is missing beside the databases".into(),
                    });
                }
                self.store_identity(expected, false)?;
                Ok((expected.clone(), false))
            }
            Err(source) => Err(OpenError::NotWritable { path, source }),
        }
    }

    /// The databases are there: from now on they must be.
    pub fn formed(&self, identity: &Identity) -> Result<(), OpenError> {
        self.store_identity(identity, true)
    }

    fn store_identity(&self, identity: &Identity, formed: bool) -> Result<(), OpenError> {
        let path = self.path.join(IDENTITY);
        if identity.cluster.contains(['\n', '\r']) {
            return Err(OpenError::BadIdentity {
                path,
                why: "would have a line break in the cluster's name".into(),
            });
        }
        self.replace(IDENTITY, &format_identity(identity, formed))
            .map_err(|source| OpenError::NotWritable { path, source })
    }

    fn compare(&self, found: &Identity, expected: &Identity) -> Result<(), OpenError> {
        let path = self.path.clone();
        if found.cluster != expected.cluster {
            let (found, expected) = (found.cluster.clone(), expected.cluster.clone());
            return Err(OpenError::OtherCluster { path, found, expected });
        }
        if found.node != expected.node {
            return Err(OpenError::OtherNode {
                path,
                found: found.node,
                expected: expected.node,
            });
        }
        if found.shards != expected.shards {
            return Err(OpenError::OtherShards {
                path,
                found: found.shards,
                expected: expected.shards,
            });
        }
        if found.replication_factor != expected.replication_factor {
            let (found, expected) = (found.replication_factor, expected.replication_factor);
            return Err(OpenError::OtherReplicationFactor { path, found, expected });
        }
        Ok(())
    }

    /// What the logs must still reach. A witness that does not read is no witness: it only adds to the safety.
    pub fn witness(&self) -> BTreeMap<GroupId, u64> {
        let text = std::fs::read_to_string(self.path.join(SYNCED)).unwrap_or_default();
        let line = |line: &str| {
            let (group, index) = line.split_once(' ')?;
            Some((GroupId(group.parse().ok()?), index.parse().ok()?))
        };
        text.lines().filter_map(line).collect()
    }

    pub fn store_witness(&self, witness: &[(GroupId, u64)]) -> io::Result<()> {
        let mut text = String::new();
        for (group, index) in witness {
            let _ = writeln!(text, "{} {index}", group.0);
        }
        self.replace(SYNCED, &text)
    }

    fn replace(&self, name: &str, text: &str) -> io::Result<()> {
        let temporary = self.path.join(format!("{name}.new"));
        let mut file = File::create(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&temporary, self.path.join(name))?;
        sync_directory(&self.path)
    }

    /// New files of the databases, and the databases themselves, are found again after a power cut.
    pub fn sync(&self) -> io::Result<()> {
        for path in [self.path.join("raft"), self.path.join("state"), self.path.clone()] {
            sync_directory(&path)?;
        }
        match self.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => sync_directory(parent),
            _ => Ok(()),
        }
    }
}

fn sync_directory(path: &Path) -> io::Result<()> {
    if has(Bug::SkipDirFsync) {
        return Ok(());
    }
    File::open(path)?.sync_all()
}

fn format_identity(identity: &Identity, formed: bool) -> String {
    let nodes: Vec<String> = identity.nodes.iter().map(u64::to_string).collect();
    format!(
        "format {FORMAT}\ncluster {}\nnode {}\nshards {}\nreplication-factor {}\nnodes {}\nformed {}\n",
        identity.cluster,
        identity.node,
        identity.shards,
        identity.replication_factor,
        nodes.join(" "),
        if formed { "yes" } else { "no" },
    )
}

fn parse_identity(path: &Path, text: &str) -> Result<(Identity, bool), OpenError> {
    let fields: BTreeMap<&str, &str> = text.lines().filter_map(|line| line.split_once(' ')).collect();
    let bad = |why: String| OpenError::BadIdentity {
        path: path.to_owned(),
        why,
    };
    let field = |name: &str| {
        fields
            .get(name)
            .copied()
            .ok_or_else(|| bad(format!("lacks the line {name:?}")))
    };
    let not_a_number = |name: &str| bad(format!("has no number in the line {name:?}"));
    let found: u32 = field("format")?.parse().map_err(|_| not_a_number("format"))?;
    if found > FORMAT {
        return Err(OpenError::NewerFormat {
            path: path.to_owned(),
            found,
            known: FORMAT,
        });
    }
    let nodes: Result<Vec<NodeId>, _> = field("nodes")?.split_whitespace().map(str::parse).collect();
    let identity = Identity {
        cluster: field("cluster")?.to_owned(),
        node: field("node")?.parse().map_err(|_| not_a_number("node"))?,
        shards: field("shards")?.parse().map_err(|_| not_a_number("shards"))?,
        replication_factor: field("replication-factor")?
            .parse()
            .map_err(|_| not_a_number("replication-factor"))?,
        nodes: nodes.map_err(|_| not_a_number("nodes"))?,
    };
    Ok((identity, field("formed")? == "yes"))
}

const IDENTITY: &str = "identity";
const SYNCED: &str = "synced";

/// Counts up when an older version must not open the directory any more.
const FORMAT: u32 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        Identity {
            cluster: "otter pond".into(),
            node: 2,
            shards: 12,
            replication_factor: 3,
            nodes: vec![1, 2, 3],
        }
    }

    /// Golden text (`readable-forever`).
    #[test]
    fn the_identity_file_stays() {
        let text = "format 1\ncluster otter pond\nnode 2\nshards 12\nreplication-factor 3\nnodes 1 2 3\nformed yes\n";
        assert_eq!(format_identity(&identity(), true), text);
        assert_eq!(parse_identity(Path::new("identity"), text).unwrap(), (identity(), true));
    }

    #[test]
    fn a_directory_of_somebody_else_is_refused() {
        let path = tempfile::tempdir().unwrap();
        let directory = Directory::lock(path.path()).unwrap();
        assert_eq!(directory.identify(&identity()).unwrap(), (identity(), false));
        directory.formed(&identity()).unwrap();
        assert_eq!(directory.identify(&identity()).unwrap(), (identity(), true));
        let check = |other: Identity, message: &str| {
            let error = directory.identify(&other).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        };
        check(Identity { node: 3, ..identity() }, "belongs to node 2, not to node 3");
        check(
            Identity {
                cluster: "x".into(),
                ..identity()
            },
            "belongs to cluster \"otter pond\", not to \"x\"",
        );
        check(
            Identity {
                shards: 13,
                ..identity()
            },
            "made for 12 shards",
        );
        check(
            Identity {
                replication_factor: 1,
                ..identity()
            },
            "replication factor 3",
        );

        let file = path.path().join(IDENTITY);
        std::fs::write(&file, "format 2\n").unwrap();
        check(identity(), "has format 2");
        std::fs::write(&file, "format 1\ncluster otter pond\n").unwrap();
        check(identity(), "lacks the line");
        std::fs::remove_file(&file).unwrap();
        std::fs::create_dir(path.path().join("raft")).unwrap();
        check(identity(), "missing beside the databases");
    }

    #[test]
    fn one_process_at_a_time() {
        let path = tempfile::tempdir().unwrap();
        let first = Directory::lock(path.path()).unwrap();
        let second = Directory::lock(path.path()).err().unwrap().to_string();
        assert!(second.contains("in use by another process"), "{second}");
        drop(first);
        assert!(Directory::lock(path.path()).is_ok());
    }

    #[test]
    fn the_witness_is_read_back() {
        let path = tempfile::tempdir().unwrap();
        let directory = Directory::lock(path.path()).unwrap();
        assert!(directory.witness().is_empty());
        directory
            .store_witness(&[(GroupId(0), 7), (GroupId(12), 9_000)])
            .unwrap();
        assert_eq!(
            directory.witness(),
            BTreeMap::from([(GroupId(0), 7), (GroupId(12), 9_000)])
        );
    }
}
