#!/usr/bin/env python3
"""Whether dashboard and alerts speak of what there is.

    alerts.py                  names of metrics, against what node/tests/wire/wire_basics.rs finds exported (it fails on any difference);
                               each alert has a paragraph in the runbook, and a test of both ways
    alerts.py --self-test      the same checks reject what is planted
"""

import json
import re
import sys
from pathlib import Path

RULES = "ops/alerts/lontra.rules.yml"
TESTS = "ops/alerts/lontra.rules.test.yml"
DASHBOARD = "ops/dashboards/lontra.json"
RUNBOOK = "ops/docs/runbooks.md"
METRICS = "node/tests/wire/wire_basics.rs"


def exported(source):
    """The families of `METRICS` in the test `every_exported_metric_moves`."""
    table = source.split("const METRICS: &[(&str, &str)] = &[", 1)[1].split("\n];", 1)[0]
    return set(re.findall(r'"(lontra_[a-z_]+)"', table))


def named(text, families):
    """Metrics that a text names and that nobody exports. A histogram has three more names."""
    unknown = set()
    for name in set(re.findall(r"\blontra_[a-zA-Z0-9_]+", text)):
        if name not in families and re.sub(r"_(bucket|sum|count)$", "", name) not in families:
            unknown.add(name)
    return unknown


def expressions(dashboard):
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            yield target["expr"]
    for variable in dashboard["templating"]["list"]:
        yield variable["query"]


def problems(metrics, rules, tests, dashboard, runbook):
    families = exported(metrics)
    if len(families) < 30:
        yield f"{METRICS}: only {len(families)} metrics found: has its table another form now?"
    for path, text in [(RULES, rules), (TESTS, tests), (DASHBOARD, "\n".join(expressions(json.loads(dashboard))))]:
        for name in sorted(named(text, families)):
            yield f"{path}: nobody exports {name}"
    alerts = re.findall(r"^\s*- alert: (\w+)$", rules, re.MULTILINE)
    if len(set(alerts)) != len(alerts) or not alerts:
        yield f"{RULES}: no alerts, or one of them twice"
    headings = set(re.findall(r"^## (\w+)$", runbook, re.MULTILINE))
    for alert in alerts:
        if alert not in headings:
            yield f"{RUNBOOK}: no paragraph '## {alert}'"
        if f"runbook: {RUNBOOK}#{alert.lower()}" not in rules:
            yield f"{RULES}: {alert} does not link to its paragraph"
        outcomes = re.findall(rf"alertname: {alert}\n\s+eval_time: \S+\n\s+exp_alerts:( \[\])?", tests)
        if "" not in outcomes or " []" not in outcomes:
            yield f"{TESTS}: {alert} is not tested both ways, firing and not"
    for stale in sorted(headings - set(alerts)):
        yield f"{RUNBOOK}: there is no alert {stale}"


def self_test(texts):
    metrics, rules, tests, dashboard, runbook = texts
    planted = {
        "a metric in a rule": (metrics, rules.replace("lontra_lease_valid", "lontra_lease_valed"), tests, dashboard, runbook),
        "a metric in a test": (metrics, rules, tests.replace("lontra_link_up", "lontra_link_down"), dashboard, runbook),
        "a metric in the dashboard": (metrics, rules, tests, dashboard.replace("_publish_ack_", "_puback_"), runbook),
        "a metric that went away": (metrics.replace('"lontra_routes"', '"lontra_filters"'), *texts[1:]),
        "an alert without a paragraph": (metrics, rules, tests, dashboard, runbook.replace("## LontraLinkDown", "## Link")),
        "an alert that is never tested": (metrics, rules, tests.replace("alertname: LontraLinkDown", "alertname: Link"), dashboard, runbook),
    }
    for what, changed in planted.items():
        if changed == texts:
            yield f"self-test: {what}: nothing was planted"
        elif not list(problems(*changed)):
            yield f"self-test: {what} is not noticed"


def main():
    texts = tuple(Path(path).read_text(encoding="utf-8") for path in (METRICS, RULES, TESTS, DASHBOARD, RUNBOOK))
    found = list(self_test(texts) if "--self-test" in sys.argv[1:] else problems(*texts))
    for problem in found:
        print(problem, file=sys.stderr)
    sys.exit(1 if found else 0)


main()
