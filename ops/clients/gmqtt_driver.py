"""Drives gmqtt; lines.py has the protocol."""

import asyncio
import ssl

import gmqtt
import lines
from gmqtt.mqtt.constants import MQTTv50, MQTTv311

VERSIONS = {"3.1.1": MQTTv311, "5": MQTTv50}


class Client:
    def __init__(self, name):
        self.name = name
        self.present = None
        self.subacks = asyncio.Queue()

    async def connect(self, host, port, transport, version, id, clean, expiry, will, ca):
        # It has neither WebSocket nor Unix sockets.
        tls = {"tcp": lambda: False, "tls": lambda: ssl.create_default_context(cafile=ca)}[transport]()
        properties = {"session_expiry_interval": expiry} if version == "5" else {}
        will = gmqtt.Message(**will) if will else None
        self.client = gmqtt.Client(id, clean_session=clean, will_message=will, **properties)
        self.client.on_connect = self.connected
        self.client.on_message = self.message
        self.client.on_subscribe = lambda _client, mid, codes, _properties: self.subacks.put_nowait((mid, codes))
        await self.client.connect(host, port, ssl=tls, version=VERSIONS[version])
        return {"session_present": bool(self.present)}

    def connected(self, _client, flags, _code, _properties):
        self.present = flags & 1

    async def message(self, _client, topic, payload, qos, properties):
        lines.message(self.name, topic, payload, qos, properties["retain"])
        return 0

    async def subscribe(self, filter, qos):
        mid = self.client.subscribe(filter, qos=qos)
        answered, codes = await self.subacks.get()
        assert answered == mid
        lines.granted(codes, qos)

    async def publish(self, topic, payload, qos, retain):
        self.client.publish(topic, payload, qos=qos, retain=retain)
        # It has nothing to wait for one message with; here only one is under way.
        await self.client._persistent_storage.wait_empty()

    async def disconnect(self):
        try:
            await self.client.disconnect()
        except ssl.SSLError as error:
            # DISCONNECT has left. What the broker sent before it read that (a PUBREL, say) arrives after our close_notify, and
            # asyncio calls it an error.
            if error.reason != "APPLICATION_DATA_AFTER_CLOSE_NOTIFY":
                raise

    async def abort(self):
        # It would connect again.
        self.client._is_active = False
        self.client._connection._transport.abort()


lines.serve(Client)
