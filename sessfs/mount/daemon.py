"""The daemon: builds every object once, serves the mount until it is unmounted, and leaves the state durable.

Started by `sessfs.mount.launch`, with the settings as JSON on standard input. SIGTERM and SIGINT unmount: a helper
process flushes the kernel's dirty pages (this one must serve them meanwhile) and detaches the mount, and the daemon
ends when the kernel lets go of it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import resource
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyfuse3
import trio

from sessfs.chrome import PathClass
from sessfs.config import Settings, cache_bound_bytes
from sessfs.errors import SessfsError, StartFailed
from sessfs.local.memory import bound_heap
from sessfs.local.state import note_unsent, read_hash_key
from sessfs.mount import handshake, mountinfo
from sessfs.mount.control_server import ControlServer
from sessfs.mount.fuseops import SessionOperations
from sessfs.mount.lives_side import build_lives
from sessfs.mount.loop import RequestLoop
from sessfs.mount.mending import Mender
from sessfs.mount.node_gate import NodeGate
from sessfs.mount.pages import KernelPages
from sessfs.mount.policies import Policies
from sessfs.mount.remote_side import RemoteSide
from sessfs.mount.repository import ANSWER_DEADLINE_S, CachedState, opened_repository
from sessfs.mount.verbs_check import CheckVerbs
from sessfs.mount.verbs_core import CoreVerbs
from sessfs.mount.verbs_erase import EraseVerbs
from sessfs.mount.verbs_expiry import ExpiryVerbs
from sessfs.mount.verbs_history import HistoryVerbs
from sessfs.mount.verbs_import import ImportVerbs
from sessfs.mount.verbs_limits import LimitVerbs
from sessfs.mount.verbs_remote import RemoteVerbs
from sessfs.mount.writeback import bound_dirty_bytes
from sessfs.sync.fetch import RemoteChunks
from sessfs.vfs.background import keep_going
from sessfs.vfs.children import Child
from sessfs.vfs.space import check_disk
from sessfs.vfs.volume import RemoteHooks, Volume

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sessfs.local.chunkstore import ChunkReader, References
    from sessfs.local.places import Places
    from sessfs.mount.control import Verb
    from sessfs.mount.repository import Repository

log = logging.getLogger(__name__)
SWITCH_INTERVAL_S = 0.0005
"""A commit's thread gets the interpreter back this soon after its flush; the default of 5 ms would triple an fsync."""
GRACE_S = 30.0
READ_AHEAD_KIB = 1024
"""A new FUSE mount gets 128; each request less saves a wake-up of the daemon."""
DEFAULT_OPTIONS = ("default_permissions", "subtype=sessfs")


def fuse_options(settings: Settings) -> set[str]:
    """The options for pyfuse3.init."""
    options = {*DEFAULT_OPTIONS, f"fsname={escape_option(str(settings.state_dir))}", *settings.mount_options}
    if os.geteuid() == 0 and "no_allow_other" not in options:
        options.add("allow_other")
    options.discard("no_allow_other")
    return options


def escape_option(value: str) -> str:
    """*value* as libfuse wants it in a comma-separated option list."""
    return value.replace("\\", "\\\\").replace(",", "\\,")


def disk_use_bytes(directory: Path) -> int:
    """What the files in it take. What this process can't look at, as in what an import has left, counts for nothing."""
    used = 0
    for path, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(OSError):
                used += os.lstat(os.path.join(path, name)).st_blocks * 512
    return used


class Features(pyfuse3.Operations):
    """What pyfuse3 is to ask the kernel for; its handlers are not used."""

    enable_writeback_cache = True
    supports_dot_lookup = True


class Daemon:
    """One mount, from start to end."""

    def __init__(self, settings: Settings, repository: Repository | None, cached: CachedState) -> None:
        self._settings = settings
        self._answering = trio.Event()
        self._gate = NodeGate(cached.node_name()) if repository is not None else None
        self._chunks: RemoteChunks | None = None
        self._repository = repository
        self._volume = Volume(
            settings.state_dir,
            commit_interval_s=settings.commit_interval_s,
            seal_idle_s=settings.seal_idle_s,
            cache_bound_bytes=self._bound(),
            clock_ns=time.time_ns,
            monotonic_s=time.monotonic,
            hash_key=repository.hash_key if repository is not None else None,
            remote=self._hooks(),
            requests=lambda: self._operations.requests.total(),
        )
        self._remote: RemoteSide | None = None
        if repository is not None and self._gate is not None and self._chunks is not None:
            self._remote = RemoteSide(repository, self._gate, self._chunks, self._volume, settings)
        self._lives = build_lives(self._volume, settings, self._remote)
        self._imports = ImportVerbs(self._volume, self._lives.lives, settings)
        sessions = self._remote.sessions if self._remote is not None else None
        self._policies = Policies(self._volume, settings, self._remote, self._lives)
        self._loop: RequestLoop | None = None
        self._pages = KernelPages(settings.mountpoint)
        self._operations = SessionOperations(
            self._volume,
            time.time_ns,
            sessions,
            self._policies.last_use,
            starts=self._policies.starts,
            note_suspect=self._policies.suspects.note,
        )
        self._mender = Mender(self._volume.fileio.refusals, self._volume.inodes, settings.mountpoint)
        self._operations.is_mender = self._mender.is_asking

    def _bound(self) -> int:
        state = self._settings.state_dir
        disk = os.statvfs(state)
        free_bytes = disk.f_bavail * disk.f_frsize
        check_disk(state, disk.f_blocks * disk.f_frsize)
        return cache_bound_bytes(self._settings, free_bytes=free_bytes, used_bytes=disk_use_bytes(state))

    def _hooks(self) -> RemoteHooks | None:
        repository = self._repository
        if repository is None:
            return None

        def make_chunks(reader: ChunkReader, places: Places, references: References, hash_key: bytes) -> RemoteChunks:
            self._chunks = RemoteChunks(
                reader,
                places,
                references,
                repository.remote.within(ANSWER_DEADLINE_S),
                repository.envelope,
                hash_key,
                monotonic_s=time.monotonic,
            )
            return self._chunks

        return RemoteHooks(make_chunks, PathClass.CACHE if self._settings.upload_caches else PathClass.TRAVELS)

    async def run(self, ready: Ready) -> None:
        """Mount, say so on *ready*, serve until unmounted, close. Where that fails, no child of this process is left,
        and nothing is written to the state any more.
        """
        try:
            await self._run(ready)
        except BaseException:
            with trio.CancelScope(shield=True):
                await self._volume.abandon()
            raise

    async def _run(self, ready: Ready) -> None:
        await self._volume.start(os.getuid(), os.getgid())
        self._lives.lives.drop_views()
        if self._remote is not None:
            await self._remote.start()
        try:
            pyfuse3.init(Features(), str(self._settings.mountpoint), fuse_options(self._settings))
        except RuntimeError as exc:
            raise StartFailed(f"{self._settings.mountpoint} can't be mounted: {exc}; see `sessfs doctor`") from exc
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._volume.run)
                nursery.start_soon(self._policies.run)
                nursery.start_soon(keep_going, self._mender.run)
                await nursery.start(self._imports.clear)
                self._lives.start(nursery)
                if self._remote is not None:
                    nursery.start_soon(self._remote.run)
                await nursery.start(ControlServer(self._settings.state_dir, self._verbs()).run)
                nursery.start_soon(self._watch_signals)
                nursery.start_soon(self._announce, ready)
                self._loop = RequestLoop(await handshake.shake_hands(), self._operations)
                self._answering.set()
                self._volume.committer.unwritten.write_back = self._pages.write_back
                await self._loop.run()
                self._volume.committer.unwritten.write_back = None
                await self._pages.close()
                log.info("unmounted, making everything durable")
                await self._volume.close()
                if self._remote is not None:
                    log.info("uploading what the remote lacks, for %g s at most", self._settings.unmount_timeout_s)
                    unsent = await self._remote.close(self._settings.unmount_timeout_s)
                    where = self._volume.state.where()
                    if where is not None:
                        note_unsent(where, unsent)
                    await self._volume.close()
                nursery.cancel_scope.cancel()
        finally:
            pyfuse3.close(unmount=False)
        log.info("closing the state")
        await self._volume.release()

    async def _announce(self, ready: Ready) -> None:
        await self._answering.wait()
        self._tune_kernel()
        log.info("mounted %s on %s", self._settings.state_dir, self._settings.mountpoint)
        ready.say(os.getpid())

    def _tune_kernel(self) -> None:
        mount = mountinfo.find_mount(self._settings.mountpoint)
        if mount is not None and os.geteuid() == 0:
            raise_read_ahead(mount.device)
            bound_dirty_bytes(mount.device, self._volume.space.ahead_bytes)

    async def _watch_signals(self) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for number in signals:
                log.info("signal %d: unmounting", number)
                try:
                    helper = Child("sessfs.mount.detach", str(self._settings.mountpoint))
                    try:
                        await helper.wait()
                    finally:
                        await helper.end()
                except OSError as exc:
                    log.error("the mount can't be detached: %s", exc)
                await trio.sleep(GRACE_S)
                log.warning("files are still open after %.0f s: ending anyway", GRACE_S)
                if self._loop is not None:
                    self._loop.stop()

    def _verbs(self) -> dict[str, Verb]:
        return {
            **CoreVerbs(self._volume, self._remote, self._operations.requests, self._settings, self._policies).verbs(),
            **RemoteVerbs(self._remote).verbs(),
            **LimitVerbs(self._volume, self._policies, self._remote).verbs(),
            **ExpiryVerbs(self._policies).verbs(),
            **HistoryVerbs(self._lives, self._remote, self._settings.mountpoint).verbs(),
            **CheckVerbs(self._lives, self._policies).verbs(),
            **self._imports.verbs(),
            **EraseVerbs(self._volume, self._lives, self._remote, self._policies, self._settings.mountpoint).verbs(),
        }


def raise_read_ahead(device: str) -> None:
    """Have the kernel read further ahead of who reads a file from its start. Only root may; it is no loss if not."""
    try:
        Path(f"/sys/class/bdi/{device}/read_ahead_kb").write_text(f"{READ_AHEAD_KIB}\n")
    except OSError as exc:
        log.info("the kernel's read-ahead stays as it is: %s", exc)


class Ready:
    """The launcher's pipe: exactly one line goes to it."""

    def __init__(self, fd: int | None) -> None:
        self._fd = fd

    def say(self, pid: int) -> None:
        """The mount answers."""
        self._write({"ok": True, "pid": pid})

    def fail(self, message: str, exit_code: int) -> None:
        """There will be no mount, and why."""
        self._write({"ok": False, "error": message, "exit_code": exit_code})

    def _write(self, answer: dict[str, Any]) -> None:
        if self._fd is None:
            return
        try:
            os.write(self._fd, json.dumps(answer).encode() + b"\n")
        except BrokenPipeError:
            # Killed, maybe. The mount is what was asked for: asking again finds it.
            log.warning("the command that started this daemon is gone")
        os.close(self._fd)
        self._fd = None


async def serve(settings: Settings, ready: Ready) -> None:
    """Run the daemon of *settings* until it is unmounted. Raises SessfsError when it can't be mounted."""
    settings.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    cached = CachedState(settings.state_dir, read_hash_key(settings.state_dir))
    note_unsent(settings.state_dir, "")
    async with opened_repository(settings, cached) as repository:
        await Daemon(settings, repository, cached).run(ready)


def _raise_file_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65_536) if hard > 0 else 65_536, hard))


def _speak_to(log: Path) -> None:
    """Have standard output and standard error go to the end of *log*."""
    fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    os.close(fd)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one daemon; returns its exit code."""
    parser = argparse.ArgumentParser(prog="sessfs.mount.daemon")
    parser.add_argument("--ready-fd", type=int)
    ready_fd = parser.parse_args(argv).ready_fd
    ready = Ready(ready_fd)
    given = sys.stdin.buffer.read()
    if not given:
        return 0  # whoever started this needs no daemon after all
    try:
        settings = Settings.from_json(given)
        if ready_fd is not None:
            _speak_to(settings.state_dir / "sessfs.log")
        logging.basicConfig(
            level=settings.log_level.upper(),
            format="%(asctime)s %(levelname)s %(name)s: %(message)s",
            stream=sys.stderr,
        )
        os.umask(0o077)
        _raise_file_limit()
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        bound_heap()
        trio.run(serve, settings, ready)
    except SessfsError as exc:
        log.error("%s", exc)
        ready.fail(str(exc), exc.exit_code)
        return exc.exit_code
    except Exception as exc:
        log.exception("the daemon ends")
        ready.fail(f"the daemon ended: {exc!r}", StartFailed.exit_code)
        return StartFailed.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
