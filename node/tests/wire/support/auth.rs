//! Nodes that ask clients who they are: files of users and rules in a directory, read at the start and at SIGHUP.

use super::client::{Client, Gone};
use super::cluster::{Cluster, LONTRA};
use super::codec::{Connect, Packet};
use super::{SOON, eventually};
use std::path::PathBuf;
use std::process::Stdio;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// A cluster, and the directory of its files.
pub struct Guarded {
    pub cluster: Cluster,
    pub dir: tempfile::TempDir,
}

impl Guarded {
    /// `files` are written first; `{dir}` in `settings`, which are `section.key` and a value, is where they are.
    pub async fn start(size: usize, files: &[(&str, &str)], settings: &[(&str, &str)]) -> Guarded {
        let dir = tempfile::tempdir().expect("a directory");
        for (name, text) in files {
            std::fs::write(dir.path().join(name), text).expect("written");
        }
        Guarded::start_in(size, dir, settings).await
    }

    /// As [`Guarded::start`], with files that are there already.
    pub async fn start_in(size: usize, dir: tempfile::TempDir, settings: &[(&str, &str)]) -> Guarded {
        let place = dir.path().to_str().expect("text");
        let environment = settings.iter().map(|(key, value)| {
            let variable = format!("LONTRA__{}", key.to_uppercase().replace('.', "__"));
            (variable, value.replace("{dir}", place))
        });
        let environment: Vec<(String, String)> = environment.collect();
        let mut borrowed: Vec<(&str, &str)> = environment.iter().map(|(key, value)| (&**key, &**value)).collect();
        borrowed.push(("LONTRA__LOG__LEVEL", "info,lontra=debug"));
        let nodes = tempfile::Builder::new()
            .prefix("lontra-wire-")
            .tempdir()
            .expect("a directory");
        let cluster = Cluster::start_in(nodes.keep(), size, &borrowed).await;
        Guarded { cluster, dir }
    }

    pub fn at(&self) -> &str {
        self.cluster.mqtt(0)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a file, and lets every node read it.
    pub async fn rewrite(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).expect("written");
        let mut before = Vec::new();
        for id in self.cluster.ids() {
            before.push(self.reloads(id).await);
            self.cluster.reload(id);
        }
        for (id, before) in self.cluster.ids().into_iter().zip(before) {
            eventually("the node has reloaded", SOON, || async move {
                (self.reloads(id).await > before).then_some(())
            })
            .await;
        }
    }

    async fn reloads(&self, id: u64) -> f64 {
        let scrape = self.cluster.metrics(id).await;
        scrape.sum_where("lontra_config_reloads_total", "result=\"applied\"")
    }

    pub async fn counted(&self, family: &str, label: &str) -> f64 {
        let mut sum = 0.0;
        for id in self.cluster.ids() {
            sum += self.cluster.metrics(id).await.sum_where(family, label);
        }
        sum
    }

    /// The code of CONNACK.
    pub async fn connack(&self, connect: &Connect) -> u8 {
        connack(self.at(), connect).await
    }
}

/// The code of CONNACK; the connection is closed.
pub async fn connack(address: &str, connect: &Connect) -> u8 {
    match Client::try_connect(address, connect, SOON).await {
        Ok((_, Packet::Connack { code, .. })) => code,
        Ok((_, other)) => panic!("CONNACK expected, not {other:?}"),
        Err(gone @ (Gone::Closed(_) | Gone::Silent(_) | Gone::Wrong(_))) => panic!("no CONNACK: {gone:?}"),
    }
}

/// `lontra user …` with a password on its standard input; what it prints.
pub async fn lontra_user(arguments: &[&str], password: &str) -> String {
    let mut child = Command::new(LONTRA)
        .arg("user")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("lontra user");
    let mut input = child.stdin.take().expect("piped");
    input
        .write_all(format!("{password}\n").as_bytes())
        .await
        .expect("written");
    drop(input);
    let output = child.wait_with_output().await.expect("it ends");
    assert!(output.status.success(), "lontra user {arguments:?}: {output:?}");
    String::from_utf8(output.stdout).expect("text").trim().to_owned()
}

/// A file of mosquitto_passwd's own making, with these users.
pub async fn mosquitto_passwd(path: &std::path::Path, users: &[(&str, &str)]) {
    std::fs::write(path, "").expect("written");
    for (name, password) in users {
        let output = Command::new("mosquitto_passwd")
            .arg("-b")
            .arg(path)
            .args([name, password])
            .output()
            .await
            .expect("mosquitto_passwd (package mosquitto)");
        assert!(output.status.success(), "mosquitto_passwd: {output:?}");
    }
}
