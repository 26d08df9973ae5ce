"""Write-back, and restoring elsewhere: what is published is what was there at the cut, whatever happens meanwhile."""

from __future__ import annotations

import os
import random
import stat
from typing import TYPE_CHECKING, Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from sessfs.errors import LocalStoreError, StoreCorrupt
from sessfs.format.recipe import Recipe, encode_extent
from sessfs.local.chunkstore import FRAME_COUNT, FRAME_ENTRY, FRAME_KEY, FRAMES, find_place
from sessfs.sync import cutting
from sessfs.types import HOLE, ROOT_INO
from sessfs.vfs import fileio
from sessfs.vfs.sealjobs import DropRequest
from tests.support.badsector import BadSector
from tests.support.faultystore import FaultyStore
from tests.support.memorystore import MemoryStore
from tests.support.volumes import OWNER, assert_clean, examples, open_machine

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.volumes import Attributes, Machine


def noise(seed: int, length: int) -> bytes:
    return random.Random(seed).randbytes(length)


async def restored(path: Path, store: MemoryStore, name: str = "b") -> dict[bytes, dict[bytes, Attributes]]:
    """What another machine finds, once the first let go."""
    async with open_machine(path, store, name=name, take_over=True, release=False) as machine:
        found = await machine.snapshots()
    return found


def copy_of(store: MemoryStore) -> MemoryStore:
    twin = MemoryStore()
    twin.objects = dict(store.objects)
    for key in twin.objects:
        twin.set_age(key, 0)
    return twin


async def fill(machine: Machine) -> None:
    """A session with one of everything."""
    names = machine.volume.namespace
    machine.mkdir(b"user1", 0o700)
    machine.mkdir(b"user1/dir", 0o1777)
    await machine.write(b"user1/small", b"small")
    await machine.write(b"user1/large", noise(1, 1_500_000))
    await machine.write(b"user1/dir/sparse", b"x", 10 << 20)
    machine.create(b"user1/empty", 0o600)
    machine.link(b"user1/small", b"user1/dir/linked")
    machine.symlink(b"user1/link", b"../else\xffwhere")
    names.make(machine.get(b"user1").ino, b"fifo", stat.S_IFIFO | 0o622, OWNER)
    names.make(machine.get(b"user1").ino, b"device", stat.S_IFCHR | 0o666, OWNER, 0x0103)
    machine.volume.xattrs.set(machine.get(b"user1/small").ino, b"user.k", b"\0v")
    machine.volume.xattrs.set(machine.get(b"user1").ino, b"user.dir", b"")
    for path, inode in machine.walk(b"user1"):
        inode.uid, inode.gid = 1000 + len(path), 2000
        inode.atime_ns = inode.mtime_ns = -1_000_000_000 + len(path)
        machine.volume.inodes.touch(inode)
    await machine.write(b"in the root", b"of no session")


async def test_writeback_everything_that_travels_is_restored(tmp_path: Path) -> None:
    store = MemoryStore()
    async with open_machine(tmp_path / "a", store) as machine:
        await fill(machine)
        await machine.write(b"user1/SingletonLock", b"stays here")
        expected = await machine.snapshots()
        assert set(expected) == {b"user1", b"."}
        assert len(expected[b"user1"]) == 10
    assert_clean(tmp_path / "a")
    assert await restored(tmp_path / "b", store) == expected
    assert_clean(tmp_path / "b")


async def test_writeback_deltas_add_up(tmp_path: Path) -> None:
    """More publishes than deltas may hang on one full manifest, each read by a machine that was never there."""
    store = MemoryStore()
    async with open_machine(tmp_path / "a", store) as machine:
        await fill(machine)
        await machine.publish()
        for i in range(12):
            await machine.write(b"user1/large", b"%04d" % i, i * 100_000)
            await machine.write(b"user1/new%d" % i, noise(i, 5000))
            if i % 3 == 1:
                machine.rename(b"user1/new%d" % i, (b"user1/dir/moved%d" if i < 8 else b"user1/DIR/moved%d") % i)
                machine.unlink(b"user1/new%d" % (i - 1))
            if i == 5:
                machine.unlink(b"user1/small")
                machine.volume.xattrs.remove(machine.get(b"user1").ino, b"user.dir")
            if i == 7:
                machine.rename(b"user1/dir", b"user1/DIR")
                await machine.seal()
            await machine.publish()
            manifest = machine.volume.places.published(machine.get(b"user1").ino)
            assert manifest is not None
            assert manifest.sequence == i + 2
            if i in (0, 4, 8, 11):
                assert await restored(tmp_path / f"b{i}", copy_of(store)) == await machine.snapshots()


async def test_writeback_changes_of_a_session_whose_cut_fails_are_published_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the reason is. They were forgotten until the session changed again."""
    store = MemoryStore()

    def fail(*args: object) -> None:
        raise KeyError("nobody has thought of this")

    async with open_machine(tmp_path / "a", store) as machine:
        machine.mkdir(b"user1")
        await machine.publish()
        await machine.write(b"user1/f", b"content")
        with monkeypatch.context() as patch:
            patch.setattr(cutting, "cut", fail)
            with pytest.raises(KeyError):
                await machine.publish()
        await machine.publish()
        expected = await machine.snapshots()
    assert await restored(tmp_path / "b", store) == expected


async def test_writeback_nothing_changed_puts_nothing(tmp_path: Path) -> None:
    store = FaultyStore(MemoryStore())
    async with open_machine(tmp_path / "a", store) as machine:
        await fill(machine)
        await machine.write(b"user1/SingletonLock", b"stays here")
        await machine.publish()
        before = len(store.calls)
        await machine.publish()
        await machine.write(b"user1/SingletonLock", b"stays here, too")
        await machine.seal()
        await machine.publish()
        assert len(store.calls) == before
        await machine.write(b"user1/small", b"S")
        await machine.publish()
        assert [call.method for call in store.calls[before:]] == ["put", "put_if"]


async def test_writeback_equal_chunks_are_uploaded_once(tmp_path: Path) -> None:
    store = FaultyStore(MemoryStore())
    async with open_machine(tmp_path / "a", store) as machine:
        for user in (b"a", b"b", b"c"):
            machine.mkdir(user)
            await machine.write(user + b"/script", noise(1, 900_000))
            await machine.publish()
        sizes = [call.n_bytes for call in store.calls if call.method == "put"]
        assert sizes[0] > 900_000
        assert max(sizes[1:]) < 5000
        machine.mkdir(b"d")
        await machine.write(b"d/script", noise(1, 900_000)[:500_000] + b"!" + noise(1, 900_000)[500_000:])
        await machine.publish()
        assert store.calls[-2].n_bytes < 300_000


async def test_writeback_session_renamed_removed_and_made_again(tmp_path: Path) -> None:
    store = MemoryStore()
    async with open_machine(tmp_path / "a", store) as machine:
        for user in (b"one", b"two", b"three"):
            machine.mkdir(user)
            await machine.write(user + b"/f", user * 1000)
        await machine.publish()
        machine.rename(b"one", b"uno")
        machine.unlink(b"two/f")
        machine.rmdir(b"two")
        await machine.publish()
        assert await restored(tmp_path / "b1", copy_of(store)) == await machine.snapshots()
        machine.mkdir(b"two")
        await machine.write(b"two/g", b"another two")
        machine.unlink(b"three/f")
        machine.rmdir(b"three")
        machine.mkdir(b"three")
        machine.mkdir(b"one")
        await machine.publish()
        expected = await machine.snapshots()
        assert set(expected) == {b"one", b"uno", b"two", b"three"}
        assert await restored(tmp_path / "b2", copy_of(store)) == expected
        machine.rename(b"one", b"uno", 2)
        machine.rename(b"two", b"zwei")
        machine.rename(b"three", b"two")
        await machine.publish()
        expected = await machine.snapshots()
        assert await restored(tmp_path / "b3", copy_of(store)) == expected
    assert await restored(tmp_path / "b4", store) == expected
    assert_clean(tmp_path / "a")


async def test_writeback_session_removed_before_it_was_ever_published(tmp_path: Path) -> None:
    store = MemoryStore()
    async with open_machine(tmp_path / "a", store) as machine:
        machine.mkdir(b"s")
        machine.rmdir(b"s")
        await machine.publish()
        assert machine.changes.unpublished() == []
    assert await restored(tmp_path / "b", store) == {}


async def test_writeback_restored_session_goes_on_elsewhere(tmp_path: Path) -> None:
    """From machine to machine and back, each changing something."""
    store = MemoryStore()
    expected: dict[bytes, dict[bytes, Attributes]] = {}
    for turn, name in enumerate("abacb"):
        async with open_machine(tmp_path / name, store, name=name) as machine:
            if turn == 0:
                await fill(machine)
            found = await machine.snapshots()
            if turn:
                assert found == expected
            await machine.write(b"user1/large", b"turn %d" % turn, turn * 200_000)
            await machine.write(b"user1/of%d" % turn, noise(turn, 20_000))
            await machine.write(b"root%d" % turn, b"r")
            if turn == 3:
                machine.unlink(b"root1")
            expected = await machine.snapshots()
        assert_clean(tmp_path / name)


async def test_writeback_file_written_during_the_cut_is_published_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fileio, "COPY_MAX_BYTES", 1 << 20)
    store = MemoryStore()
    stalled = trio.Event()

    async with open_machine(tmp_path / "a", store) as machine:
        machine.mkdir(b"s")
        await machine.write(b"s/copied", noise(1, 200_000))
        await machine.write(b"s/waits", noise(2, 3_000_000))
        await machine.write(b"s/cold", noise(3, 500_000))
        await machine.seal()
        await machine.write(b"s/cold", b"edge", 250_000)
        await machine.write(b"s/copied", b"edge", 100)
        await machine.write(b"s/waits", noise(4, 2_500_000), 0)
        expected = await machine.snapshots()

        async def change() -> None:
            machine.unlink(b"s/cold")
            await machine.write(b"s/copied", b"later", 100)
            await machine.write(b"s/waits", b"later", 100)
            stalled.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(machine.publish)
            while not machine.writeback.in_flight():
                await trio.lowlevel.checkpoint()
            nursery.start_soon(change)
            await machine.drop_dead()
        assert stalled.is_set()
        assert await restored(tmp_path / "b1", copy_of(store)) == expected
        await machine.publish()
        expected = await machine.snapshots()
        assert await restored(tmp_path / "b2", copy_of(store)) == expected
    assert_clean(tmp_path / "a")


async def test_writeback_failed_cut_leaves_nothing_frozen_or_pinned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three sessions the second can't be sealed: the others' files must not stay frozen."""
    store = MemoryStore()
    async with open_machine(tmp_path / "a", store) as machine:
        for user in (b"a", b"b", b"c"):
            machine.mkdir(user)
            await machine.write(user + b"/f", noise(user[0], 100_000))
        call = machine.volume.sealer.seal_frozen
        n_calls = [0]

        async def fail(frozen: Any) -> Any:
            n_calls[0] += 1
            if n_calls[0] == 2:
                raise LocalStoreError("no")
            return await call(frozen)

        with monkeypatch.context() as patch:
            patch.setattr(machine.volume.sealer, "seal_frozen", fail)
            with pytest.raises(LocalStoreError):
                await machine.publish()
        for user in (b"a", b"b", b"c"):
            inode = machine.get(user + b"/f")
            assert not machine.volume.fileio.retirement.is_frozen(inode.hot_no)
        assert len(machine.changes.sessions) == 3
        await machine.publish()
        expected = await machine.snapshots()
        for user in (b"a", b"b", b"c"):
            machine.unlink(user + b"/f")
        await machine.drop_dead()
        assert machine.volume.reader.totals().plain_bytes == 0
        assert await restored(tmp_path / "b", copy_of(store)) == expected
    assert_clean(tmp_path / "a")


async def test_writeback_unpublished_changes_survive_a_restart(tmp_path: Path) -> None:
    store = MemoryStore()
    async with open_machine(tmp_path / "a", store, release=False) as machine:
        await fill(machine)
        await machine.publish()
        await machine.write(b"user1/small", b"SMALL")
        machine.unlink(b"user1/empty")
        await machine.write(b"in the root", b"OF")
    async with open_machine(tmp_path / "a", store, release=False) as machine:
        assert {changes.whole for changes in machine.changes.sessions.values()} == {True}
        assert len(machine.changes.sessions) == 2
        expected = await machine.snapshots()
        assert b"user1/empty" not in expected[b"user1"]
        await machine.publish()
        assert machine.changes.unpublished() == []
    assert await restored(tmp_path / "b", store) == expected


async def test_writeback_name_that_begins_or_ends_to_travel(tmp_path: Path) -> None:
    """Files and directories renamed and linked between names that travel and names that stay."""
    store = MemoryStore()
    async with open_machine(tmp_path / "a", store) as machine:
        machine.mkdir(b"s")
        await machine.write(b"s/a.tmp", b"a")
        await machine.write(b"s/b.tmp", b"b")
        await machine.write(b"s/c", b"c")
        machine.mkdir(b"s/d")
        await machine.write(b"s/d/below", b"d")
        await machine.write(b"s/e", b"e")
        await machine.publish()
        machine.rename(b"s/a.tmp", b"s/a")
        machine.link(b"s/b.tmp", b"s/b")
        machine.unlink(b"s/b.tmp")
        machine.rename(b"s/c", b"s/c.tmp")
        machine.rename(b"s/d", b"s/d.tmp")
        machine.link(b"s/e", b"s/e2")
        machine.rename(b"s/e2", b"s/e2.tmp")
        await machine.publish()
        found = await restored(tmp_path / "b1", copy_of(store))
        assert {p: a.content for p, a in found[b"s"].items() if a.content is not None} == {
            b"s/a": b"a",
            b"s/b": b"b",
            b"s/e": b"e",
        } | {p: a.content for p, a in found[b"s"].items() if p == b"s/e2.tmp"}
        assert b"s/d" not in found[b"s"]
        machine.rename(b"s/d.tmp", b"s/d")
        machine.rename(b"s/c.tmp", b"s/c")
        await machine.publish()
        found = await restored(tmp_path / "b2", copy_of(store))
        assert found[b"s"][b"s/d/below"].content == b"d"
        assert found[b"s"][b"s/c"].content == b"c"


async def test_writeback_second_name_left_in_a_directory_that_ceases_to_travel(tmp_path: Path) -> None:
    """The inode travels by one name and not by the other, whichever way its directory is renamed."""
    store = MemoryStore()
    async with open_machine(tmp_path / "a", store) as machine:
        machine.mkdir(b"s")
        machine.mkdir(b"s/d")
        machine.mkdir(b"s/d/deep")
        await machine.write(b"s/d/below", b"one")
        await machine.write(b"s/d/deep/below", b"two")
        await machine.publish()
        machine.link(b"s/d/below", b"s/one")
        machine.link(b"s/d/deep/below", b"s/two")
        machine.rename(b"s/d", b"s/d.tmp")
        await machine.publish()
        found = (await restored(tmp_path / "b1", copy_of(store)))[b"s"]
        assert {p: a.content for p, a in found.items() if a.content is not None} == {b"s/one": b"one", b"s/two": b"two"}
        machine.rename(b"s/d.tmp/below", b"s/d.tmp/moved")
        await machine.write(b"s/one", b"more")
        await machine.publish()
        machine.rename(b"s/d.tmp", b"s/back")
        await machine.publish()
        found = (await restored(tmp_path / "b2", copy_of(store)))[b"s"]
        assert found[b"s/back/moved"].content == found[b"s/one"].content == b"more"
        assert found[b"s/back/deep/below"].content == b"two"
        assert b"s/back/below" not in found


async def test_writeback_one_damaged_session_does_not_hold_up_the_others(tmp_path: Path) -> None:
    """A chunk that is neither here nor there: its session can't be published, and the error names it."""
    store = MemoryStore()
    async with open_machine(tmp_path / "a", store, release=False) as machine:
        for user in (b"good", b"hurt", b"well"):
            machine.mkdir(user)
            await machine.write(user + b"/f", noise(user[0], 100_000))
            await machine.seal()
        hurt = machine.get(b"hurt/f")
        lost = [bytes(cid) for cid in machine.volume.inodes.load_recipe(hurt).iter_chunks()]
        await machine.volume.sealer._calls.request(DropRequest(lost))
        with pytest.raises(StoreCorrupt, match="hurt"):
            await machine.publish()
        assert set(machine.changes.sessions) == {machine.get(b"hurt").ino}
        found = await restored(tmp_path / "b", copy_of(store))
        assert set(found) == {b"good", b"well"}
        await machine.write(b"hurt/f", noise(9, 100_000))
        await machine.publish()
        assert set(await restored(tmp_path / "b2", copy_of(store))) == {b"good", b"well", b"hurt"}


@pytest.mark.parametrize("why", ["it can't be read", "it is too short", "its recipe is damaged"])
async def test_writeback_one_session_whose_hot_file_cannot_be_sealed_does_not_hold_up_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    sector = BadSector(tmp_path / "site", monkeypatch)
    store = MemoryStore()
    async with open_machine(tmp_path / "a", store, release=False) as machine:
        for user in (b"good", b"hurt", b"well"):
            machine.mkdir(user)
            hurt = await machine.write(user + b"/f", noise(user[0], 100_000))
            if user == b"hurt":
                if why == "its recipe is damaged":
                    await machine.seal()
                    await machine.write(b"hurt/f", b"hot", 100)
                    machine.volume.inodes.store_recipe(hurt, Recipe(encode_extent(HOLE, 100_000 - 1)))
                path = machine.volume.hot.path(hurt.ino, hurt.hot_no)
                if why == "it is too short":
                    os.truncate(path, 50_000)
                if why == "it can't be read":
                    sector.strike(path)
        with pytest.raises(StoreCorrupt, match="hurt"):
            await machine.publish()
        assert set(machine.changes.sessions) == {machine.get(b"hurt").ino}
        assert set(await restored(tmp_path / "b", copy_of(store))) == {b"good", b"well"}
        sector.mend()
        if why == "it can't be read":
            await machine.publish()
            assert set(await restored(tmp_path / "b2", copy_of(store))) == {b"good", b"well", b"hurt"}


def damage_frame(machine: Machine, path: bytes, at: int) -> None:
    """Flip a bit of the record of the frame that holds the file's first chunk, as the daemon reads it."""
    reader = machine.volume.reader
    first = next(machine.volume.inodes.load_recipe(machine.get(path)).iter_chunks())
    place = find_place(reader._db, first)
    assert place is not None
    key = FRAME_KEY.pack(place.frame)
    record = bytearray(reader._db.get(FRAMES, key) or b"")
    record[at] ^= 1
    reader._db.put(FRAMES, key, bytes(record))


@pytest.mark.parametrize(
    "at",
    [FRAME_COUNT.size, FRAME_COUNT.size + FRAME_ENTRY.size, FRAME_COUNT.size + 2 * FRAME_ENTRY.size],
    ids=["first", "second", "third"],
)
async def test_writeback_chunks_of_a_frame_with_a_damaged_list_are_uploaded_all_the_same(
    tmp_path: Path, at: int
) -> None:
    """The index still finds each of them, and what is uploaded lists what it has."""
    store = MemoryStore()
    async with open_machine(tmp_path / "a", store) as machine:
        machine.mkdir(b"s")
        await machine.write(b"s/f", noise(1, 400_000))
        await machine.seal()
        before = await machine.snapshots()
        damage_frame(machine, b"s/f", at)
        await machine.publish()
    assert await restored(tmp_path / "b", store) == before


async def test_writeback_a_chunk_that_is_not_sound_is_not_uploaded(tmp_path: Path) -> None:
    store = MemoryStore()
    async with open_machine(tmp_path / "a", store, release=False) as machine:
        for user in (b"good", b"hurt"):
            machine.mkdir(user)
            await machine.write(user + b"/f", noise(user[0], 400_000))
            await machine.seal()
        damage_frame(machine, b"hurt/f", -5)
        with pytest.raises(StoreCorrupt, match="hurt"):
            await machine.publish()
        assert set(await restored(tmp_path / "b", copy_of(store))) == {b"good"}


SESSIONS = [b"s0", b"s1", b"s2"]
FILES = [b"f0", b"f1", b"d/f2", b"d/f3"]


def _is_symlink(machine: Machine, path: bytes) -> bool:
    """A rename may have put one in a file's place; the kernel never asks for one to be written to."""
    found = machine.find(path)
    return found is not None and stat.S_ISLNK(found.mode)


async def act(machine: Machine, rng: random.Random) -> None:
    """One random change."""
    session, other = rng.choice(SESSIONS), rng.choice(SESSIONS)
    path = session + b"/" + rng.choice(FILES)
    if machine.find(session) is None:
        machine.mkdir(session)
        machine.mkdir(session + b"/d")
    kind = rng.randrange(17)
    names = [p for p, i in machine.walk(session) if not stat.S_ISDIR(i.mode)]
    if (kind <= 3 or not names) and not _is_symlink(machine, path):
        await machine.write(path, noise(rng.randrange(6), rng.choice([10, 5000, 200_000])), rng.choice([0, 7, 150_000]))
    elif kind == 4:
        regular = [p for p in names if stat.S_ISREG(machine.get(p).mode)]
        if regular:
            await machine.truncate(rng.choice(regular), 70_000)
    elif kind == 5:
        machine.unlink(rng.choice(names))
    elif kind == 6:
        machine.rename(rng.choice(names), path)
    elif kind == 7 and machine.find(path) is None:
        machine.link(rng.choice(names), path)
    elif kind <= 11:
        await act_on_sessions(machine, rng, session, other, kind)
    else:
        await act_on_directories(machine, rng, session, kind)


async def act_on_sessions(machine: Machine, rng: random.Random, session: bytes, other: bytes, kind: int) -> None:
    if kind == 8 and machine.find(other) is None:
        machine.rename(session, other)
    elif kind == 9:
        path, inode = rng.choice(machine.walk(session))
        machine.volume.xattrs.set(inode.ino, b"user.x", path)
    elif kind == 10:
        for name, inode in reversed(machine.walk(session)):
            if stat.S_ISDIR(inode.mode):
                machine.rmdir(name)
            else:
                machine.unlink(name)
        machine.rmdir(session)
    elif kind == 11:
        await machine.seal()
        await machine.write(b"root%d" % rng.randrange(3), noise(rng.randrange(4), 3000))


async def act_on_directories(machine: Machine, rng: random.Random, session: bytes, kind: int) -> None:
    directories = [p for p, i in machine.walk(session) if stat.S_ISDIR(i.mode) and p != session + b"/d"]
    fresh = rng.choice([session, *directories]) + b"/n%d" % rng.randrange(1000)
    if machine.find(fresh) is not None:
        return
    if kind == 12 or not directories:
        machine.mkdir(fresh)
        await machine.write(fresh + b"/below", noise(rng.randrange(6), 3000))
    elif kind == 13:
        machine.symlink(fresh, b"to/somewhere")
    elif kind == 14:
        moved = rng.choice(directories)
        if not fresh.startswith(moved + b"/"):
            machine.rename(moved, fresh)
    elif kind == 15:
        moved = rng.choice(directories)
        machine.rename(moved, moved.removesuffix(b".tmp") if moved.endswith(b".tmp") else moved + b".tmp")
    else:
        await machine.write(rng.choice(directories) + b"/more.tmp", b"stays")


@settings(max_examples=examples(4))
@given(seed=st.integers(0, 1 << 32))
async def test_writeback_random_lives_are_restored(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    rng = random.Random(seed)
    tmp_path = tmp_path_factory.mktemp("lives")
    store = MemoryStore()
    expected: dict[bytes, dict[bytes, Attributes]] = {}
    for life in range(3):
        name = rng.choice("ab")
        async with open_machine(
            tmp_path / name, store, name=name, release=rng.random() < 0.6, take_over=True
        ) as machine:
            assert await machine.snapshots() == expected
            for _ in range(rng.randrange(1, 4)):
                for _ in range(rng.randrange(8)):
                    await act(machine, rng)
                async with trio.open_nursery() as nursery:
                    expected = await machine.snapshots()
                    nursery.start_soon(machine.publish)
                    if rng.random() < 0.5:
                        await machine.drop_dead()
                assert await restored(tmp_path / f"r{life}{rng.random()}", copy_of(store), "r") == expected
        assert_clean(tmp_path / name)


async def test_writeback_root_session_of_files_only(tmp_path: Path) -> None:
    store = MemoryStore()
    async with open_machine(tmp_path / "a", store) as machine:
        await machine.write(b"a", b"1")
        await machine.write(b"b", b"2")
        machine.link(b"a", b"a2")
        await machine.publish()
        machine.unlink(b"a")
        await machine.write(b"c", b"3")
        await machine.publish()
        expected = await machine.snapshots()
        assert list(expected[b"."]) == [b"a2", b"b", b"c"]
        assert machine.volume.places.published(ROOT_INO) is not None
    assert await restored(tmp_path / "b", store) == expected


async def test_writeback_what_a_session_reads_at_its_start_is_published_once(tmp_path: Path) -> None:
    store = MemoryStore()
    ids = [random.Random(number).randbytes(20 * 4000) for number in range(2)]

    async def publish_again(machine: Machine) -> int:
        """Bytes of the segment that it takes."""
        await machine.write(b"s/f", os.urandom(10))
        before = set(store.objects)
        await machine.publish()
        (new,) = (key for key in set(store.objects) - before if "/segments/" in key)
        return len(store.objects[new])

    async with open_machine(tmp_path / "a", store) as machine:
        machine.mkdir(b"s")
        session = machine.get(b"s").ino
        await publish_again(machine)
        for learned in ids:
            machine.volume.places.set_startup(session, learned)
            assert await publish_again(machine) > len(learned)
            # A delta as large as this one has a full manifest follow upon it.
            assert [size > 5_000 for size in [await publish_again(machine) for _ in range(3)]][1:] == [False, False]
    for name in ("b", "c"):
        async with open_machine(tmp_path / name, store, name=name) as machine:
            await machine.load(b"s")
            assert machine.volume.places.startup(machine.get(b"s").ino) == ids[-1]
            assert await publish_again(machine) > len(ids[-1]), "the first manifest elsewhere builds upon none"
