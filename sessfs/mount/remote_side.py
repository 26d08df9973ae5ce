"""The remote half of a mount: write-back, fetching, the session list, eviction, and what `status` says of them.

When the remote can't be reached at a start, a state that was used with it before is mounted all the same: what is here
is served, sessions that only the remote has answer EIO, uploads wait, and the node is opened as soon as that is
possible.
"""

from __future__ import annotations

import dataclasses
import logging
import random
import stat
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from sessfs.errors import RemoteDenied, RemoteError, RemoteUnavailable
from sessfs.mount.collecting import Collector
from sessfs.mount.node_gate import NodeGate, keep_opening, open_gate
from sessfs.mount.repository import ANSWER_DEADLINE_S, START_DEADLINE_S, Repository
from sessfs.mount.surely import SurePublisher
from sessfs.mount.syncs import Syncs
from sessfs.remote.patience import Patience
from sessfs.remote.roster import lost_session, show
from sessfs.sessions.prefetching import Prefetcher
from sessfs.sync.evict import evict_when_full
from sessfs.sync.history import History
from sessfs.sync.keeping import Policy
from sessfs.sync.looking import Looker
from sessfs.sync.opening import note_unpublished, take_in
from sessfs.sync.restore import SessionDirectory, load_manifest
from sessfs.sync.writeback import Writeback
from sessfs.types import ROOT_INO, Ino
from sessfs.vfs.background import failure_of, keep_going

if TYPE_CHECKING:
    from collections.abc import Sequence, Set
    from pathlib import Path

    from sessfs.config import Settings
    from sessfs.format.manifest import Manifest, ManifestRef
    from sessfs.local.inodes import Inodes
    from sessfs.remote.node import Node
    from sessfs.remote.retrying import HealthReport
    from sessfs.sync.fetch import RemoteChunks
    from sessfs.vfs.volume import Volume

log = logging.getLogger(__name__)
FLUSH_TIMEOUT_S = 20.0
RETRY_S = 5.0
NAMED_MAX = 10
"""So many sessions are named in a warning."""
LOST_SHOWN = 5
"""So many sessions whose object is lost are named in warnings; the log and fsck name all."""
BEGIN_S = 20.0
"""So long a publishing waits until it is known what was collected meanwhile."""


async def flush_kernel(mountpoint: Path) -> None:
    """Have the kernel hand over its dirty pages, by a process of its own: this one must serve them meanwhile. Where it
    can't be told to, what it has is in the next snapshot.
    """
    command = ["sync", "-f", str(mountpoint)]
    with trio.move_on_after(FLUSH_TIMEOUT_S) as scope:
        try:
            await trio.run_process(command, check=False, capture_stdout=True, capture_stderr=True)
        except OSError as exc:
            log.warning("the kernel could not be told to hand over its pages: %s", exc)
    if scope.cancelled_caught:
        log.warning("the kernel did not hand over its pages within %.0f s", FLUSH_TIMEOUT_S)


def keeping_policy(settings: Settings) -> Policy:
    """Which snapshots the settings keep."""
    return Policy(settings.keep_last, settings.keep_hourly, settings.keep_daily)


def warn_of_waiting(inodes: Inodes, patience: Patience, health: HealthReport) -> list[str]:
    """At most one line: who waits for the remote, and what is the matter with it."""
    waiting = patience.waiting()
    if not waiting:
        return []
    names = sorted((inodes.find_session_name(session) or b".").decode(errors="replace") for session in waiting)
    more = f" and {len(names) - NAMED_MAX} more" if len(names) > NAMED_MAX else ""
    longest_s = max(seconds for _, seconds in waiting.values())
    return [
        f"who reads in {', '.join(names[:NAMED_MAX])}{more} waits for what only the remote has, since "
        f"{longest_s:.0f} s; the remote: {health}"
    ]


class RemoteSide:
    """A volume's remote: everything that runs beside the mount because there is one."""

    def __init__(
        self, repository: Repository, gate: NodeGate, chunks: RemoteChunks, volume: Volume, settings: Settings
    ) -> None:
        self._repository = self.repository = repository
        self._gate = self.gate = gate
        self._chunks = self.chunks = chunks
        self._volume = volume
        self._settings = settings
        self._is_detached = False
        self._may_publish = trio.Event()
        """Set once it is known which segments this state may no longer rely on."""
        self.sessions = SessionDirectory(
            volume.inodes,
            volume.places,
            volume.references,
            repository.remote.within(ANSWER_DEADLINE_S),
            repository.envelope,
            gate,
            clock_ns=time.time_ns,
            drop_tree=volume.namespace.drop_session_tree,
            drop_file=volume.namespace.drop_root_file,
            rename=volume.rename_session,
        )
        volume.fileio.patience = self.patience = Patience(repository.remote.wait_answer)
        self.writeback = Writeback(
            repository.remote.store,
            repository.envelope,
            gate,
            volume.inodes,
            self._volume.changes,
            volume.references,
            volume.reader,
            volume.places,
            volume.sealer,
            flush_kernel=self.flush_kernel,
            commit=volume.committer.commit,
            ready=self._wait_ready,
            prepare=self.sessions.verify_all,
            clock_ns=time.time_ns,
            interval_s=settings.interval_s,
            done=self._note_done,
            named=self._save_kept,
        )
        self.surely = self._make_surely()
        self.syncs = Syncs(self.surely.publish, self._bytes_up, self._risk_in_all, self._dirty_names, self._trouble)
        self.prefetcher = Prefetcher(volume.inodes, volume.places, chunks, monotonic_s=time.monotonic)
        self.collector = Collector(
            repository, gate, volume, chunks, self.sessions, publishing=self.writeback.busy, grace_s=settings.grace_s
        )
        self.history = History(
            volume.inodes,
            volume.places,
            volume.references,
            self.writeback,
            keeping_policy(settings),
            commit=volume.committer.commit,
            load_remote=self._load_manifest,
            save_remote=gate.save_kept,
            touch_remote=gate.touch_kept,
        )

    async def _load_manifest(self, ref: ManifestRef) -> Manifest:
        store = self._repository.remote.within(ANSWER_DEADLINE_S)
        return await load_manifest(store, self._repository.envelope, ref)

    def _make_surely(self) -> SurePublisher:
        opened, writeback = self._repository, self.writeback
        store = opened.remote.within(ANSWER_DEADLINE_S)
        note_all, choose = writeback.mender.note_all, random.Random()
        looker = Looker(store, opened.envelope, self._volume.hash_key, self._volume.places, note_all, choose)
        return SurePublisher(looker, writeback.publish, self._gate.checkpoint, opened.remote.url)

    def _note_done(self, published: Sequence[Ino], removed: Sequence[Ino]) -> None:
        for session in published:
            self.history.prune(session)
        for session in removed:
            self.history.forget(session)

    async def _save_kept(self, names: Set[bytes]) -> None:
        """Sessions go by these names from now on: have the remote know what is kept of them beside their last
        snapshot. Raises RemoteError.
        """
        if any(len(self.history.kept_of(name) or ()) > 1 for name in names):
            await self._gate.checkpoint()

    async def reach(self, name: bytes) -> None:
        """Have everything of the session here but its chunks, or know that there is none. Raises RemoteError."""
        await self.sessions.find(name)
        dentry = self._volume.inodes.find_dentry(ROOT_INO, name)
        if dentry is not None and dentry.ino in self.sessions.stubs:
            await self.sessions.load(dentry.ino)

    async def flush_kernel(self) -> None:
        """Have the kernel hand over its dirty pages, while it is mounted."""
        # After the unmount the same path is another filesystem, whose flush may take long and helps nobody.
        if not self._is_detached:
            await flush_kernel(self._settings.mountpoint)
            await self._volume.committer.unwritten.bring()

    async def start(self) -> None:
        """Take the prefix, if the remote answers; a state that knows the remote is mounted without it. Raises
        RemoteHeld, RemoteUnsuitable and other errors that a person must mend, RemoteUnavailable for a new state.
        """
        note_unpublished(self._volume.inodes, self._volume.places, self._volume.changes)
        fresh = not any(True for _ in self._volume.places.iter_published())
        try:
            node = await open_gate(self._repository, self._settings, self._gate, START_DEADLINE_S)
        except (RemoteUnavailable, RemoteDenied) as exc:
            self._gate.problem = str(exc)
            if fresh and self._repository.is_new_here:
                raise
            return
        self._opened(node)

    def _opened(self, node: Node) -> None:
        node.keeping.kept_of = self.history.kept_of
        try:
            take_in(node, self._volume.places, self.sessions)
        except BaseException:
            # Nothing may be published that was not compared: the node is to be opened again.
            self._gate.node = None
            raise
        self.syncs.opened.set()

    async def run(self) -> None:
        """For ever; started once, in the daemon's nursery."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep_going, partial(self._chunks.run, self._volume.sealer))
            nursery.start_soon(keep_going, self.patience.run)
            nursery.start_soon(self._run_node, nursery)
            nursery.start_soon(keep_going, self.prefetcher.run)
            nursery.start_soon(keep_going, self.syncs.run)
            nursery.start_soon(keep_going, self._evict)

    async def _evict(self) -> None:
        volume = self._volume
        space = volume.space
        look = self.surely.looker.look_before_eviction
        await evict_when_full(volume.reader, volume.places, volume.sealer, space.used_bytes, space.full_bytes, look)

    async def _run_node(self, nursery: trio.Nursery) -> None:
        await keep_going(self._open)
        node = self._gate.node
        assert node is not None
        nursery.start_soon(self._begin_publishing, nursery)
        await keep_going(node.run)
        self._volume.make_read_only(
            f"another node ({node.fenced}) took the remote over; what was not uploaded is kept in the state directory"
        )

    async def _open(self) -> None:
        if self._gate.node is None:
            self._opened(await keep_opening(self._repository, self._settings, self._gate))

    async def _begin_publishing(self, nursery: trio.Nursery) -> None:
        await keep_going(self._distrust_missing)
        self._may_publish.set()
        nursery.start_soon(keep_going, self.writeback.run)
        nursery.start_soon(keep_going, self.surely.run)
        nursery.start_soon(keep_going, self.collector.run)

    async def _wait_ready(self) -> None:
        """Before a round of publishing: nothing is published that was not held against the remote. A node that opens
        while the round is under way does so too late for it. Raises RemoteUnavailable.
        """
        self.gate.require_open()
        with trio.move_on_after(BEGIN_S):
            await self._may_publish.wait()
        if not self._may_publish.is_set():
            raise RemoteUnavailable("it is not known yet what was collected from the remote while this node was away")

    async def _distrust_missing(self) -> None:
        while True:
            try:
                await self.collector.distrust_missing()
            except RemoteError as exc:
                log.warning("not publishing before it is known what was collected meanwhile: %s", exc)
                await trio.sleep(RETRY_S)
            else:
                return

    def _bytes_up(self) -> int:
        return self._repository.remote.store.statistics().bytes_up

    def _risk_in_all(self) -> int:
        return sum(self.risk_bytes(session) for session in self._risky())

    def _dirty_names(self) -> str:
        names = [self._volume.inodes.find_session_name(s) or b"." for s in self._risky()]
        return ", ".join(sorted(name.decode(errors="replace") for name in names)) or "nothing"

    async def close(self, timeout_s: float) -> str:
        """At an unmount: publish what is pending and release the sessions, as far as *timeout_s* lets it; what can't be
        sent stays in the state and goes on at the next mount. Returns which sessions that is, and why; empty for none.
        """
        self._is_detached = True
        node = self._gate.node
        problem = ""
        if node is None:
            problem = self._gate.problem
        elif node.fenced is not None:
            problem = f"node {node.fenced} took the remote over"
        else:
            with trio.move_on_after(timeout_s) as scope:
                problem = await failure_of(self.surely.publish) or await failure_of(node.release)
            if scope.cancelled_caught:
                problem = f"the remote took longer than {timeout_s:.0f} s"
        if problem:
            log.error("unmounted before the remote had everything: %s", problem)
        return f"{self._dirty_names()} ({problem})" if problem and self._risky() else ""

    # -- reports

    def status(self) -> dict[str, Any]:
        """The remote's part of `sessfs status`."""
        remote = self._repository.remote
        oldest = [t for t in (self.writeback.at_risk(s) for s in self._risky()) if t is not None]
        return {
            "remote": {
                "url": self._settings.remote,
                "encrypted": self._repository.envelope.encrypted,
                "capabilities": dataclasses.asdict(remote.capabilities()),
                "health": remote.health().as_status(),
                "requests": dict(remote.store.statistics().requests),
                "uploaded_bytes": remote.store.statistics().bytes_up,
                "downloaded_bytes": remote.store.statistics().bytes_down,
                "retries": remote.store.statistics().retries,
                "node": self._gate.report(),
                "published_snapshots": self.writeback.n_published,
            },
            "at_risk_bytes": self._risk_in_all(),
            "at_risk_seconds": round((time.time_ns() - min(oldest)) / 1e9, 3) if oldest else 0.0,
            "waiting_requests": sum(count for count, _ in self.patience.waiting().values()),
        }

    def _risky(self) -> list[Ino]:
        return [*self._volume.changes.sessions.keys() | self.writeback.in_flight()]

    def session_risk(self, session: Ino) -> dict[str, Any]:
        """The remote's part of one session in `sessfs sessions`."""
        since = self.writeback.at_risk(session)
        return {
            "at_risk_bytes": self.risk_bytes(session) if since is not None else 0,
            "at_risk_seconds": round((time.time_ns() - since) / 1e9, 3) if since is not None else 0.0,
        }

    def risk_bytes(self, session: Ino) -> int:
        """About how many bytes of the session's content the remote lacks."""
        changes = self._volume.changes.sessions.get(session)
        total = self.writeback.in_flight_bytes(session)
        if changes is None:
            return total
        if changes.whole:
            return total + self._volume.inodes.session_counters(session).logical_bytes
        for ino in changes.inodes:
            inode = self._volume.inodes.find(ino)
            if inode is not None and stat.S_ISREG(inode.mode):
                total += inode.size - sum(end - start for start, end in inode.cold) if inode.hot_no else 0
        return total

    def warnings(self) -> list[str]:
        """What a person should know of the remote."""
        found = []
        if not self._repository.envelope.encrypted and str(self._settings.remote).startswith("s3:"):
            found.append("the remote holds logins in the clear: whoever reads the bucket is every user; see --key-file")
        status = self.status()
        if status["at_risk_seconds"] > self._settings.risk_limit_s:
            found.append(
                f"changes of {status['at_risk_seconds']:.0f} s ago are on this machine only "
                f"({status['at_risk_bytes']} bytes); the remote: {self._trouble()}"
            )
        elif self._gate.node is None or self.writeback.failed or self.surely.problem:
            found.append(f"the remote: {self._trouble()}")
        found += warn_of_waiting(self._volume.inodes, self.patience, self._repository.remote.health())
        for name in sorted(self._gate.node.lost)[:LOST_SHOWN] if self._gate.node is not None else ():
            found.append(f"session {show(name)}: {lost_session(self._repository.envelope, name)}")
        if self._gate.node is not None and self._gate.node.fenced:
            found.append(f"read-only: another node ({self._gate.node.fenced}) took over the remote")
        return found

    def _trouble(self) -> str:
        if self._gate.node is None:
            return self._gate.problem
        return self.writeback.failed or self.surely.problem or str(self._repository.remote.health())
