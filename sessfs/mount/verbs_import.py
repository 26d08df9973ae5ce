"""The control verb `import`."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import trio

from sessfs.errors import NoRights, UsageError
from sessfs.sessions.importing import Importer
from sessfs.sessions.importing_layout import check_kind
from sessfs.sessions.importing_report import GROUP_BYTES, ImportOptions
from sessfs.sessions.importing_unpack import leftovers, remove_unpacked

if TYPE_CHECKING:
    from sessfs.config import Settings
    from sessfs.mount.control import Progress, Verb
    from sessfs.sessions.importing import Home
    from sessfs.sessions.importing_report import ImportProgress
    from sessfs.vfs.volume import Volume


class ImportVerbs:
    """`import`: the daemon reads the source itself, so it must see what the caller sees."""

    def __init__(self, volume: Volume, home: Home, settings: Settings) -> None:
        self._settings = settings
        self._importer = Importer(volume, home, clock_ns=time.time_ns, monotonic_s=time.monotonic)
        self._running = 0

    def verbs(self) -> dict[str, Verb]:
        """By name."""
        return {"import": self._import}

    async def clear(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Remove what imports that were killed had unpacked. It is known what that is once this has started: only then
        may the verb be served.
        """
        left = await trio.to_thread.run_sync(leftovers, self._settings.state_dir)
        task_status.started()
        for tree in left:
            # Nobody waits for this at the end of the daemon: the next one goes on.
            await trio.to_thread.run_sync(remove_unpacked, tree, abandon_on_cancel=True)

    async def _import(self, params: dict[str, Any], progress: Progress) -> dict[str, Any]:
        source = Path(params["source"])
        await trio.to_thread.run_sync(self._check, source, params["identity"])
        options = ImportOptions(
            os.fsencode(params["as_name"]) if params["as_name"] is not None else None,
            params["verify"],
            params["dry_run"],
            params["skip_unsafe"],
            params.get("group_bytes", GROUP_BYTES),
        )

        async def say(step: ImportProgress) -> None:
            await progress(step._asdict())

        found: dict[str, Any] = msgspec.to_builtins(await self._importer.run(source, options, say))
        return found

    def _check(self, source: Path, identity: list[int]) -> None:
        """Raises UsageError or NoRights unless the source is one that this process can read. In a thread: it may lie on
        the mount.
        """
        for place, what in ((self._settings.mountpoint, "the mount"), (self._settings.state_dir, "the state")):
            if source.is_relative_to(place):
                raise UsageError(f"{source} lies in {what} itself: import from outside of it")
        try:
            found = source.stat()
            check_kind(str(source), found)
            # It may have become a pipe since: nothing could end a thread that waits for one.
            os.close(os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
        except OSError as exc:
            raise NoRights(
                f"the daemon (pid {os.getpid()}) can't read {source}: {exc.strerror}. It must run as a user who may, "
                "and see the same files as you: not in a container of its own"
            ) from exc
        if [found.st_dev, found.st_ino] != identity:
            raise NoRights(
                f"the daemon (pid {os.getpid()}) sees something else at {source} than you do: it has mounts of its "
                "own, as in a container; put the source where both see it"
            )
