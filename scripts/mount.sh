#!/bin/sh
# For a deploy, before the application starts: mount, and return 0 only when the mount answers.
#
#   scripts/mount.sh MOUNTPOINT [flags of `sessfs mount`]
#
# Already mounted and well is fine (exit 0). A mount left dead by a killed daemon is cleaned and recovered.
# The program is SESSFS_BIN, else .venv/bin/sessfs of this checkout, else `sessfs` in PATH.
set -eu

[ $# -ge 1 ] || { echo "usage: mount.sh MOUNTPOINT [flags of sessfs mount]" >&2; exit 2; }
here=$(cd "$(dirname "$0")/.." && pwd)
sessfs=${SESSFS_BIN:-}
unset SESSFS_BIN
if [ -z "$sessfs" ]; then
    sessfs=$here/.venv/bin/sessfs
    [ -x "$sessfs" ] || sessfs=sessfs
fi
if "$sessfs" status "$1" --json >/dev/null 2>&1; then
    echo "$1 is mounted already"
    exit 0
fi
exec "$sessfs" mount "$@"
