"""Volumes in this process, without FUSE: opened, changed by path, killed by copying what they left, with or without a
remote in memory.
"""

from __future__ import annotations

import random
import shutil
import stat
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, NamedTuple

import trio
from hypothesis import settings

from sessfs.chrome import PathClass
from sessfs.format.envelope import PlainEnvelope
from sessfs.remote.node import Identity, open_node
from sessfs.sessions.lives import Lives
from sessfs.sync.fetch import RemoteChunks
from sessfs.sync.fsck import check_state
from sessfs.sync.history import History
from sessfs.sync.keeping import Policy
from sessfs.sync.looking import Looker
from sessfs.sync.opening import note_unpublished, take_in
from sessfs.sync.restore import SessionDirectory, load_manifest
from sessfs.sync.writeback import Writeback
from sessfs.types import ROOT_INO, Ino
from sessfs.vfs.namespace import Owner
from sessfs.vfs.volume import RemoteHooks, Volume

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence, Set
    from pathlib import Path

    from sessfs.local.chunkstore import ChunkReader, References
    from sessfs.local.inodes import Inode
    from sessfs.local.places import Places
    from sessfs.remote.node import Node
    from sessfs.remote.objectstore import ObjectStore
    from sessfs.vfs.frozen import FrozenFile

OWNER = Owner(1000, 1000)
HASH_KEY = bytes(range(32))
SMALL_MAPS = (1 << 17, 1 << 18)
"""So small that a test makes them grow."""
NEVER_S = 1e6
ONLY_LATEST = Policy(1, 0, 0)


def examples(usual: int) -> int:
    """How many examples a slow property gets: *usual*, or what the profile says where that is more than the default."""
    chosen = settings.default.max_examples if settings.default is not None else 0
    return chosen if chosen > 100 else usual


class Clock:
    """Time that passes only when it is asked for, a microsecond each time."""

    def __init__(self) -> None:
        self.now_ns = 1_700_000_000_000_000_000

    def ns(self) -> int:
        self.now_ns += 1000
        return self.now_ns

    def s(self) -> float:
        return self.ns() / 1e9

    def advance(self, seconds: float) -> None:
        self.now_ns += int(seconds * 1e9)


class Box:
    """A running volume, and what tests do with it: files by path, `/` between names."""

    def __init__(self, volume: Volume, clock: Clock, path: Path) -> None:
        self.volume = volume
        self.clock = clock
        self.path = path

    # -- paths

    def find(self, path: bytes) -> Inode | None:
        inode: Inode | None = self.volume.namespace.get(ROOT_INO)
        for name in path.split(b"/") if path else ():
            assert inode is not None
            inode = self.volume.namespace.lookup(inode.ino, name)
        return inode

    def get(self, path: bytes) -> Inode:
        inode = self.find(path)
        assert inode is not None, path
        return inode

    def split(self, path: bytes) -> tuple[Ino, bytes]:
        directory, _, name = path.rpartition(b"/")
        return self.get(directory).ino, name

    # -- changing

    def mkdir(self, path: bytes, mode: int = 0o755) -> Inode:
        parent, name = self.split(path)
        return self.volume.namespace.make(parent, name, stat.S_IFDIR | mode, OWNER)

    def create(self, path: bytes, mode: int = 0o644) -> Inode:
        parent, name = self.split(path)
        return self.volume.namespace.make(parent, name, stat.S_IFREG | mode, OWNER)

    async def write(self, path: bytes, content: bytes, offset: int = 0) -> Inode:
        """Write, having created the file if need be."""
        inode = self.find(path) or self.create(path)
        assert await self.volume.fileio.write(inode, offset, content) == len(content)
        return inode

    async def truncate(self, path: bytes, size: int) -> None:
        await self.volume.fileio.truncate(self.get(path), size)

    def rename(self, old: bytes, new: bytes, flags: int = 0) -> None:
        for moved in self.volume.renames.rename(*self.split(old), *self.split(new), flags):
            self.volume.fileio.stand_in(moved)

    def link(self, old: bytes, new: bytes) -> None:
        self.volume.namespace.link(self.get(old).ino, *self.split(new))

    def symlink(self, path: bytes, target: bytes) -> Inode:
        return self.volume.namespace.make_symlink(*self.split(path), target, OWNER)

    def unlink(self, path: bytes) -> None:
        self.volume.namespace.unlink(*self.split(path))

    def rmdir(self, path: bytes) -> None:
        self.volume.namespace.rmdir(*self.split(path))

    # -- reading

    async def read(self, path: bytes) -> bytes:
        inode = self.get(path)
        return await self.volume.fileio.read(inode, 0, inode.size)

    async def contents(self) -> dict[bytes, bytes]:
        """Path → content of every regular file."""
        return {path: await self.read(path) for path, inode in self.walk() if stat.S_ISREG(inode.mode)}

    def walk(self, below: bytes = b"") -> list[tuple[bytes, Inode]]:
        """(path, inode) of everything below, in order."""
        found = []
        for name in self.volume.namespace.list_names(self.get(below).ino):
            path = below + b"/" + name if below else name
            inode = self.get(path)
            found.append((path, inode))
            if stat.S_ISDIR(inode.mode):
                found.extend(self.walk(path))
        return found

    # -- what the daemon does

    async def commit(self) -> None:
        await self.volume.commit_all()

    async def seal(self) -> None:
        await self.volume.sealer.seal_all()

    async def drop_dead(self) -> None:
        """Have everything dropped that nothing names."""
        await self.commit()
        await self.volume.sealer.drop_dead()

    def copy_state(self, target: Path) -> Path:
        """What a daemon killed at this instant would leave. No transaction may be under way."""
        shutil.copytree(self.path, target)
        (target / "clean").unlink(missing_ok=True)
        return target


@asynccontextmanager
async def open_box(
    path: Path,
    *,
    clock: Clock | None = None,
    remote: RemoteHooks | None = None,
    seal_idle_s: float = NEVER_S,
    commit_interval_s: float = NEVER_S,
    bound_bytes: int = 1 << 40,
    map_bytes: tuple[int, int] = SMALL_MAPS,
    requests: Callable[[], int] = lambda: 0,
) -> AsyncIterator[Box]:
    """A volume that commits and seals only when told, unless said otherwise; closed cleanly at the end, unless the
    body raises.
    """
    clock = clock or Clock()
    volume = Volume(
        path,
        commit_interval_s=commit_interval_s,
        seal_idle_s=seal_idle_s,
        cache_bound_bytes=bound_bytes,
        clock_ns=clock.ns,
        monotonic_s=clock.s,
        hash_key=HASH_KEY,
        remote=remote,
        level=1,
        map_bytes=map_bytes,
        requests=requests,
    )
    try:
        await volume.start(0, 0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(volume.run)
            yield Box(volume, clock, path)
            await volume.close()
            nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            await volume.release()


async def wait_until(condition: Callable[[], bool], timeout_s: float = 10.0, *, tick_s: float = 0.01) -> None:
    """Return once *condition* holds; it is looked at each *tick_s*, or, with 0, whenever other tasks had their turn."""
    with trio.fail_after(timeout_s):
        while not condition():  # noqa: ASYNC110 - nothing tells when it begins to hold
            await trio.sleep(tick_s)


def assert_clean(path: Path) -> None:
    """fsck finds nothing, not even that the last daemon did not end well."""
    report = check_state(path)
    assert report.clean, report.problems
    assert not report.notes, report.notes


class Attributes(NamedTuple):
    """What of an inode travels; *links* are the paths that stand for the same inode."""

    mode: int
    uid: int
    gid: int
    rdev: int
    size: int
    mtime_ns: int
    atime_ns: int
    ctime_ns: int
    links: tuple[bytes, ...]
    nlink: int
    target: bytes | None
    xattrs: dict[bytes, bytes]
    content: bytes | None


async def snapshot(box: Box, session: bytes) -> dict[bytes, Attributes]:
    """Everything of a session that travels; for `.` the files of the root."""
    if session == b".":
        entries = [(path, inode) for path, inode in box.walk() if b"/" not in path and not stat.S_ISDIR(inode.mode)]
    else:
        entries = [(session, box.get(session)), *box.walk(session)]
    hidden = tuple(path + b"/" for path, inode in entries if inode.path_class != PathClass.TRAVELS)
    entries = [
        (path, inode)
        for path, inode in entries
        if inode.path_class == PathClass.TRAVELS and not path.startswith(hidden)
    ]
    paths: dict[Ino, list[bytes]] = {}
    for path, inode in entries:
        paths.setdefault(inode.ino, []).append(path)
    return {path: await _attributes(box, inode, tuple(paths[inode.ino])) for path, inode in entries}


async def _attributes(box: Box, inode: Inode, links: tuple[bytes, ...]) -> Attributes:
    is_file = stat.S_ISREG(inode.mode)
    return Attributes(
        inode.mode,
        inode.uid,
        inode.gid,
        inode.rdev,
        inode.size,
        inode.mtime_ns,
        inode.atime_ns,
        inode.ctime_ns,
        links,
        0 if stat.S_ISDIR(inode.mode) else len(links),
        box.volume.namespace.read_link(inode.ino) if stat.S_ISLNK(inode.mode) else None,
        dict(box.volume.inodes.iter_xattrs(inode.ino)),
        await box.volume.fileio.read(inode, 0, inode.size) if is_file else None,
    )


class Machine(Box):
    """A volume with a remote: what the daemon wires, without FUSE."""

    def __init__(
        self,
        box: Box,
        node: Node,
        chunks: RemoteChunks,
        store: ObjectStore,
        crash_point: Callable[[str], None],
        policy: Policy,
    ) -> None:
        super().__init__(box.volume, box.clock, box.path)
        volume = box.volume
        assert volume.inodes.changes is not None
        self.changes = volume.inodes.changes
        self.node = node
        self.chunks = chunks
        self.sessions = SessionDirectory(
            volume.inodes,
            volume.places,
            volume.references,
            store,
            PlainEnvelope(),
            node,
            clock_ns=self.clock.ns,
            drop_tree=volume.namespace.drop_session_tree,
            drop_file=volume.namespace.drop_root_file,
            rename=volume.rename_session,
        )
        self.writeback: Writeback[FrozenFile] = Writeback(
            store,
            PlainEnvelope(),
            node,
            volume.inodes,
            self.changes,
            volume.references,
            volume.reader,
            volume.places,
            volume.sealer,
            flush_kernel=trio.lowlevel.checkpoint,
            commit=volume.committer.commit,
            prepare=self.sessions.verify_all,
            clock_ns=self.clock.ns,
            interval_s=NEVER_S,
            done=self._done,
            named=self._save_kept,
            crash_point=crash_point,
        )
        self.history = History(
            volume.inodes,
            volume.places,
            volume.references,
            self.writeback,
            policy,
            commit=volume.committer.commit,
            load_remote=lambda ref: load_manifest(store, PlainEnvelope(), ref),
            save_remote=node.save_kept,
            touch_remote=node.keeping.touched.add,
        )
        node.keeping.kept_of = self.history.kept_of
        self.looker = Looker(
            store, PlainEnvelope(), HASH_KEY, volume.places, self.writeback.mender.note_all, random.Random(1)
        )
        self.lives = Lives(
            volume,
            self.history,
            clock_ns=self.clock.ns,
            flush_kernel=trio.lowlevel.checkpoint,
            reach=self._reach,
            crash_point=crash_point,
        )

    async def _reach(self, name: bytes) -> None:
        await self.load(name)

    async def _save_kept(self, names: Set[bytes]) -> None:
        if any(len(self.history.kept_of(name) or ()) > 1 for name in names):
            await self.node.checkpoint()

    def _done(self, published: Sequence[Ino], removed: Sequence[Ino]) -> None:
        for session in published:
            self.history.prune(session)
        for session in removed:
            self.history.forget(session)

    async def publish(self) -> None:
        await self.writeback.publish()

    async def load(self, session: bytes) -> Inode | None:
        """Look the session up, as the mount does, and load it; None when there is none."""
        await self.sessions.find(session)
        inode = self.find(session)
        if inode is not None and stat.S_ISDIR(inode.mode):
            await self.sessions.load(inode.ino)
        return self.find(session)

    async def load_all(self) -> None:
        """List the root, and load whatever is there."""
        await self.sessions.load_root()
        await self.sessions.list_all()
        for name in self.volume.namespace.list_names(ROOT_INO):
            await self.load(name)

    async def snapshots(self) -> dict[bytes, dict[bytes, Attributes]]:
        """Everything that travels, by session."""
        await self.load_all()
        names = self.volume.namespace.list_names(ROOT_INO)
        sessions = [name for name in names if stat.S_ISDIR(self.get(name).mode)]
        found = {name: await snapshot(self, name) for name in sessions}
        dot = await snapshot(self, b".")
        return {**found, b".": dot} if dot else found


@asynccontextmanager
async def open_machine(
    path: Path,
    store: ObjectStore,
    *,
    name: str = "a",
    take_over: bool = False,
    release: bool = True,
    clock: Clock | None = None,
    crash_point: Callable[[str], None] = lambda name: None,
    seal_idle_s: float = NEVER_S,
    policy: Policy = ONLY_LATEST,
) -> AsyncIterator[Machine]:
    """A mount with a remote, as the daemon opens and closes it; *release* False leaves it unpublished, as a kill does
    (though the state is closed).
    """
    clock = clock or Clock()
    made: list[RemoteChunks] = []

    def make_chunks(reader: ChunkReader, places: Places, references: References, key: bytes) -> RemoteChunks:
        made.append(RemoteChunks(reader, places, references, store, PlainEnvelope(), key, clock.s))
        return made[0]

    hooks = RemoteHooks(make_chunks, PathClass.TRAVELS)
    async with open_box(path, clock=clock, remote=hooks, seal_idle_s=seal_idle_s) as box:
        node = await open_node(
            store,
            PlainEnvelope(),
            Identity(name, f"host-{name}", 1),
            take_over=take_over,
            stale_s=0.01,
            monotonic_s=clock.s,
        )
        machine = Machine(box, node, made[0], store, crash_point, policy)
        _start(machine)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(machine.chunks.run, machine.volume.sealer)
            yield machine
            if release:
                await machine.publish()
                await node.release()
            nursery.cancel_scope.cancel()


def _start(machine: Machine) -> None:
    """What the daemon's RemoteSide does once the node is open."""
    volume = machine.volume
    note_unpublished(volume.inodes, volume.places, machine.changes)
    take_in(machine.node, volume.places, machine.sessions)
    machine.history.prune_all()
