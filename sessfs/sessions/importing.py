"""Import: sessions made of directories or archives outside, without a byte going through the mount.

The seal process reads the sources and stores their chunks; what is installed is a manifest, whole or not at all. So an
import that is cut short has left whole sessions and nothing else, and the next run goes on where it ended.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import TYPE_CHECKING, Protocol

import trio

from sessfs.errors import PosixError, UsageError
from sessfs.sessions.importing_existing import first_difference
from sessfs.sessions.importing_holders import Holder, find_holders
from sessfs.sessions.importing_layout import check_kind, label_of, recognise, recognise_archive
from sessfs.sessions.importing_report import (
    ImportOptions,
    ImportProgress,
    ImportReport,
    Outcome,
    Refused,
    SessionReport,
)
from sessfs.sessions.importing_scan import Scan, scan
from sessfs.sessions.importing_storing import Job, Storing
from sessfs.sessions.importing_unpack import unpacked

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from sessfs.format.manifest import Manifest
    from sessfs.sessions.importing_archives import CarriedXattrs
    from sessfs.sessions.importing_layout import Layout, SessionSource
    from sessfs.types import Ino
    from sessfs.vfs.volume import Volume

    Say = Callable[[ImportProgress], Awaitable[None]]


class Home(Protocol):
    """Where sessions are installed: see `Lives`."""

    async def locate(self, name: bytes) -> Ino:
        """The session of that name, brought here; PosixError(ENOENT) when there is none."""

    def install(self, name: bytes, manifest: Manifest) -> Ino:
        """A new session of a full manifest whose chunks are here and pinned; PosixError(EEXIST)."""

    async def settled(self) -> None:
        """Return once what was installed is durable, and the kernel knows of it."""


class Importer:
    """Imports into one open volume, mounted or not. One import at a time: a second one waits for the first."""

    def __init__(
        self,
        volume: Volume,
        home: Home,
        *,
        clock_ns: Callable[[], int],
        monotonic_s: Callable[[], float],
        crash_point: Callable[[str], None] = lambda name: None,
    ) -> None:
        self._volume = volume
        self._home = home
        self._clock_ns = clock_ns
        self._monotonic_s = monotonic_s
        self._crash_point = crash_point
        self._turn = trio.Lock()

    async def run(self, source: Path, options: ImportOptions, say: Say) -> ImportReport:
        """Import *source* (absolute, links resolved): a directory or an archive. What is reported as imported is
        durable; sessions that can't be imported are reported as refused. Raises UsageError, ArchiveRefused,
        LocalStoreError, RemoteError when nothing, or nothing more, can be; what was imported before stays.
        """
        if self._volume.read_only_reason is not None:
            raise UsageError(f"nothing can be imported: the mount is read-only: {self._volume.read_only_reason}")
        async with self._turn:
            started_s = self._monotonic_s()
            stored_before = self._volume.reader.totals().stored_bytes
            report = await self._take(source, options, say)
            report.source = str(source)
            report.files = sum(session.files for session in report.sessions)
            report.total_bytes = sum(session.total_bytes for session in report.sessions)
            report.stored_bytes = self._volume.reader.totals().stored_bytes - stored_before
            report.elapsed_seconds = self._monotonic_s() - started_s
            return report

    async def _take(self, source: Path, options: ImportOptions, say: Say) -> ImportReport:
        label, parent = label_of(str(source)), os.fsencode(source.parent.name)
        if await trio.to_thread.run_sync(_is_directory, source):
            root = os.fsencode(source)
            layout = await trio.to_thread.run_sync(lambda: recognise(root, label, options.as_name, parent_label=parent))
            return await self._import(layout, options, say, lambda path: path.decode(errors="replace"), source, {})

        async def unpacking(written: int) -> None:
            await say(ImportProgress("unpacking", "", written, 0))

        async with unpacked(source, self._volume.state.path, unpacking) as (staging, xattrs):
            root = os.fsencode(staging)

            def show(path: bytes) -> str:
                text = path.decode(errors="replace").replace(f"{staging}/", f"{source}:")
                return text.replace(str(staging), str(source))

            try:
                layout = await trio.to_thread.run_sync(lambda: recognise_archive(root, label, options.as_name))
            except UsageError as exc:
                raise UsageError(show(os.fsencode(str(exc)))) from exc
            return await self._import(layout, options, say, show, None, xattrs)

    async def _import(
        self,
        layout: Layout,
        options: ImportOptions,
        say: Say,
        show: Callable[[bytes], str],
        source: Path | None,
        xattrs: CarriedXattrs,
    ) -> ImportReport:
        holders = {}
        if source is not None:
            directories = frozenset(session.directory for session in layout.sessions)
            holders = await trio.to_thread.run_sync(lambda: find_holders(directories))
        total_bytes = await trio.to_thread.run_sync(
            lambda: sum(_size_of(session.directory) for session in layout.sessions)
        )
        run = _Run(self._volume, self._home, options, say, show, total_bytes, xattrs, self._clock_ns, self._crash_point)
        run.report.kind, run.report.data_path = layout.kind, layout.data_path
        run.report.left_out = [f"{show(item.path)}: {item.reason}" for item in layout.left_out]
        await run.take_all(layout.sessions, holders)
        return run.report


class _Run:
    """One import, once it is known what of."""

    def __init__(
        self,
        volume: Volume,
        home: Home,
        options: ImportOptions,
        say: Say,
        show: Callable[[bytes], str],
        total_bytes: int,
        xattrs: CarriedXattrs,
        clock_ns: Callable[[], int],
        crash_point: Callable[[str], None],
    ) -> None:
        self._volume = volume
        self._home = home
        self._options = options
        self._say = say
        self._show = show
        self._xattrs = xattrs
        self._clock_ns = clock_ns
        self._crash_point = crash_point
        self._done_bytes = 0
        self._total_bytes = total_bytes * (2 if options.verify else 1)
        self._owner = None if os.geteuid() == 0 else (os.geteuid(), os.getegid())
        self._storing = Storing(volume, self._advance)
        self._group: list[Job] = []
        self.report = ImportReport("", "", "", options.verify)

    async def take_all(self, sessions: list[SessionSource], holders: dict[bytes, Holder]) -> None:
        """Import them, and report each."""
        try:
            for session in sessions:
                job = Job(Scan(session), SessionReport(_text(session.name), self._show(session.directory)))
                self.report.sessions.append(job.report)
                holder = holders.get(session.directory)
                if holder is not None:
                    job.refuse(f"it is in use by {holder}: end it, then import again")
                    continue
                self._group.append(job)
                await self._start(job)
                if sum(job.found.size_bytes for job in self._group) >= self._options.group_bytes:
                    await self._end_group()
            await self._end_group()
        finally:
            if self._group:
                # Something went wrong: nothing of these is installed.
                for job in self._group:
                    self._storing.release(job)
                await self._storing.discard()

    async def _start(self, job: Job) -> None:
        """Look at the session, and gather its chunks unless it is refused or there already."""
        job.found = found = await self._scan(job.found.source)
        job.report.files, job.report.total_bytes = found.n_files, found.size_bytes
        self.report.left_out.extend(f"{self._show(item.path)}: {item.reason}" for item in found.left_out)
        if found.faults:
            more = f", and {len(found.faults) - 1} more" if len(found.faults) > 1 else ""
            job.refuse(self._show(os.fsencode(found.faults[0])) + more)
            return
        try:
            if await self._is_there(job):
                job.report.outcome = Outcome.THERE
            elif self._options.dry_run:
                job.report.outcome = Outcome.PLANNED
            else:
                self._check_limit()
                await self._storing.gather(job)
        except Refused as exc:
            job.refuse(self._show(os.fsencode(str(exc))))

    async def _scan(self, session: SessionSource) -> Scan:
        now_ns, skip_unsafe = self._clock_ns(), self._options.skip_unsafe
        return await trio.to_thread.run_sync(
            lambda: scan(session, self._owner, now_ns, skip_unsafe=skip_unsafe, carried=self._xattrs)
        )

    async def _is_there(self, job: Job) -> bool:
        """True when the mount has this very session. Raises Refused when its name stands for another."""
        name = job.found.source.name
        try:
            session = await self._home.locate(name)
        except PosixError as exc:
            if exc.errno != errno.ENOENT:
                raise
            return False
        difference, recipes = first_difference(self._volume, session, job.found)
        if not difference:
            try:
                await self._storing.compare(job, recipes, read_back=False)
            except Refused as exc:
                difference = str(exc)
        if difference:
            raise Refused(f"the mount has another session of this name: {difference}. Give a name with --as")
        return True

    async def _end_group(self) -> None:
        """Store, compare and install what was gathered."""
        await self._storing.finish()
        for job in self._group:
            if job.is_on_its_way:
                try:
                    await self._install(job)
                except Refused as exc:
                    job.refuse(self._show(os.fsencode(str(exc))))
            self._storing.release(job)
        self._group = []
        await self._home.settled()

    async def _install(self, job: Job) -> None:
        if self._options.verify:
            await self._storing.compare(job, job.recipes, read_back=True)
        again = await self._scan(job.found.source)
        if again.seen != job.found.seen:
            raise Refused("it changed while it was imported: end what writes there, then import again")
        self._check_limit()
        self._crash_point("install")
        try:
            self._home.install(job.found.source.name, job.manifest(self._clock_ns()))
        except PosixError as exc:
            raise Refused(f"it can't be made: {exc}") from exc
        job.report.new_bytes = job.count_new()
        self._crash_point("installed")

    def _check_limit(self) -> None:
        """Raises Refused when one more session is one too many."""
        quota = self._volume.namespace.quota
        if quota is not None:
            try:
                quota.add_session()
            except PosixError as exc:
                raise Refused(f"a limit says no: {exc}") from exc

    async def _advance(self, stage: str, job: Job, size_bytes: int) -> None:
        self._done_bytes += size_bytes
        await self._say(ImportProgress(stage, job.report.name, self._done_bytes, self._total_bytes))


def _is_directory(source: Path) -> bool:
    """False for a regular file. Raises UsageError for anything else."""
    try:
        found = source.stat()
    except OSError as exc:
        raise UsageError(f"{source} can't be read: {exc.strerror}") from exc
    check_kind(str(source), found)
    return stat.S_ISDIR(found.st_mode)


def _size_of(directory: bytes) -> int:
    """About how many bytes are to be read."""
    size = 0
    for path, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(OSError):
                found = os.lstat(os.path.join(path, name))
                size += found.st_size if stat.S_ISREG(found.st_mode) else 0
    return size


def _text(name: bytes) -> str:
    return name.decode(errors="replace")
