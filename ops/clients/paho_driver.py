"""Drives paho-mqtt; lines.py has the protocol."""

import os
import queue
import socket

import lines
import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

VERSIONS = {"3.1": mqtt.MQTTv31, "3.1.1": mqtt.MQTTv311, "5": mqtt.MQTTv5}


class Client:
    def __init__(self, name):
        self.name = name
        self.events = queue.Queue()

    def connect(self, host, port, transport, version, id, clean, expiry, will, ca):
        five = version == "5"
        # Unused with "unix", but it must be a port.
        port = port or 1883
        self.client = client = mqtt.Client(
            mqtt.CallbackAPIVersion.VERSION2,
            client_id=id,
            clean_session=None if five else clean,
            protocol=VERSIONS[version],
            transport={"ws": "websockets", "wss": "websockets", "unix": "unix"}.get(transport, "tcp"),
            reconnect_on_failure=False,
        )
        if transport in ("ws", "wss"):
            client.ws_set_options(path="/mqtt")
        if transport in ("tls", "wss"):
            client.tls_set(ca_certs=ca)
        if will:
            client.will_set(will["topic"], will["payload"], will["qos"], will["retain"])
        client.on_connect = lambda _c, _u, flags, code, _p: self.events.put(("connected", flags.session_present, code))
        client.on_subscribe = lambda _c, _u, mid, codes, _p: self.events.put(("subscribed", mid, codes))
        client.on_disconnect = lambda _c, _u, _f, code, _p: self.events.put(("gone", code))
        client.on_message = lambda _c, _u, m: lines.message(self.name, m.topic, m.payload, m.qos, m.retain)
        if five:
            properties = Properties(PacketTypes.CONNECT)
            properties.SessionExpiryInterval = expiry
            client.connect(host, port, clean_start=clean, properties=properties)
        else:
            client.connect(host, port)
        client.loop_start()
        _, present, code = self.event("connected")
        if code.is_failure:
            raise RuntimeError(f"CONNACK {code}")
        return {"session_present": present}

    def subscribe(self, filter, qos):
        self.client.subscribe(filter, qos)
        lines.granted(self.event("subscribed")[2], qos)

    def publish(self, topic, payload, qos, retain):
        sent = self.client.publish(topic, payload, qos, retain)
        sent.wait_for_publish(lines.SOON)
        if not sent.is_published():
            raise RuntimeError("not acknowledged")

    def disconnect(self):
        self.client.disconnect()
        self.event("gone")
        self.client.loop_stop()

    def abort(self):
        # Past the library, which would say DISCONNECT.
        socket.socket(fileno=os.dup(self.client.socket().fileno())).shutdown(socket.SHUT_RDWR)
        self.event("gone")
        self.client.loop_stop()

    def event(self, kind):
        event = self.events.get(timeout=lines.SOON)
        if event[0] != kind:
            raise RuntimeError(f"{event}, not {kind}")
        return event


lines.serve(Client)
