"""Laying out an archive in a process of its own: Python's tarfile and zipfile would keep the daemon from its requests.

It gets one line of JSON on its standard input, and ends when that does; it answers with lines of JSON: {"bytes": N}
while it goes on, then {"done": true} or {"error": TEXT}.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import trio

from sessfs.errors import LocalStoreError, SessfsError, StoreFull
from sessfs.sessions.importing_archives import ArchiveRefused, Limits, unpack
from sessfs.vfs.space import DISK_RESERVE_BYTES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

STAGING = "staging"
"""Below the state directory."""
SAY_EVERY_S = 0.2
RESERVE = DISK_RESERVE_BYTES
NICE = 5


def clear_staging(state_dir: Path) -> None:
    """Remove what an import that was killed has left. Blocks: for a thread. Nobody may be importing."""
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(state_dir / STAGING)


@contextlib.asynccontextmanager
async def unpacked(archive: Path, state_dir: Path, progress: Callable[[int], Awaitable[None]]) -> AsyncIterator[Path]:
    """A directory with what *archive* holds, removed at the end; *progress* gets the bytes so far. Raises
    ArchiveRefused, LocalStoreError, and whatever *progress* does.
    """
    target = state_dir / STAGING / f"{os.getpid()}-{time.monotonic_ns()}"
    target.mkdir(mode=0o700, parents=True)
    try:
        await _run(archive, target, progress)
        yield target
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(lambda: shutil.rmtree(target, ignore_errors=True))


async def _run(archive: Path, target: Path, progress: Callable[[int], Awaitable[None]]) -> None:
    disk = os.statvfs(target)
    room_bytes = max(disk.f_bavail * disk.f_frsize - RESERVE, 0)
    job = {"archive": str(archive), "target": str(target), "room_bytes": room_bytes}
    process = await trio.lowlevel.open_process(
        [sys.executable, "-P", "-m", "sessfs.sessions.importing_unpack"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd="/",
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        await process.stdin.send_all(json.dumps(job).encode() + b"\n")
        await _follow(archive, process.stdout, progress)
    finally:
        with trio.CancelScope(shield=True):
            process.kill()
            await process.wait()
            await process.stdin.aclose()
            await process.stdout.aclose()


async def _follow(archive: Path, lines: trio.abc.ReceiveStream, progress: Callable[[int], Awaitable[None]]) -> None:
    buffer = b""
    async for block in lines:
        *whole, buffer = (buffer + block).split(b"\n")
        for line in whole:
            said = json.loads(line)
            if "error" in said:
                raise (ArchiveRefused if said["refused"] else StoreFull)(said["error"])
            if "done" in said:
                return
            await progress(said["bytes"])
    raise LocalStoreError(f"the process that unpacks {archive} ended unexpectedly, for want of memory maybe")


def main() -> None:
    """Unpack what standard input says."""
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
        unpack(job["archive"], job["target"], Limits(job["room_bytes"]), progress)
    except SessfsError as exc:
        _say({"error": str(exc), "refused": True})
    except OSError as exc:
        where = exc.filename if isinstance(exc.filename, str) else os.fsdecode(exc.filename or b"")
        _say({"error": f"{job['archive']} can't be unpacked: {where} {exc.strerror}", "refused": False})
    else:
        _say({"done": True})


def _say(what: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
