"""Laying out an archive in a process of its own: Python's tarfile and zipfile would keep the daemon from its requests.

It gets one line of JSON on its standard input, and ends when that does; it answers with lines of JSON: {"bytes": N}
while it goes on, then {"xattr": [DEVICE, INODE, NAME, VALUE]} for each that is carried, and {"done": true}; or
{"error": TEXT, "kind": KIND}.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import json
import logging
import os
import select
import shutil
import sys
import time
from typing import TYPE_CHECKING, NamedTuple

import trio

from sessfs.errors import LocalStoreError, SessfsError, StoreFull
from sessfs.local.parent import end_with_parent
from sessfs.sessions.importing_archives import ArchiveRefused, Limits, unpack
from sessfs.vfs.children import Child
from sessfs.vfs.space import DISK_RESERVE_BYTES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from sessfs.sessions.importing_archives import CarriedXattrs

log = logging.getLogger(__name__)
STAGING = "staging"
"""Below the state directory."""
SAY_EVERY_S = 0.2
RESERVE = DISK_RESERVE_BYTES
NICE = 5
FAILURES: dict[str, type[SessfsError]] = {"refused": ArchiveRefused, "full": StoreFull, "failed": LocalStoreError}
"""By KIND."""


def leftovers(state_dir: Path) -> list[Path]:
    """What imports that were killed have left, each to be given to `remove_unpacked`. Nobody may be importing now."""
    try:
        return sorted((state_dir / STAGING).iterdir())
    except FileNotFoundError:
        return []
    except OSError as exc:
        log.warning("what an import may have left in %s can't be looked at: %s", state_dir / STAGING, exc)
        return []


def remove_unpacked(tree: Path) -> None:
    """Remove what an import has unpacked. Blocks: for a thread. What can't be removed is logged, and stays until the
    next start; nothing is raised. Others may be importing into directories beside it.
    """
    try:
        _let_in(tree)
        shutil.rmtree(tree)
    except FileNotFoundError:
        pass
    except OSError as exc:
        log.warning("%s, which an import has left, can't be removed: %s", tree, exc)


def _let_in(tree: Path) -> None:
    """Directories have the modes that they have in the archive, and who is not root may need more to remove them."""
    with contextlib.suppress(OSError):
        tree.chmod(0o700)
    for path, names, _ in os.walk(tree):
        for name in names:
            directory = os.path.join(path, name)
            if not os.path.islink(directory):
                with contextlib.suppress(OSError):
                    os.chmod(directory, 0o700)


def clear_staging(state_dir: Path) -> None:
    """Remove what imports that were killed have left. Blocks: for a thread. Nobody may import before it returns."""
    for tree in leftovers(state_dir):
        remove_unpacked(tree)
    with contextlib.suppress(OSError):
        (state_dir / STAGING).rmdir()


class Unpacked(NamedTuple):
    """What an archive holds: a directory, and the xattrs that the filesystem of it can't hold."""

    directory: Path
    xattrs: CarriedXattrs


@contextlib.asynccontextmanager
async def unpacked(
    archive: Path, state_dir: Path, progress: Callable[[int], Awaitable[None]]
) -> AsyncIterator[Unpacked]:
    """What *archive* holds, removed at the end; *progress* gets the bytes so far. Raises ArchiveRefused, StoreFull and
    other LocalStoreError, and whatever *progress* does.
    """
    target = state_dir / STAGING / f"{os.getpid()}-{time.monotonic_ns()}"
    target.mkdir(mode=0o700, parents=True)
    try:
        yield Unpacked(target, await _run(archive, target, progress))
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(remove_unpacked, target)


async def _run(archive: Path, target: Path, progress: Callable[[int], Awaitable[None]]) -> CarriedXattrs:
    disk = os.statvfs(target)
    room_bytes = max(disk.f_bavail * disk.f_frsize - RESERVE, 0)
    job = {"archive": str(archive), "target": str(target), "room_bytes": room_bytes}
    process = Child("sessfs.sessions.importing_unpack")
    try:
        await process.stdin.send_all(json.dumps(job).encode() + b"\n")
        return await _follow(archive, process.stdout, progress)
    finally:
        await process.end()


async def _follow(
    archive: Path, lines: trio.abc.ReceiveStream, progress: Callable[[int], Awaitable[None]]
) -> CarriedXattrs:
    carried: CarriedXattrs = {}
    buffer = b""
    async for block in lines:
        *whole, buffer = (buffer + block).split(b"\n")
        for line in whole:
            said = json.loads(line)
            if "error" in said:
                raise FAILURES[said["kind"]](said["error"])
            if "done" in said:
                return carried
            if "xattr" in said:
                device, inode, name, value = said["xattr"]
                carried.setdefault((device, inode), {})[base64.b64decode(name)] = base64.b64decode(value)
                continue
            await progress(said["bytes"])
    raise LocalStoreError(f"the process that unpacks {archive} ended unexpectedly, for want of memory maybe")


def main() -> None:
    """Unpack what standard input says."""
    end_with_parent(int(sys.argv[1]))
    os.nice(NICE)
    os.umask(0o077)
    job = json.loads(sys.stdin.buffer.readline())
    last_s = 0.0

    def progress(written: int) -> None:
        nonlocal last_s
        now_s = time.monotonic()
        if now_s - last_s < SAY_EVERY_S:
            return
        last_s = now_s
        if select.select([sys.stdin], [], [], 0)[0]:
            # Whoever asked has gone.
            sys.exit(1)
        _say({"bytes": written})

    try:
        carried = unpack(job["archive"], job["target"], Limits(job["room_bytes"]), progress)
    except (SessfsError, OSError) as exc:
        _say(failure(job["archive"], exc))
        return
    for (device, inode), xattrs in carried.items():
        for name, value in xattrs.items():
            _say({"xattr": [device, inode, base64.b64encode(name).decode(), base64.b64encode(value).decode()]})
    _say({"done": True})


def failure(archive: str, exc: SessfsError | OSError) -> dict[str, object]:
    """What is said of an error of `unpack`."""
    if isinstance(exc, SessfsError):
        return {"error": str(exc), "kind": "refused"}
    # Of a call with a descriptor it is that number.
    where = f"{os.fsdecode(exc.filename)}: " if isinstance(exc.filename, str | bytes) else ""
    kind = "full" if exc.errno in (errno.ENOSPC, errno.EDQUOT) else "failed"
    return {"error": f"{archive} can't be unpacked: {where}{exc.strerror}", "kind": kind}


def _say(what: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
