//! What all clients of a run share: where nodes are, the recorder, which stage the run is in, and what was acknowledged.

use super::link::Address;
use crate::history::Message;
use crate::recorder::Recorder;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};
use tokio::sync::watch;

/// How far a run is, as its clients need to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Clients connect and subscribe, retained topics get their first value.
    Setup,
    /// Load. The phases baseline to recovery are one stage to a client.
    Load,
    /// Publishers finish what is open; sessions reconnect to random nodes and read what they are owed.
    Drain,
    /// Sessions go on reading while every node is asked to serve once more.
    Final,
    End,
}

pub struct Scene {
    pub recorder: Recorder,
    /// Topics and client ids of a run begin with it: runs on one cluster do not meet.
    pub prefix: String,
    nodes: RwLock<Vec<(String, SocketAddr)>>,
    /// Where clients over WebSocket connect; empty: nobody does.
    websockets: Vec<(String, SocketAddr)>,
    next_conn: AtomicU64,
    stage: watch::Sender<Stage>,
    /// Guards the list of acknowledged QoS ≥ 1 messages, in the order of their acknowledgements.
    acknowledged: Mutex<Vec<Message>>,
    /// Publishers that have yet to finish what is open: sessions that drain wait for them.
    publishing: AtomicU64,
}

impl Scene {
    pub fn new(recorder: Recorder, prefix: &str, nodes: Vec<(String, SocketAddr)>) -> Scene {
        Scene {
            recorder,
            prefix: prefix.into(),
            nodes: RwLock::new(nodes),
            websockets: Vec::new(),
            next_conn: AtomicU64::new(1),
            stage: watch::Sender::new(Stage::Setup),
            acknowledged: Mutex::default(),
            publishing: AtomicU64::new(0),
        }
    }

    /// With nodes that are reached over WebSocket too.
    pub fn with_websockets(self, websockets: Vec<(String, SocketAddr)>) -> Scene {
        Scene { websockets, ..self }
    }

    pub fn names(&self) -> Vec<String> {
        let nodes = self.nodes.read().unwrap_or_else(PoisonError::into_inner);
        nodes.iter().map(|(name, _)| name.clone()).collect()
    }

    /// # Panics
    /// There is no such node.
    pub fn address(&self, node: &str, over_websocket: bool) -> Address {
        if over_websocket && let Some((_, at)) = self.websockets.iter().find(|(name, _)| name == node) {
            return Address::WebSocket(*at);
        }
        let nodes = self.nodes.read().unwrap_or_else(PoisonError::into_inner);
        let found = nodes.iter().find(|(name, _)| name == node);
        Address::Tcp(found.unwrap_or_else(|| panic!("no node {node}")).1)
    }

    pub fn next_conn(&self) -> u64 {
        self.next_conn.fetch_add(1, Ordering::Relaxed)
    }

    pub fn stage(&self) -> Stage {
        *self.stage.borrow()
    }

    pub fn watch(&self) -> watch::Receiver<Stage> {
        self.stage.subscribe()
    }

    pub fn enter(&self, stage: Stage) {
        self.stage.send_replace(stage);
    }

    pub fn acknowledge(&self, message: &Message) {
        self.acknowledged().push(message.clone());
    }

    pub fn acknowledged(&self) -> MutexGuard<'_, Vec<Message>> {
        self.acknowledged.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a publisher until what it answers is dropped.
    pub fn publisher(self: &std::sync::Arc<Scene>) -> Publishing {
        self.publishing.fetch_add(1, Ordering::SeqCst);
        Publishing(self.clone())
    }

    pub fn all_published(&self) -> bool {
        self.publishing.load(Ordering::SeqCst) == 0
    }
}

/// A publisher that may still have something open.
pub struct Publishing(std::sync::Arc<Scene>);

impl Drop for Publishing {
    fn drop(&mut self) {
        self.0.publishing.fetch_sub(1, Ordering::SeqCst);
    }
}
