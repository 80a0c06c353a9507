//! The first frames of a connection: who is there, for what.
//!
//! ```text
//! dialler ── Hello { version, cluster, node, start, lane } ──▶ acceptor: right cluster? a lower node? a peer? its certificate?
//!         ◀── Welcome { version, cluster, node, start } ───── or Refused { reason }
//! ```
//!
//! Sans-io. TLS has proved that both hold a certificate of the cluster's authority before the first byte; here each
//! side checks that the certificate is that of the node that speaks (openraft requires a confirmed target).

use bytes::Bytes;
use lontra_storage::encoding::{DecodeError, Reader, Writer};
use lontra_storage::ids::NodeId;

use super::config::Lane;

/// Version of everything between Hello and the last frame. A node talks to the previous one too, once there is one.
pub const VERSION: u8 = 1;

/// What the dialler says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    pub cluster: String,
    pub node: NodeId,
    pub start: u64,
    pub lane: Lane,
}

/// What the acceptor says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Welcome {
    pub cluster: String,
    pub node: NodeId,
    pub start: u64,
}

/// Why a link was not made. The words reach the logs of both nodes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("peer speaks link version {theirs}, this node {VERSION}: upgrade one minor version at a time")]
    Version { theirs: u8 },
    #[error(
        "peer belongs to cluster {theirs:?}, this node to {ours:?}: check the cluster name and the peers' addresses"
    )]
    Cluster { theirs: String, ours: String },
    #[error("peer claims the id {node} of this node itself: check the node id and the peers' addresses")]
    Self_ { node: NodeId },
    #[error("node {theirs} answered where node {expected} was expected: check the peers' addresses")]
    WrongNode { theirs: NodeId, expected: NodeId },
    #[error("node {node} is not among the peers of node {ours}: add it to the configuration")]
    UnknownPeer { node: NodeId, ours: NodeId },
    #[error("node {node} dialled node {ours}: the lower id dials")]
    HigherDials { node: NodeId, ours: NodeId },
    #[error("peer claims to be node {node}, its certificate is for another name: issue one for {name}")]
    Certificate { node: NodeId, name: String },
    #[error("node {node} was restarted since (its start {start} is over)")]
    Superseded { node: NodeId, start: u64 },
    #[error("the handshake does not decode")]
    Malformed(#[from] DecodeError),
}

impl Hello {
    pub fn encode(&self) -> Bytes {
        let mut writer = Writer::new();
        writer.u8(VERSION).str(&self.cluster).var(self.node).u64(self.start);
        writer.u8(self.lane.index() as u8);
        writer.finish()
    }

    /// # Errors
    /// Another version, or torn bytes.
    pub fn decode(bytes: &Bytes) -> Result<Hello, Refusal> {
        let mut reader = Reader::new("hello", bytes);
        expect_version(&mut reader)?;
        let (cluster, node, start) = (reader.str()?.to_owned(), reader.var()?, reader.u64()?);
        let lane = match reader.u8()? {
            0 => Lane::Control,
            1 => Lane::Data,
            _ => return Err(reader.error().into()),
        };
        reader.end()?;
        Ok(Hello {
            cluster,
            node,
            start,
            lane,
        })
    }
}

impl Welcome {
    pub fn encode(&self) -> Bytes {
        let mut writer = Writer::new();
        writer.u8(VERSION).str(&self.cluster).var(self.node).u64(self.start);
        writer.finish()
    }

    /// # Errors
    /// Another version, or torn bytes.
    pub fn decode(bytes: &Bytes) -> Result<Welcome, Refusal> {
        let mut reader = Reader::new("welcome", bytes);
        expect_version(&mut reader)?;
        let welcome = Welcome {
            cluster: reader.str()?.to_owned(),
            node: reader.var()?,
            start: reader.u64()?,
        };
        reader.end()?;
        Ok(welcome)
    }
}

fn expect_version(reader: &mut Reader<'_>) -> Result<(), Refusal> {
    match reader.u8()? {
        VERSION => Ok(()),
        theirs => Err(Refusal::Version { theirs }),
    }
}

/// Acceptor's side: may this node link? `is_peer` and `has_certificate_of` answer for the claimed node.
///
/// # Errors
/// The first thing that is wrong.
pub fn accept(
    hello: &Hello,
    cluster: &str,
    node: NodeId,
    is_peer: impl FnOnce(NodeId) -> bool,
    has_certificate_of: impl FnOnce(NodeId) -> Result<(), String>,
) -> Result<(), Refusal> {
    if hello.cluster != cluster {
        return Err(Refusal::Cluster {
            theirs: hello.cluster.clone(),
            ours: cluster.to_owned(),
        });
    }
    if hello.node == node {
        return Err(Refusal::Self_ { node });
    }
    has_certificate_of(hello.node).map_err(|name| Refusal::Certificate { node: hello.node, name })?;
    if !is_peer(hello.node) {
        return Err(Refusal::UnknownPeer {
            node: hello.node,
            ours: node,
        });
    }
    // lower-dials: with one dialler per pair there is no tie between two connections to break.
    if hello.node > node {
        return Err(Refusal::HigherDials {
            node: hello.node,
            ours: node,
        });
    }
    Ok(())
}

/// Dialler's side: is this whom it wanted? TLS has already compared the certificate with the name that was dialled.
///
/// # Errors
/// The first thing that is wrong.
pub fn confirm(welcome: &Welcome, cluster: &str, expected: NodeId) -> Result<(), Refusal> {
    if welcome.cluster != cluster {
        return Err(Refusal::Cluster {
            theirs: welcome.cluster.clone(),
            ours: cluster.to_owned(),
        });
    }
    if welcome.node != expected {
        return Err(Refusal::WrongNode {
            theirs: welcome.node,
            expected,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello() -> Hello {
        Hello {
            cluster: "otters".into(),
            node: 1,
            start: 0x0102,
            lane: Lane::Data,
        }
    }

    /// Golden bytes (`readable-forever`).
    #[test]
    fn golden_handshakes_stay() {
        let hex = |bytes: Bytes| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        assert_eq!(
            hex(hello().encode()),
            "01066f7474657273010000000000000102".to_owned() + "01"
        );
        assert_eq!(Hello::decode(&hello().encode()), Ok(hello()));
        let welcome = Welcome {
            cluster: "otters".into(),
            node: 300,
            start: 7,
        };
        assert_eq!(hex(welcome.encode()), "01066f7474657273ac020000000000000007");
        assert_eq!(Welcome::decode(&welcome.encode()), Ok(welcome));
    }

    #[test]
    fn torn_or_foreign_bytes_are_refused() {
        let bytes = hello().encode();
        for length in 0..bytes.len() {
            assert!(Hello::decode(&bytes.slice(..length)).is_err());
        }
        assert_eq!(
            Hello::decode(&Bytes::from_static(&[9, 1])),
            Err(Refusal::Version { theirs: 9 })
        );
    }

    #[test]
    fn only_a_lower_peer_of_the_cluster_with_its_own_certificate_is_accepted() {
        let check = |change: fn(&mut Hello), expected: Result<(), Refusal>| {
            let mut hello = hello();
            change(&mut hello);
            let is_peer = |node| node != 3;
            let certificate = |node| {
                if node == 2 {
                    Err("node-2.otters".to_owned())
                } else {
                    Ok(())
                }
            };
            assert_eq!(accept(&hello, "otters", 5, is_peer, certificate), expected);
        };
        check(|_| (), Ok(()));
        check(|hello| hello.node = 5, Err(Refusal::Self_ { node: 5 }));
        check(|hello| hello.node = 3, Err(Refusal::UnknownPeer { node: 3, ours: 5 }));
        check(|hello| hello.node = 9, Err(Refusal::HigherDials { node: 9, ours: 5 }));
        check(
            |hello| hello.node = 2,
            Err(Refusal::Certificate {
                node: 2,
                name: "node-2.otters".into(),
            }),
        );
        let cluster = Refusal::Cluster {
            theirs: "beavers".into(),
            ours: "otters".into(),
        };
        check(|hello| hello.cluster = "beavers".into(), Err(cluster));
    }

    #[test]
    fn the_dialler_confirms_whom_it_reached() {
        let welcome = Welcome {
            cluster: "otters".into(),
            node: 2,
            start: 1,
        };
        assert_eq!(confirm(&welcome, "otters", 2), Ok(()));
        assert_eq!(
            confirm(&welcome, "otters", 3),
            Err(Refusal::WrongNode { theirs: 2, expected: 3 })
        );
        assert!(matches!(confirm(&welcome, "beavers", 2), Err(Refusal::Cluster { .. })));
    }
}
