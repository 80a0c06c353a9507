//! Stand-in.
use crate::cluster::{Cluster, Failure};
use crate::random::Random;
use crate::recorder::Recorder;
use std::time::Duration;
pub struct Family {
    pub name: &'static str,
    pub root: bool,
}
pub const FAMILIES: [Family; 1] = [Family {
    name: "kill",
    root: false,
}];
pub struct Nemesis {
    cluster: Cluster,
    random: Random,
}
impl Nemesis {
    pub fn new(cluster: Cluster, _f: &[String], random: Random, _r: Recorder) -> Result<Nemesis, Failure> {
        Ok(Nemesis { cluster, random })
    }
    pub async fn run(&mut self, time: Duration) {
        let end = tokio::time::Instant::now() + time;
        while tokio::time::Instant::now() < end {
            let node = self.random.pick(self.cluster.names()).clone();
            self.cluster.kill(&node).await;
            tokio::time::sleep(Duration::from_secs(3)).await;
            self.cluster.start_node(&node).await.ok();
            tokio::time::sleep(Duration::from_secs(3)).await;
        }
    }
    pub async fn heal(&mut self) {}
}
