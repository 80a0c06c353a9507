//! A power cut: each node's data directory is an ext4 of its own on a loop device, and the shutdown ioctl loses the page
//! cache and the uncommitted journal of it, as a machine that loses power does.
//!
//!     image file ── loop device ── ext4 ── DIR/node-<i>       cut: ioctl · kill -9 · umount · mount (journal replay)
//!
//! Needs root. What is mounted stands in a state file; `Drop` undoes it, and so does the next start after a crash.
//! Images lie on disk, not in tmpfs: what a test writes must not eat the memory it runs in.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

pub struct Disks {
    /// Holds the images and the state file.
    dir: PathBuf,
    disks: Vec<Disk>,
}

struct Disk {
    device: String,
    image: PathBuf,
    mount: PathBuf,
}

impl Disks {
    /// One ext4 of `megabytes` for each of `mounts`, which are created.
    pub fn mount(dir: &Path, mounts: &[PathBuf], megabytes: u64) -> Disks {
        clean_up_after_crash();
        std::fs::create_dir_all(STATE).expect("the state directory");
        let mut disks = Disks {
            dir: dir.to_owned(),
            disks: Vec::new(),
        };
        for (index, mount) in mounts.iter().enumerate() {
            let image = dir.join(format!("disk-{index}.img"));
            std::fs::create_dir_all(mount).expect("a mount point");
            run("truncate", &["-s", &format!("{megabytes}M"), text(&image)]).expect("truncate");
            let device = run("losetup", &["-f", "--show", text(&image)])
                .expect("losetup")
                .trim()
                .to_owned();
            disks.disks.push(Disk {
                device: device.clone(),
                image,
                mount: mount.clone(),
            });
            disks.write_state();
            run("mkfs.ext4", &["-q", "-F", &device]).expect("mkfs.ext4");
            run("mount", &[&device, text(mount)]).expect("mount");
            // A data directory is empty at first.
            std::fs::remove_dir(mount.join("lost+found")).ok();
        }
        disks
    }

    /// Writes back what is cached, so that a test without fsync begins with a formed cluster.
    pub fn sync(&self) {
        for disk in &self.disks {
            run("sync", &["-f", text(&disk.mount)]).expect("sync -f");
        }
    }

    /// Cuts the power of all disks, as near to at once as one process can: nothing that was not synced survives, and
    /// whoever still writes gets EIO.
    ///
    /// An fsync under way during the ioctl may return success for what is dropped (Linux 6.18; 73 of 750 cuts with three
    /// writers, none of 900 with writers that were stopped before): whoever writes must not run any more.
    pub fn cut(&self) {
        const CUT: &str = "
import fcntl, os, struct, sys
files = [os.open(path, os.O_RDONLY) for path in sys.argv[1:]]
for file in files:
    fcntl.ioctl(file, 0x8004587d, struct.pack('I', 2))
";
        let mut arguments = vec!["-c", CUT];
        arguments.extend(self.disks.iter().map(|disk| text(&disk.mount)));
        run("python3", &arguments).expect("EXT4_IOC_SHUTDOWN");
    }

    /// After [`Disks::cut`] and the end of the nodes: mounts anew, which replays the journals.
    pub fn power_on(&self) {
        for disk in &self.disks {
            unmount(text(&disk.mount));
        }
        for disk in &self.disks {
            run("mount", &[&disk.device, text(&disk.mount)]).expect("mount");
        }
    }

    fn write_state(&self) {
        let lines = self
            .disks
            .iter()
            .map(|disk| format!("{} {} {}", disk.device, text(&disk.image), text(&disk.mount)));
        let lines: Vec<String> = lines.collect();
        std::fs::write(self.state_file(), lines.join("\n")).expect("the state file");
    }

    /// Named after this process and the test's directory: another run's file is left alone while that run lives.
    fn state_file(&self) -> PathBuf {
        let name = self.dir.file_name().unwrap_or_default().to_string_lossy();
        Path::new(STATE).join(format!("{}-{name}", std::process::id()))
    }
}

/// A node that ended by itself may still be letting go of its files.
fn unmount(mount: &str) {
    let deadline = Instant::now() + BUSY_MAX;
    while let Err(why) = run("umount", &[mount]) {
        assert!(why.contains("busy") && Instant::now() < deadline, "{why}");
        std::thread::yield_now();
    }
}

const BUSY_MAX: Duration = Duration::from_secs(20);

impl Drop for Disks {
    fn drop(&mut self) {
        for disk in &self.disks {
            release(&disk.device, text(&disk.image), text(&disk.mount));
        }
        std::fs::remove_file(self.state_file()).ok();
    }
}

/// Whether this test can run here. Not being able to is a failure, unless `LONTRA_SKIP_ROOT_TESTS=1` says it is known.
pub fn can_cut_power() -> bool {
    if std::env::var("LONTRA_SKIP_ROOT_TESTS").is_ok_and(|value| value == "1") {
        println!("SKIPPED: LONTRA_SKIP_ROOT_TESTS=1");
        return false;
    }
    let root = rustix::process::geteuid().is_root();
    assert!(
        root,
        "this test mounts loop devices: run it as root, or set LONTRA_SKIP_ROOT_TESTS=1"
    );
    for (program, package) in [
        ("losetup", "mount"),
        ("mkfs.ext4", "e2fsprogs"),
        ("mount", "mount"),
        ("python3", "python3"),
    ] {
        let found = run("sh", &["-c", &format!("command -v {program}")]).is_ok();
        assert!(
            found,
            "{program} is missing: apt-get install {package} (ops/test does it)"
        );
    }
    true
}

fn clean_up_after_crash() {
    for entry in std::fs::read_dir(STATE).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name.split('-').next().unwrap_or_default().to_owned();
        if owner != std::process::id().to_string() && Path::new("/proc").join(&owner).exists() {
            continue;
        }
        if owner == std::process::id().to_string() {
            continue;
        }
        for line in std::fs::read_to_string(entry.path()).unwrap_or_default().lines() {
            if let [device, image, mount] = line.split(' ').collect::<Vec<_>>()[..] {
                release(device, image, mount);
            }
        }
        std::fs::remove_file(entry.path()).ok();
    }
}

/// Undoes one mount, if the device still is the one of our image.
fn release(device: &str, image: &str, mount: &str) {
    let backing = run("losetup", &["-n", "-O", "BACK-FILE", device]).unwrap_or_default();
    if !backing.trim().starts_with(image) {
        return;
    }
    let mounted = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
    if mounted.lines().any(|line| line.starts_with(&format!("{device} "))) {
        // Lazily at last: a process that still dies must not keep the test from ending.
        run("umount", &[mount]).or_else(|_| run("umount", &["-l", mount])).ok();
    }
    run("losetup", &["-d", device]).ok();
}

fn run(program: &str, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .map_err(|error| format!("{program}: {error}"))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(format!(
            "{program} {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        )),
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

/// One file per run with mounted disks.
const STATE: &str = "/tmp/lontra-test-mounts";
