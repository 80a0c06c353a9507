# Installs what is missing, and nothing that is there. Sourced by ops/test, ops/quickstart and ops/bench/compare.
# Debian and its relatives; elsewhere it says what is needed.
# shellcheck shell=bash

missing_packages=()

# need COMMAND PACKAGE: the package is installed if the command is not there.
need() {
    command -v "$1" >/dev/null 2>&1 || missing_packages+=("$2")
}

need_rust() {
    if ! command -v cargo >/dev/null 2>&1; then
        echo "cargo is missing: install Rust 1.95 or newer (rustup is the usual way), then run this again" >&2
        return 1
    fi
}

need_rust_component() {
    if ! cargo "$1" --version >/dev/null 2>&1; then
        echo "cargo $1 is missing: run 'rustup component add ${2:-$1}', then run this again" >&2
        return 1
    fi
}

# What compiles RocksDB: C++, and libclang for its bindings.
need_build_tools() {
    need cc gcc
    need c++ g++
    need make make
    # The names that bindgen looks for; libclang-cpp.so, which other packages bring, is another library.
    local directory
    for directory in /usr/lib/llvm-*/lib /usr/lib/* /usr/lib; do
        if compgen -G "$directory/libclang.so*" >/dev/null || compgen -G "$directory/libclang-[0-9]*.so*" >/dev/null; then
            return
        fi
    done
    missing_packages+=(libclang-dev)
}

install_missing() {
    [ "${#missing_packages[@]}" -gt 0 ] || return 0
    local as_root=()
    if [ "$(id -u)" -ne 0 ]; then
        as_root=(sudo)
        command -v sudo >/dev/null 2>&1 || as_root=(false)
    fi
    echo "installing: ${missing_packages[*]}"
    if ! command -v apt-get >/dev/null 2>&1 ||
        ! "${as_root[@]}" apt-get update -qq ||
        ! "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
            "${missing_packages[@]}" >/dev/null; then
        echo "could not install them: install these Debian packages (or their like), then run this again:" \
            "${missing_packages[*]}" >&2
        return 1
    fi
    missing_packages=()
}
