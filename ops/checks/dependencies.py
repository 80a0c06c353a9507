#!/usr/bin/env python3
"""Licences and duplicate versions of all dependencies, offline, from `cargo metadata`.

    cargo metadata --offline --locked --format-version 1 | ops/checks/dependencies.py ops/checks/dependencies.toml

Fails on a licence that dependencies.toml does not allow, on a second version of a crate that it does not list, and on
an entry of it that is no longer needed. Dependencies for other operating systems count too: the lock file brings them.
"""

import collections
import json
import re
import sys
import tomllib


def allowed(expression, licences):
    """Whether an SPDX expression can be fulfilled with `licences`: OR needs one side, AND both."""
    # Old crates write `MIT/Apache-2.0` for OR.
    tokens = re.findall(r"\(|\)|[^\s()]+", expression.replace("/", " OR "))
    position = 0

    def peek():
        return tokens[position] if position < len(tokens) else None

    def take():
        nonlocal position
        position += 1
        return tokens[position - 1]

    def either():
        good = both()
        while peek() == "OR":
            take()
            good = both() or good
        return good

    def both():
        good = one()
        while peek() == "AND":
            take()
            good = one() and good
        return good

    def one():
        if peek() == "(":
            take()
            good = either()
            take()
            return good
        name = take()
        if peek() == "WITH":
            take()
            name = f"{name} WITH {take()}"
        return name in licences

    return either() and position == len(tokens)


def problems(packages, reviewed):
    foreign = [package for package in packages if package["source"] is not None]
    licences, exceptions = set(reviewed["licences"]["allowed"]), reviewed["licences"]["exceptions"]
    used = set()
    for package in foreign:
        name, licence = package["name"], package["license"]
        if licence and allowed(licence, licences):
            continue
        used.add(name)
        if exceptions.get(name) != (licence or ""):
            yield f"{name} {package['version']}: its licence, {licence or 'none'}, is not among the allowed ones"
    for name in exceptions.keys() - used:
        yield f"licences.exceptions: {name} is not needed any more"

    versions = collections.defaultdict(set)
    for package in foreign:
        versions[package["name"]].add(package["version"])
    duplicates = {name: found for name, found in versions.items() if len(found) > 1}
    for name in sorted(duplicates.keys() - reviewed["duplicates"].keys()):
        yield f"{name} is there in {len(duplicates[name])} versions: {', '.join(sorted(duplicates[name]))}"
    for name in sorted(reviewed["duplicates"].keys() - duplicates.keys()):
        yield f"duplicates: {name} is there in one version only; delete the line"


def self_test():
    licences = {"MIT", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "Unicode-3.0"}
    good = ["MIT", "MIT/Apache-2.0", "GPL-3.0 OR MIT", "(MIT OR GPL-3.0) AND Unicode-3.0", "Apache-2.0 WITH LLVM-exception OR X"]
    bad = ["GPL-3.0", "MIT AND GPL-3.0", "Apache-2.0 WITH X", "(MIT OR Apache-2.0) AND GPL-3.0", "MIT MIT"]
    assert all(allowed(expression, licences) for expression in good)
    assert not any(allowed(expression, licences) for expression in bad)


def main():
    self_test()
    with open(sys.argv[1], "rb") as file:
        reviewed = tomllib.load(file)
    packages = json.load(sys.stdin)["packages"]
    found = list(problems(packages, reviewed))
    for problem in found:
        print(f"{sys.argv[1]}: {problem}", file=sys.stderr)
    if found:
        print("review it: change the dependency, or say in that file why it is good", file=sys.stderr)
        sys.exit(1)
    foreign = sum(package["source"] is not None for package in packages)
    print(f"{foreign} dependencies: licences allowed, {len(reviewed['duplicates'])} duplicates, all reviewed")


main()
