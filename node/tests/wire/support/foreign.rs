//! MQTT clients that others wrote, each behind a driver that speaks the same lines of JSON (`ops/clients/lines.py` has them).
//!
//! A client that is not installed is a failed test: `ops/clients/install` installs them.

use super::SOON;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::path::PathBuf;
use std::process::Stdio;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// Some clients of one library, by name.
pub struct Driver {
    input: Box<dyn AsyncWrite + Send + Unpin>,
    lines: Lines<BufReader<Box<dyn AsyncRead + Send + Unpin>>>,
    /// Messages that came while something else was waited for.
    kept: VecDeque<Message>,
    _child: Option<Child>,
}

/// What a client was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The name of the client that got it.
    pub client: String,
    pub topic: String,
    pub payload: String,
    pub qos: u8,
    pub retain: bool,
}

/// What a client says in CONNECT, and where.
#[derive(Clone, Debug)]
pub struct Connect<'a> {
    /// `host:port`, or the path of a Unix socket.
    pub address: &'a str,
    /// `tcp`, `tls`, `ws`, `wss` or `unix`, as far as the client has them.
    pub transport: &'a str,
    /// `3.1`, `3.1.1` or `5`.
    pub version: &'a str,
    pub id: &'a str,
    /// Clean Session, or Clean Start with a session that ends with the connection.
    pub clean: bool,
    /// Topic, payload, QoS.
    pub will: Option<(&'a str, &'a str, u8)>,
    /// The file of the authority that `tls` and `wss` trust.
    pub ca: Option<&'a str>,
}

impl Driver {
    /// A driver of `ops/clients`.
    pub fn start(file: &str) -> Driver {
        let script = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../ops/clients")).join(file);
        let mut command = if file.ends_with(".py") {
            Command::new(installed("venv/bin/python"))
        } else {
            Command::new("node")
        };
        let mut child = command
            .arg(script)
            .env("NODE_PATH", installed("node_modules"))
            // It writes nothing in the tree.
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| panic!("{file} does not start ({error}): run ops/clients/install"));
        let input = child.stdin.take().expect("piped");
        let output = child.stdout.take().expect("piped");
        Driver {
            _child: Some(child),
            ..Driver::over(input, output)
        }
    }

    /// A driver at the other end of these.
    pub fn over(
        input: impl AsyncWrite + Send + Unpin + 'static,
        output: impl AsyncRead + Send + Unpin + 'static,
    ) -> Driver {
        let output: Box<dyn AsyncRead + Send + Unpin> = Box::new(output);
        Driver {
            input: Box::new(input),
            lines: BufReader::new(output).lines(),
            kept: VecDeque::new(),
            _child: None,
        }
    }

    /// Connects a client under this name; Session Present, where the library tells.
    pub async fn connect(&mut self, client: &str, connect: &Connect<'_>) -> Option<bool> {
        let (host, port) = match connect.transport {
            "unix" => (connect.address, "0"),
            _ => connect.address.rsplit_once(':').expect("host:port"),
        };
        let will = connect
            .will
            .map(|(topic, payload, qos)| json!({ "topic": topic, "payload": payload, "qos": qos, "retain": false }));
        let command = json!({
            "client": client,
            "do": "connect",
            "host": host,
            "port": port.parse::<u16>().expect("a port"),
            "transport": connect.transport,
            "version": connect.version,
            "id": connect.id,
            "clean": connect.clean,
            "expiry": if connect.clean { 0 } else { SESSION_EXPIRY },
            "will": will,
            "ca": connect.ca,
        });
        self.ask(command).await["session_present"].as_bool()
    }

    /// Subscribes, and waits for the SUBACK, which must grant the QoS.
    pub async fn subscribe(&mut self, client: &str, filter: &str, qos: u8) {
        self.ask(json!({ "client": client, "do": "subscribe", "filter": filter, "qos": qos }))
            .await;
    }

    /// Publishes, and waits for the acknowledgement that the QoS has.
    pub async fn publish(&mut self, client: &str, topic: &str, payload: &str, qos: u8, retain: bool) {
        let command = json!({
            "client": client,
            "do": "publish",
            "topic": topic,
            "payload": payload,
            "qos": qos,
            "retain": retain,
        });
        self.ask(command).await;
    }

    /// DISCONNECT.
    pub async fn disconnect(&mut self, client: &str) {
        self.ask(json!({ "client": client, "do": "disconnect" })).await;
    }

    /// Closes the connection without DISCONNECT.
    pub async fn abort(&mut self, client: &str) {
        self.ask(json!({ "client": client, "do": "abort" })).await;
    }

    /// The next message of any of these clients.
    pub async fn message_of(&mut self, clients: &[&str]) -> Message {
        loop {
            let found = self.kept.iter().position(|message| clients.contains(&&*message.client));
            if let Some(message) = found.and_then(|index| self.kept.remove(index)) {
                return message;
            }
            let line = self.line(&format!("a message for {clients:?}")).await;
            assert!(self.keep(&line), "a message for {clients:?}: {line}");
        }
    }

    /// The next message of this client: topic, payload, QoS and RETAIN are these.
    pub async fn expect(&mut self, client: &str, topic: &str, payload: &str, qos: u8, retain: bool) {
        let wanted = Message {
            client: client.into(),
            topic: topic.into(),
            payload: payload.into(),
            qos,
            retain,
        };
        assert_eq!(self.message_of(&[client]).await, wanted);
    }

    /// What came for this client and was not asked for.
    pub fn left(&self, client: &str) -> Vec<&Message> {
        self.kept.iter().filter(|message| message.client == client).collect()
    }

    async fn ask(&mut self, command: Value) -> Value {
        let mut text = command.to_string();
        text.push('\n');
        self.input.write_all(text.as_bytes()).await.expect("the driver runs");
        self.input.flush().await.expect("the driver runs");
        loop {
            let line = self.line(&text).await;
            if !self.keep(&line) {
                assert_eq!(line["done"], command["client"], "{text}{line}");
                return line;
            }
        }
    }

    /// Whether it was a message.
    fn keep(&mut self, line: &Value) -> bool {
        let Some(message) = line.get("message") else {
            return false;
        };
        let text = |key: &str| {
            message[key]
                .as_str()
                .unwrap_or_else(|| panic!("{key}: {line}"))
                .to_owned()
        };
        self.kept.push_back(Message {
            client: text("client"),
            topic: text("topic"),
            payload: text("payload"),
            qos: message["qos"]
                .as_u64()
                .and_then(|qos| qos.try_into().ok())
                .expect("a QoS"),
            retain: message["retain"].as_bool().expect("RETAIN"),
        });
        true
    }

    async fn line(&mut self, what: &str) -> Value {
        let line = timeout(SOON + SOON, self.lines.next_line()).await;
        let line = line.unwrap_or_else(|_| panic!("nothing came; waited for {what}; kept {:?}", self.kept));
        let line = line
            .expect("text")
            .unwrap_or_else(|| panic!("the driver ended before {what}"));
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
    }
}

/// A file that `ops/clients/install` brought.
pub fn installed(path: &str) -> PathBuf {
    let into = std::env::var_os("LONTRA_CLIENTS")
        .map(PathBuf::from)
        .unwrap_or_else(|| {
            let home = std::env::var_os("HOME").expect("HOME");
            PathBuf::from(home).join(".cache/lontra/clients")
        });
    let file = into.join(path);
    assert!(file.exists(), "{} is missing: run ops/clients/install", file.display());
    file
}

/// Longer than any test; seconds.
const SESSION_EXPIRY: u32 = 600;
