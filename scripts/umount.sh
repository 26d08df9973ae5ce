#!/bin/sh
# For a deploy, after the application has stopped: unmount, and return 0 only when everything is durable on this disk.
# Where the disk is given up after that, `sessfs sync MOUNTPOINT` comes first.
#
#   scripts/umount.sh MOUNTPOINT [--timeout S]
#
# Not mounted is fine (exit 0). If processes have files open there, they are named, and the exit code is 17.
# The program is SESSFS_BIN, else .venv/bin/sessfs of this checkout, else `sessfs` in PATH.
set -eu

[ $# -ge 1 ] || { echo "usage: umount.sh MOUNTPOINT [--timeout S]" >&2; exit 2; }
here=$(cd "$(dirname "$0")/.." && pwd)
sessfs=${SESSFS_BIN:-}
unset SESSFS_BIN
if [ -z "$sessfs" ]; then
    sessfs=$here/.venv/bin/sessfs
    [ -x "$sessfs" ] || sessfs=sessfs
fi
code=0
"$sessfs" umount "$@" || code=$?
if [ "$code" = 16 ]; then
    exit 0
fi
exit "$code"
