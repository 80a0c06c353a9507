#!/usr/bin/env python3
"""Whether a Dockerfile keeps its promises; prints what it does not and exits with 1.

    lontra config show | ops/checks/dockerfile.py DOCKERFILE LONTRA

Run from the root of the sources. Standard input is the default configuration, LONTRA the binary.
"""

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib


def instructions(text):
    """(NAME, rest) of each instruction; comment lines and continuations are resolved."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n", " ", "\n".join(lines))
    for line in joined.splitlines():
        if line.strip():
            name, _, rest = line.strip().partition(" ")
            yield name.upper(), rest.strip()


def base_image(rest, stages):
    image = rest.split()[0]
    if image in stages:
        return
    name, _, tag = image.rpartition(":")
    if not name or tag == "latest":
        yield f"FROM {image}: name a tag, and not latest"
    if "." in image.split("/")[0] and "/" in image:
        yield f"FROM {image}: names a registry's host"


def copied(rest, stages):
    words = shlex.split(rest)
    options = [word for word in words if word.startswith("--")]
    sources = [word for word in words if not word.startswith("--")][:-1]
    stage = next((option.split("=", 1)[1] for option in options if option.startswith("--from=")), None)
    if stage is not None:
        if stage not in stages:
            yield f"COPY --from={stage}: no such stage"
        return
    for source in sources:
        if not os.path.exists(source):
            yield f"COPY {source}: is not in the sources"


def ports(configuration):
    """What the defaults listen on: clients and operators over TCP, links over UDP."""
    port = {section: configuration[section]["listen"].rsplit(":", 1)[1] for section in ("mqtt", "websocket", "http", "cluster")}
    return {f"{port['mqtt']}/tcp", f"{port['websocket']}/tcp", f"{port['http']}/tcp", f"{port['cluster']}/udp"}


def understands(lontra, arguments):
    return subprocess.run([lontra, *arguments, "--help"], capture_output=True).returncode == 0


def problems(text, configuration, lontra):
    stages, last = [], {}
    exposed = set()
    for name, rest in instructions(text):
        if name == "FROM":
            yield from base_image(rest, stages)
            named = re.search(r"\bas\s+(\S+)$", rest, re.IGNORECASE)
            stages.append(named.group(1) if named else str(len(stages)))
            last, exposed = {}, set()
        last[name] = rest
        if name == "EXPOSE":
            exposed |= set(rest.split())
        if name in ("COPY", "ADD"):
            yield from copied(rest, stages[:-1])
        if name == "ADD":
            yield "ADD: use COPY"
        for command in re.split(r"&&|;", rest if name == "RUN" else ""):
            if re.search(r"apt(-get)?\s+(\S+\s+)*install\b", command) and "--no-install-recommends" not in command:
                yield f"RUN {command.strip()}: without --no-install-recommends"
    if last.get("USER", "root").split(":")[0] in ("root", "0"):
        yield "USER: the last stage runs as root"
    if exposed != ports(configuration):
        yield f"EXPOSE {sorted(exposed)}: the default configuration listens on {sorted(ports(configuration))}"
    for name in ("VOLUME", "HEALTHCHECK", "STOPSIGNAL"):
        if name not in last:
            yield f"{name}: is missing"
    try:
        entry, arguments = json.loads(last["ENTRYPOINT"]), json.loads(last.get("CMD", "[]"))
    except (KeyError, ValueError):
        yield "ENTRYPOINT, CMD: are missing, or not of the form [\"program\", \"argument\"]"
        return
    if os.path.basename(entry[0]) != "lontra" or not understands(lontra, entry[1:] + arguments):
        yield f"ENTRYPOINT {entry}, CMD {arguments}: lontra has no such subcommand or option"
    checked = re.search(r"\blontra\s+([^>;|&]+)", last.get("HEALTHCHECK", ""))
    if not checked or not understands(lontra, shlex.split(checked.group(1))):
        yield "HEALTHCHECK: lontra has no such subcommand or option"


def main():
    path, lontra = sys.argv[1:]
    configuration = tomllib.loads(sys.stdin.read())
    with open(path, encoding="utf-8") as file:
        found = list(problems(file.read(), configuration, lontra))
    for problem in found:
        print(f"{path}: {problem}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
