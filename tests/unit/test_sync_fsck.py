"""fsck of a state: clean when it is, and each kind of damage named, with session and file."""

from __future__ import annotations

import random
import shutil
from typing import TYPE_CHECKING

import pytest

from sessfs.errors import LocalStoreError, StateInUse, UsageError
from sessfs.local.chunkstore import CHUNK_TABLES, FRAMES, INDEX, TOTALS
from sessfs.local.db import Database, TableName
from sessfs.local.inodes import (
    DENTRIES,
    INO,
    INODES,
    META_TABLES,
    ORPHANS,
    RECIPES,
    REFS,
    SESSIONS,
    SUPER,
    SYMLINKS,
    XATTRS,
)
from sessfs.local.state import StateDirectory, ensure_hash_key
from sessfs.sync.fsck import Problem, check_state
from tests.support.memorystore import MemoryStore
from tests.support.volumes import HASH_KEY, assert_clean, open_box, open_machine

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

BODY = random.Random(3).randbytes(400_000)
OTHER = random.Random(4).randbytes(300_000)


async def make(path: Path) -> Path:
    """A clean state: two sessions share a file, and one more file is only in the second."""
    async with open_box(path / "state") as box:
        box.mkdir(b"one")
        box.mkdir(b"two")
        box.mkdir(b"two/dir")
        await box.write(b"one/shared", BODY)
        await box.write(b"two/dir/shared", BODY)
        await box.seal()
        await box.write(b"two/own", OTHER)
        await box.seal()
        await box.write(b"two/hot", b"hot")
        box.symlink(b"two/link", b"target")
        box.volume.xattrs.set(box.get(b"two/own").ino, b"user.x", b"y")
    assert_clean(path / "state")
    return path / "state"


def edit(path: Path, tables: tuple[TableName, ...], change: Callable[[Database], None]) -> None:
    db = Database(path, tables, 1 << 28)
    change(db)
    batch = db.cut()
    assert db.write_batch(batch)
    db.settle(batch, durable=True)
    db.close()


def edit_meta(state: Path, change: Callable[[Database], None]) -> None:
    edit(state / "meta", META_TABLES, change)


def edit_chunks(state: Path, change: Callable[[Database], None]) -> None:
    edit(state / "chunks", CHUNK_TABLES, change)


def problems(state: Path) -> list[Problem]:
    return check_state(state).problems


def files_of(found: list[Problem]) -> set[tuple[str, str]]:
    return {(problem.session, problem.path) for problem in found if problem.kind == "chunk"}


@pytest.mark.parametrize("at", [0, 3, 22, -3], ids=["count", "id", "length", "payload"])
async def test_fsck_flipped_bits_in_a_frame_are_named_for_every_file(tmp_path: Path, at: int) -> None:
    state = await make(tmp_path)

    def flip(db: Database) -> None:
        key, record = next(db.scan(FRAMES))
        damaged = bytearray(record)
        damaged[at] ^= 0xFF
        db.put(FRAMES, key, bytes(damaged))

    edit_chunks(state, flip)
    found = problems(state)
    assert found
    if at in (0, -3):
        assert files_of(found) == {("one", "one/shared"), ("two", "two/dir/shared")}
    assert ("two", "two/own") not in files_of(found)


async def test_fsck_undecodable_frame_is_named_for_every_file(tmp_path: Path) -> None:
    state = await make(tmp_path)

    def cut(db: Database) -> None:
        key, record = next(db.scan(FRAMES))
        db.put(FRAMES, key, record[:20])

    edit_chunks(state, cut)
    found = problems(state)
    assert files_of(found) == {("one", "one/shared"), ("two", "two/dir/shared")}
    first = next(problem for problem in found if problem.kind == "chunk")
    assert "damaged" in first.message


async def test_fsck_missing_chunk_and_missing_frame_are_named(tmp_path: Path) -> None:
    state = await make(tmp_path)
    copy = shutil.copytree(state, tmp_path / "copy")

    def lose_frame(db: Database) -> None:
        db.delete(FRAMES, next(db.scan(FRAMES))[0])

    edit_chunks(state, lose_frame)
    assert files_of(problems(state)) == {("one", "one/shared"), ("two", "two/dir/shared")}

    def lose_chunk(db: Database) -> None:
        db.delete(INDEX, next(db.scan(INDEX))[0])

    edit_chunks(copy, lose_chunk)
    named = files_of(problems(copy)) - {("", "")}
    assert named in ({("one", "one/shared"), ("two", "two/dir/shared")}, {("two", "two/own")})


async def test_fsck_chunks_that_the_remote_has_are_not_missing(tmp_path: Path) -> None:
    store = MemoryStore()
    async with open_machine(tmp_path / "a", store) as machine:
        machine.mkdir(b"s")
        await machine.write(b"s/f", BODY)
    async with open_machine(tmp_path / "b", store, name="b") as machine:
        await machine.load_all()
    assert_clean(tmp_path / "b")

    def flip(db: Database) -> None:
        key, record = next(db.scan(FRAMES))
        db.put(FRAMES, key, record[:-10] + bytes(10))

    edit_chunks(tmp_path / "a", flip)
    found = [problem for problem in problems(tmp_path / "a") if problem.kind == "chunk"]
    assert {(problem.session, problem.path) for problem in found} == {("s", "s/f")}
    assert all("the remote has it" in problem.message for problem in found)


def _first(db: Database, table: TableName) -> tuple[bytes, bytes]:
    return next(db.scan(table))


META_DAMAGE: dict[str, Callable[[Database], None]] = {
    "inode record cut": lambda db: db.put(INODES, INO.pack(1), _first(db, INODES)[1][:-1]),
    "root gone": lambda db: db.delete(INODES, INO.pack(1)),
    "dentry gone": lambda db: db.delete(DENTRIES, [key for key, _ in db.scan(DENTRIES)][-1]),
    "dentry to nowhere": lambda db: db.put(DENTRIES, INO.pack(1) + b"x", b"\xff" * 8 + b"\0\0\0\0"),
    "symlink target gone": lambda db: db.delete(SYMLINKS, _first(db, SYMLINKS)[0]),
    "recipe cut": lambda db: db.put(RECIPES, _first(db, RECIPES)[0], _first(db, RECIPES)[1][:-1]),
    "recipe shorter": lambda db: db.put(RECIPES, _first(db, RECIPES)[0], _first(db, RECIPES)[1][:-24]),
    "recipe gone": lambda db: db.delete(RECIPES, _first(db, RECIPES)[0]),
    "recipe of nobody": lambda db: db.put(RECIPES, INO.pack(99999), b""),
    "xattr of nobody": lambda db: db.put(XATTRS, INO.pack(99999) + b"user.x", b""),
    "orphan of nobody": lambda db: db.put(ORPHANS, INO.pack(99999), b""),
    "reference too many": lambda db: db.put(REFS, _first(db, REFS)[0], b"\x09\0\0\0"),
    "reference gone": lambda db: db.delete(REFS, _first(db, REFS)[0]),
    "counters wrong": lambda db: db.put(SESSIONS, _first(db, SESSIONS)[0], bytes(24)),
    "number given twice": lambda db: db.put(SUPER, b"next-number", b"\x03" + bytes(7)),
}


@pytest.mark.parametrize("damage", META_DAMAGE)
async def test_fsck_finds_damage_in_the_metadata(tmp_path: Path, damage: str) -> None:
    state = await make(tmp_path)
    edit_meta(state, META_DAMAGE[damage])
    assert problems(state)


async def test_fsck_finds_other_damage(tmp_path: Path) -> None:
    state = await make(tmp_path)
    hot = next((state / "hot").iterdir())
    content = hot.read_bytes()
    hot.write_bytes(content + b"x")
    assert [(p.kind, p.path) for p in problems(state)] == [("hot", "two/hot")]
    hot.unlink()
    assert [(p.kind, p.path) for p in problems(state)] == [("hot", "two/hot")]
    hot.write_bytes(content)
    (state / "hot" / "77.77").touch()
    assert [p.kind for p in problems(state)] == ["hot"]
    (state / "hot" / "77.77").unlink()
    assert_clean(state)
    edit_chunks(state, lambda db: db.put(TOTALS, b"totals", bytes(24)))
    assert [p.kind for p in problems(state)] == ["counter"]
    (state / "hash-key").unlink()
    assert "state" in [p.kind for p in problems(state)]


async def test_fsck_of_a_killed_state_is_lenient_where_the_next_mount_mends(tmp_path: Path) -> None:
    async with open_box(tmp_path / "state") as box:
        box.mkdir(b"s")
        await box.write(b"s/f", BODY)
        await box.commit()
        await box.seal()
        await box.write(b"s/g", b"late")
        await box.write(b"s/f", b"late", 1 << 20)
        left = box.copy_state(tmp_path / "left")
    report = check_state(left)
    assert report.clean, report.problems
    assert len(report.notes) == 1


async def test_fsck_of_a_state_killed_before_its_first_commit_is_a_note(tmp_path: Path) -> None:
    left: list[Path] = []

    def keep(state: Path) -> None:
        left.append(shutil.copytree(state, tmp_path / f"left{len(left)}"))

    state = tmp_path / "state"
    lock = StateDirectory(state)
    (state / "meta").mkdir()
    keep(state)
    Database(state / "meta", (DENTRIES,), 1 << 20).close()
    keep(state)
    Database(state / "meta", META_TABLES, 1 << 20).close()
    keep(state)
    ensure_hash_key(state, HASH_KEY)
    keep(state)
    (state / "hot").mkdir()
    (state / "chunks").mkdir()
    keep(state)
    Database(state / "chunks", CHUNK_TABLES[:2], 1 << 20).close()
    keep(state)
    Database(state / "chunks", CHUNK_TABLES, 1 << 20).close()
    keep(state)
    lock.close()
    async with open_box(tmp_path / "other") as box:
        box.mkdir(b"s")
        left.append(box.copy_state(tmp_path / "last"))
    for one in left:
        report = check_state(one)
        assert report.clean, (one, report.problems)
        assert report.notes
        async with open_box(one) as box:
            box.mkdir(b"works")
        assert_clean(one)


async def test_fsck_of_no_state_and_of_a_mounted_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        check_state(tmp_path)
    async with open_box(tmp_path / "state"):
        with pytest.raises(StateInUse):
            check_state(tmp_path / "state")


async def test_fsck_database_of_garbage_is_an_error(tmp_path: Path) -> None:
    state = await make(tmp_path)
    (state / "meta" / "data.mdb").write_bytes(b"garbage" * 10_000)
    with pytest.raises(LocalStoreError, match="can't open"):
        check_state(state)
