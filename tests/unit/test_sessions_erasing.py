"""Erasing: no byte that only the erased user had is left anywhere, others have all of theirs, also after any crash."""

from __future__ import annotations

import contextlib
import random
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

from sessfs.errors import MountBusy, RemoteConflict, SessfsError, UsageError
from sessfs.format.chunk import FrameCodec
from sessfs.format.envelope import PlainEnvelope
from sessfs.format.manifest import ManifestRef, SegmentRef
from sessfs.format.segment import footer_of, open_frame, open_manifest, parse_segment_key
from sessfs.local.chunkstore import CHUNK_TABLES, FRAMES, decode_frame_record
from sessfs.local.db import Database
from sessfs.mount.verbs_erase import redact
from sessfs.sessions.erasing import Purger
from sessfs.sessions.trash import NAME_XATTR
from sessfs.sync.bringing import bring_here as bring
from sessfs.sync.erasing import RemoteEraser
from sessfs.sync.fsck_remote import Sampling, check_remote
from sessfs.sync.keeping import Policy
from sessfs.types import ROOT_INO
from tests.support.lives import Local
from tests.support.memorystore import MemoryStore
from tests.support.volumes import HASH_KEY, assert_clean, open_box, open_machine

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from sessfs.remote.objectstore import ObjectStore
    from sessfs.sessions.lives import Lives
    from sessfs.types import ChunkId
    from tests.support.volumes import Box, Machine

pytestmark = pytest.mark.filterwarnings("ignore:Async generator 'sessfs.remote.footers.iter_segments':ResourceWarning")
ONE = b"user-to-be-erased"
SECRET = b"secret of user one: "
NAME = b"secret-name"
PATTERNS = (SECRET, NAME, b"secret-target", b"secret-xattr", ONE)


class Crash(Exception):
    pass


def noise(seed: int, length: int) -> bytes:
    return random.Random(seed).randbytes(length)


def secret_noise(seed: int, length: int) -> bytes:
    """Bytes that do not compress, with the pattern in every chunk, so that it is stored as it is."""
    source, parts = random.Random(seed), []
    while sum(map(len, parts)) < length:
        parts += [source.randbytes(3000), SECRET]
    return b"".join(parts)[:length]


def in_state(state: Path) -> list[tuple[str, bytes]]:
    """Where any pattern is: in a file's bytes, in its name, or in what a frame decompresses to."""
    found = []
    for path in sorted(state.rglob("*")):
        content = path.read_bytes() if path.is_file() else b""
        found += [(path.name, p) for p in PATTERNS if p in content or p in path.name.encode()]
    with tempfile.TemporaryDirectory() as place:  # a copy: a process can't open an environment twice
        db = Database(shutil.copytree(state / "chunks", Path(place, "chunks")), CHUNK_TABLES, 1 << 30, readonly=True)
        for key, record in db.scan(FRAMES):
            plain = FrameCodec().decode(decode_frame_record(record)[1])
            found += [(f"frame {key.hex()}", p) for p in PATTERNS if p in plain]
        db.close()
    return found


def in_bucket(store: MemoryStore) -> list[tuple[str, bytes]]:
    """Where any pattern is: in a key, in an object's bytes, or in what is compressed in it."""
    found = []
    for key, body in store.objects.items():
        texts = [key.encode(), body]
        segment = parse_segment_key(key)
        if segment is not None:
            footer = footer_of(body, *segment, PlainEnvelope())
            texts.append(repr(footer).encode())
            for offset, length in footer.frames:
                record = open_frame(body[offset : offset + length], *segment, offset, PlainEnvelope())
                texts.append(FrameCodec().decode(decode_frame_record(record)[1]))
            for one in footer.manifests:
                ref = ManifestRef(*segment, one.offset, one.length)
                sealed = body[one.offset : one.offset + one.length]
                texts.append(repr(open_manifest(sealed, ref, PlainEnvelope())).encode())
        found += [(key, p) for p in PATTERNS if any(p in text for text in texts)]
    return found


class Remote:
    """History, lives and erasing over a machine, as the daemon puts them together."""

    def __init__(self, machine: Machine, store: ObjectStore, crash_point: Callable[[str], None] = lambda name: None):
        volume = machine.volume

        async def bring_here(ids: Collection[ChunkId]) -> None:
            assert not await bring(machine.chunks, volume.places, volume.sealer, ids)

        self.history, self.lives = machine.history, machine.lives
        eraser = RemoteEraser(
            store,
            PlainEnvelope(),
            HASH_KEY,
            machine.node,
            volume.places,
            busy=machine.writeback.busy,
            publish=machine.writeback.publish,
            commit=volume.committer.commit,
            bring_here=bring_here,
            is_held=volume.references.is_held,
            settle_reads=machine.chunks.settle,
            clean_frames=volume.sealer.rewrite_mixed,
            clock_ns=machine.clock.ns,
            crash_point=crash_point,
        )

        async def list_all() -> None:
            await machine.sessions.list_all()

        self.purger = Purger(volume, self.lives, self.history, eraser, list_all=list_all, crash_point=crash_point)


async def fill(box: Box) -> None:
    """Two users who share content and frames."""
    for name in (ONE, b"two"):
        box.mkdir(name)
    shared = noise(1, 300_000)
    for n in range(30):
        # Small files side by side: they share frames.
        await box.write(b"two/f%d" % n, noise(100 + n, 9_000))
        await box.write(ONE + b"/f%d" % n, secret_noise(200 + n, 9_000))
    await box.write(ONE + b"/shared", shared)
    await box.write(b"two/shared", shared)
    await box.write(ONE + b"/compressible", SECRET * 20_000)
    await box.write(ONE + b"/" + NAME, b"")
    await box.write(ONE + b"/tiny", SECRET)
    box.symlink(ONE + b"/link", b"secret-target")
    box.volume.xattrs.set(box.get(ONE + b"/tiny").ino, b"user.x", b"secret-xattr")


async def change(box: Box, seed: int) -> None:
    """Both users go on: what was there is only in snapshots from now on."""
    await box.write(ONE + b"/f3", secret_noise(seed, 9_000))
    await box.write(ONE + b"/new%d" % seed, secret_noise(seed + 1, 30_000))
    await box.write(b"two/f3", noise(seed, 9_000))


async def others(box: Box) -> dict[bytes, bytes]:
    return {path: content for path, content in (await box.contents()).items() if path.startswith(b"two/")}


async def trash(box: Box, lives: Lives, name: bytes, entry: bytes) -> None:
    box.volume.inodes.set_xattr(lives.find(name), NAME_XATTR, name)
    lives.rename(name, entry)


# -- without a remote


async def test_purge_leaves_nothing_in_the_state(tmp_path: Path) -> None:
    state = tmp_path / "state"
    async with open_box(state) as box:
        side = Local(box)
        await fill(box)
        await side.history.take(side.lives.find(ONE), "kept")
        await side.history.take(side.lives.find(b"two"), "kept")
        await change(box, 1000)
        await side.history.take(side.lives.find(ONE))
        await trash(box, side.lives, ONE, b".sessfs-trash-1")
        box.mkdir(ONE)
        await box.write(ONE + b"/again", secret_noise(5, 40_000))
        expected = await others(box)
        assert {p for _, p in in_state(state)} >= {SECRET, ONE}
        report = await Purger(box.volume, side.lives, side.history, None).purge(ONE)
        assert in_state(state) == []
        assert (report.was_there, report.trash_copies) == (True, 1)
        assert report.shared_bytes == 300_000
        assert report.shared_chunks >= 3
        assert report.erased_bytes > 30 * 9_000 + 400_000
        assert await others(box) == expected
        kept = await side.history.load(side.lives.find(b"two"), 1)
        assert kept.session == b"two"
        again = await Purger(box.volume, side.lives, side.history, None).purge(ONE)
        assert (again.was_there, again.trash_copies, again.erased_chunks) == (False, 0, 0)
    assert_clean(state)
    assert in_state(state) == []
    async with open_box(state) as box:
        assert await box.contents() == expected


async def test_purge_is_refused_while_the_session_is_in_use_or_read(tmp_path: Path) -> None:
    async with open_box(tmp_path / "state") as box:
        side = Local(box)
        await fill(box)
        purger = Purger(box.volume, side.lives, side.history, None)
        inode = box.get(ONE + b"/f3")
        box.volume.inodes.note_open(inode)
        with pytest.raises(MountBusy, match="in use"):
            await purger.purge(ONE)
        box.volume.inodes.note_closed(inode)
        await side.history.take(side.lives.find(b"two"))
        view = await side.lives.open_view(b"two", 1)
        with pytest.raises(MountBusy, match=r"being read.*if it was killed, unmount and mount first"):
            await purger.purge(ONE)
        side.lives.close_view(view)
        for name in (b".sessfs-trash-1", b".", b""):
            with pytest.raises(UsageError):
                await purger.purge(name)
        assert box.find(ONE) is not None


# -- with a remote


async def history_of_two(machine: Machine, side: Remote) -> dict[bytes, bytes]:
    """A past of some snapshots, full ones and deltas, one kept; something in the trash. What user two has."""
    await fill(machine)
    await machine.publish()
    for seed in (1000, 2000, 3000):
        await change(machine, seed)
        await machine.publish()
    await side.history.mark(side.lives.find(b"two"), 2, "kept")
    await trash(machine, side.lives, ONE, b".sessfs-trash-1")
    await machine.publish()
    machine.mkdir(ONE)
    await machine.write(ONE + b"/again", secret_noise(5, 40_000))
    await machine.publish()
    await machine.write(ONE + b"/unsent", secret_noise(6, 40_000))
    return await others(machine)


async def kept_content(store: MemoryStore, side: Remote, sequence: int) -> set[SegmentRef]:
    """The segments of a kept snapshot of user two, all of whose chunks are where it says."""
    manifest = await side.history.load(side.lives.find(b"two"), sequence)
    for frame in manifest.frames:
        segment = manifest.segments[frame.segment]
        body = store.objects[f"nodes/{segment.node}/segments/{segment.number:016x}"]
        record = open_frame(body[frame.offset : frame.offset + frame.length], *segment, frame.offset, PlainEnvelope())
        there = {bytes(cid) for cid, _ in decode_frame_record(record)[0]}
        assert {frame.chunks[at : at + 20] for at in range(0, len(frame.chunks), 20)} <= there
    return set(manifest.segments)


async def assert_remote_clean(store: MemoryStore) -> None:
    report = await check_remote(store, PlainEnvelope(), HASH_KEY, Sampling(1.0, b""))
    assert report.clean, report.problems


async def test_purge_leaves_nothing_in_the_bucket(tmp_path: Path) -> None:
    store = MemoryStore()
    state = tmp_path / "state"
    async with open_machine(state, store, policy=Policy()) as machine:
        side = Remote(machine, store)
        expected = await history_of_two(machine, side)
        assert {p for _, p in in_bucket(store)} == set(PATTERNS)
        before = await kept_content(store, side, 2)
        report = await side.purger.purge(ONE)
        assert in_bucket(store) == []
        assert in_state(state) == []
        assert report.remote_segments >= 4
        assert report.trash_copies == 1
        assert report.shared_bytes == 300_000
        assert await others(machine) == expected
        assert await kept_content(store, side, 2) != before
        await assert_remote_clean(store)
        assert side.history.get(side.lives.find(b"two"), 2).mark == "kept"
        # Life goes on: a delta upon what was moved, and a session of the same name.
        await machine.write(b"two/f4", b"changed")
        machine.mkdir(ONE)
        await machine.publish()
        expected = await others(machine)
    assert_clean(state)
    async with open_machine(tmp_path / "empty", store, name="b", policy=Policy()) as machine:
        await machine.load_all()
        assert await others(machine) == expected
    await assert_remote_clean(store)


async def test_purge_keeps_the_mark_and_verdict_of_another_sessions_latest_snapshot(tmp_path: Path) -> None:
    store = MemoryStore()
    async with open_machine(tmp_path / "state", store, policy=Policy()) as machine:
        side = Remote(machine, store)
        await fill(machine)
        await machine.publish()
        two = side.lives.find(b"two")
        await side.history.mark(two, 1, "kept")
        side.history.judge(two, 1, "good")
        before = side.history.list(two)
        await side.purger.purge(ONE)
        assert side.history.list(two) == before


POINTS = (
    *("removed", "published", "segments", "outbox", "state", "kept here", "moved", "condemned", "checkpoint"),
    *("deleting", "remote", "chunks", "copied", "meta"),
)


@pytest.mark.parametrize("point", POINTS)
async def test_purge_that_crashes_is_finished_by_the_next(tmp_path: Path, point: str) -> None:
    store = MemoryStore()

    def crash(name: str) -> None:
        if name == point:
            raise Crash

    async with open_machine(tmp_path / "state", store, release=False, policy=Policy()) as machine:
        side = Remote(machine, store, crash)
        expected = await history_of_two(machine, side)
        with pytest.raises(Crash):
            await side.purger.purge(ONE)
        left = machine.copy_state(tmp_path / "left")
    async with open_machine(left, store, policy=Policy()) as machine:
        side = Remote(machine, store)
        assert await others(machine) == expected
        assert machine.find(ONE) is None
        await kept_content(store, side, 2)
        await side.purger.purge(ONE)
        assert in_bucket(store) == []
        assert in_state(left) == []
        assert await others(machine) == expected
    assert_clean(left)
    async with open_machine(tmp_path / "empty", store, name="b", policy=Policy()) as machine:
        await machine.load_all()
        assert await others(machine) == expected
    await assert_remote_clean(store)


async def test_purge_moves_what_sessions_need_that_were_never_looked_at(tmp_path: Path) -> None:
    """Another machine with an empty state: it knows user two by name only."""
    store = MemoryStore()
    async with open_machine(tmp_path / "a", store, policy=Policy()) as machine:
        expected = await history_of_two(machine, Remote(machine, store))
    async with open_machine(tmp_path / "b", store, name="b", policy=Policy()) as machine:
        side = Remote(machine, store)
        await side.purger.purge(ONE)
        assert in_bucket(store) == []
        assert in_state(tmp_path / "b") == []
    async with open_machine(tmp_path / "c", store, name="c", policy=Policy()) as machine:
        await machine.load_all()
        assert await others(machine) == expected
        assert {name for name in machine.volume.namespace.list_names(ROOT_INO)} == {b"two"}


async def test_purge_after_a_takeover_drops_what_the_replaced_node_kept_alive(tmp_path: Path) -> None:
    store = MemoryStore()
    async with open_machine(tmp_path / "a", store, release=False, policy=Policy()) as machine:
        expected = await history_of_two(machine, Remote(machine, store))
        await machine.publish()
    async with open_machine(tmp_path / "b", store, name="b", take_over=True, policy=Policy()) as machine:
        side = Remote(machine, store)
        await machine.load_all()
        report = await side.purger.purge(ONE)
        assert any("node a" in note for note in report.notes)
        assert in_bucket(store) == []
        assert await others(machine) == expected
    with contextlib.suppress(SessfsError):
        async with open_machine(tmp_path / "a", store, policy=Policy()) as machine:
            await machine.load_all()
            assert await others(machine) == expected
            assert machine.find(ONE) is None
    assert in_bucket(store) == []


async def test_purge_does_not_bring_back_what_it_fetches_for_others(tmp_path: Path) -> None:
    """A file of user two that is not published, of chunks that only the remote has, in a frame with user one's."""
    store = MemoryStore()
    async with open_machine(tmp_path / "a", store, policy=Policy()) as machine:
        await history_of_two(machine, Remote(machine, store))
    async with open_machine(tmp_path / "b", store, name="b") as machine:
        side = Remote(machine, store)
        await machine.load(b"two")
        before = await others(machine)
        machine.rename(b"two/f9", b"two/renamed")
        await machine.write(b"two/f10", b"changed in part")
        places = machine.volume.places
        await machine.volume.sealer.evict([cid for cid, _ in places.iter_chunks() if machine.volume.reader.has(cid)])
        await machine.load(ONE)
        await machine.contents()  # fetches whole frames, user one's chunks among them
        await machine.chunks.settle()
        await side.purger.purge(ONE)
        await machine.publish()
        assert in_bucket(store) == []
        assert in_state(tmp_path / "b") == []
        assert await machine.read(b"two/renamed") == before[b"two/f9"]
        assert (await machine.read(b"two/f10"))[:15] == b"changed in part"
    await assert_remote_clean(store)


async def test_purge_of_a_session_that_comes_back_meanwhile_is_refused(tmp_path: Path) -> None:
    store = MemoryStore()
    async with open_machine(tmp_path / "state", store, policy=Policy()) as machine:
        side = Remote(machine, store)
        await history_of_two(machine, side)

        def again(stage: str, done: int, total: int) -> None:
            if stage == "segments" and machine.find(ONE) is None:
                machine.mkdir(ONE)
                nursery.start_soon(machine.publish)

        async with trio.open_nursery() as nursery:
            with pytest.raises(RemoteConflict, match="made anew"):
                await side.purger.purge(ONE, again)
        await machine.write(ONE + b"/f", b"new life")
        await machine.publish()
    await assert_remote_clean(store)
    async with open_machine(tmp_path / "empty", store, name="b") as machine:
        await machine.load_all()
        assert await machine.read(ONE + b"/f") == b"new life"


def test_names_in_a_log_are_starred_out_where_they_are_words(tmp_path: Path) -> None:
    log = tmp_path / "sessfs.log"
    log.write_bytes(b"user1 was, 'user1'; user10, user1.unsent, xuser1, user1-2, user1.\n")
    redact(log, b"user1")
    assert log.read_bytes() == b"***** was, '*****'; user10, user1.unsent, xuser1, user1-2, *****.\n"
    redact(tmp_path / "none", b"user1")
