#!/usr/bin/env bash
# What is shipped for deployment is right, as far as can be told without systemd and without building an image: the example
# configuration, the unit, the Dockerfile. Each check is shown to fail on a broken copy first.
#
#   ops/checks/deploy.sh LONTRA     the binary
set -euo pipefail
lontra=$(realpath "${1:?usage: ops/checks/deploy.sh LONTRA}")
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# An environment of its own: no LONTRA__SECTION__KEY of whoever runs this.
lontra() { env -i "$lontra" "$@"; }

# check_fails WHAT WORDS COMMAND...: the command must fail, and say WORDS.
check_fails() {
    local what=$1 words=$2
    shift 2
    if "$@" >"$scratch/said" 2>&1; then
        echo "the check does not notice: $what" >&2
        exit 1
    fi
    if ! grep -qF -- "$words" "$scratch/said"; then
        echo "the check fails for another reason than: $what" >&2
        cat "$scratch/said" >&2
        exit 1
    fi
}

# The unit with the binary where this machine has one; a user that need not exist here.
unit() {
    mkdir -p "$scratch/unit"
    sed -e "s|/usr/local/bin/lontra|$lontra|" -e '/^User=/d' -e '/^Group=/d' "$1" >"$scratch/unit/lontra.service"
    local said
    # Warnings count: a misspelt directive is one. Other units of this machine are not ours.
    said=$(systemd-analyze verify --man=no --recursive-errors=no "$scratch/unit/lontra.service" 2>&1) || {
        echo "$said" >&2
        return 1
    }
    if grep -F lontra.service <<<"$said" >&2; then return 1; fi
    # 10 is nothing protected, 0 everything; in tenths.
    systemd-analyze security --offline=yes --no-pager --threshold="$EXPOSURE_MAX" "$scratch/unit/lontra.service" >&2 || return 1
    local command arguments
    while IFS= read -r command; do
        read -ra arguments <<<"$command"
        lontra "${arguments[@]:1}" --help >/dev/null || return 1
    done < <(sed -n 's/^Exec[A-Za-z]*=//p' "$1" | grep -F /lontra)
}
EXPOSURE_MAX=25

dockerfile() { python3 ops/checks/dockerfile.py "$1" "$lontra" <"$scratch/default.toml"; }

# broken FILE SED-EXPRESSION: a copy, which must differ.
broken() {
    sed -E -e "$2" "$1" >"$scratch/broken"
    if cmp -s "$1" "$scratch/broken"; then
        echo "nothing to break in $1: $2" >&2
        exit 1
    fi
}

lontra config show >"$scratch/default.toml"
lontra config check --config ops/deploy/lontra.toml

check_unit_notices() {
    broken ops/deploy/lontra.service "$2"
    check_fails "$2 in the unit" "$1" unit "$scratch/broken"
}
check_unit_notices LimitNOFIL 's/^LimitNOFILE=/LimitNOFIL=/'
check_unit_notices "is not executable" 's|^ExecStart=/usr/local/bin/lontra|ExecStart=/nowhere/at/all|'
check_unit_notices "unrecognized subcommand" 's/ serve / server /'
check_unit_notices "PrivateDevices" 's/^(Protect|Private|Restrict|System|Capability).*//'
unit ops/deploy/lontra.service 2>"$scratch/said" || { cat "$scratch/said" >&2; exit 1; }
echo "the unit is good"

check_dockerfile_notices() {
    broken ops/deploy/Dockerfile "$2"
    check_fails "$2 in the Dockerfile" "$1" dockerfile "$scratch/broken"
}
check_dockerfile_notices "name a tag" 's/^FROM debian:.*/FROM debian/'
check_dockerfile_notices "name a tag" 's/^(FROM debian):.*/\1:latest/'
check_dockerfile_notices "registry's host" 's/^FROM debian/FROM images.example.org\/debian/'
check_dockerfile_notices "runs as root" '/^USER/d'
check_dockerfile_notices "runs as root" 's/^USER.*/USER root/'
check_dockerfile_notices "no-install-recommends" 's/ --no-install-recommends//'
check_dockerfile_notices "EXPOSE" 's/1883\/tcp/1884\/tcp/'
check_dockerfile_notices "is not in the sources" 's/^COPY storage storage/COPY storag storage/'
check_dockerfile_notices "no such stage" 's/--from=build/--from=built/'
check_dockerfile_notices "no such subcommand" 's/"serve"/"server"/'
check_dockerfile_notices "HEALTHCHECK" 's/lontra cluster status/lontra cluster state/'
check_dockerfile_notices "VOLUME" '/^VOLUME/d'
dockerfile ops/deploy/Dockerfile
echo "the Dockerfile is good"
