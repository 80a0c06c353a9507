#!/usr/bin/env python3
"""Runs what README shows under "Running it", line by line and literally, in a network namespace of its own and an empty directory.

    readme.py LONTRA        the binary; needs root (unshare)

Each line must do what it says: servers become ready and stop cleanly, the subscriber prints what is published, the rest ends with 0.
"""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
PATIENCE = 60


def examples(readme):
    """The commands of the section, without their comments."""
    section = readme.split("\n## Running it\n", 1)[1].split("\n## ", 1)[0]
    lines = [line[4:] for line in section.splitlines() if line.startswith("    ")]
    return [line.split(" #", 1)[0].strip() for line in lines]


def until(what, condition):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            sys.exit(f"README: not within {PATIENCE} s: {what}")
        time.sleep(0.05)


class Run:
    def __init__(self):
        self.running = {}

    def start(self, command, name, **options):
        print(f"$ {command}", flush=True)
        # `exec`: a signal reaches the program, not the shell.
        self.running[name] = subprocess.Popen(f"exec {command}", shell=True, **options)

    def alive(self, name):
        code = self.running[name].poll()
        if code is not None:
            sys.exit(f"README: {name} ended with {code}")

    def stop(self, name):
        process = self.running.pop(name, None)
        if process is None:
            return
        process.send_signal(signal.SIGTERM)
        code = process.wait(PATIENCE)
        if code not in (0, -signal.SIGTERM):
            sys.exit(f"README: {name} ended with {code} on SIGTERM")

    def ready(self, name):
        def is_ready():
            self.alive(name)
            status = subprocess.run("lontra cluster status --json", shell=True, capture_output=True, text=True)
            return status.returncode == 0 and json.loads(status.stdout)["nodes"][0]["up"]

        until(f"{name} is ready", is_ready)

    def one(self, command):
        words = command.split()
        if words[:2] == ["lontra", "serve"]:
            self.stop("serve")
            self.start(command, "serve")
            self.ready("serve")
        elif words[:2] == ["lontra", "dev"]:
            self.start(command, "dev")
            file = pathlib.Path(words[words.index("--data-dir") + 1]) / "cluster.json"
            until(f"{file}", lambda: self.alive("dev") or (file.exists() and len(json.loads(file.read_text())["nodes"]) == 3))
            self.stop("dev")
        elif words[:2] == ["lontra", "sub"]:
            self.start(command, "sub", stdout=open("received", "w"))
            # Its session is there once it is connected; SUBACK follows at once, and what is published is published until it comes.
            self.alive("sub")
        elif words[:2] == ["lontra", "pub"]:
            print(f"$ {command}", flush=True)
            payload = words[words.index("-m") + 1]

            def arrives():
                subprocess.run(command, shell=True, check=True)
                return payload in pathlib.Path("received").read_text()

            until("what was published arrives", arrives)
            self.stop("sub")
        else:
            print(f"$ {command}", flush=True)
            subprocess.run(command, shell=True, check=True)


def main(binary):
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    commands = examples((ROOT / "README.md").read_text())
    kinds = {" ".join(command.split()[:2]) for command in commands}
    for kind in ("serve", "dev", "sub", "pub", "cert", "config", "cluster"):
        assert f"lontra {kind}" in kinds, f"README shows no `lontra {kind}`"
    with tempfile.TemporaryDirectory() as directory:
        programs = pathlib.Path(directory) / "bin"
        programs.mkdir()
        (programs / "lontra").symlink_to(binary)
        os.environ["PATH"] = f"{programs}:{os.environ['PATH']}"
        work = pathlib.Path(directory) / "work"
        work.mkdir()
        os.chdir(work)
        shutil.copy(ROOT / "ops/deploy/lontra.toml", "lontra.toml")
        run = Run()
        try:
            for command in commands:
                run.one(command)
            run.stop("serve")
        finally:
            for process in run.running.values():
                process.kill()
    print(f"{len(commands)} commands of README did what it says")


def isolated(binary):
    """A namespace for the ports, and an empty /tmp/lontra, which the example names."""
    shown = pathlib.Path("/tmp/lontra")
    made = not shown.exists()
    shown.mkdir(exist_ok=True)
    inside = f'mount -t tmpfs tmpfs {shown} && exec "$0" "$@"'
    try:
        command = ["unshare", "-mn", "sh", "-c", inside, sys.executable, __file__, "--inside", binary]
        return subprocess.run(command).returncode
    finally:
        if made:
            shown.rmdir()


if __name__ == "__main__":
    if sys.argv[1] == "--inside":
        main(sys.argv[2])
    else:
        sys.exit(isolated(os.path.abspath(sys.argv[1])))
