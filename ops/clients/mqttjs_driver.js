// Drives MQTT.js in Node; lines.py has the protocol.
"use strict";

const fs = require("fs");
const mqtt = require("mqtt");
const net = require("net");
const readline = require("readline");

const VERSIONS = {
  3.1: { protocolId: "MQIsdp", protocolVersion: 3 },
  "3.1.1": { protocolVersion: 4 },
  5: { protocolVersion: 5 },
};
const clients = new Map();
const say = (event) => process.stdout.write(JSON.stringify(event) + "\n");

const commands = {
  async connect({ client, host, port, transport, version, id, clean, expiry, will, ca }) {
    const options = {
      ...VERSIONS[version],
      // Of "unix" the stream is made below; the rest is as over TCP.
      protocol: { tls: "mqtts", ws: "ws", wss: "wss" }[transport] ?? "mqtt",
      host,
      port,
      ca: transport === "tls" || transport === "wss" ? fs.readFileSync(ca) : undefined,
      path: "/mqtt",
      clientId: id,
      clean,
      properties: version === "5" ? { sessionExpiryInterval: expiry } : undefined,
      will: will ?? undefined,
      reconnectPeriod: 0,
    };
    const connection =
      transport === "unix" ? new mqtt.MqttClient(() => net.connect(host), options) : mqtt.connect(options);
    clients.set(client, connection);
    connection.on("message", (topic, payload, packet) =>
      say({ message: { client, topic, payload: payload.toString(), qos: packet.qos, retain: packet.retain } }),
    );
    const connack = await new Promise((resolve, reject) => {
      connection.once("connect", resolve);
      connection.once("error", reject);
      connection.once("close", () => reject(new Error("closed before CONNACK")));
    });
    connection.on("error", (error) => say({ failed: `${id}: ${error}` }));
    return { session_present: connack.sessionPresent };
  },
  async subscribe({ client, filter, qos }) {
    const granted = await clients.get(client).subscribeAsync(filter, { qos });
    if (granted.length !== 1 || granted[0].qos !== qos) throw new Error(`SUBACK ${JSON.stringify(granted)}`);
  },
  async publish({ client, topic, payload, qos, retain }) {
    await clients.get(client).publishAsync(topic, payload, { qos, retain });
  },
  async disconnect({ client }) {
    await clients.get(client).endAsync();
  },
  async abort({ client }) {
    const connection = clients.get(client);
    const closed = new Promise((resolve) => connection.once("close", resolve));
    connection.stream.destroy();
    await closed;
  },
};

async function serve() {
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const command = JSON.parse(line);
    try {
      say({ done: command.client, ...(await commands[command.do](command)) });
    } catch (error) {
      say({ failed: `${command.do}: ${error}` });
    }
  }
  process.exit(0);
}

serve();
