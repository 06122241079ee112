# Shared by the scripts in this folder; sourced, never run. Sets ROOT and works from there.
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$ROOT"
VENV=$ROOT/.venv
CACHE=$ROOT/.cache
mkdir -p "$CACHE"

# A user's pip settings may name a mirror, which we keep, or another place to install to, which would leave .venv empty.
unset PIP_TARGET PIP_PREFIX PIP_ROOT PYTHONHOME PYTHONPATH
export PIP_USER=0 PIP_REQUIRE_VIRTUALENV=0 PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore

# A variable of the caller's cluster must not reach the clusters that the scripts start.
unset CLUSTER_ADDRESS CLUSTER_DIR CLUSTER_TOKEN CLUSTER_TOKEN_FILE

say() { printf '\n==> %s\n' "$*" >&2; }
die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

# The content of the named files and folders, as one hash. Untracked files count, ignored ones do not.
tree_hash() {
    {
        if git rev-parse --is-inside-work-tree >/dev/null 2>&1; then
            git ls-files -z --cached --others --exclude-standard -- "$@"
        else
            find "$@" -type f -not -path '*/target/*' -print0
        fi
    } | sort -zu | while IFS= read -r -d '' file; do
        if [ -f "$file" ]; then printf '%s\0' "$file"; fi
    done | xargs -0 -r sha256sum | sha256sum | cut -c1-32
}

# fresh NAME KEY: is what NAME stands for already made from exactly KEY?
fresh() { [ "$(cat "$CACHE/$1.stamp" 2>/dev/null)" = "$2" ]; }
stamp() { printf '%s' "$2" >"$CACHE/$1.stamp"; }

find_python() {
    local candidate
    for candidate in ${PYTHON:-} python3 python3.14 python3.13 python3.12 python3.11; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            # Of an activated environment, .venv among them, what it was made with: .venv cannot be remade from itself.
            "$candidate" -c 'import os, sys; print(os.path.realpath(getattr(sys, "_base_executable", "") or sys.executable))'
            return
        fi
    done
    die "Python 3.11 or newer is needed; found $(python3 --version 2>/dev/null || echo none). Install it, or name it: PYTHON=/path/to/python3 $0"
}

# The calling script's own first comment, as its help.
usage() { sed -n '2,/^[^#]/{s/^# \{0,1\}//p}' "$0"; }

at_least() { [ "$(printf '%s\n' "$1" "$2" | sort --version-sort | head -n 1)" = "$2" ]; }

find_cargo() {
    # A toolchain that was just installed is often not in a non-interactive shell's PATH yet.
    command -v cargo >/dev/null || PATH="${CARGO_HOME:-${HOME:-/root}/.cargo}/bin:$PATH"
    command -v cargo >/dev/null || die "cargo is not installed. Install a stable Rust toolchain with rustup (https://rustup.rs), then run this again."
    command -v cc >/dev/null || die "a C linker (cc) is not installed. On Debian or Ubuntu: apt-get install gcc libc6-dev"
    # The etcd client compiles etcd's own .proto files, which takes a compiler and the files that they import.
    protoc_works || apt_install protobuf-compiler libprotobuf-dev
    local wanted found
    wanted=$(sed -n 's/^channel = "\(.*\)"/\1/p' rust-toolchain.toml)
    if command -v rustup >/dev/null && [ -z "${RUSTUP_TOOLCHAIN:-}" ]; then use_toolchain "$wanted"; fi
    found=$(rustc --version | cut -d ' ' -f 2) || die "rustc does not run; see above"
    at_least "$found" "$wanted" || die "Rust $wanted or newer is needed; $(command -v rustc) is $found. Install a newer one with rustup (https://rustup.rs), then run this again."
}

protoc_works() {
    printf 'syntax = "proto3"; import "google/protobuf/descriptor.proto";' >"$CACHE/probe.proto"
    "${PROTOC:-protoc}" -I "$CACHE" --descriptor_set_out=/dev/null "$CACHE/probe.proto" >/dev/null 2>&1
}

# The pinned toolchain; or, where it cannot be had, an installed one that is new enough.
use_toolchain() {
    local wanted=$1 stable
    [[ $'\n'$(RUSTUP_AUTO_INSTALL=0 rustup toolchain list 2>/dev/null) != *$'\n'"$wanted"* ]] || return 0
    if [ "${RUSTUP_AUTO_INSTALL:-1}" != 0 ]; then
        say "installing Rust $wanted"
        ! rustup toolchain install "$wanted" --profile minimal --component rustfmt --component clippy --no-self-update >&2 || return 0
    fi
    stable=$(rustup run stable rustc --version 2>/dev/null | cut -d ' ' -f 2) || true
    [ -n "$stable" ] && at_least "$stable" "$wanted" ||
        die "the Rust toolchain $wanted is not installed. Run: rustup toolchain install $wanted"
    export RUSTUP_TOOLCHAIN=stable
}

# apt_install PACKAGE...: Debian packages, with whatever right to install them this user has.
apt_install() {
    command -v apt-get >/dev/null || die "please install: $* (no apt-get on this machine to do it with)"
    local as_root=()
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null || die "please install, as root: apt-get install $*"
        as_root=(sudo)
    fi
    say "installing $*"
    local install=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends install "$@")
    # Lists may be missing or stale on a fresh machine: refresh them only where the first try shows it.
    "${install[@]}" </dev/null >"$CACHE/apt.log" 2>&1 || {
        "${as_root[@]}" apt-get -qq update </dev/null >>"$CACHE/apt.log" 2>&1 || true
        "${install[@]}" </dev/null >>"$CACHE/apt.log" 2>&1 || die "could not install $*; see .cache/apt.log"
    }
}

# need_commands COMMAND=PACKAGE...: installs the packages whose command is missing, all at once.
need_commands() {
    local pair missing=()
    PATH="$PATH:/usr/sbin:/sbin"
    for pair in "$@"; do
        command -v "${pair%%=*}" >/dev/null || missing+=("${pair#*=}")
    done
    [ ${#missing[@]} -eq 0 ] || apt_install "${missing[@]}"
}

# make_venv FOLDER REQUIREMENTS: an environment that holds exactly these packages' versions.
make_venv() {
    local folder=$1 requirements=$2 name python key
    name=venv-$(basename "$folder")
    python=$(find_python)
    key="$("$python" -VV | tr -d '\n') $python $(sha256sum <"$requirements") $folder"
    if fresh "$name" "$key" && [ -x "$folder/bin/python" ]; then return; fi
    say "making $(basename "$folder") with $("$python" --version)"
    "$python" -c 'import ensurepip' 2>/dev/null ||
        apt_install "python$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv"
    rm -rf "$folder"
    "$python" -m venv "$folder"
    "$folder/bin/python" -m pip install --quiet -r "$requirements"
    stamp "$name" "$key"
}
