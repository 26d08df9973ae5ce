"""The control verb `remove`: a session goes, or with `purge` everything that only it had."""

from __future__ import annotations

import os
import re
import time
from typing import TYPE_CHECKING, Any

import msgspec
import trio

from sessfs.errors import Fenced, MountBusy
from sessfs.local.policy import SessionLimits
from sessfs.mount.openers import name_users
from sessfs.mount.showing import while_showing
from sessfs.sessions.erasing import Purger
from sessfs.sync.erasing import RemoteEraser

if TYPE_CHECKING:
    from pathlib import Path

    from sessfs.mount.control import Progress, Verb
    from sessfs.mount.lives_side import LivesSide
    from sessfs.mount.policies import Policies
    from sessfs.mount.remote_side import RemoteSide
    from sessfs.sessions.erasing_report import ErasureReport
    from sessfs.vfs.volume import Volume

LOG_NAMES = ("sessfs.log", "sessfs.log.1")


def build_eraser(remote: RemoteSide, volume: Volume) -> RemoteEraser:
    """Of a mount's remote."""
    return RemoteEraser(
        remote.repository.remote.store,
        remote.repository.envelope,
        volume.hash_key,
        remote.gate,
        volume.places,
        busy=remote.writeback.busy,
        publish=remote.writeback.publish,
        commit=volume.committer.commit,
        bring_here=remote.collector.bring_here,
        is_held=volume.references.is_held,
        settle_reads=remote.chunks.settle,
        clean_frames=volume.sealer.rewrite_mixed,
        clock_ns=time.time_ns,
    )


class EraseVerbs:
    """`remove`."""

    def __init__(
        self, volume: Volume, side: LivesSide, remote: RemoteSide | None, policies: Policies, mountpoint: Path
    ) -> None:
        self._mountpoint = mountpoint
        self._trash = policies.trash
        self._volume = volume
        self._lives = side.lives
        self._remote = remote
        eraser = build_eraser(remote, volume) if remote is not None else None
        no_limits = msgspec.structs.asdict(SessionLimits())
        self._purger = Purger(
            volume,
            side.lives,
            side.history,
            eraser,
            list_all=self._list_all,
            forget_limits=lambda name: policies.limits.change(name, no_limits),
            who_uses=self._name_users,
        )
        self._busy = trio.Lock()

    def verbs(self) -> dict[str, Verb]:
        """By name."""
        return {"remove": self._remove}

    async def _name_users(self, name: bytes) -> str:
        return await trio.to_thread.run_sync(name_users, self._mountpoint, os.fsdecode(name))

    async def _list_all(self) -> None:
        if self._remote is not None:
            await self._remote.sessions.list_all()

    async def _remove(self, params: dict[str, Any], progress: Progress) -> dict[str, Any]:
        """*session*: its name; *purge*: leave nothing of it, instead of putting it into the trash."""
        name = os.fsencode(params["session"])
        if self._volume.read_only_reason is not None:
            raise Fenced(f"nothing can be removed here: {self._volume.read_only_reason}")
        if not params.get("purge"):
            await self._lives.locate(name)
            try:
                self._trash.put(name)
            except MountBusy as exc:
                raise MountBusy(f"{exc}{await self._name_users(name)}") from exc
            await self._lives.settled()
            return {"session": params["session"], "purged": False}
        if self._remote is not None:
            self._remote.gate.require_open()
        return {"purged": True, **await self._purge(name, progress)}

    async def _purge(self, name: bytes, progress: Progress) -> dict[str, Any]:
        step: dict[str, Any] = {"stage": "starting", "done": 0, "total": 0}

        def note(stage: str, done: int, total: int) -> None:
            step.update(stage=stage, done=done, total=total)

        async def work() -> ErasureReport:
            # A collection deletes what is being read.
            async with self._busy if self._remote is None else self._remote.collector.busy:
                return await self._purger.purge(name, note)

        # Never given up for a remote that is away: it is half done then, with the databases to be written anew.
        report = await while_showing(progress, lambda: self._seen(step), work)
        for log in LOG_NAMES:
            redact(self._volume.state.path / log, name)
        answer: dict[str, Any] = msgspec.to_builtins(report)
        return answer

    def _seen(self, step: dict[str, Any]) -> dict[str, Any]:
        """The *step*, or that it waits for the remote, and why."""
        health = None if self._remote is None else self._remote.repository.remote.health()
        if health is None or health.state != "degraded":
            return step
        return {**step, "stage": f"{step['stage']}, waiting for the remote: {health.error}"}


def redact(log: Path, name: bytes) -> None:
    """Put as many `*` in the place of a session's *name* wherever the file has it as a word; fine without a file."""
    try:
        content = log.read_bytes()
    except FileNotFoundError:
        return
    word = re.compile(rb"(?<![\w.-])" + re.escape(name) + rb"(?![\w-])(?!\.\w)")
    with log.open("r+b") as file:
        for found in word.finditer(content):
            os.pwrite(file.fileno(), b"*" * len(name), found.start())
        os.fsync(file.fileno())
