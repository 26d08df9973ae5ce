#!/bin/sh
# Make this machine fit to run or to test sessfs: packages of the distribution, then a virtual environment.
#
#   scripts/bootstrap.sh run|test|install [VENV]
#
# run: what a mount needs, and VENV (./.venv) with the checkout in it. test: also what the tests need.
# install: VENV (/opt/sessfs) with a copy of sessfs, not bound to the checkout.
# On Debian and its children missing packages are installed with apt-get, as root or through sudo. Elsewhere they are
# named, and nothing is changed. Running it again is quick and harmless.
set -eu

what=${1:?usage: bootstrap.sh run|test|install [VENV]}
here=$(cd "$(dirname "$0")/.." && pwd)
venv=${2:-$here/.venv}
node_major=18

say() { printf 'sessfs: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }

# The newest Python that is at least 3.11, or nothing.
find_python() {
    for python in python3 python3.13 python3.12 python3.11 python3.14; do
        if have "$python" && "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$python"
            return
        fi
    done
}

python_has_headers() {
    "$1" -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")))'
}

compiles() {
    # Through a pipe: the compiler may be there without the C library's headers.
    have gcc && printf '#include <stdio.h>\n' | gcc -E - >/dev/null 2>&1
}

node_is_new_enough() {
    have node && node -e "process.exit(parseInt(process.versions.node, 10) >= $node_major ? 0 : 1)" >/dev/null 2>&1
}

# What is missing, one word each; the words are keys of package_names.
missing() {
    python=$(find_python)
    if [ -z "$python" ]; then
        echo python venv headers
    else
        "$python" -c 'import venv, ensurepip' >/dev/null 2>&1 || echo venv
        python_has_headers "$python" || echo headers
    fi
    compiles || echo compiler
    have pkg-config || echo pkgconfig
    if ! have pkg-config || ! pkg-config --exists fuse3; then echo fusedev; fi
    have fusermount3 || echo fuse
    if [ "$what" = test ]; then
        have chromium || [ -n "${CHROMIUM:-}" ] || echo chromium
        if ! node_is_new_enough; then echo node npm; elif ! have npm; then echo npm; fi
        have zstd || echo zstd
        have git || echo git
        have rsync || echo rsync
    fi
}

# package_names DISTRIBUTION WORD...: its packages for what is missing.
package_names() {
    family=$1
    shift
    for word in "$@"; do
        case $family:$word in
            debian:python) echo python3 ;;
            debian:venv) echo python3-venv ;;
            debian:headers) echo python3-dev ;;
            debian:compiler) echo gcc libc6-dev ;;
            debian:pkgconfig) echo pkg-config ;;
            debian:fusedev) echo libfuse3-dev ;;
            debian:node) echo nodejs ;;
            fedora:python | fedora:venv) echo python3 ;;
            fedora:headers) echo python3-devel ;;
            fedora:compiler) echo gcc glibc-devel ;;
            fedora:pkgconfig) echo pkgconf-pkg-config ;;
            fedora:fusedev) echo fuse3-devel ;;
            fedora:node | fedora:npm) echo nodejs ;;
            arch:python | arch:venv | arch:headers) echo python ;;
            arch:compiler) echo gcc ;;
            arch:pkgconfig) echo pkgconf ;;
            arch:fusedev | arch:fuse) echo fuse3 ;;
            arch:node) echo nodejs ;;
            suse:python | suse:venv) echo python311 ;;
            suse:headers) echo python311-devel ;;
            suse:compiler) echo gcc glibc-devel ;;
            suse:pkgconfig) echo pkg-config ;;
            suse:fusedev) echo fuse3-devel ;;
            suse:node) echo nodejs ;;
            alpine:python | alpine:venv) echo python3 ;;
            alpine:headers) echo python3-dev ;;
            alpine:compiler) echo gcc musl-dev ;;
            alpine:pkgconfig) echo pkgconf ;;
            alpine:fusedev) echo fuse3-dev ;;
            alpine:node) echo nodejs ;;
            *:fuse) echo fuse3 ;;
            *:python | *:venv) echo "Python 3.11 or newer with venv;" ;;
            *:headers) echo "Python's C headers;" ;;
            *:compiler) echo "gcc with the C library's headers;" ;;
            *:pkgconfig) echo "pkg-config;" ;;
            *:fusedev) echo "the headers of libfuse 3;" ;;
            *) echo "$word" ;;
        esac
    done | tr '\n' ' '
}

install_command() {
    case $1 in
        fedora) echo "dnf install" ;;
        arch) echo "pacman -S" ;;
        suse) echo "zypper install" ;;
        alpine) echo "apk add" ;;
        *) echo "install:" ;;
    esac
}

distribution() {
    ids=unknown
    if [ -r /etc/os-release ]; then
        ids=$(. /etc/os-release && echo "${ID:-unknown} ${ID_LIKE:-}")
    fi
    case " $ids " in
        *" debian "* | *" ubuntu "*) echo debian ;;
        *" fedora "* | *" rhel "* | *" centos "*) echo fedora ;;
        *" arch "*) echo arch ;;
        *" suse "* | *" opensuse "* | *" opensuse-tumbleweed "*) echo suse ;;
        *" alpine "*) echo alpine ;;
        *) echo unknown ;;
    esac
}

apt_install() {
    sudo=
    if [ "$(id -u)" != 0 ]; then
        have sudo || fail "missing: $*. Run this as root, or as root: apt-get install $*"
        sudo=sudo
    fi
    say "installing $*"
    $sudo apt-get update -q >&2 || say "apt-get update failed; trying with the package lists that are here"
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "$@" >&2 ||
        fail "apt-get could not install: $*. Its messages are above"
}

words=$(missing)
if [ -n "$words" ]; then
    family=$(distribution)
    # shellcheck disable=SC2086  # words without spaces in them
    packages=$(package_names "$family" $words)
    if [ "$family" != debian ] || ! have apt-get; then
        fail "this is not Debian 12 or 13, so install what is missing yourself: $(install_command "$family") $packages"
    fi
    # shellcheck disable=SC2086
    apt_install $packages
    words=$(missing)
    [ -z "$words" ] || fail "still missing after installing packages: $(echo "$words" | tr '\n' ' '). Is another \
python3 or node before Debian's in PATH? This one is $(find_python)"
fi

python=$(find_python)
case $what in
    test) wanted=".[dev]" editable=-e ;;
    install) wanted="." editable= ;;
    *) wanted="." editable=-e ;;
esac
stamp=$venv/.sessfs-$what
now="$("$python" -V) $(cksum <"$here/pyproject.toml") $here"
if [ "$what" != install ] && [ -x "$venv/bin/sessfs" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$now" ] &&
    "$venv/bin/python" -c 'import pyfuse3, sessfs' 2>/dev/null; then
    exit 0
fi
if ! "$venv/bin/python" -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    say "making the virtual environment $venv"
    "$python" -m venv --clear "$venv" || fail "$python could not make the virtual environment $venv"
fi
say "installing Python packages into $venv (the first time this takes a minute or two)"
cd "$here"
# shellcheck disable=SC2086
"$venv/bin/python" -m pip install --disable-pip-version-check -q $editable "$wanted" >&2 ||
    fail "pip could not install sessfs and what it needs into $venv; its messages are above"
"$venv/bin/python" -c 'import pyfuse3, sessfs' || fail "pyfuse3 does not load from $venv: remove it, and run this again"
# As pip does with what it installs, but not with a checkout: where PYTHONDONTWRITEBYTECODE is set, as it often is in
# containers, each start would compile it again.
"$venv/bin/python" -m compileall -q "$here/sessfs" || say "sessfs could not be compiled ahead; it starts slower"
printf '%s\n' "$now" >"$stamp"
