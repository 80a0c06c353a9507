#!/usr/bin/env bash
# What must not stand in the tree: paths of a machine that somebody developed on, and hosts that packages come from.
# Patterns have a bracket in them so that they do not find themselves. Cargo.lock names its source by its nature.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

patterns=(
    '/wor[k]/'
    '/roo[t]/'
    '/home/[a-z]'
    '\.\./share[d]\b'
    'crates[.]io'
    'pypi[.]org'
    'pythonhosted[.]org'
    'npmjs[.]org'
    'deb[.]debian[.]org'
    'proxy[.]golang[.]org'
)

expression=$(IFS='|' && echo "${patterns[*]}")
# Before the first commit there is nothing tracked: then what would be.
if found=$(git ls-files -z --cached --others --exclude-standard -- . ':!Cargo.lock' | xargs -0 grep -nEI -- "$expression"); then
    echo "these lines name a registry's host or a path of a development machine:" >&2
    echo "$found" >&2
    exit 1
fi
echo "no registry host, no development path"
