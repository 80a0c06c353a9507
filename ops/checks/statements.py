#!/usr/bin/env python3
"""Every normative statement of MQTT 5.0 and 3.1.1 has a row in node/tests/conformance/statements.tsv, and every row a test
that exists, or a reason why none can show it.

Which statements there are is told here, section by section, and not by the table: 251 of 5.0, 142 of 3.1.1.
"""

import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parents[2]
TABLE = "node/tests/conformance/statements.tsv"

# Section to its last number; what a section begins with, or leaves out, stands behind it.
MQTT_5 = """
1.5.4:3 1.5.5:1 1.5.7:1 2.1.3:1 2.2.1:6-1 2.2.2:1
3.1.0:2 3.1.2:30 3.1.3:12 3.1.4:6 3.2.0:2 3.2.2:22 3.3.1:13 3.3.2:20 3.3.4:10
3.4.2:3 3.5.2:3 3.6.1:1 3.6.2:3 3.7.2:3 3.8.1:1 3.8.3:5 3.8.4:8 3.9.2:2 3.9.3:2
3.10.1:1 3.10.3:2 3.10.4:6 3.11.2:2 3.11.3:2 3.12.4:1 3.14.0:1 3.14.1:1 3.14.2:4 3.14.4:3 3.15.1:1 3.15.2:3
4.1.0:2 4.2.0:1 4.3.1:1 4.3.2:5 4.3.3:13 4.4.0:2 4.5.0:2 4.6.0:6 4.7.0:1 4.7.1:2 4.7.2:1 4.7.3:4 4.8.2:6 4.9.0:3
4.12.0:7 4.12.1:2 4.13.1:1 4.13.2:1 6.0.0:4
"""
MQTT_3_1_1 = """
1.5.3:3 2.2.2:2 2.3.1:7
3.1.0:2 3.1.2:24 3.1.3:11 3.1.4:5 3.2.0:1 3.2.2:6 3.3.1:12 3.3.2:3 3.3.4:1 3.3.5:2
3.6.1:1 3.8.1:1 3.8.3:4 3.8.4:6 3.9.3:2 3.10.1:1 3.10.3:2 3.10.4:6 3.12.4:1 3.14.1:1 3.14.4:3
4.1.0:2 4.2.0:1 4.3.1:1 4.3.2:2 4.3.3:2 4.4.0:1 4.5.0:2 4.6.0:6 4.7.1:3 4.7.2:1 4.7.3:4 4.8.0:2 6.0.0:4
7.0.0:2 7.1.1:1 7.1.2:1
"""
NUMBERS = {"5.0": 251, "3.1.1": 142}


def statements():
    for version, sections in (("5.0", MQTT_5), ("3.1.1", MQTT_3_1_1)):
        for section, last, left_out in re.findall(r"(\S+):(\d+)(?:-(\d+))?", sections):
            for number in range(1, int(last) + 1):
                if str(number) != left_out:
                    yield version, f"MQTT-{section}-{number}"


def test_exists(shown):
    """`file::test` of node/tests/wire; or `path/to/file.rs::test`."""
    place, _, name = shown.rpartition("::")
    if place.endswith(".rs"):
        files = [ROOT / place]
    else:
        files = [ROOT / f"node/tests/wire/{place}.rs"]
    test = re.compile(rf"#\[(?:tokio::)?test[^\]]*\]\s*(?:async )?fn {re.escape(name)}\(")
    return bool(name) and any(file.is_file() and test.search(file.read_text()) for file in files)


def problems(table):
    seen = set()
    for number, line in enumerate(table.splitlines(), 1):
        if line.startswith("#") or line.startswith("version\t"):
            continue
        columns = line.split("\t")
        if len(columns) != 4 or not all(column.strip() for column in columns):
            yield f"{TABLE}:{number}: not four columns with something in each"
            continue
        version, statement, _, shown = columns
        if (version, statement) in seen:
            yield f"{TABLE}:{number}: {version} {statement} comes twice"
        seen.add((version, statement))
        if shown.startswith("n/a"):
            if not re.match(r"n/a: \S.{10,}", shown):
                yield f"{TABLE}:{number}: {statement}: why is nothing to be shown?"
        elif not test_exists(shown):
            yield f"{TABLE}:{number}: {statement}: there is no test {shown}"
    known = set(statements())
    for version, statement in sorted(known - seen):
        yield f"{TABLE}: {version} {statement} is missing"
    for version, statement in sorted(seen - known):
        yield f"{TABLE}: MQTT {version} has no {statement}"
    for version, expected in NUMBERS.items():
        found = sum(of == version for of, _ in known)
        if found != expected:
            yield f"the list of MQTT {version} has {found} statements, not {expected}"


def planted(table):
    """The check itself: what is wrong is found."""
    lines = table.splitlines(keepends=True)
    row = next(at for at, line in enumerate(lines) if "\tMQTT-3.1.0-1\t" in line)
    for what, changed in [
        ("a statement that is missing", [*lines[:row], *lines[row + 1 :]]),
        ("a test that is not there", [*lines[:row], lines[row].rstrip("\n") + "_no_such\n", *lines[row + 1 :]]),
        ("neither test nor reason", [*lines[:row], lines[row].rsplit("\t", 1)[0] + "\tn/a\n", *lines[row + 1 :]]),
        ("a statement that there is not", [*lines, "5.0\tMQTT-9.9.9-1\tx\tn/a: nobody has such a statement\n"]),
        ("a row that comes twice", [*lines, lines[row]]),
    ]:
        if not list(problems("".join(changed))):
            yield f"self-test: {what} is not noticed"


def main():
    table = (ROOT / TABLE).read_text()
    found = list(problems(table)) or list(planted(table))
    if found:
        raise SystemExit("\n".join(found))
    rows = [line for line in table.splitlines() if line[:1].isdigit()]
    shown = sum("\tn/a: " not in line for line in rows)
    print(f"{len(rows)} normative statements: {shown} have a test, {len(rows) - shown} a reason")


main()
