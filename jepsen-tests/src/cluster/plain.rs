//! The plain back end: processes on loopback, without privileges; the network between them is relays.

use super::failure::Failure;
use super::layout::{Addresses, Layout};
use super::link::{Port, Rules};
use super::process::Home;
use super::relay::{Datagrams, Streams};
use crate::random::Random;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::Path;

/// What must be kept while the cluster lives.
pub struct Plain {
    _datagrams: Datagrams,
    _streams: Vec<Streams>,
}

/// Ports, relays, and a home for each node.
///
/// # Errors
/// No ports, sockets or threads.
pub async fn set_up(
    dir: &Path,
    nodes: usize,
    rules: &Rules,
    random: &Random,
) -> Result<(Plain, Vec<(Layout, Home)>), Failure> {
    // Of this process, not of the seed alone: two runs of one seed must not race for the same ports.
    let listen = free_addresses(nodes, random.fork(&format!("ports of {}", std::process::id())))?;
    let peers: BTreeMap<Port, SocketAddr> = (1..).zip(listen.iter().map(|listen| listen.cluster)).collect();
    let datagrams =
        Datagrams::start(&peers, rules.clone(), random.fork("relay")).map_err(Failure::io("relays between nodes"))?;
    let mut made = Vec::new();
    let mut streams = Vec::new();
    for (port, listen) in (1..).zip(listen) {
        let behind = [listen.mqtt, listen.ws];
        let (stream, fronts) = Streams::start(port, &behind, rules)
            .await
            .map_err(Failure::io("relays before nodes"))?;
        streams.push(stream);
        let clients = Addresses {
            mqtt: fronts[0],
            ws: fronts[1],
            ..listen
        };
        let seeds = peers
            .iter()
            .map(|(peer, address)| (*peer as u64, datagrams.front(port, *peer).unwrap_or(*address)));
        let name = format!("n{port}");
        let layout = Layout {
            dir: dir.join(&name),
            id: port as u64,
            listen,
            clients,
            seeds: seeds.collect(),
            name: name.clone(),
        };
        std::fs::create_dir_all(layout.disk()).map_err(Failure::io("a node's directory"))?;
        made.push((layout, Home::new(&name, || Ok(()))?.0));
    }
    let plain = Plain {
        _datagrams: datagrams,
        _streams: streams,
    };
    Ok((plain, made))
}

/// Four ports for each node that nobody has, below the ephemeral range, where outgoing connections would take them.
fn free_addresses(nodes: usize, mut random: Random) -> Result<Vec<Addresses>, Failure> {
    for _ in 0..200 {
        let base = random.between(12_000, 31_000) as u16;
        let address = |offset: usize| SocketAddr::from((Ipv4Addr::LOCALHOST, base + offset as u16));
        let all_free = (0..4 * nodes)
            .map(address)
            .all(|address| TcpListener::bind(address).is_ok() && UdpSocket::bind(address).is_ok());
        if all_free {
            let addresses = (0..nodes).map(|node| Addresses {
                mqtt: address(4 * node),
                ws: address(4 * node + 1),
                http: address(4 * node + 2),
                cluster: address(4 * node + 3),
            });
            return Ok(addresses.collect());
        }
    }
    Err(Failure::NoPorts)
}
