//! Cuts between nodes: what one sends to another over UDP is dropped where it arrives, by a table of nftables of this
//! cluster's own. Clients and HTTP are TCP and not touched.
//!
//!     node 1 ──QUIC from its own port──▶ [ drop: from port A to port B ] ──▶ node 2
//!
//! The table goes with the cluster, and by the watchdog when the test was killed.

use super::cluster::Cluster;
use std::collections::BTreeSet;
use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::Mutex;

/// Which packets of a node are lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    Both,
    /// What others send to it.
    Into,
    /// What it sends to others.
    OutOf,
}

pub struct Partition {
    table: String,
    /// Directed pairs of UDP ports that are cut.
    cut: Mutex<BTreeSet<(u16, u16)>>,
}

/// The name of the table for the cluster with this base port.
pub fn table(base_port: u16) -> String {
    format!("lontra_test_{}_{base_port}", std::process::id())
}

impl Partition {
    pub fn new(table: String) -> Partition {
        Partition {
            table,
            cut: Mutex::default(),
        }
    }

    /// Replaces the whole table in one transaction.
    fn change(&self, change: impl FnOnce(&mut BTreeSet<(u16, u16)>)) {
        let mut cut = self.cut.lock().expect("no panic");
        change(&mut cut);
        let table = &self.table;
        // Declared first, so that there is something to delete.
        let mut script = format!("table inet {table}\ndelete table inet {table}\n");
        if !cut.is_empty() {
            script += &format!("table inet {table} {{ chain arriving {{ type filter hook input priority 0;\n");
            for (from, to) in cut.iter() {
                script += &format!("udp sport {from} udp dport {to} drop\n");
            }
            script += "}\n}\n";
        }
        nft(&script);
    }
}

impl Drop for Partition {
    fn drop(&mut self) {
        let cut = self.cut.get_mut().unwrap_or_else(|poison| poison.into_inner());
        if !cut.is_empty() {
            let delete = ["delete", "table", "inet", &self.table];
            Command::new("nft").args(delete).status().ok();
        }
    }
}

impl Cluster {
    /// Cuts `id` off from all other nodes.
    pub fn isolate(&self, id: u64, direction: Cut) {
        let own = port(&self.node(id).cluster);
        let others = self.nodes.iter().filter(|node| node.id != id);
        let others: Vec<u16> = others.map(|node| port(&node.cluster)).collect();
        self.partition.change(|cut| {
            for other in others {
                if direction != Cut::OutOf {
                    cut.insert((other, own));
                }
                if direction != Cut::Into {
                    cut.insert((own, other));
                }
            }
        });
    }

    /// Cuts what `from` sends to `to`, and nothing else.
    pub fn cut(&self, from: u64, to: u64) {
        let (from, to) = (port(&self.node(from).cluster), port(&self.node(to).cluster));
        self.partition.change(|cut| {
            cut.insert((from, to));
        });
    }

    /// All nodes reach each other again.
    pub fn heal(&self) {
        self.partition.change(BTreeSet::clear);
    }
}

fn port(address: &str) -> u16 {
    let port = address.rsplit_once(':').expect("host:port").1;
    port.parse().expect("a port")
}

fn nft(script: &str) {
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .expect("nft: install nftables, and run as root");
    let mut stdin = child.stdin.take().expect("piped");
    stdin.write_all(script.as_bytes()).expect("nft reads");
    drop(stdin);
    assert!(child.wait().expect("nft").success(), "nft refused {script}");
}
