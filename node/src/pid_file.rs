//! `lontra.pid`: the process id of whoever serves from a data directory, and the lock that keeps a second one out.
//!
//! The lock (flock, held while the process lives) is the truth; the number in the file only names its holder. So a
//! number left behind by a killed process, or reused by another, misleads nobody.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The pid file of this process. Dropping it removes the file.
#[derive(Debug)]
pub struct PidFile {
    path: PathBuf,
    /// Holds the lock.
    _file: File,
}

/// Why this process may not serve from a directory.
#[derive(Debug, thiserror::Error)]
pub enum PidFileError {
    #[error("{} is in use by process {pid}: stop that process, or choose another directory", directory.display())]
    InUse { directory: PathBuf, pid: String },
    #[error("cannot write {}: {source}; make sure that the directory can be made and written by this user", path.display())]
    Unwritable { path: PathBuf, source: io::Error },
}

impl PidFile {
    /// Makes the directory of `path` if it is missing, takes the lock, and writes this process's id.
    ///
    /// # Errors
    /// Another process holds the lock, or the file cannot be written.
    pub fn create(path: &Path) -> Result<Self, PidFileError> {
        let unwritable = |source| PidFileError::Unwritable {
            path: path.to_owned(),
            source,
        };
        let directory = path.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(directory).map_err(unwritable)?;
        loop {
            let file = open(path).map_err(unwritable)?;
            if !lock(&file).map_err(unwritable)? {
                let pid = read_pid(path).map_or_else(|| "unknown".to_owned(), |pid| pid.to_string());
                return Err(PidFileError::InUse {
                    directory: directory.to_owned(),
                    pid,
                });
            }
            // The holder before may have removed the file between our opening it and our locking it.
            if is_still_at(&file, path) {
                write_pid(&file).map_err(unwritable)?;
                return Ok(Self {
                    path: path.to_owned(),
                    _file: file,
                });
            }
        }
    }

    /// The live process that holds the lock of `path`, if there is one.
    pub fn holder(path: &Path) -> Option<u32> {
        let file = File::open(path).ok()?;
        match file.try_lock_shared() {
            Err(TryLockError::WouldBlock) => read_pid(path),
            _ => None,
        }
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the pid file");
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
}

/// A few tries: `holder` takes the lock for a moment.
fn lock(file: &File) -> io::Result<bool> {
    for _ in 0..LOCK_TRIES {
        match file.try_lock() {
            Ok(()) => return Ok(true),
            Err(TryLockError::WouldBlock) => std::thread::sleep(LOCK_RETRY_DELAY),
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
    Ok(false)
}

fn is_still_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (file.metadata(), std::fs::metadata(path)) {
        (Ok(ours), Ok(theirs)) => (ours.dev(), ours.ino()) == (theirs.dev(), theirs.ino()),
        _ => false,
    }
}

/// Over the old number, then cut: a reader never finds the file empty once it had a number.
fn write_pid(mut file: &File) -> io::Result<()> {
    let line = format!("{}\n", std::process::id());
    file.write_all_at(line.as_bytes(), 0)?;
    file.set_len(line.len() as u64)?;
    file.flush()
}

fn read_pid(path: &Path) -> Option<u32> {
    std::fs::read_to_string(path).ok()?.lines().next()?.parse().ok()
}

/// 10 × 20 ms: longer than `holder` needs by far, shorter than anybody minds.
const LOCK_TRIES: u32 = 10;
const LOCK_RETRY_DELAY: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_holds_the_pid_while_the_process_serves() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("made/lontra.pid");
        let pid_file = PidFile::create(&path).unwrap();
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            format!("{}\n", std::process::id())
        );
        assert_eq!(PidFile::holder(&path), Some(std::process::id()));
        drop(pid_file);
        assert!(!path.exists());
        assert_eq!(PidFile::holder(&path), None);
    }

    #[test]
    fn a_second_process_is_refused_with_the_pid_of_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lontra.pid");
        let _first = PidFile::create(&path).unwrap();
        let error = PidFile::create(&path).unwrap_err().to_string();
        assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
        assert!(error.contains(&dir.path().display().to_string()), "{error}");
        assert!(path.exists(), "the refused one leaves the file alone");
    }

    #[test]
    fn what_a_killed_process_left_behind_is_taken_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lontra.pid");
        std::fs::write(&path, "4194304999\n").unwrap();
        assert_eq!(PidFile::holder(&path), None);
        let _pid_file = PidFile::create(&path).unwrap();
        assert_eq!(PidFile::holder(&path), Some(std::process::id()));
    }

    #[test]
    fn a_directory_that_cannot_be_made_is_named() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), "").unwrap();
        let error = PidFile::create(&dir.path().join("file/lontra.pid"))
            .unwrap_err()
            .to_string();
        assert!(error.contains("file/lontra.pid"), "{error}");
    }
}
