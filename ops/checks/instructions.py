#!/usr/bin/env python3
"""Counts instructions of the cases of node/benches/instructions.rs; reads from stdin what cargo built. See ops/checks/instructions."""

import argparse
import json
import pathlib
import re
import subprocess
import sys
import tempfile

TABLE = pathlib.Path(__file__).with_suffix(".tsv")
TOLERANCE = 0.10
ROUNDS = 200
# Making them ready takes minutes under valgrind.
SLOW = re.compile(r"_1000000$")
HEADER = "# Instructions of one round of each case, as counted by `ops/checks/instructions --write`; 10 % more fails.\n"


def executable(built):
    for line in built:
        message = json.loads(line)
        if message.get("reason") == "compiler-artifact" and message["target"]["name"] == "instructions" and message["executable"]:
            return message["executable"]
    sys.exit("cargo built no bench of the name instructions")


def count(binary, case):
    with tempfile.TemporaryDirectory(prefix="lontra-instructions-") as directory:
        done = subprocess.run(
            [
                "valgrind",
                "--tool=callgrind",
                "--collect-atstart=no",
                "--toggle-collect=*instructions*measured*",
                f"--callgrind-out-file={directory}/out",
                binary,
                "--case",
                case,
                str(ROUNDS),
            ],
            capture_output=True,
            text=True,
        )
    collected = re.search(r"Collected : (\d+)", done.stderr)
    if done.returncode or not collected:
        sys.exit(f"{case}: not counted\n{done.stderr}")
    # Less than one for each round: what was to be counted was not found by its name.
    each = int(collected.group(1)) / ROUNDS
    if each < 1:
        sys.exit(f"{case}: nothing was counted: is `measured` inlined or renamed?")
    return round(each)


def read_table():
    if not TABLE.exists():
        return {}
    rows = [line.split("\t") for line in TABLE.read_text().splitlines() if line and not line.startswith("#")]
    return {name: int(instructions) for name, instructions in rows}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("cases", nargs="*")
    options = parser.parse_args()
    binary = executable(sys.stdin)
    known = subprocess.run([binary, "--list"], capture_output=True, text=True, check=True).stdout.split()
    unknown = [case for case in options.cases if case not in known]
    if unknown:
        sys.exit(f"no such case: {', '.join(unknown)}; there are {', '.join(known)}")
    chosen = [case for case in options.cases or known if not (options.quick and SLOW.search(case))]
    table, failed = read_table(), []
    for case in chosen:
        counted, budget = count(binary, case), table.get(case)
        change = f"{counted / budget - 1:+.1%}" if budget else "not in the table"
        print(f"{case}\t{counted}\t{change}", flush=True)
        if not options.write and (not budget or counted > budget * (1 + TOLERANCE)):
            failed.append(case)
        if options.write:
            table[case] = counted
    if options.write:
        rows = [f"{case}\t{table[case]}\n" for case in known if case in table]
        TABLE.write_text(HEADER + "".join(rows))
    # One that is gone would be a budget that nobody looks at.
    failed += [f"{case} (in the table only)" for case in table if case not in known and not options.write]
    if failed:
        sys.exit(f"above their budgets by more than {TOLERANCE:.0%}, or without one: {', '.join(failed)}")


main()
