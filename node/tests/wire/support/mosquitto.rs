//! `mosquitto_sub` and `mosquitto_pub`: a client that we did not write.

use super::SOON;
use super::codec::Version;
use std::process::Stdio;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;

/// A running `mosquitto_sub`, subscribed.
pub struct Sub {
    lines: Lines<BufReader<ChildStdout>>,
    _child: Child,
}

impl Sub {
    /// Starts it and waits for its SUBACK.
    pub async fn start(address: &str, version: Version, topic: &str, qos: u8) -> Sub {
        Sub::start_with(address, version, topic, qos, &[]).await
    }

    /// As [`Sub::start`], with further arguments.
    pub async fn start_with(address: &str, version: Version, topic: &str, qos: u8, arguments: &[&str]) -> Sub {
        // stdbuf: through a pipe, C would keep the lines.
        let mut child = Command::new("stdbuf")
            .args([
                "-oL",
                "mosquitto_sub",
                "-d",
                "-F",
                "MESSAGE %q %t %p",
                "-t",
                topic,
                "-q",
                &qos.to_string(),
            ])
            .args(common(address, version))
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("mosquitto_sub (package mosquitto-clients) and stdbuf");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let mut sub = Sub { lines, _child: child };
        sub.line("Subscribed").await;
        sub
    }

    /// The next message: QoS, topic, payload.
    pub async fn message(&mut self) -> String {
        self.line("MESSAGE ").await
    }

    async fn line(&mut self, prefix: &str) -> String {
        let found = timeout(SOON, async {
            loop {
                let line = self
                    .lines
                    .next_line()
                    .await
                    .expect("text")
                    .expect("mosquitto_sub goes on");
                if let Some(rest) = line.strip_prefix(prefix) {
                    return rest.to_owned();
                }
            }
        });
        found
            .await
            .unwrap_or_else(|_| panic!("mosquitto_sub said no {prefix:?} within {SOON:?}"))
    }
}

/// `mosquitto_pub` of one message; waits until it has ended, which at QoS 1 is after the PUBACK.
pub async fn publish(address: &str, version: Version, topic: &str, payload: &str, qos: u8) {
    publish_with(address, version, topic, payload, qos, &[]).await;
}

/// As [`publish`], with further arguments.
pub async fn publish_with(address: &str, version: Version, topic: &str, payload: &str, qos: u8, arguments: &[&str]) {
    let command = Command::new("mosquitto_pub")
        .args(["-t", topic, "-m", payload, "-q", &qos.to_string()])
        .args(common(address, version))
        .args(arguments)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = timeout(SOON, command)
        .await
        .expect("mosquitto_pub ends")
        .expect("mosquitto_pub runs");
    assert!(output.status.success(), "mosquitto_pub: {output:?}");
}

fn common(address: &str, version: Version) -> Vec<String> {
    let (host, port) = address.rsplit_once(':').expect("host:port");
    let version = if version == Version::V5 { "5" } else { "311" };
    ["-h", host, "-p", port, "-V", version].map(String::from).to_vec()
}
