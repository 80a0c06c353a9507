//! The root back end: each node in a network namespace on the switch, with a file system of its own.

use super::cgroup::Groups;
use super::disk::{self, Disk};
use super::failure::Failure;
use super::isolate::{self, address, plug_in};
use super::layout::{Addresses, Layout};
use super::link::{CLIENTS, Port, Rules};
use super::process::Home;
use super::switch::Switch;
use crate::random::Random;
use rustix::fd::OwnedFd;
use rustix::mount::UnmountFlags;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// What must be kept while the cluster lives.
pub struct Root {
    _switch: Switch,
    /// Its thread holds the harness's own device.
    _harness: Home,
    pub disks: BTreeMap<String, Disk>,
    pub groups: Groups,
    images: PathBuf,
}

impl Drop for Root {
    fn drop(&mut self) {
        // Lazily: nodes that were just killed may still be letting go. What is left goes with the harness.
        let mounts = self.disks.values().map(Disk::at).chain([&*self.images]);
        for mount in mounts {
            rustix::mount::unmount(mount, UnmountFlags::DETACH).ok();
        }
    }
}

/// Disks, networks, the switch, and a home for each node.
///
/// # Errors
/// [`isolate::isolate`] was not called, or something that it needs is missing.
pub fn set_up(
    dir: &Path,
    nodes: usize,
    rules: &Rules,
    random: &Random,
) -> Result<(Root, Vec<(Layout, Home)>), Failure> {
    if !isolate::is_isolated() {
        return Err(Failure::unsupported(
            "back end `root`",
            "the harness is not in namespaces of its own",
        ));
    }
    let images = dir.join("images");
    std::fs::create_dir_all(&images).map_err(Failure::io("a directory for images"))?;
    isolate::mount_tmpfs(&images, &format!("{}", disk::BYTES * (nodes as u64 + 1)))?;
    // Homes inherit the harness's network and leave it; this one stays.
    let (harness, tap) = Home::new("harness", move || plug_in(CLIENTS, nodes))?;
    let mut taps: Vec<OwnedFd> = vec![tap];
    let (mut made, mut disks) = (Vec::new(), BTreeMap::new());
    for port in 1..=nodes {
        let name = format!("n{port}");
        let (home, tap) = Home::new(&name, move || {
            isolate::new_network()?;
            plug_in(port, nodes)
        })?;
        taps.push(tap);
        let layout = layout(dir, &name, port, nodes);
        let disk = Disk::create(images.join(format!("{name}.img")), layout.disk())?;
        disks.insert(name, disk);
        made.push((layout, home));
    }
    let switch =
        Switch::start(taps, HTTP, rules.clone(), random.fork("switch")).map_err(Failure::io("a switch's thread"))?;
    let root = Root {
        _switch: switch,
        _harness: harness,
        disks,
        groups: Groups::default(),
        images,
    };
    Ok((root, made))
}

fn layout(dir: &Path, name: &str, port: Port, nodes: usize) -> Layout {
    let at = |service: u16| SocketAddr::from((address(port), service));
    let listen = Addresses {
        mqtt: at(MQTT),
        ws: at(WS),
        http: at(HTTP),
        cluster: at(CLUSTER),
    };
    let seeds = (1..=nodes).map(|peer| (peer as u64, SocketAddr::from((address(peer), CLUSTER))));
    Layout {
        name: name.to_owned(),
        id: port as u64,
        dir: dir.join(name),
        listen,
        clients: listen,
        seeds: seeds.collect(),
    }
}

const MQTT: u16 = 1883;
const WS: u16 = 8083;
const HTTP: u16 = 18083;
const CLUSTER: u16 = 17883;
