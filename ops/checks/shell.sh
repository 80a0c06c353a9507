#!/usr/bin/env bash
# Every shell script parses; where shellcheck is installed, it finds nothing either.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

mapfile -d '' files < <(git ls-files -z --cached --others --exclude-standard)
scripts=()
for file in "${files[@]}"; do
    [ -f "$file" ] || continue
    case "$file" in
    *.sh) scripts+=("$file") ;;
    *) if head -c 64 "$file" | head -n 1 | tr -d '\0' | grep -qE '^#!.*\b(bash|sh)\b'; then scripts+=("$file"); fi ;;
    esac
done

for script in "${scripts[@]}"; do
    bash -n "$script"
done
if command -v shellcheck >/dev/null 2>&1; then
    shellcheck "${scripts[@]}"
fi
echo "${#scripts[@]} shell scripts parse"
