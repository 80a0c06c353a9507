//! Clients that others wrote, in all the versions, transports and QoS that they have; publisher and subscriber on
//! different nodes. What each does is one scenario: [`Cell`].
//!
//! A client that is missing is a failed test: `ops/clients/install` installs them, and `ops/test` runs that first.

use crate::support::cluster::{Cluster, Node, http_get, shared, shared_single};
use crate::support::foreign::{Connect, Driver, Message};
use crate::support::{SOON, eventually};
use std::collections::BTreeMap;
use std::time::Instant;

#[tokio::test]
async fn mosquitto_keeps_to_the_matrix() {
    // Debian's have no WebSocket.
    matrix(
        "mosquitto",
        Driver::start("mosquitto_driver.py"),
        &["3.1", "3.1.1", "5"],
        &["tcp", "tls", "unix"],
    )
    .await;
}

#[tokio::test]
async fn paho_keeps_to_the_matrix() {
    matrix(
        "paho",
        Driver::start("paho_driver.py"),
        &["3.1", "3.1.1", "5"],
        &["tcp", "tls", "ws", "wss", "unix"],
    )
    .await;
}

#[tokio::test]
async fn aiomqtt_keeps_to_the_matrix() {
    matrix(
        "aiomqtt",
        Driver::start("aiomqtt_driver.py"),
        &["3.1", "3.1.1", "5"],
        &["tcp", "tls", "ws", "wss", "unix"],
    )
    .await;
}

#[tokio::test]
async fn gmqtt_keeps_to_the_matrix() {
    matrix(
        "gmqtt",
        Driver::start("gmqtt_driver.py"),
        &["3.1.1", "5"],
        &["tcp", "tls"],
    )
    .await;
}

#[tokio::test]
async fn mqttjs_keeps_to_the_matrix() {
    matrix(
        "mqttjs",
        Driver::start("mqttjs_driver.js"),
        &["3.1", "3.1.1", "5"],
        &["tcp", "tls", "ws", "wss", "unix"],
    )
    .await;
}

#[tokio::test]
async fn rumqttc_keeps_to_the_matrix() {
    matrix("rumqttc", rumqttc_driver::start(), &["3.1.1", "5"], &["tcp"]).await;
}

#[tokio::test]
async fn every_client_hears_every_other() {
    let cluster = shared();
    let mut all = [
        ("mosquitto", Driver::start("mosquitto_driver.py"), "3.1", "unix"),
        ("paho", Driver::start("paho_driver.py"), "3.1.1", "ws"),
        ("aiomqtt", Driver::start("aiomqtt_driver.py"), "5", "wss"),
        ("gmqtt", Driver::start("gmqtt_driver.py"), "3.1.1", "tls"),
        ("mqttjs", Driver::start("mqttjs_driver.js"), "5", "ws"),
        ("rumqttc", rumqttc_driver::start(), "5", "tcp"),
    ];
    for (index, (name, driver, version, transport)) in all.iter_mut().enumerate() {
        let connect = Connect {
            address: address(cluster, index % 3, transport),
            transport,
            version,
            id: &format!("all-{name}"),
            clean: true,
            will: None,
            ca: Some(ca(cluster)),
        };
        driver.connect("c", &connect).await;
        driver.subscribe("c", "all/#", 2).await;
    }
    for publisher in 0..all.len() {
        let (name, driver, ..) = &mut all[publisher];
        let topic = format!("all/{name}");
        for qos in QOS {
            // Not ASCII: UTF-8 that everyone must agree on.
            driver.publish("c", &topic, &format!("grüß {qos}"), qos, false).await;
        }
        for (_, driver, ..) in &mut all {
            let mut got = Vec::new();
            for _ in QOS {
                got.push(driver.message_of(&["c"]).await);
            }
            // Order holds within a QoS.
            got.sort_by_key(|message| message.qos);
            for (message, qos) in got.iter().zip(QOS) {
                let Message { topic: on, payload, .. } = message;
                assert_eq!((on, payload, message.qos), (&topic, &format!("grüß {qos}"), qos));
            }
        }
    }
    for (_, driver, ..) in &mut all {
        driver.disconnect("c").await;
        assert!(driver.left("c").is_empty(), "{:?}", driver.left("c"));
    }
}

/// The scenario in every version over every transport; one line of a table for each. On three nodes, and over the first
/// transport on one: how bytes come in and how many nodes there are do not know of each other.
async fn matrix(name: &str, mut driver: Driver, versions: &[&str], transports: &[&str]) {
    on(shared_single(), name, &mut driver, versions, &transports[..1]).await;
    on(shared(), name, &mut driver, versions, transports).await;
}

async fn on(cluster: &'static Cluster, name: &str, driver: &mut Driver, versions: &[&str], transports: &[&str]) {
    let nodes = cluster.nodes.len();
    for version in versions {
        for transport in transports {
            let started = Instant::now();
            let mut cell = Cell {
                cluster,
                name: format!("{name}{}{transport}", version.replace('.', "")),
                driver: &mut *driver,
                version,
                transport,
            };
            println!("{name:<10} {version:<6} {transport:<4} {nodes} …");
            cell.connect("p", 0, true, None).await;
            for qos in QOS {
                cell.live(qos).await;
                cell.kept_while_away(qos).await;
                cell.retained(qos).await;
                cell.will(qos).await;
                cell.shared(qos).await;
            }
            cell.driver.disconnect("p").await;
            println!(
                "{name:<10} {version:<6} {transport:<4} {nodes} QoS 0 1 2: live, kept while away, retained, will, shared  {:>5} ms",
                started.elapsed().as_millis()
            );
        }
    }
}

/// One client in one version over one transport. Its publisher, `p`, is at the first node.
struct Cell<'a> {
    cluster: &'static Cluster,
    /// Topics and client ids begin so. Short: a client id of MQTT 3.1 has at most 23 characters.
    name: String,
    driver: &'a mut Driver,
    version: &'a str,
    transport: &'a str,
}

impl Cell<'_> {
    async fn connect(&mut self, client: &str, node: usize, clean: bool, will: Option<(&str, u8)>) -> Option<bool> {
        let connect = Connect {
            address: address(self.cluster, node, self.transport),
            transport: self.transport,
            version: self.version,
            id: &format!("{}-{client}", self.name),
            clean,
            will: will.map(|(topic, qos)| (topic, "will", qos)),
            ca: Some(ca(self.cluster)),
        };
        self.driver.connect(client, &connect).await
    }

    async fn subscriber(&mut self, client: &str, node: usize, filter: &str, qos: u8) {
        self.connect(client, node, true, None).await;
        self.driver.subscribe(client, filter, qos).await;
    }

    /// What is published reaches another node's subscriber at its QoS, in order.
    async fn live(&mut self, qos: u8) {
        let topic = format!("{}/live/{qos}", self.name);
        self.subscriber("live", 1, &topic, qos).await;
        for n in 0..MESSAGES {
            self.driver.publish("p", &topic, &n.to_string(), qos, false).await;
            if qos == 0 {
                // Each mosquitto_pub is a connection of its own, and nothing waits for QoS 0.
                self.driver.expect("live", &topic, &n.to_string(), qos, false).await;
            }
        }
        for n in (0..MESSAGES).filter(|_| qos > 0) {
            self.driver.expect("live", &topic, &n.to_string(), qos, false).await;
        }
        self.driver.disconnect("live").await;
    }

    /// A session is there again at a third node; at QoS 1 and 2, with what was published meanwhile.
    async fn kept_while_away(&mut self, qos: u8) {
        let topic = format!("{}/away/{qos}", self.name);
        let client = format!("away{qos}");
        let present = self.connect(&client, 1, false, None).await;
        assert!(present != Some(true), "a session from nowhere");
        self.driver.subscribe(&client, &topic, qos).await;
        self.driver.disconnect(&client).await;
        if qos > 0 {
            for n in 0..MESSAGES {
                self.driver.publish("p", &topic, &n.to_string(), qos, false).await;
            }
        }
        let present = self.connect(&client, 2, false, None).await;
        // A CONNACK of MQTT 3.1 has no Session Present; mosquitto_sub and aiomqtt do not tell it.
        assert!(present != Some(false) || self.version == "3.1", "the session is gone");
        if qos > 0 {
            for n in 0..MESSAGES {
                self.driver.expect(&client, &topic, &n.to_string(), qos, false).await;
            }
        }
        // The subscription is there too.
        if qos == 0 {
            // CONNACK does not wait until the other nodes know of this connection.
            self.wait_known_everywhere(&client, 2).await;
        }
        self.driver.publish("p", &topic, "back", qos, false).await;
        self.driver.expect(&client, &topic, "back", qos, false).await;
        self.driver.disconnect(&client).await;
        // Ends the session.
        self.connect(&client, 0, true, None).await;
        self.driver.disconnect(&client).await;
    }

    /// Until every node sends this client's messages to the node at `index`.
    async fn wait_known_everywhere(&self, client: &str, index: usize) {
        let path = format!("/api/v1/sessions/{}-{client}", self.name);
        for node in &self.cluster.nodes {
            eventually("every node knows where the client is", SOON, || async {
                let (_, body) = http_get(&node.http, &path).await.ok()?;
                let session: serde_json::Value = serde_json::from_str(&body).ok()?;
                (session["owner"] == node_at(self.cluster, index).id).then_some(())
            })
            .await;
        }
    }

    /// A later subscriber gets the retained message; once it was removed, none.
    async fn retained(&mut self, qos: u8) {
        let topic = format!("{}/retained/{qos}", self.name);
        self.driver.publish("p", &topic, "kept", qos, true).await;
        self.subscriber("new", 2, &topic, qos).await;
        if qos > 0 {
            self.driver.expect("new", &topic, "kept", qos, true).await;
        } else {
            // Nothing acknowledged it: it may come after the subscription, and is then no retained one.
            assert_eq!(self.driver.message_of(&["new"]).await.payload, "kept");
        }
        self.driver.disconnect("new").await;
        self.driver.publish("p", &topic, "", qos.max(1), true).await;
        self.subscriber("newer", 1, &topic, qos).await;
        self.driver.publish("p", &topic, "next", qos, false).await;
        self.driver.expect("newer", &topic, "next", qos, false).await;
        self.driver.disconnect("newer").await;
    }

    /// A connection that ends without DISCONNECT leaves a will, one that ends with it does not.
    async fn will(&mut self, qos: u8) {
        let topic = format!("{}/will/{qos}", self.name);
        self.subscriber("heir", 2, &topic, qos).await;
        self.connect("doomed", 1, true, Some((&topic, qos))).await;
        self.driver.abort("doomed").await;
        self.driver.expect("heir", &topic, "will", qos, false).await;
        self.connect("doomed", 1, true, Some((&topic, qos))).await;
        self.driver.disconnect("doomed").await;
        if self.name.starts_with("mosquitto5") {
            // mosquitto_sub ends with DISCONNECT 0x04, which asks for the will.
            self.driver.expect("heir", &topic, "will", qos, false).await;
        }
        self.driver.publish("p", &topic, "no will", qos, false).await;
        self.driver.expect("heir", &topic, "no will", qos, false).await;
        self.driver.disconnect("heir").await;
    }

    /// Of two members on two nodes, one gets each message.
    async fn shared(&mut self, qos: u8) {
        let topic = format!("{}/shared/{qos}", self.name);
        let filter = format!("$share/{}/{topic}", self.name);
        self.subscriber("one", 1, &filter, qos).await;
        self.subscriber("two", 2, &filter, qos).await;
        for n in 0..2 * MESSAGES {
            self.driver.publish("p", &topic, &n.to_string(), qos, false).await;
        }
        let mut got = BTreeMap::new();
        for _ in 0..2 * MESSAGES {
            let message = self.driver.message_of(&["one", "two"]).await;
            assert_eq!((&message.topic, message.qos, message.retain), (&topic, qos, false));
            let n: u32 = message.payload.parse().expect("a number");
            if let Some(before) = got.insert(n, message.client.clone()) {
                panic!("{topic}: {n} went to {before} and to {}", message.client);
            }
        }
        for member in ["one", "two"] {
            self.driver.disconnect(member).await;
            assert!(self.driver.left(member).is_empty(), "{:?}", self.driver.left(member));
            let share = got.values().filter(|client| *client == member).count();
            assert!(share > 0, "{topic}: none for {member}");
        }
    }
}

/// The first, a second and a third node, where there are as many.
fn node_at(cluster: &Cluster, index: usize) -> &Node {
    &cluster.nodes[index % cluster.nodes.len()]
}

fn address<'a>(cluster: &'a Cluster, node: usize, transport: &str) -> &'a str {
    let node = node_at(cluster, node);
    match transport {
        "tcp" => &node.mqtt,
        "tls" => &node.mqtts,
        "ws" => &node.ws,
        "wss" => &node.wss,
        _ => &node.unix,
    }
}

fn ca(cluster: &Cluster) -> &str {
    cluster.nodes[0].ca.to_str().expect("text")
}

/// rumqttc, in this process, behind the same lines as the others. Its two versions are two copies of everything.
mod rumqttc_driver {
    use crate::support::foreign::Driver;
    use rumqttc::Outgoing;
    use serde_json::{Value, json};
    use std::collections::HashMap;
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, DuplexStream, duplex, split};
    use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
    use tokio::task::JoinHandle;

    pub fn start() -> Driver {
        let (ours, theirs) = duplex(64 * 1024);
        tokio::spawn(serve(theirs));
        let (output, input) = split(ours);
        Driver::over(input, output)
    }

    async fn serve(stream: DuplexStream) {
        let (commands, mut output) = split(stream);
        let (say, mut said) = unbounded_channel::<Value>();
        tokio::spawn(async move {
            while let Some(line) = said.recv().await {
                if output.write_all(format!("{line}\n").as_bytes()).await.is_err() {
                    return;
                }
            }
        });
        let mut clients: HashMap<String, Client> = HashMap::new();
        let mut commands = BufReader::new(commands).lines();
        while let Ok(Some(line)) = commands.next_line().await {
            let command: Value = serde_json::from_str(&line).expect("JSON");
            let name = text(&command, "client");
            let answer = match text(&command, "do").as_str() {
                "connect" => Client::connect(&command, &say).await.map(|(client, present)| {
                    clients.insert(name.clone(), client);
                    json!({ "done": name, "session_present": present })
                }),
                what => {
                    let client = clients.get_mut(&name).expect("connected");
                    let done = match what {
                        "subscribe" => client.subscribe(&command).await,
                        "publish" => client.publish(&command).await,
                        "disconnect" => client.disconnect().await,
                        _ => client.abort().await,
                    };
                    done.map(|()| json!({ "done": name }))
                }
            };
            if say.send(answer.unwrap_or_else(|why| json!({ "failed": why }))).is_err() {
                return;
            }
        }
    }

    enum Client {
        V3(v3::Client),
        V5(v5::Client),
    }

    impl Client {
        async fn connect(command: &Value, say: &UnboundedSender<Value>) -> Result<(Client, bool), String> {
            Ok(match text(command, "version").as_str() {
                "5" => {
                    let (client, present) = v5::Client::connect(command, say).await?;
                    (Client::V5(client), present)
                }
                _ => {
                    let (client, present) = v3::Client::connect(command, say).await?;
                    (Client::V3(client), present)
                }
            })
        }

        async fn subscribe(&mut self, command: &Value) -> Result<(), String> {
            match self {
                Client::V3(client) => client.subscribe(command).await,
                Client::V5(client) => client.subscribe(command).await,
            }
        }

        async fn publish(&mut self, command: &Value) -> Result<(), String> {
            match self {
                Client::V3(client) => client.publish(command).await,
                Client::V5(client) => client.publish(command).await,
            }
        }

        async fn disconnect(&mut self) -> Result<(), String> {
            match self {
                Client::V3(client) => client.disconnect().await,
                Client::V5(client) => client.disconnect().await,
            }
        }

        async fn abort(&mut self) -> Result<(), String> {
            let task = match self {
                Client::V3(client) => &mut client.task,
                Client::V5(client) => &mut client.task,
            };
            // With the task goes the socket.
            task.abort();
            task.await.ok();
            Ok(())
        }
    }

    macro_rules! version {
        ($module:ident { $($own:item)* }) => {
            mod $module {
                use super::*;
                $($own)*

                pub struct Client {
                    client: AsyncClient,
                    events: UnboundedReceiver<Event>,
                    pub task: JoinHandle<()>,
                }

                impl Client {
                    pub async fn connect(command: &Value, say: &UnboundedSender<Value>) -> Result<(Client, bool), String> {
                        let port = command["port"].as_u64().and_then(|port| port.try_into().ok()).expect("a port");
                        let mut options = MqttOptions::new(text(command, "id"), text(command, "host"), port);
                        session(&mut options, command);
                        if let Some(message) = command["will"].as_object() {
                            options.set_last_will(will(&json!(message)));
                        }
                        let (client, mut event_loop) = AsyncClient::new(options, 20);
                        let (tell, events) = unbounded_channel();
                        let (say, name) = (say.clone(), text(command, "client"));
                        let task = tokio::spawn(async move {
                            // It would connect again after an error.
                            while let Ok(event) = event_loop.poll().await {
                                if let Event::Incoming(Packet::Publish(publish)) = &event {
                                    let message = json!({
                                        "client": name,
                                        "topic": String::from_utf8_lossy(publish.topic.as_ref()),
                                        "payload": String::from_utf8_lossy(&publish.payload),
                                        "qos": publish.qos as u8,
                                        "retain": publish.retain,
                                    });
                                    say.send(json!({ "message": message })).ok();
                                } else {
                                    tell.send(event).ok();
                                }
                            }
                        });
                        let mut client = Client { client, events, task };
                        let present = client
                            .wait("CONNACK", |event| match event {
                                Event::Incoming(Packet::ConnAck(connack)) => Some(connack.session_present),
                                _ => None,
                            })
                            .await?;
                        Ok((client, present))
                    }

                    pub async fn subscribe(&mut self, command: &Value) -> Result<(), String> {
                        let wanted = qos(command);
                        let queued = self.client.subscribe(text(command, "filter"), wanted).await;
                        queued.map_err(|error| error.to_string())?;
                        let codes = self
                            .wait("SUBACK", |event| match event {
                                Event::Incoming(Packet::SubAck(suback)) => Some(suback.return_codes),
                                _ => None,
                            })
                            .await?;
                        match codes[..] == [SubscribeReasonCode::Success(wanted)] {
                            true => Ok(()),
                            false => Err(format!("SUBACK {codes:?}")),
                        }
                    }

                    pub async fn publish(&mut self, command: &Value) -> Result<(), String> {
                        let (topic, payload, at) = (text(command, "topic"), text(command, "payload"), qos(command));
                        let retain = command["retain"].as_bool().expect("retain");
                        let queued = self.client.publish(topic, at, retain, payload).await;
                        queued.map_err(|error| error.to_string())?;
                        self.wait("the end of PUBLISH", |event| match (at, event) {
                            (QoS::AtMostOnce, Event::Outgoing(Outgoing::Publish(_)))
                            | (QoS::AtLeastOnce, Event::Incoming(Packet::PubAck(_)))
                            | (QoS::ExactlyOnce, Event::Incoming(Packet::PubComp(_))) => Some(()),
                            _ => None,
                        })
                        .await
                    }

                    pub async fn disconnect(&mut self) -> Result<(), String> {
                        self.client.disconnect().await.map_err(|error| error.to_string())?;
                        // Until the server has closed the connection.
                        while self.events.recv().await.is_some() {}
                        Ok(())
                    }

                    async fn wait<T>(&mut self, what: &str, wanted: impl Fn(Event) -> Option<T>) -> Result<T, String> {
                        while let Some(event) = self.events.recv().await {
                            if let Some(value) = wanted(event) {
                                return Ok(value);
                            }
                        }
                        Err(format!("the connection ended before {what}"))
                    }
                }

                fn qos(value: &Value) -> QoS {
                    match value["qos"].as_u64() {
                        Some(0) => QoS::AtMostOnce,
                        Some(1) => QoS::AtLeastOnce,
                        _ => QoS::ExactlyOnce,
                    }
                }
            }
        };
    }

    version!(v3 {
        use rumqttc::{AsyncClient, Event, LastWill, MqttOptions, Packet, QoS, SubscribeReasonCode};

        fn session(options: &mut MqttOptions, command: &Value) {
            options.set_clean_session(command["clean"].as_bool().expect("clean"));
        }

        fn will(message: &Value) -> LastWill {
            LastWill::new(text(message, "topic"), text(message, "payload"), qos(message), false)
        }
    });

    version!(v5 {
        use rumqttc::v5::mqttbytes::QoS;
        use rumqttc::v5::mqttbytes::v5::{LastWill, Packet, SubscribeReasonCode};
        use rumqttc::v5::{AsyncClient, Event, MqttOptions};

        fn session(options: &mut MqttOptions, command: &Value) {
            options.set_clean_start(command["clean"].as_bool().expect("clean"));
            options.set_session_expiry_interval(command["expiry"].as_u64().and_then(|seconds| seconds.try_into().ok()));
        }

        fn will(message: &Value) -> LastWill {
            LastWill::new(text(message, "topic"), text(message, "payload"), qos(message), false, None)
        }
    });

    fn text(value: &Value, key: &str) -> String {
        value[key]
            .as_str()
            .unwrap_or_else(|| panic!("{key}: {value}"))
            .to_owned()
    }
}

const QOS: [u8; 3] = [0, 1, 2];
const MESSAGES: u32 = 5;
