# shellcheck shell=bash
#
# Shared by scripts/serve and scripts/test: one Python environment per purpose, installed when what
# it is made from has changed, and left alone otherwise. Sourced by bash; sets `root`.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)

say() {
    printf '%s\n' "$*" >&2
}

# Ends the script with one line: what is wrong and what to do about it.
die() {
    say "${0##*/}: $*"
    exit 1
}

# Runs a command as root: as it is, or through sudo where that asks for no password.
as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    else
        sudo -n "$@"
    fi
}

# True where Debian's packages can be installed without asking anybody.
can_apt() {
    command -v apt-get >/dev/null || return 1
    [ "$(id -u)" -eq 0 ] || sudo -n true 2>/dev/null
}

apt_install() {
    say "Installing from Debian's packages: $*"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get update -qq </dev/null >&2 &&
        as_root env DEBIAN_FRONTEND=noninteractive \
            apt-get install -y -qq --no-install-recommends "$@" </dev/null >&2
}

is_python_new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

# Prints the path of a Python from 3.11 on. $PYTHON names one to use instead.
find_python() {
    local candidate
    if [ -n "${PYTHON:-}" ]; then
        is_python_new_enough "$PYTHON" || die "PYTHON=$PYTHON is not a Python from 3.11 on"
        command -v "$PYTHON"
        return
    fi
    for candidate in python3 python3.14 python3.13 python3.12 python3.11 python; do
        if is_python_new_enough "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    die "no Python from 3.11 on was found; install one (on Debian: apt-get install python3 python3-venv)" \
        "or name it: PYTHON=/path/to/python3 ${0##*/}"
}

# Debian ships `venv` without what puts pip into the new environment.
ensure_venv_module() {
    local python=$1 version
    "$python" -c 'import ensurepip, venv' 2>/dev/null && return
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    if can_apt && apt_install "python$version-venv" && "$python" -c 'import ensurepip' 2>/dev/null; then
        return
    fi
    die "$python has no venv module; install it (on Debian: apt-get install python$version-venv)"
}

# What an environment is made from. It doesn't survive a move of the project's folder, nor another
# Python.
recipe() {
    printf '%s\n' "$root" "${PYTHON:-}" "$1"
    cat "$root/setup.cfg" "$root/pyproject.toml" "$root/constraints.txt"
}

# True where FOLDER holds a finished installation that can be brought up to date in place.
is_environment_usable() {
    [ -f "$1/.recipe" ] && "$1/bin/python" -c '' 2>/dev/null &&
        printf '%s\n' "$root" "${PYTHON:-}" | cmp -s - <(head -n 2 "$1/.recipe")
}

# ensure_environment FOLDER EXTRAS: FOLDER (in the project) has the project installed in place, with
# EXTRAS. Takes a few milliseconds when that is so already.
ensure_environment() {
    local venv=$root/$1 extras=$2 python
    if recipe "$extras" | cmp -s - "$venv/.recipe" && "$venv/bin/python" -c '' 2>/dev/null; then
        return
    fi
    if ! is_environment_usable "$venv"; then
        python=$(find_python) || exit 1
        ensure_venv_module "$python"
        rm -rf "$venv"
        "$python" -m venv "$venv" || die "$python could not make an environment in $venv"
    fi
    # Gone until the end: an installation that was cut off is made anew.
    rm -f "$venv/.recipe"
    say "Installing into $1, which takes a minute the first time ..."
    (
        cd "$root" &&
            "$venv/bin/python" -m pip install -qq --disable-pip-version-check --no-input \
                --constraint constraints.txt --editable ".[$extras]" </dev/null >&2
    ) || die "installing failed, for the reason above; when that is mended, run it again"
    recipe "$extras" >"$venv/.recipe"
}
