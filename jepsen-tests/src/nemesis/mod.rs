//! Faults: which, when, to whom, and their end.
//!
//!     plan (when, which) ──▶ Nemesis ── target (whom, by role) ──▶ process · network · power · script · corrupt · disk
//!                               │                                  · limit · clock · operator
//!                               └─ history: `fault` events, recorded immediately before the act
//!
//! A fault that is at work is an [`Active`]: what it did to links, and how it is undone. Rules of the network are always
//! made anew from all of them, so that faults on one link neither end nor hide each other.
//!
//! What a fault really did is recorded when it ends, as an observation about `effect FAMILY` (`effect.rs`): one that did
//! nothing covers nothing.
//!
//! What a back end or machine cannot do is recorded as `skipped`, and told by [`Nemesis::lacking`]: a run that asked for it
//! is unknown.

mod clock;
mod corrupt;
mod disk;
mod effect;
mod family;
mod limit;
mod network;
mod operator;
mod plan;
mod power;
mod process;
mod script;
mod target;

pub use clock::prepare;
pub use family::Family;

use crate::cluster::link::{Port, Rule};
use crate::cluster::{BackEnd, Cluster, Failure};
use crate::history::{Op, Status};
use crate::random::Random;
use crate::recorder::Recorder;
use plan::Act;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use target::View;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until};

pub struct Nemesis {
    cluster: Cluster,
    families: Vec<Family>,
    random: Random,
    recorder: Recorder,
    active: Vec<Active>,
    /// Families that were asked for and cannot be had, with the reason.
    lacking: BTreeMap<Family, String>,
    /// Damage that nodes have started with all the same.
    latent: Vec<(String, corrupt::Flip)>,
    /// How many faults have begun.
    begun: u64,
    /// Families that have hit somebody before.
    had: BTreeSet<Family>,
    /// With so many a run is at its end, before its time is over.
    enough: Option<u64>,
    /// So is it when this turns true.
    ending: Option<watch::Receiver<bool>>,
}

/// A fault that is at work.
struct Active {
    family: Family,
    nodes: Vec<String>,
    /// Whether its nodes count as lost for the quorum meanwhile.
    impairs: bool,
    links: Vec<(Port, Port, Rule)>,
    undo: Undo,
    /// Told when it ends.
    outcome: Value,
    /// What had been done to its nodes and links when it began.
    before: effect::Before,
}

/// How a fault ends.
enum Undo {
    /// With its links' rules.
    Links,
    /// It happened at once.
    Nothing,
    Start,
    Resume,
    Flap(AbortHandle),
    /// The file that fills the disk is removed.
    Room,
    /// The file system is mounted anew, under a new process.
    Remount,
    Limit(limit::Limit),
    Clock,
    /// The corruption is judged, and undone if the node refused to start with it.
    Corruption(corrupt::Corruption),
}

/// Why a fault was not begun.
enum Trouble {
    /// Nobody has the role, or another victim would cost the quorum.
    Nobody,
    Failure(Failure),
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Trouble {
        Trouble::Failure(failure)
    }
}

type Begun = Result<Active, Trouble>;

impl Nemesis {
    /// `random` is its own: give it a fork.
    pub fn new(cluster: Cluster, families: &[Family], random: Random, recorder: Recorder) -> Nemesis {
        let root = cluster.spec().back_end == BackEnd::Root;
        let nodes = cluster.names().len();
        let lacks = |family: &Family| Some((*family, family.lacks(root, nodes)?.to_owned()));
        let lacking: BTreeMap<Family, String> = families.iter().filter_map(lacks).collect();
        Nemesis {
            families: families
                .iter()
                .filter(|family| !lacking.contains_key(family))
                .copied()
                .collect(),
            cluster,
            random,
            recorder,
            active: Vec::new(),
            lacking,
            latent: Vec::new(),
            begun: 0,
            had: BTreeSet::new(),
            enough: None,
            ending: None,
        }
    }

    /// A run ends with so many faults, if its time is not over before.
    #[must_use]
    pub fn with_enough(mut self, faults: Option<u64>) -> Nemesis {
        self.enough = faults;
        self
    }

    /// A run ends when this turns true, once the fault at work has had its time.
    #[must_use]
    pub fn with_ending(mut self, ending: Option<watch::Receiver<bool>>) -> Nemesis {
        self.ending = ending;
        self
    }

    fn goes_on(&self, end: Instant) -> bool {
        !self.families.is_empty() && Instant::now() < end && !self.has_enough()
    }

    fn has_enough(&self) -> bool {
        self.enough.is_some_and(|enough| self.begun >= enough) || self.ending.as_ref().is_some_and(|end| *end.borrow())
    }

    /// Until `end`, or until the run is to end before.
    async fn wait(&self, end: Instant) {
        if self.has_enough() {
            return;
        }
        let told = async {
            if let Some(mut ending) = self.ending.clone()
                && ending.wait_for(|end| *end).await.is_ok()
            {
                return;
            }
            // Nobody is left who could tell.
            std::future::pending().await
        };
        tokio::select! {
            () = sleep_until(end) => {}
            () = told => {}
        }
    }

    /// Families that were asked for and cannot be had here: of the back end at once, of the machine once they were tried.
    pub fn lacking(&self) -> &BTreeMap<Family, String> {
        &self.lacking
    }

    /// Gives each family a turn by itself, then does faults as the schedule says until `duration` has passed, and ends those
    /// at work; the turns and the last fault may take longer. To be followed by [`Nemesis::heal`].
    ///
    /// # Cancel safety
    /// None: a fault that is being done when this is dropped may stay (a limit, a full disk, a disk that is cut).
    ///
    /// # Errors
    /// The harness itself failed; it is recorded too.
    pub async fn run(&mut self, duration: Duration) -> Result<(), Failure> {
        let end = Instant::now() + duration;
        for (family, reason) in self.lacking.clone() {
            self.record(family, "start", &[], json!({ "unsupported": reason }), Status::Skipped);
        }
        self.turns().await?;
        while self.goes_on(end) {
            let period = plan::next(&self.families, &mut self.random);
            let began = Instant::now();
            for step in period.steps {
                sleep_until(end.min(began + step.at)).await;
                match step.act {
                    Act::Start(_) if Instant::now() >= end => {}
                    Act::Start(family) => {
                        self.start(family).await?;
                    }
                    Act::Stop(family) => self.stop(family).await?,
                }
            }
            self.wait(end.min(began + period.length)).await;
        }
        self.wait(end).await;
        self.stop_all().await
    }

    /// As [`Nemesis::run`], with one fault at a time: the families in turn, until `duration` has passed.
    ///
    /// # Cancel safety
    /// As of [`Nemesis::run`].
    ///
    /// # Errors
    /// As of [`Nemesis::run`].
    pub async fn run_in_turn(&mut self, duration: Duration) -> Result<(), Failure> {
        let end = Instant::now() + duration;
        while self.goes_on(end) {
            self.turns().await?;
        }
        self.stop_all().await
    }

    /// Chance must not decide whether a run saw what it was asked for.
    async fn turns(&mut self) -> Result<(), Failure> {
        let mut families = self.families.clone();
        self.random.shuffle(&mut families);
        for family in families {
            if self.has_enough() {
                break;
            }
            for _ in 0..ATTEMPTS {
                let (hold, pause) = plan::turn(&mut self.random);
                let began = self.start(family).await?;
                if began {
                    sleep_until(Instant::now() + hold).await;
                    self.stop(family).await?;
                    // Else the next would hit a cluster that is still on its way up: nothing new is acknowledged, nobody
                    // has the role. Who does not come back is judged when all is healed.
                    self.cluster.wait_all_ready(BETWEEN).await;
                }
                sleep_until(Instant::now() + pause).await;
                // Nobody has the role while a node that the last fault hit comes back.
                if began || self.lacking.contains_key(&family) {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Begins one fault now, whatever the schedule says; it lasts until [`Nemesis::stop`] or [`Nemesis::heal`]. Whether it
    /// began.
    ///
    /// # Errors
    /// The harness itself failed. A fault that cannot be had, or has no victim now, is only recorded as skipped.
    pub async fn start(&mut self, family: Family) -> Result<bool, Failure> {
        if let Some(reason) = self.lacking.get(&family) {
            let value = json!({ "unsupported": reason });
            self.record(family, "start", &[], value, Status::Skipped);
            return Ok(false);
        }
        let view = self.view().await;
        match self.begin(family, &view).await {
            Ok(mut active) => {
                self.watch(&mut active);
                self.active.push(active);
                self.set_rules();
                self.begun += 1;
                Ok(true)
            }
            Err(Trouble::Nobody) => {
                let value = json!({ "nobody": "no node has the role, or one more would cost the quorum" });
                self.record(family, "start", &[], value, Status::Skipped);
                Ok(false)
            }
            Err(Trouble::Failure(Failure::Unsupported { what, why })) => {
                let reason = format!("{what}: {why}");
                let value = json!({ "unsupported": reason });
                self.record(family, "start", &[], value, Status::Skipped);
                self.families.retain(|known| *known != family);
                self.lacking.insert(family, reason);
                Ok(false)
            }
            Err(Trouble::Failure(failure)) => Err(self.failed(family, failure)),
        }
    }

    async fn begin(&mut self, family: Family, view: &View) -> Begun {
        use Family::*;
        match family {
            Kill | KillLeader | KillMetaLeader | KillOwner | KillMajority | KillAll => self.kill(family, view).await,
            Pause | PauseMajority => self.pause(family, view).await,
            PartitionIsolate | PartitionMetaLeader | PartitionHalves | PartitionRing | PartitionBridge
            | PartitionOneWay | PartitionClients | PartitionFlap | PartitionStall => self.partition(family, view),
            Packet => self.packet(view),
            SlowLink => self.slow_link(view),
            PowerOne | PowerAll => self.power(family, view).await,
            PartKill | PauseKill => self.script(family, view).await,
            FlipWal | FlipSst | TruncateWal | TruncateSst | FlipKill | FlipSnapshot | TruncateSnapshot
            | OldSnapshot => self.corrupt(family, view).await,
            FsyncError => self.fsync_error(view).await,
            FullDisk => self.full_disk(view),
            SlowDisk | MemoryLimit | CpuLimit => self.limit(family, view),
            Clock => self.clock(view),
            LeaderTransfer => self.leader_transfer(view).await,
            Snapshot => self.snapshot(view).await,
        }
    }

    /// Ends the faults of one family, if there are any.
    ///
    /// # Errors
    /// The harness itself failed.
    pub async fn stop(&mut self, family: Family) -> Result<(), Failure> {
        while let Some(at) = self.active.iter().position(|active| active.family == family) {
            let active = self.active.swap_remove(at);
            if let Err(failure) = self.end(active).await {
                return Err(self.failed(family, failure));
            }
        }
        Ok(())
    }

    async fn stop_all(&mut self) -> Result<(), Failure> {
        // The last first: a node that was paused and then killed is started before it is resumed.
        while let Some(family) = self.active.last().map(|active| active.family) {
            self.stop(family).await?;
        }
        Ok(())
    }

    async fn end(&mut self, mut active: Active) -> Result<(), Failure> {
        let (family, nodes) = (active.family, active.nodes.clone());
        if let Undo::Flap(task) = &active.undo {
            task.abort();
        }
        self.set_rules();
        if matches!(active.undo, Undo::Nothing) {
            return Ok(());
        }
        // Before it is undone: what a limit has done goes with the group.
        let effect = self.tell_effect(&active);
        for (name, value) in effect.as_object().into_iter().flatten() {
            active.outcome[name.as_str()] = value.clone();
        }
        if !matches!(active.undo, Undo::Corruption(_)) {
            // A corruption's outcome is known only later.
            self.record(family, "stop", &nodes, active.outcome.take(), Status::Installed);
        }
        match active.undo {
            Undo::Links | Undo::Nothing | Undo::Flap(_) => {}
            Undo::Start => {
                for node in &nodes {
                    self.cluster.start_node(node).await?;
                }
            }
            Undo::Resume => {
                for node in &nodes {
                    self.cluster.resume(node).await;
                }
            }
            Undo::Room => self.make_room(&nodes)?,
            Undo::Remount => self.remount(&nodes).await?,
            Undo::Limit(limit) => self.unlimit(&nodes, &limit).await?,
            Undo::Clock => self.set_clocks(&nodes, 0)?,
            Undo::Corruption(corruption) => {
                let outcome = self.judge(&nodes[0], corruption).await?;
                self.tell_damage(family, &nodes[0], &outcome);
                self.record(family, "stop", &nodes, outcome, Status::Installed);
            }
        }
        Ok(())
    }

    /// Ends every fault and everything else that may stand in the way; all nodes are up and ready after it.
    ///
    /// # Errors
    /// A node did not become ready: that is news about the broker. Anything else: the harness failed.
    pub async fn heal(&mut self) -> Result<(), Failure> {
        self.stop_all().await?;
        self.cluster.rules().clear();
        for name in self.cluster.names() {
            self.cluster.resume(name).await;
        }
        self.tell_latent();
        loop {
            self.take_back_latent()?;
            for name in self.cluster.names() {
                self.cluster.start_node(name).await?;
            }
            match self.cluster.must_be_ready(HEAL).await {
                // Over damage that it has found now: once more, without it.
                Err(Failure::NodeEnded { node, .. }) if self.latent.iter().any(|(damaged, _)| *damaged == node) => {}
                result => return result,
            }
        }
    }

    /// The cluster as it stands now.
    async fn view(&self) -> View {
        let cluster = &self.cluster;
        let up = |name: &&String| cluster.running(name) && !cluster.paused(name);
        let impairing = self.active.iter().filter(|active| active.impairs);
        View {
            nodes: cluster.names().to_vec(),
            replication_factor: cluster.replication_factor(),
            up: cluster.names().iter().filter(up).cloned().collect(),
            impaired: impairing.flat_map(|active| active.nodes.iter().cloned()).collect(),
            leaders: cluster.leaders().await,
            owners: cluster.owners().await,
        }
    }

    /// The rules of all faults at work together, in one step.
    fn set_rules(&self) {
        let mut together: BTreeMap<(Port, Port), Rule> = BTreeMap::new();
        for (from, to, rule) in self.active.iter().flat_map(|active| &active.links) {
            together.entry((*from, *to)).or_default().add(rule);
        }
        self.cluster.rules().replace(together);
    }

    /// Records a fault that is done right after this, with what its victims are at this moment.
    fn announce(&self, family: Family, action: &str, nodes: &[String], view: &View, mut value: Value) {
        value["roles"] = view.roles(nodes);
        self.record(family, action, nodes, value, Status::Installed);
    }

    fn record(&self, family: Family, action: &str, nodes: &[String], value: Value, status: Status) {
        let fault = Op::Fault {
            family: family.name().to_owned(),
            action: action.to_owned(),
            nodes: nodes.to_vec(),
            value,
            status,
        };
        self.recorder.note("nemesis", fault);
    }

    fn failed(&self, family: Family, failure: Failure) -> Failure {
        let value = json!({ "failure": failure.to_string() });
        self.record(family, "once", &[], value, Status::Indeterminate);
        let detail = format!("{family}: {failure}");
        self.recorder.note("harness", Op::HarnessFailure { detail });
        failure
    }
}

impl Active {
    fn new(family: Family, nodes: Vec<String>, undo: Undo) -> Active {
        Active {
            family,
            nodes,
            impairs: true,
            links: Vec::new(),
            undo,
            outcome: json!({}),
            before: effect::Before::default(),
        }
    }

    /// Its nodes are as good as before for the quorum.
    fn harmless(mut self) -> Active {
        self.impairs = false;
        self
    }
}

/// From the last undo until every node must be ready, on a machine that is busy with them all.
const HEAL: Duration = Duration::from_secs(90);

/// For all nodes to be ready after a fault, before the next one's turn.
const BETWEEN: Duration = Duration::from_secs(20);

/// Of a family's first turn, a second or two apart.
const ATTEMPTS: usize = 12;
