#!/usr/bin/env python3
"""Every statement of ops/docs/guarantees.md has a test, and every test that it or the README names exists.

A test is named `file: name`, below its statement (in the tables that begin with an empty cell every other row) or in the last cell.
"""

import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parents[2]
TESTS = ROOT / "node/tests/wire"
NAMED = re.compile(r"`((?:wire|slow)\w*): (\w+)`")


def exists(file, name=None):
    path = TESTS / f"{file}.rs"
    if not path.exists():
        return False
    names = re.findall(r"#\[(?:tokio::)?test[^\]]*\]\s*(?:async )?fn (\w+)", path.read_text())
    return name in names if name else bool(names)


def tables(page):
    """Each table's rows of cells, without head and rule."""
    for block in re.findall(r"(?:^\|.*\n)+", page, re.MULTILINE):
        yield [[cell.strip() for cell in line[1:-1].split("|")] for line in block.splitlines()[2:]]


def problems(page):
    for file, name in NAMED.findall(page):
        if not exists(file, name):
            yield f"there is no test {file}: {name}"
    for rows in tables(page):
        if not any(row[0] == "" for row in rows):
            for row in rows:
                if not NAMED.search(row[-1]):
                    yield f"no test shows: {row[0]}"
            continue
        for statements, tests in zip(rows[::2], rows[1::2], strict=True):
            for statement, test in zip(statements[1:], tests[1:], strict=True):
                if bool(statement) != bool(NAMED.search(test)):
                    yield f"no test shows, or no statement has the test: {statements[0]}: {statement}"


def planted(page):
    """The check itself: what is wrong is found."""
    test = NAMED.search(page).group(0)
    for what, changed in [
        ("a test that is not there", page.replace(test, "`wire_basics: no_such_test`", 1)),
        ("a statement without a test", page.replace(test, "", 1)),
        ("a promise without a test", re.sub(r"\| expiry \|.*", "| expiry | |", page)),
    ]:
        if changed == page or not list(problems(changed)):
            yield f"self-test: {what} is not noticed"


ATTACKS = ["security.md", "access.md", "limits.md"]


def attacks(page):
    """Each row of a table of attacks names tests through the wire that exist, or unit tests of ops and storage."""
    for file, name in NAMED.findall(page):
        if not exists(file, name):
            yield f"there is no test {file}: {name}"
    _, _, rest = page.partition("\n## Attacks\n")
    for rows in tables(rest.partition("\n## ")[0]):
        for row in rows:
            if not re.search(r"`(?:wire_\w+|slow_\w+|ops|storage|cluster|node)\b", row[-1]):
                yield f"no test shows what happens: {row[0]}"


def main():
    page = (ROOT / "ops/docs/guarantees.md").read_text()
    found = list(problems(page)) + list(planted(page))
    for name in ATTACKS:
        found.extend(f"{name}: {problem}" for problem in attacks((ROOT / "ops/docs" / name).read_text()))
    security = (ROOT / "ops/docs/security.md").read_text()
    test = NAMED.search(security.partition("\n## Attacks\n")[2]).group(0)
    for changed in [security.replace(test, "`wire_auth: no_such_test`"), security.replace(test, "")]:
        if changed == security or not list(attacks(changed)):
            found.append("self-test: an attack without a test is not noticed")
    for file in re.findall(r"`((?:wire|slow)_\w+)`", (ROOT / "README.md").read_text()):
        if not exists(file):
            found.append(f"README names {file}, which has no tests")
    if found:
        raise SystemExit("\n".join(found))
    print(f"{len(NAMED.findall(page))} tests stand behind what is guaranteed")


main()
