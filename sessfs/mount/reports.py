"""What a running mount says of itself: the answers behind `status` and `sessions`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from sessfs.sessions.usage import list_sessions, measure_session
from sessfs.sync.restore import UNSENT_SUFFIX
from sessfs.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sessfs.mount.policies import Policies
    from sessfs.mount.remote_side import RemoteSide
    from sessfs.types import Ino
    from sessfs.vfs.volume import Volume


NAMED_MAX = 10
"""So many sessions are named in a warning."""


def memory_bytes(pid: int) -> int:
    """Resident memory of a process, the file pages that it has mapped included. 0 when it is gone."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    except FileNotFoundError:
        return 0
    return 0


def status_report(
    volume: Volume, uptime_s: float, requests: Mapping[str, int], remote: RemoteSide | None, warn_total_bytes: int
) -> dict[str, Any]:
    """The keys of `sessfs status --json`, but for mountpoint and state directory."""
    # One walk for all that needs it: there may be a hundred thousand.
    listed = list_sessions(volume.inodes)
    users, total = len(listed), _total_bytes(volume, listed)
    totals = volume.reader.totals()
    files = logical = 0
    for _, counters in volume.inodes.iter_sessions():
        files += counters.files
        logical += counters.logical_bytes
    hot_logical = sum(inode.size for inode in volume.fileio.hot_inodes.values())
    hot = volume.fileio.hot_bytes()
    pids = [os.getpid(), *([volume.seal_pid] if volume.seal_pid else [])]
    return {
        "pid": os.getpid(),
        "version": VERSION,
        "uptime_seconds": round(uptime_s, 3),
        "users": users,
        "total_bytes": total,
        "average_bytes": total // users if users else 0,
        "sessions": users,
        "files": files,
        "logical_bytes": logical,
        "stored_bytes": totals.stored_bytes,
        "dedup_ratio": _ratio(max(logical - hot_logical, 0), totals.plain_bytes),
        "compression_ratio": _ratio(totals.plain_bytes, totals.stored_bytes),
        "hot_bytes": hot,
        "cache_bytes": hot + totals.stored_bytes,
        "memory_bytes": sum(memory_bytes(pid) for pid in pids),
        "requests": dict(sorted(requests.items())),
        **(remote.status() if remote is not None else {}),
        "warnings": [
            *_warnings(volume, listed),
            *total_warning(users, total, warn_total_bytes),
            *(remote.warnings() if remote is not None else []),
        ],
    }


def _total_bytes(volume: Volume, listed: Sequence[tuple[bytes, Ino]]) -> int:
    """The logical bytes of all *listed* sessions, one a user: what `du` would say without sessfs.

    Of a session that was not loaded from the remote yet, the bytes are not known, and count as none.
    """
    return sum(volume.inodes.session_counters(session).logical_bytes for _, session in listed)


def total_warning(users: int, total_bytes: int, warn_total_bytes: int) -> list[str]:
    """At most one line: all users together have more than was allowed for."""
    if total_bytes <= warn_total_bytes:
        return []
    return [
        f"all sessions ({users}) have {total_bytes / 1e9:.3g} GB together, more than --warn-total "
        f"({warn_total_bytes / 1e9:g} GB): `sessfs sessions --sort size` names the largest"
    ]


def _ratio(whole: int, part: int) -> float:
    return round(whole / part, 4) if part else 1.0


def _warnings(volume: Volume, listed: Sequence[tuple[bytes, Ino]]) -> list[str]:
    """What a person should know and do something about; *listed* are the sessions."""
    found = []
    if volume.committer.failed is not None:
        found.append(f"the last commit failed: {volume.committer.failed}; changes wait in memory")
    if volume.sealer.failed is not None:
        found.append(f"sealing fails: {volume.sealer.failed}; files stay as they are, uncompressed")
    found += [
        f"damage in the local chunks: {what}; `sessfs fsck` tells which files"
        for what in volume.sealer.set_aside[:NAMED_MAX]
    ]
    if volume.fileio.full_reason is not None:
        found.append(f"writers get ENOSPC: {volume.fileio.full_reason}; delete something, or give more room")
    unsent = [name.decode(errors="replace") for name, _ in listed if UNSENT_SUFFIX in name]
    if unsent:
        found.append(
            f"{', '.join(unsent[:NAMED_MAX])}: what this node had not sent of sessions that another one changed since; "
            "look at it, and remove it by `sessfs rm`"
        )
    return found


async def sessions_report(volume: Volume, remote: RemoteSide | None, policies: Policies) -> dict[str, Any]:
    """The answer behind `sessfs sessions`."""
    rows = []
    for name, session in list_sessions(volume.inodes):
        row = msgspec.to_builtins(await measure_session(volume.inodes, volume.references, name, session))
        if remote is not None:
            row |= remote.session_risk(session)
        row |= policies.session_row(session)
        rows.append(row)
    return {"sessions": rows}
