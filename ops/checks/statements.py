#!/usr/bin/env python3
"""Every normative statement of MQTT 5.0 and 3.1.1 has a row in node/tests/conformance/statements.tsv, and every row a test
that exists, or a reason why none can show it. So has every reason code in every packet that a server may put it into, in
node/tests/conformance/reason_codes.tsv, with the metric that counts it.

Which statements and codes there are is told here and not by the tables: 251 and 142 statements, 94 and 10 codes.
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

CODES = "node/tests/conformance/reason_codes.tsv"
METRICS = "node/tests/wire/wire_basics.rs"
NAMES = "node/src/protocol/codec/reason.rs"

# The packets of a server that may carry a code: MQTT 5.0 section 2.4, without what a client alone may say (DISCONNECT 04, AUTH
# 19). 3.1.1: return codes of CONNACK and SUBACK.
CODES_5 = """
00 CONNACK PUBACK PUBREC PUBREL PUBCOMP SUBACK UNSUBACK DISCONNECT AUTH
01 SUBACK
02 SUBACK
10 PUBACK PUBREC
11 UNSUBACK
18 AUTH
80 CONNACK PUBACK PUBREC SUBACK UNSUBACK DISCONNECT
81 CONNACK DISCONNECT
82 CONNACK DISCONNECT
83 CONNACK PUBACK PUBREC SUBACK UNSUBACK DISCONNECT
84 CONNACK
85 CONNACK
86 CONNACK
87 CONNACK PUBACK PUBREC SUBACK UNSUBACK DISCONNECT
88 CONNACK
89 CONNACK DISCONNECT
8A CONNACK
8B DISCONNECT
8C CONNACK DISCONNECT
8D DISCONNECT
8E DISCONNECT
8F SUBACK UNSUBACK DISCONNECT
90 CONNACK PUBACK PUBREC DISCONNECT
91 PUBACK PUBREC SUBACK UNSUBACK
92 PUBREL PUBCOMP
93 DISCONNECT
94 DISCONNECT
95 CONNACK DISCONNECT
96 DISCONNECT
97 CONNACK PUBACK PUBREC SUBACK DISCONNECT
98 DISCONNECT
99 CONNACK PUBACK PUBREC DISCONNECT
9A CONNACK DISCONNECT
9B CONNACK DISCONNECT
9C CONNACK DISCONNECT
9D CONNACK DISCONNECT
9E SUBACK DISCONNECT
9F CONNACK DISCONNECT
A0 DISCONNECT
A1 SUBACK DISCONNECT
A2 SUBACK DISCONNECT
"""
CODES_3_1_1 = """
00 CONNACK SUBACK
01 CONNACK SUBACK
02 CONNACK SUBACK
03 CONNACK
04 CONNACK
05 CONNACK
80 SUBACK
"""
NUMBERS_OF_CODES = {"5.0": 94, "3.1.1": 10}
# Where the operator sees an error.
COUNTED = {
    "CONNACK": "lontra_connects_total",
    "PUBACK": "lontra_publishes_refused_total",
    "PUBREC": "lontra_publishes_refused_total",
    "SUBACK": "lontra_subscriptions_refused_total",
    "UNSUBACK": "lontra_subscriptions_refused_total",
    "DISCONNECT": "lontra_disconnects_total",
}


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


def codes():
    for version, lines in (("5.0", CODES_5), ("3.1.1", CODES_3_1_1)):
        for line in lines.strip().splitlines():
            code, *packets = line.split()
            for packet in packets:
                yield version, code, packet


def wrong_codes(table):
    names = {}
    for value, name in re.findall(r'= 0x(..), "([^"]+)";', (ROOT / NAMES).read_text()):
        names.setdefault(value.upper(), set()).add(name)
    metrics = (ROOT / METRICS).read_text()
    seen = set()
    for number, line in enumerate(table.splitlines(), 1):
        if line.startswith("#") or line.startswith("version\t"):
            continue
        columns = line.split("\t")
        if len(columns) != 6 or not all(column.strip() for column in columns):
            yield f"{CODES}:{number}: not six columns with something in each"
            continue
        version, code, packet, _, shown, counted = columns
        at = f"{CODES}:{number}: {version} {code} {packet}"
        if (version, code, packet) in seen:
            yield f"{at} comes twice"
        seen.add((version, code, packet))
        if shown.startswith("n/a"):
            if not re.match(r"n/a: \S.{10,}", shown):
                yield f"{at}: why is it not to be shown?"
        elif not test_exists(shown):
            yield f"{at}: there is no test {shown}"
        elif packet in COUNTED and (code >= "80" or (version, packet) == ("3.1.1", "CONNACK")):
            metric = re.fullmatch(r'(\w+)\{reason="([^"]+)"\}', counted)
            if not metric or metric[1] != COUNTED[packet] or f'"{metric[1]}"' not in metrics:
                yield f"{at}: {counted} is not where such a refusal is counted"
            elif version == "5.0" and metric[2] not in names.get(code, ()):
                yield f"{at}: {metric[2]} is another reason"
    known = set(codes())
    for row in sorted(known - seen):
        yield f"{CODES}: {' '.join(row)} is missing"
    for row in sorted(seen - known):
        yield f"{CODES}: {' '.join(row)}: no server sends that"
    for version, expected in NUMBERS_OF_CODES.items():
        found = sum(row[0] == version for row in known)
        if found != expected:
            yield f"the list of MQTT {version} has {found} codes, not {expected}"


def planted_codes(table):
    lines = table.splitlines(keepends=True)
    row = next(at for at, line in enumerate(lines) if line.startswith("5.0\t87\tPUBACK\t"))
    shown, counted = lines[row].split("\t")[4:]
    for what, changed in [
        ("a code that is missing", [*lines[:row], *lines[row + 1 :]]),
        ("a code that comes twice", [*lines, lines[row]]),
        ("a code that no server sends", [*lines, lines[row].replace("PUBACK", "PUBCOMP", 1)]),
        ("a test that is not there", [*lines[:row], lines[row].replace(shown, f"{shown}_no_such"), *lines[row + 1 :]]),
        ("neither test nor reason", [*lines[:row], lines[row].replace(shown, "n/a"), *lines[row + 1 :]]),
        ("another metric", [*lines[:row], lines[row].replace(counted, "-\n"), *lines[row + 1 :]]),
        ("another reason", [*lines[:row], lines[row].replace("not authorized", "banned"), *lines[row + 1 :]]),
    ]:
        if not list(wrong_codes("".join(changed))):
            yield f"self-test: {what} is not noticed"


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
    code_table = (ROOT / CODES).read_text()
    found = list(problems(table)) or list(planted(table))
    found += list(wrong_codes(code_table)) or list(planted_codes(code_table))
    if found:
        raise SystemExit("\n".join(found))
    rows = [line for line in table.splitlines() if line[:1].isdigit()]
    shown = sum("\tn/a: " not in line for line in rows)
    print(f"{len(rows)} normative statements: {shown} have a test, {len(rows) - shown} a reason")
    rows = [line for line in code_table.splitlines() if line[:1].isdigit()]
    shown = sum("\tn/a: " not in line for line in rows)
    print(f"{len(rows)} reason codes of packets: {shown} have a test, {len(rows) - shown} a reason")


main()
