"""The overlay over LMDB: reads see the newest change, batches are atomic, the map grows."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessfs.errors import LocalStoreError, StoreCorrupt
from sessfs.local.db import Database, TableName

if TYPE_CHECKING:
    from collections.abc import Iterator

ONE, TWO = TableName("one"), TableName("two")
MAP_BYTES = 1 << 20


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    database = Database(tmp_path / "env", (ONE, TWO), MAP_BYTES)
    yield database
    database.close()


def flush(database: Database) -> None:
    batch = database.cut()
    while not database.write_batch(batch):
        database.grow()
    database.settle(batch, durable=True)


def test_db_reads_overlay_before_batch_before_stored(db: Database) -> None:
    db.put(ONE, b"k", b"stored")
    flush(db)
    db.put(ONE, b"k", b"in flight")
    batch = db.cut()
    assert db.get(ONE, b"k") == b"in flight"
    db.put(ONE, b"k", b"overlay")
    assert db.get(ONE, b"k") == b"overlay"
    db.delete(ONE, b"k")
    assert db.get(ONE, b"k") is None
    db.settle(batch, durable=False)
    assert db.get(ONE, b"k") is None


def test_db_failed_batch_goes_back_under_newer_changes(db: Database) -> None:
    db.put(ONE, b"old", b"1")
    db.put(ONE, b"both", b"1")
    db.put(ONE, b"gone", b"1")
    batch = db.cut()
    db.put(ONE, b"both", b"2")
    db.put(ONE, b"new", b"2")
    db.delete(ONE, b"gone")
    db.settle(batch, durable=False)
    expected = [(b"both", b"2"), (b"new", b"2"), (b"old", b"1")]
    assert list(db.scan(ONE)) == expected
    flush(db)
    assert list(db.scan(ONE)) == expected
    assert db.count(ONE) == 3


def test_db_batch_survives_reopening(tmp_path: Path) -> None:
    db = Database(tmp_path / "env", (ONE, TWO), MAP_BYTES)
    db.put(ONE, b"a", b"1")
    db.put(TWO, b"b", b"")
    flush(db)
    db.put(ONE, b"lost", b"1")
    db.close()
    db = Database(tmp_path / "env", (ONE, TWO), MAP_BYTES)
    assert (db.get(ONE, b"a"), db.get(TWO, b"b"), db.get(ONE, b"lost")) == (b"1", b"", None)
    db.close()


def test_db_full_map_leaves_nothing_and_grows(tmp_path: Path) -> None:
    db = Database(tmp_path / "env", (ONE, TWO), 1 << 17)
    db.put(ONE, b"before", b"1")
    flush(db)
    for i in range(64):
        db.put(ONE, b"%04d" % i, bytes(4000))
    batch = db.cut()
    assert not db.write_batch(batch)
    assert db.grow() == 1 << 18
    assert db.get(ONE, b"before") == b"1"
    while not db.write_batch(batch):
        db.grow()
    db.settle(batch, durable=True)
    assert db.count(ONE) == 65
    assert db.stored_bytes() > 64 * 4000
    db.close()


def test_db_second_cut_before_settle_is_refused(db: Database) -> None:
    batch = db.cut()
    with pytest.raises(RuntimeError):
        db.cut()
    db.settle(batch, durable=True)
    with pytest.raises(RuntimeError):
        db.settle(batch, durable=True)


def test_db_readonly_without_a_table_is_corrupt(tmp_path: Path) -> None:
    Database(tmp_path / "env", (ONE,), MAP_BYTES).close()
    with pytest.raises(StoreCorrupt, match="two"):
        Database(tmp_path / "env", (ONE, TWO), MAP_BYTES, readonly=True)
    with pytest.raises(LocalStoreError):
        Database(tmp_path / "nothing", (ONE,), MAP_BYTES, readonly=True)


def test_db_writer_of_another_environment_grows_under_a_reader(tmp_path: Path) -> None:
    db = Database(tmp_path / "env", (ONE,), 1 << 17)
    assert db.get(ONE, b"x") is None
    for i in range(200):
        db.put(ONE, b"%04d" % i, bytes(4000))
    flush(db)
    assert db.count(ONE) == 200
    db.close()


KEYS = st.binary(min_size=1, max_size=10).map(lambda key: b"prefixed" + key) | st.binary(min_size=1, max_size=3)
STEPS = st.lists(
    st.tuples(st.sampled_from(["put", "delete", "cut", "durable", "failed"]), KEYS, st.binary(max_size=4)), max_size=30
)


@given(steps=STEPS, prefix=st.binary(max_size=9), after=st.none() | KEYS)
def test_db_scan_equals_a_dictionary(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, bytes, bytes]], prefix: bytes, after: bytes | None
) -> None:
    db = Database(tmp_path_factory.mktemp("db"), (ONE,), MAP_BYTES)
    model: dict[bytes, bytes] = {}
    batch = None
    for step, key, value in steps:
        if step == "put":
            db.put(ONE, key, value)
            model[key] = value
        elif step == "delete":
            db.delete(ONE, key)
            model.pop(key, None)
        elif step == "cut" and batch is None:
            batch = db.cut()
        elif step in ("durable", "failed") and batch is not None:
            if step == "durable":
                assert db.write_batch(batch)
            db.settle(batch, durable=step == "durable")
            batch = None
        assert db.get(ONE, key) == model.get(key)
    wanted = [(k, v) for k, v in sorted(model.items()) if k.startswith(prefix) and (after is None or k > after)]
    assert list(db.scan(ONE, prefix, after)) == wanted
    db.close()


def resident_bytes(path: Path) -> int:
    """How much of the mapped file counts as this process's memory."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        fields = line.split()
        if not fields[0].endswith(":"):
            inside = line.endswith(str(path))
        elif inside and fields[0] == "Rss:":
            total += int(fields[1]) * 1024
    return total


def test_db_pages_that_were_read_do_not_stay_in_memory(tmp_path: Path) -> None:
    database = Database(tmp_path / "env", (ONE,), 1 << 30)
    try:
        for number in range(100):
            database.put(ONE, b"%d" % number, os.urandom(1 << 20))
        flush(database)
        for number in range(100):
            assert len(database.get(ONE, b"%d" % number) or b"") == 1 << 20
            assert resident_bytes(tmp_path / "env" / "data.mdb") < 24 << 20
        assert sum(len(value) for _, value in database.scan(ONE)) == 100 << 20
        assert resident_bytes(tmp_path / "env" / "data.mdb") < 24 << 20
    finally:
        database.close()
