//! A file system of a node's own: ext4 on a loop device on an image in tmpfs, so that its power can be cut.
//!
//!     image (tmpfs) ── loop, autoclear ── ext4 ── DIR/n1/disk      cut: ioctl · SIGKILL · umount · mount (journal replay)
//!
//! The shutdown ioctl loses the page cache and the uncommitted journal, directory entries too, as a machine that loses
//! power does; whoever still writes gets EIO. Everything lies in the harness's mount namespace and goes with it.

use super::failure::Failure;
use super::layout::{run, text};
use rustix::fs::{Mode, OFlags, open};
use rustix::ioctl::{Setter, ioctl};
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

#[derive(Clone, Debug)]
pub struct Disk {
    image: PathBuf,
    mount: PathBuf,
}

impl Disk {
    /// Makes and mounts it.
    ///
    /// # Errors
    /// `mkfs.ext4` or `mount` failed.
    pub fn create(image: PathBuf, mount: PathBuf) -> Result<Disk, Failure> {
        std::fs::create_dir_all(&mount).map_err(Failure::io(mount.display().to_string()))?;
        let file = File::create(&image).map_err(Failure::io(image.display().to_string()))?;
        file.set_len(BYTES).map_err(Failure::io(image.display().to_string()))?;
        // No space for root only: a full disk must be full for the node too, which is root's.
        run(Path::new("mkfs.ext4"), &["-q", "-F", "-m", "0", text(&image)])?;
        let disk = Disk { image, mount };
        disk.mount()?;
        Ok(disk)
    }

    /// The directory that it is mounted on.
    pub fn at(&self) -> &Path {
        &self.mount
    }

    /// # Errors
    /// `mount` failed.
    pub fn mount(&self) -> Result<(), Failure> {
        // -n: the machine's table of mounts is not for what others cannot see.
        let arguments = ["-n", "-t", "ext4", "-o", "loop", text(&self.image), text(&self.mount)];
        run(Path::new("mount"), &arguments).map(drop)
    }

    /// Waits for processes that are still letting go of their files.
    ///
    /// # Errors
    /// It stays busy.
    pub fn unmount(&self) -> Result<(), Failure> {
        let deadline = Instant::now() + BUSY_MAX;
        loop {
            match run(Path::new("umount"), &["-n", text(&self.mount)]) {
                Err(Failure::Program { detail, .. }) if detail.contains("busy") && Instant::now() < deadline => {
                    std::thread::sleep(BUSY_POLL);
                }
                result => return result.map(drop),
            }
        }
    }

    /// Cuts the power. Nobody may be writing: an fsync under way may return success for what is dropped (Linux 6.18; 73 of
    /// 750 cuts with three writers, none of 900 with writers that were stopped before).
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn cut(&self) -> Result<(), Failure> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory =
            open(&self.mount, flags, Mode::empty()).map_err(|error| Failure::io("a node's disk")(error.into()))?;
        shut_down(&directory)
    }

    /// Every file with its size; of a disk that is cut, what can be read.
    pub fn sizes(&self) -> BTreeMap<PathBuf, u64> {
        let mut sizes = BTreeMap::new();
        collect_sizes(&self.mount, &mut sizes);
        sizes
    }

    /// # Errors
    /// It cannot be asked.
    pub fn free_bytes(&self) -> Result<u64, Failure> {
        let told = rustix::fs::statvfs(&self.mount).map_err(|error| Failure::io("statvfs")(error.into()))?;
        Ok(told.f_bavail * told.f_frsize)
    }
}

/// What is gone, by file, of what was there.
pub fn lost(before: &BTreeMap<PathBuf, u64>, after: &BTreeMap<PathBuf, u64>) -> BTreeMap<PathBuf, u64> {
    let gone = before.iter().filter_map(|(path, size)| {
        let left = after.get(path).copied().unwrap_or(0);
        (left < *size).then(|| (path.clone(), size - left))
    });
    gone.collect()
}

fn collect_sizes(directory: &Path, sizes: &mut BTreeMap<PathBuf, u64>) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => collect_sizes(&entry.path(), sizes),
            Ok(metadata) => drop(sizes.insert(entry.path(), metadata.len())),
            Err(_) => {}
        }
    }
}

#[allow(unsafe_code, reason = "there is no other way to lose what a file system has cached")]
fn shut_down(directory: &rustix::fd::OwnedFd) -> Result<(), Failure> {
    // SAFETY: EXT4_IOC_SHUTDOWN reads a u32 and keeps no reference to it.
    unsafe { ioctl(directory, Setter::<EXT4_IOC_SHUTDOWN, u32>::new(NO_LOG_FLUSH)) }
        .map_err(|error| Failure::io("EXT4_IOC_SHUTDOWN")(error.into()))
}

/// `_IOR('X', 125, __u32)`.
const EXT4_IOC_SHUTDOWN: rustix::ioctl::Opcode = 0x8004_587d;
/// The journal's uncommitted part is lost too.
const NO_LOG_FLUSH: u32 = 2;

/// Sparse; a run writes a fraction of it, and 10 % of it is the broker's reserve.
pub const BYTES: u64 = 512 << 20;
const BUSY_MAX: Duration = Duration::from_secs(20);
const BUSY_POLL: Duration = Duration::from_millis(20);
