"""What the drivers in Python share: commands as lines of JSON on stdin, answers and messages on stdout.

    in   {"client": "a", "do": "connect", "host": …, "port": …, "transport": …, "version": "3.1" | "3.1.1" | "5",
          "id": …, "clean": true, "expiry": seconds (MQTT 5), "will": {"topic", "payload", "qos", "retain"} | null}
         transport: "tcp", "tls", "ws", "wss" or "unix" ("host" is the path then); "ca": the file of the authority of "tls" and "wss"
         {"client": "a", "do": "subscribe", "filter": …, "qos": …}           answered after SUBACK
         {"client": "a", "do": "publish", "topic", "payload", "qos", "retain"}   after PUBACK or PUBCOMP
         {"client": "a", "do": "disconnect"}                                 after DISCONNECT
         {"client": "a", "do": "abort"}                                      the connection closed without DISCONNECT
    out  {"done": "a", "session_present": true | false | absent}  or  {"failed": why}, one for each command
         {"message": {"client": "a", "topic", "payload", "qos", "retain"}}   at any time

One process serves many clients, named by "client"; it ends with its stdin.
"""

import asyncio
import json
import os
import sys
import threading

_printing = threading.Lock()

# Above what a busy machine needs, below what the test waits for.
SOON = 20


def say(**event):
    with _printing:
        print(json.dumps(event), flush=True)


def message(client, topic, payload, qos, retain):
    text = payload.decode() if isinstance(payload, (bytes, bytearray)) else payload
    say(message=dict(client=client, topic=topic, payload=text, qos=qos, retain=bool(retain)))


def granted(codes, qos):
    values = [getattr(code, "value", code) for code in codes]
    if values != [qos]:
        raise RuntimeError(f"SUBACK {values}, asked for {qos}")


def serve(new):
    """`new(name)` makes a client with a method for each command."""
    asyncio.run(_serve(new))
    # Threads of libraries do not keep the process.
    os._exit(0)


async def _serve(new):
    clients = {}
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        command = json.loads(line)
        name, what = command.pop("client"), command.pop("do")
        if what == "connect":
            clients[name] = new(name)
        try:
            answer = getattr(clients[name], what)(**command)
            if asyncio.iscoroutine(answer):
                answer = await asyncio.wait_for(answer, SOON)
            say(done=name, **(answer or {}))
        except Exception as error:
            say(failed=f"{what}: {error!r}")
