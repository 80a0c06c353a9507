"""Drives mosquitto_sub and mosquitto_pub; lines.py has the protocol.

A client is one mosquitto_sub while it has something to subscribe to; each publish is a mosquitto_pub of its own. Since
mosquitto_sub always subscribes, a client that comes back subscribes again to what it had.
"""

import asyncio
import ctypes
import signal

import lines

VERSIONS = {"3.1": "31", "3.1.1": "311", "5": "5"}
SUBSCRIPTIONS = {}
PR_SET_PDEATHSIG = 1


def die_with_driver():
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Client:
    def __init__(self, name):
        self.name = name
        self.sub = None

    async def connect(self, host, port, transport, version, id, clean, expiry, will, ca):
        where = {
            "tcp": ["-h", host, "-p", str(port)],
            "tls": ["-h", host, "-p", str(port), "--cafile", ca],
            "unix": ["--unix", host],
        }
        # Debian's have no WebSocket.
        self.common = [*where[transport], "-V", VERSIONS[version]]
        self.options = ["-i", id]
        self.id = id
        if not clean:
            self.options += ["-c"]
            if version == "5":
                self.options += ["-x", str(expiry)]
        if will:
            self.options += ["--will-topic", will["topic"], "--will-payload", will["payload"]]
            self.options += ["--will-qos", str(will["qos"])] + ["--will-retain"] * will["retain"]
            await self.subscribe(f"{will['topic']}/nothing", 0)
        elif not clean and id in SUBSCRIPTIONS:
            await self.subscribe(*SUBSCRIPTIONS[id])

    async def subscribe(self, filter, qos):
        SUBSCRIPTIONS[self.id] = (filter, qos)
        # stdbuf: through a pipe, C would keep the lines.
        line = ["stdbuf", "-oL", "mosquitto_sub", "-d", "-F", "MESSAGE %q %r %t %p", "-t", filter, "-q", str(qos)]
        self.sub = await asyncio.create_subprocess_exec(
            *line,
            *self.common,
            *self.options,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            preexec_fn=die_with_driver,
        )
        subscribed = asyncio.get_running_loop().create_future()
        self.reader = asyncio.create_task(self.read(subscribed))
        lines.granted([await subscribed], qos)

    async def read(self, subscribed):
        while line := (await self.sub.stdout.readline()).decode().rstrip("\n"):
            if line.startswith("Subscribed "):
                subscribed.set_result(int(line.rsplit(" ", 1)[1]))
            elif line.startswith("MESSAGE "):
                _, qos, retain, topic, payload = line.split(" ", 4)
                lines.message(self.name, topic, payload, int(qos), retain == "1")
        if not subscribed.done():
            subscribed.set_exception(RuntimeError("mosquitto_sub ended"))

    async def publish(self, topic, payload, qos, retain):
        message = ["-m", payload] if payload else ["-n"]
        line = ["mosquitto_pub", "-t", topic, *message, "-q", str(qos)] + ["-r"] * retain
        pub = await asyncio.create_subprocess_exec(
            *line, *self.common, stdin=asyncio.subprocess.DEVNULL, preexec_fn=die_with_driver
        )
        if status := await pub.wait():
            raise RuntimeError(f"mosquitto_pub ended with {status}")

    async def disconnect(self):
        # Its handler prints: a signal while it prints makes it print the line again. Asleep, it is not printing.
        while self.sub and not self.asleep():
            await asyncio.sleep(0.005)
        await self.end(signal.SIGTERM)

    def asleep(self):
        with open(f"/proc/{self.sub.pid}/stat") as stat:
            return stat.read().rsplit(") ", 1)[1].startswith(("S", "Z"))

    async def abort(self):
        await self.end(signal.SIGKILL)

    async def end(self, how):
        if self.sub:
            self.sub.send_signal(how)
            await self.sub.wait()
            await self.reader


lines.serve(Client)
