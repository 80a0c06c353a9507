#!/usr/bin/env bash
# Alerts are well formed, fire when they should and only then; they and the dashboard name only metrics that there are.
# Needs promtool (Debian package prometheus) and python3.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

promtool check rules ops/alerts/lontra.rules.yml
promtool test rules ops/alerts/lontra.rules.test.yml
python3 ops/checks/alerts.py
python3 ops/checks/alerts.py --self-test
echo "alerts, dashboard, runbook and metrics agree"
