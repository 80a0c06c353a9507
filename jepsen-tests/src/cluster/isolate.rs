//! The root back end's namespaces: the harness leaves those of the machine, so that whatever it makes goes with it.
//!
//!     machine ──unshare──▶ harness: own network (port "c"), own mounts ──unshare per home──▶ node i: own network (eth0)
//!
//! Namespaces, and the mounts, loop devices (autoclear) and TAP devices in them, vanish with their last process; nodes die
//! with the harness (`process.rs`). So nothing is left behind, even by SIGKILL. Cgroups are no part of a namespace:
//! `cgroup.rs` sweeps.
//!
//! Client ports listen on loopback addresses only, until clients can be authenticated. So that clients of another
//! namespace reach them, the switch's network is a part of 127.0.0.0/8 which is taken away from `lo`.

use super::failure::Failure;
use super::layout::run;
use super::link::{CLIENTS, Port};
use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags, open};
use rustix::ioctl::{Setter, ioctl};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

static ISOLATED: AtomicBool = AtomicBool::new(false);

/// Moves this process into network and mount namespaces of its own. To be called first in `main`, while the process has
/// one thread; without it the root back end refuses to start.
///
/// # Errors
/// Not root, or the kernel has no such namespaces.
pub fn isolate() -> Result<(), Failure> {
    if !rustix::process::geteuid().is_root() {
        return Err(Failure::unsupported("back end `root`", "this process is not root's"));
    }
    if std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count) != 1 {
        return Err(Failure::unsupported(
            "back end `root`",
            "namespaces must be entered before threads are started",
        ));
    }
    unshare(UnshareFlags::NEWNS | UnshareFlags::NEWNET)?;
    let flags = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", flags).map_err(|error| Failure::io("private mounts")(error.into()))?;
    own_loopback()?;
    ISOLATED.store(true, Ordering::Relaxed);
    Ok(())
}

pub fn is_isolated() -> bool {
    ISOLATED.load(Ordering::Relaxed)
}

pub fn mount_tmpfs(at: &Path, size: &str) -> Result<(), Failure> {
    let options = std::ffi::CString::new(format!("size={size}")).expect("no NUL");
    mount("tmpfs", at, "tmpfs", MountFlags::empty(), Some(options.as_c_str()))
        .map_err(|error| Failure::io(format!("tmpfs at {}", at.display()))(error.into()))
}

/// Moves the calling thread into a network of its own.
pub fn new_network() -> Result<(), Failure> {
    unshare(UnshareFlags::NEWNET)?;
    own_loopback()
}

#[allow(
    unsafe_code,
    reason = "namespaces are what keeps the machine free of what a killed harness leaves"
)]
fn unshare(flags: UnshareFlags) -> Result<(), Failure> {
    // SAFETY: neither flag unshares file descriptors or memory, which is what may go wrong with this call.
    unsafe { unshare_unsafe(flags) }.map_err(|error| Failure::io("a new namespace")(error.into()))
}

/// `lo` up, but with one address instead of 127.0.0.0/8; the rest may be routed like other addresses.
fn own_loopback() -> Result<(), Failure> {
    ip(&["link", "set", "lo", "up"])?;
    ip(&["addr", "del", "127.0.0.1/8", "dev", "lo"])?;
    ip(&["addr", "add", "127.0.0.1/32", "dev", "lo"])?;
    let path = "/proc/sys/net/ipv4/conf/all/route_localnet";
    std::fs::write(path, "1").map_err(Failure::io(path))
}

/// A TAP device of this thread's network as port `port` of a switch with `nodes` nodes: device, address, and what the
/// others are reached by, so that nobody has to ask (and a cut cannot be seen in who knows whom).
///
/// # Errors
/// The kernel has no TUN, or `ip` failed.
pub fn plug_in(port: Port, nodes: usize) -> Result<OwnedFd, Failure> {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let tap = open("/dev/net/tun", flags, Mode::empty()).map_err(|error| Failure::io("/dev/net/tun")(error.into()))?;
    set_interface(&tap)?;
    let address = address(port);
    ip(&["link", "set", DEVICE, "address", &mac_text(port), "up"])?;
    ip(&["addr", "add", &format!("{address}/24"), "dev", DEVICE])?;
    for other in (0..=nodes).filter(|other| *other != port) {
        let (to, mac) = (self::address(other).to_string(), mac_text(other));
        ip(&["neigh", "add", &to, "lladdr", &mac, "dev", DEVICE, "nud", "permanent"])?;
    }
    Ok(tap)
}

#[allow(unsafe_code, reason = "there is no other way to make a TAP device")]
fn set_interface(tap: &OwnedFd) -> Result<(), Failure> {
    let mut name = [0; 16];
    name[..DEVICE.len()].copy_from_slice(DEVICE.as_bytes());
    let request = InterfaceRequest {
        name,
        flags: IFF_TAP | IFF_NO_PI,
        rest: [0; 22],
    };
    // SAFETY: TUNSETIFF reads a `struct ifreq`, which `InterfaceRequest` is on 64-bit Linux (40 bytes), and keeps no
    // reference to it.
    unsafe { ioctl(tap, Setter::<TUNSETIFF, InterfaceRequest>::new(request)) }
        .map_err(|error| Failure::io("a TAP device")(error.into()))
}

/// `struct ifreq`.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; 16],
    flags: u16,
    rest: [u8; 22],
}

/// Node *i* is 127.77.0.*i*, the harness 127.77.0.254.
pub fn address(port: Port) -> IpAddr {
    let last = match port {
        CLIENTS => 254,
        node => node as u8,
    };
    IpAddr::V4(Ipv4Addr::new(127, 77, 0, last))
}

/// The last byte is the port.
pub fn mac(port: Port) -> [u8; 6] {
    // Locally administered.
    [2, 0, 0, 0, 0, port as u8]
}

fn mac_text(port: Port) -> String {
    mac(port).map(|byte| format!("{byte:02x}")).join(":")
}

fn ip(arguments: &[&str]) -> Result<(), Failure> {
    run(Path::new("ip"), arguments).map(drop)
}

const DEVICE: &str = "eth0";
/// `_IOW('T', 202, int)`.
const TUNSETIFF: rustix::ioctl::Opcode = 0x4004_54ca;
const IFF_TAP: u16 = 2;
const IFF_NO_PI: u16 = 0x1000;
