"""Changes, places and inodes as tables: what is noted, what survives a restart, what is given back."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

import pytest

from sessfs.chrome import PathClass
from sessfs.errors import StoreCorrupt
from sessfs.local.changes import Changes, SessionChanges
from sessfs.local.db import Database
from sessfs.local.inodes import INODES, META_TABLES, Inode, Inodes, decode_inode
from sessfs.local.places import SEGMENTS, Outbox, Places, Published, RemotePlace
from sessfs.types import ROOT_INO, ChunkId, Ino

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

A, B, C = (ChunkId(bytes([n]) * 20) for n in (1, 2, 3))
S, T = Ino(10), Ino(20)


@pytest.fixture
def meta(tmp_path: Path) -> Iterator[Database]:
    db = Database(tmp_path / "meta", META_TABLES, 1 << 24)
    yield db
    db.close()


def flush(db: Database) -> None:
    batch = db.cut()
    assert db.write_batch(batch)
    db.settle(batch, durable=True)


def ticking() -> Iterator[int]:
    yield from range(1000, 2000)


def new_changes(meta: Database) -> Changes:
    ticks = ticking()
    return Changes(meta, lambda: next(ticks))


def test_changes_are_collected_by_session_and_since_the_first(meta: Database) -> None:
    changes = new_changes(meta)
    changes.note_inode(S, Ino(11))
    changes.note_name(S, S, b"f")
    changes.note_inode(T, Ino(21))
    changes.note_inode(ROOT_INO, ROOT_INO)
    assert sorted(changes.sessions) == [S, T]
    assert changes.sessions[S].since_ns == 1000
    assert (changes.sessions[S].inodes, changes.sessions[S].names) == ({Ino(11)}, {(S, b"f")})
    assert not changes.sessions[S].whole


def test_changes_of_a_former_life_are_whole(meta: Database) -> None:
    new_changes(meta).note_inode(S, Ino(11))
    flush(meta)
    again = new_changes(meta)
    assert again.sessions[S].whole
    assert again.sessions[S].since_ns == 1000
    assert again.unpublished() == [S]


def test_changes_taken_count_as_unpublished_until_settled(meta: Database) -> None:
    changes = new_changes(meta)
    changes.note_inode(S, Ino(11))
    taken = changes.take(S)
    assert changes.sessions == {}
    assert changes.unpublished() == [S]
    changes.note_inode(S, Ino(12))
    changes.settle(S)
    assert changes.unpublished() == [S]
    assert changes.sessions[S].inodes == {Ino(12)}
    changes.take(S)
    changes.settle(S)
    assert changes.unpublished() == []
    assert taken.inodes == {Ino(11)}


def test_changes_restored_join_the_newer(meta: Database) -> None:
    changes = new_changes(meta)
    changes.note_inode(S, Ino(11))
    taken = changes.take(S)
    changes.note_name(S, S, b"g")
    changes.note_whole(S)
    changes.restore(S, taken)
    merged = changes.sessions[S]
    assert (merged.inodes, merged.names, merged.whole, merged.since_ns) == ({Ino(11)}, {(S, b"g")}, True, 1000)
    flush(meta)
    assert new_changes(meta).sessions[S].since_ns == 1000
    changes.forget(S)
    assert changes.unpublished() == []
    other = SessionChanges(5, whole=True)
    merged.absorb(other)
    assert merged.since_ns == 5


def test_places_survive_and_are_forgotten(meta: Database) -> None:
    places = Places(meta)
    places.set("a", 1, 10, 20, [A, B])
    places.set("b", 1, 0, 5, [C])
    flush(meta)
    places = Places(meta)
    assert places.find(A) == RemotePlace("a", 1, 10, 20)
    assert places.find(C) == RemotePlace("b", 1, 0, 5)
    places.set("c", 9, 1, 1, [A])
    assert places.find(A) == RemotePlace("c", 9, 1, 1)
    assert places.find(B) == RemotePlace("a", 1, 10, 20)
    places.forget([A, ChunkId(bytes(20))])
    assert not places.has(A)
    assert places.find(A) is None


def test_places_of_an_unknown_segment_are_corrupt(meta: Database) -> None:
    places = Places(meta)
    places.set("a", 1, 10, 20, [A])
    for key, _ in list(meta.scan(SEGMENTS)):
        meta.delete(SEGMENTS, key)
    with pytest.raises(StoreCorrupt, match="not recorded"):
        Places(meta).find(A)


def test_outbox_is_adopted_as_a_whole(meta: Database) -> None:
    places = Places(meta)
    places.set_published(T, Published(b"gone", 4, ("a", 1, 6, 7)))
    published = Published(b"s", 3, ("a", 2, 100, 50), 1, 10, 20)
    outbox = Outbox(1, 2, [(2, 8, 30, A + B)], [(S, published)], [T])
    places.set_outbox(outbox)
    flush(meta)
    places = Places(meta)
    assert places.outbox() == outbox
    places.adopt("a", outbox)
    assert places.outbox() is None
    assert places.find(B) == RemotePlace("a", 2, 8, 30)
    assert places.published(S) == published
    assert places.published(T) is None
    assert [session for session, _ in places.iter_published()] == [S]
    places.set_startup(S, bytes(A))
    assert places.startup(S) == A
    assert places.startup(T) == b""


def test_inode_record_there_and_back() -> None:
    inode = Inode(Ino(7))
    inode.mode, inode.uid, inode.gid, inode.nlink, inode.rdev, inode.size = 0o100644, 1, 2, 3, 4, 1 << 40
    inode.atime_ns, inode.mtime_ns, inode.ctime_ns = -1, 1 << 62, 0
    inode.session, inode.parent, inode.path_class = S, T, PathClass.CACHE
    inode.hot_no, inode.allocated, inode.cold = 9, 10, [(0, 5), (9, 1 << 40)]
    again = decode_inode(inode.ino, inode.encode())
    assert again.encode() == inode.encode()
    assert again.cold == inode.cold
    for record in (b"", inode.encode()[:-1], inode.encode() + b"x"):
        with pytest.raises(StoreCorrupt):
            decode_inode(inode.ino, record)


def test_inodes_number_is_never_given_twice(meta: Database) -> None:
    inodes = Inodes(meta)
    numbers = [inodes.allocate_number() for _ in range(5000)]
    flush(meta)
    numbers += [Inodes(meta).allocate_number() for _ in range(3)]
    assert len(set(numbers[:5001])) == 5001
    assert ROOT_INO not in numbers


def test_inodes_dirty_ones_are_stored_at_the_cut(meta: Database) -> None:
    inodes = Inodes(meta)
    inode = inodes.create(stat.S_IFREG | 0o600, 1, 2, 3)
    assert inodes.is_dirty
    assert meta.get(INODES, inode.ino.to_bytes(8, "big")) is None
    inodes.encode_dirty()
    assert not inodes.is_dirty
    flush(meta)
    assert Inodes(meta).get(inode.ino).encode() == inode.encode()
    with pytest.raises(StoreCorrupt):
        inodes.get(Ino(1 << 40))


def test_inodes_changes_are_noted_where_they_travel(meta: Database) -> None:
    inodes = Inodes(meta)
    inodes.changes = new_changes(meta)
    inode = inodes.create(stat.S_IFREG, 0, 0, 0)
    inode.session = S
    inodes.touch(inode, noted=False)
    assert inodes.changes.sessions == {}
    inode.path_class = PathClass.CACHE
    inodes.touch(inode)
    inodes.set_dentry(S, b"name", inode)
    inodes.delete_dentry(S, b"name", inode)
    assert inodes.changes.sessions == {}
    inodes.travelling = PathClass.CACHE
    inodes.set_dentry(S, b"name", inode)
    assert inodes.changes.sessions[S].names == {(S, b"name")}
    assert inodes.changes.sessions[S].inodes == {inode.ino}


def test_inodes_removed_one_leaves_no_record(meta: Database) -> None:
    inodes = Inodes(meta)
    inode = inodes.create(stat.S_IFLNK, 0, 0, 0)
    inodes.set_target(inode.ino, b"t")
    inodes.set_xattr(inode.ino, b"user.a", b"1")
    inodes.set_xattr(inode.ino, b"user.b", b"2")
    inodes.mark_orphan(inode)
    inodes.encode_dirty()
    flush(meta)
    inodes.remove(inode)
    inodes.encode_dirty()
    flush(meta)
    left = {table: list(meta.scan(table)) for table in META_TABLES}
    assert [table for table, rows in left.items() if rows] == ["super"]


def test_inodes_counters_of_sessions(meta: Database) -> None:
    inodes = Inodes(meta)
    inodes.account(S, 2, 100, 50)
    inodes.account(S, -1, -40, 20)
    inodes.encode_dirty()
    flush(meta)
    inodes = Inodes(meta)
    counters = inodes.session_counters(S)
    assert (counters.files, counters.logical_bytes, counters.last_change_ns) == (1, 60, 50)
    inodes.account(T, 0, 0, 1)
    assert [session for session, _ in inodes.iter_sessions()] == [S, T]
    inodes.drop_session(S)
    assert [session for session, _ in inodes.iter_sessions()] == [T]


def test_inodes_kernel_references(meta: Database) -> None:
    inodes = Inodes(meta)
    inodes.remember(S)
    inodes.remember(S)
    assert not inodes.forget(S, 1)
    assert inodes.is_known(S)
    assert inodes.forget(S, 1)
    assert not inodes.is_known(S)
    assert inodes.forget(T, 1)
