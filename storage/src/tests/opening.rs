//! Opening a real data directory: again, twice, as somebody else, damaged.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use openraft::storage::RaftLogStorage;

use super::{Journal, append, apply, count, entry, identity, log_id, metrics};
use crate::error::OpenError;
use crate::ids::GroupId;
use crate::marks;
use crate::raft_types::Vote;
use crate::storage::{Identity, Storage, StorageConfig};

const GROUP: GroupId = GroupId(1);

fn open(directory: &Path) -> Result<Arc<Storage>, OpenError> {
    open_as(directory, identity())
}

fn open_as(directory: &Path, identity: Identity) -> Result<Arc<Storage>, OpenError> {
    Storage::open(
        StorageConfig {
            directory: directory.to_owned(),
            identity,
            fsync: true,
            memory: crate::MemoryBudget::default(),
        },
        metrics(),
    )
}

/// Ten entries appended, committed and applied; closed.
async fn used(directory: &Path) {
    let storage = open(directory).unwrap();
    let (mut log, mut state, _) = storage.group(GROUP, Box::new(Journal::default())).unwrap();
    let entries: Vec<_> = (0..10).map(|index| entry(1, index)).collect();
    append(&mut log, entries.clone()).await.unwrap();
    log.save_committed(Some(log_id(1, 9))).await.unwrap();
    apply(&mut state, entries).await.unwrap();
    storage.close().await.unwrap();
    assert!(append(&mut log, vec![entry(1, 10)]).await.is_err(), "closed");
    assert!(storage.failed().borrow().is_none(), "closed is not failed");
}

#[tokio::test]
async fn what_was_closed_opens_again() {
    let directory = tempfile::tempdir().unwrap();
    used(directory.path()).await;
    let storage = open(directory.path()).unwrap();
    assert_eq!((storage.start_number(), storage.synced(GROUP)), (2, 9));
    let (mut log, _state, tables) = storage.group(GROUP, Box::new(Journal::default())).unwrap();
    assert_eq!(log.read_committed().await.unwrap(), Some(log_id(1, 9)));
    assert_eq!(count(&tables), 10);
    let space = storage.free_space().unwrap();
    assert!(0 < space.available && space.available <= space.total);
    assert!(
        storage.group(GROUP, Box::new(Journal::default())).is_err(),
        "handed out once"
    );
    assert!(
        storage.group(GroupId(9), Box::new(Journal::default())).is_err(),
        "no such group"
    );
}

#[tokio::test]
async fn a_directory_in_use_or_of_another_node_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let storage = open(directory.path()).unwrap();
    assert!(matches!(open(directory.path()), Err(OpenError::Locked { .. })));
    drop(storage);
    let other = Identity { node: 2, ..identity() };
    assert!(matches!(
        open_as(directory.path(), other),
        Err(OpenError::OtherNode {
            found: 1,
            expected: 2,
            ..
        })
    ));
    assert!(open(directory.path()).is_ok());
}

#[tokio::test]
async fn a_missing_raft_database_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    used(directory.path()).await;
    std::fs::remove_dir_all(directory.path().join("raft")).unwrap();
    let error = open(directory.path()).err().unwrap();
    assert!(matches!(error, OpenError::RaftMissing { .. }), "{error}");
}

/// The default recovery mode of RocksDB would open, and forget what was acknowledged.
#[tokio::test]
async fn a_flipped_bit_in_the_log_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    used(directory.path()).await;
    let log = newest(&directory.path().join("raft"), "log");
    let mut bytes = std::fs::read(&log).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&log, bytes).unwrap();
    let error = open(directory.path()).err().unwrap();
    assert!(matches!(error, OpenError::Corrupt { .. }), "{error}");
    assert!(error.to_string().contains("join again under a new node id"), "{error}");
}

/// A torn tail is normal after a crash, but not one that takes what the witness knows.
#[tokio::test]
async fn a_log_cut_below_the_witness_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    used(directory.path()).await;
    let log = newest(&directory.path().join("raft"), "log");
    std::fs::write(&log, b"").unwrap();
    let error = open(directory.path()).err().unwrap();
    assert!(matches!(error, OpenError::LogShorter { had: 9, .. }), "{error}");
}

/// Ten entries, of which the witness knows six; then a vote, if any.
async fn ahead_of_its_witness(directory: &Path, vote: Option<Vote>) {
    let storage = open(directory).unwrap();
    let (mut log, mut state, _) = storage.group(GROUP, Box::new(Journal::default())).unwrap();
    let entries: Vec<_> = (0..10).map(|index| entry(1, index)).collect();
    append(&mut log, entries[..6].to_vec()).await.unwrap();
    log.save_committed(Some(log_id(1, 5))).await.unwrap();
    apply(&mut state, entries[..6].to_vec()).await.unwrap();
    storage.checkpoint().await.unwrap();
    for entry in &entries[6..] {
        append(&mut log, vec![entry.clone()]).await.unwrap();
    }
    if let Some(vote) = vote {
        log.save_vote(&vote).await.unwrap();
    }
}

fn cut(directory: &Path, bytes: u64) {
    let log = newest(&directory.join("raft"), "log");
    let length = std::fs::metadata(&log).unwrap().len();
    File::options()
        .write(true)
        .open(&log)
        .unwrap()
        .set_len(length - bytes)
        .unwrap();
}

/// RocksDB takes the end of a log that was cut for the torn tail of a crash.
#[tokio::test]
async fn a_log_that_lost_its_last_record_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    ahead_of_its_witness(directory.path(), None).await;
    cut(directory.path(), 81);
    let error = open(directory.path()).err().unwrap();
    assert!(
        matches!(error, OpenError::LogShorter { had: 9, found: 8, .. }),
        "{error}"
    );
    assert!(
        error.to_string().contains("ends at entry 8, but had 9 on disk"),
        "{error}"
    );
    let again = open(directory.path()).err().unwrap();
    assert!(
        matches!(again, OpenError::LogShorter { had: 9, .. }),
        "refused for good: {again}"
    );

    // A mark that does not read is no proof.
    std::fs::write(directory.path().join(marks::FILE), b"torn").unwrap();
    assert!(open(directory.path()).is_ok());
}

#[tokio::test]
async fn a_log_that_lost_its_vote_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    ahead_of_its_witness(directory.path(), Some(Vote::new(4, 2))).await;
    cut(directory.path(), 5);
    let error = open(directory.path()).err().unwrap();
    assert!(matches!(error, OpenError::VoteLost { had: 4, .. }), "{error}");
    assert!(error.to_string().contains("vote twice"), "{error}");
}

/// A new leader replaced entries: the log is shorter by rights, whatever a power cut left of the marks.
#[tokio::test]
async fn a_log_that_was_truncated_opens() {
    let directory = tempfile::tempdir().unwrap();
    ahead_of_its_witness(directory.path(), None).await;
    let before = {
        let storage = open(directory.path()).unwrap();
        let (mut log, _state, _) = storage.group(GROUP, Box::new(Journal::default())).unwrap();
        log.truncate_after(Some(log_id(1, 6))).await.unwrap();
        // Behind the truncation, and synced.
        log.save_vote(&Vote::new(2, 3)).await.unwrap();
        let marks = std::fs::read(directory.path().join(marks::FILE)).unwrap();
        append(&mut log, vec![entry(2, 7)]).await.unwrap();
        marks
    };
    let check = || {
        let storage = open(directory.path()).unwrap();
        assert_eq!(storage.synced(GROUP), 7);
    };
    check();
    // What was written last did not reach the disk.
    std::fs::write(directory.path().join(marks::FILE), before).unwrap();
    check();
    let mark = marks::read(&directory.path().join(marks::FILE), 3)[&GROUP];
    assert_eq!((mark.next, mark.vote), (8, (2, 3)));
}

fn newest(directory: &Path, extension: &str) -> std::path::PathBuf {
    let files = std::fs::read_dir(directory).unwrap().map(|file| file.unwrap().path());
    files
        .filter(|path| path.extension().is_some_and(|found| found == extension))
        .max()
        .unwrap()
}
