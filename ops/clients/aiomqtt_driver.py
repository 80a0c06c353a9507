"""Drives aiomqtt; lines.py has the protocol."""

import asyncio
import os
import socket

import aiomqtt
import lines
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

VERSIONS = {
    "3.1": aiomqtt.ProtocolVersion.V31,
    "3.1.1": aiomqtt.ProtocolVersion.V311,
    "5": aiomqtt.ProtocolVersion.V5,
}


class Client:
    def __init__(self, name):
        self.name = name

    async def connect(self, host, port, transport, version, id, clean, expiry, will, ca):
        options = {}
        if version == "5":
            options["clean_start"] = clean
            options["properties"] = Properties(PacketTypes.CONNECT)
            options["properties"].SessionExpiryInterval = expiry
        else:
            options["clean_session"] = clean
        if transport in ("ws", "wss"):
            options["transport"] = "websockets"
            options["websocket_path"] = "/mqtt"
        elif transport == "unix":
            options["transport"] = "unix"
            # Unused, but it must be a port.
            port = 1883
        if transport in ("tls", "wss"):
            options["tls_params"] = aiomqtt.TLSParameters(ca_certs=ca)
        if will:
            options["will"] = aiomqtt.Will(**will)
        self.client = aiomqtt.Client(host, port, identifier=id, protocol=VERSIONS[version], timeout=lines.SOON, **options)
        await self.client.__aenter__()
        self.reader = asyncio.create_task(self.read())

    async def read(self):
        try:
            async for m in self.client.messages:
                lines.message(self.name, m.topic.value, m.payload, m.qos, m.retain)
        except aiomqtt.MqttError:
            pass  # the end of the connection, which the test brought about

    async def subscribe(self, filter, qos):
        lines.granted(await self.client.subscribe(filter, qos), qos)

    async def publish(self, topic, payload, qos, retain):
        await self.client.publish(topic, payload, qos, retain)

    async def disconnect(self):
        await self.client.__aexit__(None, None, None)
        await self.reader

    async def abort(self):
        # Past the library, which would say DISCONNECT.
        socket.socket(fileno=os.dup(self.client._client.socket().fileno())).shutdown(socket.SHUT_RDWR)
        await self.reader


lines.serve(Client)
