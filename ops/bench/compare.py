#!/usr/bin/env python3
"""Lontra beside mosquitto, three nodes of it beside three of NATS and of RabbitMQ: what `ops/bench/compare` runs.

A round starts each broker alone and freshly, puts it through all scenarios, and stops it; rounds begin with another broker each
time. Tables show medians over the rounds. CPU is that of all nodes together; so is memory. A cluster that does not start is told
and left out.
"""

import argparse
import datetime
import json
import os
import pathlib
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

START_SECONDS = 60
STOP_SECONDS = 20
REST_SECONDS = 3
MOSQUITTO_PORT = 21700
# Of three nodes: MQTT at +1 to +3, their own protocol at +11 to +13, links at +21 to +23; RabbitMQ's epmd at +30.
CLUSTER_PORT = 21710
LONTRA_PORT = 21750
RABBITMQ = "/usr/lib/rabbitmq/bin/rabbitmq-server"

# name, arguments of `lontra bench`
SCENARIOS = [
    ("1000/s: 10 → 10, QoS 0", "pairs -n 10 -q 0 --rate 1000"),
    ("1000/s: 10 → 10, QoS 1", "pairs -n 10 -q 1 --rate 1000"),
    ("1000/s: 10 → 10, QoS 1, persistent", "pairs -n 10 -q 1 --rate 1000 --persistent"),
    ("pairs: 10 → 10, QoS 0", "pairs -n 10 -q 0 -w 16"),
    ("fan-out: 1 → 200, QoS 0", "fan-out -n 200 -q 0 -w 16"),
    ("fan-in: 100 → 1, QoS 1", "fan-in -n 100 -q 1 -w 16"),
    ("pairs: 50 → 50, QoS 1", "pairs -n 50 -q 1 -w 16"),
    ("pairs: 50 → 50, QoS 1, persistent", "pairs -n 50 -q 1 -w 16 --persistent"),
    ("pairs: 50 → 50, QoS 2", "pairs -n 50 -q 2 -w 16"),
]
# Of one node, broker CPU per delivered message beside mosquitto's: row, scenario, ratio at most
CPU_BARS = [
    ("a", "pairs: 10 → 10, QoS 0", 0.15),
    ("b", "fan-out: 1 → 200, QoS 0", 0.24),
    ("c", "fan-in: 100 → 1, QoS 1", 0.21),
    ("d", "pairs: 50 → 50, QoS 1", 0.19),
    ("e", "pairs: 50 → 50, QoS 1, persistent", 0.45),
    ("f", "pairs: 50 → 50, QoS 2", 0.4),
]
LATENCY_BAR = ("g", "1000/s: 10 → 10, QoS 0")
IDLE_BAR_BYTES = 2560
# Three nodes, the two ends of each pair on different ones.
CLUSTERS = ["lontra 3 nodes", "nats 3 nodes", "rabbitmq 3 nodes"]
CLUSTER_SCENARIOS = [
    ("48 pairs across nodes, QoS 0", "pairs -n 48 -q 0 -w 16"),
    ("48 pairs across nodes, QoS 1", "pairs -n 48 -q 1 -w 16"),
    ("48 pairs across nodes, QoS 1, persistent", "pairs -n 48 -q 1 -w 16 --persistent"),
    ("1000/s across nodes: 10 → 10, QoS 1", "pairs -n 10 -q 1 --rate 1000"),
    ("1000/s across nodes: 10 → 10, QoS 1, persistent", "pairs -n 10 -q 1 --rate 1000 --persistent"),
]
# Broker CPU per delivered message beside the other's: row, scenario, other, ratio at most
CLUSTER_CPU_BARS = [
    ("k0", "48 pairs across nodes, QoS 0", "nats 3 nodes", 0.6),
    ("k1", "48 pairs across nodes, QoS 1", "rabbitmq 3 nodes", 0.025),
    ("kp", "48 pairs across nodes, QoS 1, persistent", "rabbitmq 3 nodes", 0.045),
]
CLUSTER_LATENCY_BAR = ("kg", "rabbitmq 3 nodes", [name for name, _ in CLUSTER_SCENARIOS[3:]])
IDLE_KINDS = [("TCP", "--raw"), ("clean", ""), ("persistent", "--persistent")]


class Broker:
    """One broker (or cluster) in processes of its own; `stop` ends just those."""

    def __init__(self, name, directory, lontra):
        self.name, self.directory, self.lontra = name, pathlib.Path(directory), lontra
        self.processes, self.nodes, self.addresses = [], [], []

    def start(self):
        self.directory.mkdir()
        match self.name.split()[0]:
            case "mosquitto":
                self.start_mosquitto()
            case "nats":
                self.start_nats()
            case "rabbitmq":
                self.start_rabbitmq()
            case _:
                self.start_lontra(int(self.name.split()[1]))
        for address in self.addresses:
            self.until(f"{self.name} serves at {address}", lambda: serves(address))

    def start_mosquitto(self):
        # Unlimited queues, as Lontra's are; memory only.
        config = self.directory / "mosquitto.conf"
        config.write_text(
            f"listener {MOSQUITTO_PORT} 127.0.0.1\nallow_anonymous true\nset_tcp_nodelay true\n"
            "max_queued_messages 0\nmax_inflight_messages 0\n"
        )
        self.run([shutil.which("mosquitto") or "/usr/sbin/mosquitto", "-c", str(config)])
        self.nodes = [self.processes[0].pid]
        self.addresses = [f"127.0.0.1:{MOSQUITTO_PORT}"]

    def start_nats(self):
        nats = shutil.which("nats-server", path=os.environ["PATH"] + ":/usr/sbin")
        if nats is None:
            raise NotStarted("nats-server is not there")
        routes = ", ".join(f'"nats://127.0.0.1:{CLUSTER_PORT + 20 + node}"' for node in (1, 2, 3))
        for node in (1, 2, 3):
            config = self.directory / f"{node}.conf"
            config.write_text(
                f"server_name: n{node}\n"
                f"listen: 127.0.0.1:{CLUSTER_PORT + 10 + node}\n"
                f'jetstream {{ store_dir: "{self.directory / str(node)}" }}\n'
                f"cluster {{ name: compare, listen: 127.0.0.1:{CLUSTER_PORT + 20 + node}, routes: [{routes}] }}\n"
                f'mqtt {{ host: "127.0.0.1", port: {CLUSTER_PORT + node} }}\n'
            )
            self.run([nats, "-c", str(config)])
        self.nodes = [process.pid for process in self.processes]
        self.addresses = [f"127.0.0.1:{CLUSTER_PORT + node}" for node in (1, 2, 3)]

    def start_rabbitmq(self):
        epmd = shutil.which("epmd")
        if epmd is None or not os.path.exists(RABBITMQ):
            raise NotStarted("rabbitmq-server is not there")
        cookie, plugins = self.directory / ".erlang.cookie", self.directory / "enabled_plugins"
        cookie.write_text("compare")
        cookie.chmod(0o400)
        plugins.write_text("[rabbitmq_mqtt].\n")
        shared = {
            "HOME": str(self.directory),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(CLUSTER_PORT + 30),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(plugins),
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
        }
        # In the foreground: it ends with the others, and is nobody else's.
        self.run([epmd], shared)
        peers = "".join(f"cluster_formation.classic_config.nodes.{node} = compare{node}@localhost\n" for node in (1, 2, 3))
        for node in (1, 2, 3):
            home = self.directory / str(node)
            home.mkdir()
            (home / "rabbitmq.conf").write_text(
                f"mqtt.listeners.tcp.1 = 127.0.0.1:{CLUSTER_PORT + node}\nmqtt.allow_anonymous = true\n"
                f"cluster_formation.peer_discovery_backend = classic_config\n{peers}"
            )
            own = {
                "RABBITMQ_NODENAME": f"compare{node}@localhost",
                "RABBITMQ_NODE_PORT": str(CLUSTER_PORT + 10 + node),
                "RABBITMQ_DIST_PORT": str(CLUSTER_PORT + 20 + node),
                "RABBITMQ_CONFIG_FILE": str(home / "rabbitmq.conf"),
                "RABBITMQ_MNESIA_BASE": str(home / "mnesia"),
                "RABBITMQ_LOG_BASE": str(home / "log"),
                "RABBITMQ_PID_FILE": str(home / "pid"),
            }
            self.run([RABBITMQ], shared | own)

        def machines():
            return [pid for process in self.processes[1:] for pid, name in session_of(process.pid) if name == "beam.smp"]

        self.until("three Erlang machines run", lambda: len(machines()) == 3)
        self.nodes = machines()
        self.addresses = [f"127.0.0.1:{CLUSTER_PORT + node}" for node in (1, 2, 3)]

    def start_lontra(self, count):
        data = self.directory / "data"
        self.run([self.lontra, "dev", "--nodes", str(count), "--data-dir", str(data), "--base-port", str(LONTRA_PORT)])
        file = data / "cluster.json"
        self.until(f"{self.name} is ready", file.exists)
        nodes = json.loads(file.read_text())["nodes"]
        self.nodes = [node["pid"] for node in nodes]
        self.addresses = [node["mqtt"] for node in nodes]

    def run(self, command, variables={}):
        # More clients than the defaults allow; a connection without CONNECT lives long enough to be measured.
        environment = os.environ | {"LONTRA__MQTT__CONNECTIONS_MAX": "20000", "LONTRA__MQTT__CONNECT_TIMEOUT": "120s"} | variables
        with open(self.directory / "log", "a") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
            )
        self.processes.append(process)

    def until(self, what, condition):
        deadline = time.monotonic() + START_SECONDS
        while not condition():
            if time.monotonic() > deadline or any(process.poll() is not None for process in self.processes):
                raise NotStarted(f"not within {START_SECONDS} s: {what}\n{(self.directory / 'log').read_text()[-4000:]}")
            time.sleep(0.05)

    def cpu_seconds(self):
        fields = [pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split() for pid in self.nodes]
        return sum(int(each[11]) + int(each[12]) for each in fields) / os.sysconf("SC_CLK_TCK")

    def stop(self):
        # The last first: epmd is asked by the Erlang machines while they end.
        for process in reversed(self.processes):
            within = [pid for pid, _ in session_of(process.pid)]
            if process.poll() is None:
                process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                # A node whose parent is killed ends by itself: its standard input does.
                process.kill()
                process.wait()
            # What a wrapper left behind, and only that: the session is still this process's.
            for pid, _ in session_of(process.pid):
                if pid in within:
                    os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.directory, ignore_errors=True)


class NotStarted(Exception):
    """A broker is not there, or does not serve."""


def session_of(leader):
    """Process ids and names of the session that `leader` began."""
    found = []
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            head, fields = stat.read_text().rsplit(")", 1)
        except OSError:
            continue
        state, _, _, session = fields.split()[:4]
        if int(session) == leader and state != "Z":
            pid, name = head.split("(", 1)
            found.append((int(pid), name))
    return found


def serves(address):
    """Whether a client gets its CONNACK there: a node listens long before its cluster has a leader."""
    host, port = address.rsplit(":", 1)
    client = f"compare-{port}".encode()
    body = b"\0\4MQTT\4\2\0\74" + len(client).to_bytes(2, "big") + client
    try:
        with socket.create_connection((host, int(port)), timeout=2) as connection:
            connection.sendall(bytes([0x10, len(body)]) + body)
            answer = connection.recv(4)
            connection.sendall(b"\xe0\0")
            return answer == b"\x20\2\0\0"
    except OSError:
        return False


def bench(broker, arguments, patience):
    command = [broker.lontra, "bench", *arguments.split(), "--json"]
    command += ["--broker", ",".join(broker.addresses), "--pid", ",".join(map(str, broker.nodes))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=patience)
    if done.returncode not in (0, 3):
        print(f"{broker.name}: {arguments}: {done.stderr.strip()}", file=sys.stderr)
        return None
    return json.loads(done.stdout)


class Compare:
    def __init__(self, options):
        self.options, self.directory, self.running = options, tempfile.mkdtemp(prefix="lontra-compare-"), None
        self.started = 0
        self.load_results, self.idle_results, self.cluster_results = {}, {}, {}

    def with_broker(self, name, measure):
        self.started += 1
        self.running = Broker(name, f"{self.directory}/{self.started}", self.options.lontra)
        try:
            self.running.start()
            return measure(self.running)
        finally:
            self.running.stop()

    def load(self):
        names, results, at_rest = ["mosquitto", "lontra 1 node", "lontra 3 nodes"], {}, {}
        for name in self.turns(names):
            self.with_broker(name, lambda broker: self.scenarios(broker, SCENARIOS, results, at_rest))
        self.load_results = results
        print_load(names, SCENARIOS, results)
        cpu = [f"{name} {1000 * statistics.median(at_rest[name]):.0f}" for name in names]
        print(f"\nCPU without clients, ms per second: {', '.join(cpu)}.")

    def clusters(self):
        names, results, at_rest = list(CLUSTERS), {}, {}
        for name in self.turns(names):
            try:
                self.with_broker(name, lambda broker: self.scenarios(broker, CLUSTER_SCENARIOS, results, at_rest))
            except NotStarted as why:
                if name == names[0]:
                    raise
                tell(f"{name} is left out: {why}")
                names.remove(name)
        self.cluster_results = results
        print_load(names, CLUSTER_SCENARIOS, results)

    def turns(self, names):
        """Each of `names` that is still there in each round, another one first each time."""
        for turn in range(self.options.rounds):
            at = turn % max(1, len(names))
            for name in names[at:] + names[:at]:
                tell(f"round {turn + 1} of {self.options.rounds}: {name}")
                yield name

    def scenarios(self, broker, scenarios, results, at_rest):
        seconds = self.options.seconds
        time.sleep(1)
        before = broker.cpu_seconds()
        time.sleep(REST_SECONDS)
        at_rest.setdefault(broker.name, []).append((broker.cpu_seconds() - before) / REST_SECONDS)
        for scenario, arguments in scenarios:
            done = bench(broker, f"{arguments} -V 3.1.1 --warmup {min(1, seconds)} --seconds {seconds}", seconds + 90)
            if done:
                results.setdefault((scenario, broker.name), []).append(done)

    def idle(self):
        results = {}
        for name in ["mosquitto", "lontra 1 node"]:
            for kind, flag in IDLE_KINDS:
                tell(f"idle connections: {name}, {kind}")
                steps = f"{self.options.idle_steps[0]},{self.options.idle_steps[1]}"
                arguments = f"idle --steps {steps} --settle {self.options.settle} {flag}"
                results[name, kind] = self.with_broker(name, lambda broker: bench(broker, arguments, 300))
        self.idle_results = results
        print_idle(results, self.options.idle_steps)

    def close(self):
        if self.running:
            self.running.stop()
        shutil.rmtree(self.directory, ignore_errors=True)


def median(results, value):
    values = [value(result) for result in results]
    values = [each for each in values if each is not None]
    return statistics.median(values) if values else None


def shown(value, form):
    return "–" if value is None else form.format(value)


def print_load(names, scenarios, results):
    shares = [run["bench"]["cpu_seconds"] / run["seconds"] for runs in results.values() for run in runs if run["seconds"]]
    if shares:
        print(f"The load took {100 * max(shares):.0f} % of one core at most.")
    print(f"\n| scenario | broker | delivered/s | broker CPU, µs per message | × {names[0]} | p50 ms | p99 ms | RSS MiB | not as sent |")
    print("|---|---|---:|---:|---:|---:|---:|---:|---|")
    for scenario, _ in scenarios:
        first = None
        for name in names:
            runs = results.get((scenario, name), [])
            cpu = median(runs, lambda run: run["cpu_us_per_delivered"])
            if name == names[0]:
                first = cpu
            latency = {
                quantile: median(runs, lambda run: run["latency_us"] and run["latency_us"][quantile] / 1000)
                for quantile in ("p50", "p99")
            }
            rss = median(runs, lambda run: sum(process["rss_bytes"] for process in run["processes"]) / 2**20)
            cells = [
                scenario if name == names[0] else "",
                name,
                shown(median(runs, lambda run: run["delivered_per_second"]), "{:.0f}"),
                shown(cpu, "{:.1f}"),
                shown(cpu / first if cpu and first else None, "{:.2f}"),
                shown(latency["p50"], "{:.2f}"),
                shown(latency["p99"], "{:.2f}"),
                shown(rss, "{:.0f}"),
                faults(runs),
            ]
            print("| " + " | ".join(cells) + " |")


def faults(runs):
    kinds = ["lost", "duplicates", "out_of_order", "refused", "unanswered", "foreign", "disconnected"]
    totals = {kind: sum(run["counts"][kind] for run in runs) for kind in kinds}
    return ", ".join(f"{count} {kind}" for kind, count in totals.items() if count) or ("" if runs else "no result")


def print_idle(results, steps):
    print(f"\nIdle connections: resident bytes each, the slope between {steps[0]} and {steps[1]}; the kernel's socket is not in it.\n")
    print("| broker | accepted TCP | + MQTT session | + persistent (meta row) | clean, in all | persistent, in all | connects/s: clean | persistent |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for name in dict.fromkeys(name for name, _ in results):
        runs = [results[name, kind] for kind, _ in IDLE_KINDS]
        tcp, clean, persistent = [run and run["rss_bytes_per_connection"] for run in runs]
        rates = [run and run["steps"][-1]["connects_per_second"] for run in runs[1:]]
        differences = [tcp, less(clean, tcp), less(persistent, clean), clean, persistent]
        cells = [name] + [shown(value, "{:.0f}") for value in differences + rates]
        print("| " + " | ".join(cells) + " |")


def print_bars(load, idle, clusters):
    """The bars that the project has set itself; what was not measured is said to be so."""
    print("\n| bar | measured | at most | |\n|---|---:|---:|---|")

    def row(name, measured, bound, form="{:.2f}", passes=None):
        if measured is not None and isinstance(bound, (int, float)):
            passes = measured <= bound
        verdict = {None: "not measured", True: "pass", False: "**fail**"}[passes]
        print(f"| {name} | {shown(measured, form)} | {bound if isinstance(bound, str) else shown(bound, form)} | {verdict} |")

    def of(scenario, name, value):
        return median(load.get((scenario, name), []), value)

    for letter, scenario, bound in CPU_BARS:
        ours, theirs = (of(scenario, name, lambda run: run["cpu_us_per_delivered"]) for name in ("lontra 1 node", "mosquitto"))
        row(f"{letter}. {scenario}: CPU, × mosquitto", ours / theirs if ours and theirs else None, bound)
    letter, scenario = LATENCY_BAR
    ours, theirs = (
        of(scenario, name, lambda run: run["latency_us"] and run["latency_us"]["p50"]) for name in ("lontra 1 node", "mosquitto")
    )
    row(f"{letter}. {scenario}: p50, µs", ours, theirs, "{:.0f}")
    for kind, _ in IDLE_KINDS[1:]:
        ours, theirs = (idle.get((name, kind)) for name in ("lontra 1 node", "mosquitto"))
        row(f"h. idle, {kind}: bytes each", ours and ours["rss_bytes_per_connection"], IDLE_BAR_BYTES, "{:.0f}")
        ours, theirs = (run and run["steps"][-1]["connects_per_second"] for run in (ours, theirs))
        bound = f"at least {theirs:.0f}" if theirs else "at least mosquitto's"
        row(f"h. connects/s, {kind}", ours, bound, "{:.0f}", ours >= theirs if ours and theirs else None)

    def of_cluster(scenario, name, value):
        return median(clusters.get((scenario, name), []), value)

    for letter, scenario, other, bound in CLUSTER_CPU_BARS:
        ours, theirs = (of_cluster(scenario, name, lambda run: run["cpu_us_per_delivered"]) for name in (CLUSTERS[0], other))
        row(f"{letter}. {scenario}: CPU, × {other.split()[0]}", ours / theirs if ours and theirs else None, bound, "{:.3f}")
    letter, other, scenarios = CLUSTER_LATENCY_BAR
    for scenario in scenarios:
        ours, theirs = (
            of_cluster(scenario, name, lambda run: run["latency_us"] and run["latency_us"]["p50"]) for name in (CLUSTERS[0], other)
        )
        bound = f"{other.split()[0]}'s" if theirs is None else theirs
        row(f"{letter}. {scenario}: p50, µs", ours, bound, "{:.0f}")


def less(whole, part):
    return None if whole is None or part is None else whole - part


def tell(what):
    print(what, file=sys.stderr, flush=True)


def heading(options):
    version = subprocess.run([options.lontra, "--version"], capture_output=True, text=True).stdout.strip()
    # mosquitto -h ends with 3; its first line is the version.
    mosquitto = subprocess.run(
        [shutil.which("mosquitto") or "/usr/sbin/mosquitto", "-h"], capture_output=True, text=True
    ).stdout.splitlines()[0]
    print(
        f"{datetime.date.today()}; {version}, development profile; {mosquitto}, Debian's; {os.cpu_count()} cores shared by brokers and load; "
        f"medians of {options.rounds} rounds of {options.seconds:g} s; 64-byte payloads, MQTT 3.1.1; load before: {os.getloadavg()[0]:.1f}"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lontra", help="the binary")
    parser.add_argument("--quick", action="store_true", help="one round of 1 s; 1,000 idle connections: whether it works")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=float)
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--load", action="store_true", help="only the load of one node, and of three beside it")
    only.add_argument("--idle", action="store_true", help="only idle connections")
    only.add_argument("--clusters", action="store_true", help="only three nodes beside three of others")
    options = parser.parse_args()
    options.rounds = options.rounds or (1 if options.quick else 5)
    options.seconds = options.seconds or (1 if options.quick else 5)
    options.idle_steps, options.settle = ((100, 1000), 1) if options.quick else ((1000, 19000), 5)
    options.lontra = os.path.abspath(options.lontra)
    # 19,000 connections need as many descriptors on either side.
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    signal.signal(signal.SIGHUP, lambda *_: sys.exit(128 + signal.SIGHUP))
    compare = Compare(options)
    try:
        heading(options)
        if not options.idle and not options.clusters:
            compare.load()
        if not options.load and not options.clusters:
            compare.idle()
        if not options.load and not options.idle:
            compare.clusters()
        print_bars(compare.load_results, compare.idle_results, compare.cluster_results)
    except NotStarted as why:
        sys.exit(str(why))
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    finally:
        compare.close()


main()
