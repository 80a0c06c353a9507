//! What the links count. Label `peer` is a node id: a closed set.

use super::gate::Refused;
use lontra_storage::ids::NodeId;
use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

/// The metrics of all links of a node.
#[derive(Clone)]
pub struct LinkMetrics {
    up: IntGaugeVec,
    frames: IntCounterVec,
    bytes: IntCounterVec,
    unacknowledged: IntGaugeVec,
    reconnects: IntCounterVec,
    refused: IntCounterVec,
    nobody: PeerMetrics,
}

impl LinkMetrics {
    /// # Errors
    /// The registry already has metrics of these names.
    pub fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let metrics = LinkMetrics {
            up: IntGaugeVec::new(
                Opts::new("lontra_link_up", "1 while both connections to the peer stand"),
                &["peer"],
            )?,
            frames: IntCounterVec::new(
                Opts::new("lontra_link_frames_total", "Frames to (out) and from (in) the peer"),
                &["peer", "direction", "kind"],
            )?,
            bytes: IntCounterVec::new(
                Opts::new(
                    "lontra_link_bytes_total",
                    "Bytes of frames to (out) and from (in) the peer",
                ),
                &["peer", "direction"],
            )?,
            unacknowledged: IntGaugeVec::new(
                Opts::new(
                    "lontra_link_forward_unacknowledged_bytes",
                    "Forwarded frames that the peer has not acknowledged",
                ),
                &["peer"],
            )?,
            reconnects: IntCounterVec::new(
                Opts::new(
                    "lontra_link_reconnects_total",
                    "Connections to the peer that followed a lost one",
                ),
                &["peer"],
            )?,
            refused: IntCounterVec::new(
                Opts::new(
                    "lontra_link_handshakes_refused_total",
                    "Connections of whoever would be a peer that were refused",
                ),
                &["reason"],
            )?,
            nobody: PeerMetrics::unregistered()?,
        };
        for reason in Refused::ALL {
            metrics.refused.with_label_values(&[reason.label()]);
        }
        registry.register(Box::new(metrics.up.clone()))?;
        registry.register(Box::new(metrics.frames.clone()))?;
        registry.register(Box::new(metrics.bytes.clone()))?;
        registry.register(Box::new(metrics.unacknowledged.clone()))?;
        registry.register(Box::new(metrics.reconnects.clone()))?;
        registry.register(Box::new(metrics.refused.clone()))?;
        Ok(metrics)
    }

    pub(super) fn refused(&self, reason: Refused) {
        self.refused.with_label_values(&[reason.label()]).inc();
    }

    /// For a connection before one knows whose it is.
    pub(super) fn nobody(&self) -> PeerMetrics {
        self.nobody.clone()
    }

    /// The counters of one peer, looked up once.
    pub(super) fn peer(&self, node: NodeId) -> PeerMetrics {
        let peer = node.to_string();
        let frames = |direction| {
            Traffic::ALL.map(|kind| self.frames.with_label_values(&[peer.as_str(), direction, kind.label()]))
        };
        PeerMetrics {
            up: self.up.with_label_values(&[&peer]),
            frames_out: frames("out"),
            frames_in: frames("in"),
            bytes_out: self.bytes.with_label_values(&[peer.as_str(), "out"]),
            bytes_in: self.bytes.with_label_values(&[peer.as_str(), "in"]),
            unacknowledged: self.unacknowledged.with_label_values(&[&peer]),
            reconnects: self.reconnects.with_label_values(&[&peer]),
        }
    }
}

/// What a stream carries, for the label `kind`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Traffic {
    Forward,
    Raft,
    Request,
    Stream,
    Snapshot,
}

impl Traffic {
    const ALL: [Traffic; 5] = [
        Traffic::Forward,
        Traffic::Raft,
        Traffic::Request,
        Traffic::Stream,
        Traffic::Snapshot,
    ];

    fn label(self) -> &'static str {
        match self {
            Traffic::Forward => "forward",
            Traffic::Raft => "raft",
            Traffic::Request => "request",
            Traffic::Stream => "stream",
            Traffic::Snapshot => "snapshot",
        }
    }
}

#[derive(Clone)]
pub(super) struct PeerMetrics {
    up: IntGauge,
    frames_out: [IntCounter; 5],
    frames_in: [IntCounter; 5],
    bytes_out: IntCounter,
    bytes_in: IntCounter,
    unacknowledged: IntGauge,
    reconnects: IntCounter,
}

impl PeerMetrics {
    fn unregistered() -> Result<Self, prometheus::Error> {
        let counter = IntCounter::new("unregistered", "unregistered")?;
        let gauge = IntGauge::new("unregistered", "unregistered")?;
        let frames = || std::array::from_fn(|_| counter.clone());
        Ok(PeerMetrics {
            up: gauge.clone(),
            frames_out: frames(),
            frames_in: frames(),
            bytes_out: counter.clone(),
            bytes_in: counter.clone(),
            unacknowledged: gauge,
            reconnects: counter.clone(),
        })
    }

    pub(super) fn link_changed(&self, up: bool) {
        self.up.set(up.into());
    }

    pub(super) fn reconnected(&self) {
        self.reconnects.inc();
    }

    pub(super) fn unacknowledged(&self, bytes: usize) {
        self.unacknowledged.set(bytes as i64);
    }

    pub(super) fn frames_sent(&self, kind: Traffic, frames: usize, bytes: usize) {
        self.frames_out[kind as usize].inc_by(frames as u64);
        self.bytes_out.inc_by(bytes as u64);
    }

    pub(super) fn frame_received(&self, kind: Traffic) {
        self.frames_in[kind as usize].inc();
    }

    pub(super) fn bytes_received(&self, bytes: usize) {
        self.bytes_in.inc_by(bytes as u64);
    }
}
