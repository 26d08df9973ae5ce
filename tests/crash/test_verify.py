"""The judge must acquit a directory that nothing happened to, and convict each kind of damage."""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from contextlib import closing
from typing import TYPE_CHECKING

import lmdb
import plyvel
import pytest

from tests.crash.harness import Running
from tests.crash.verify import Log, is_mixed, verify
from tests.crash.workload import LMDB_MAP_BYTES, SLOT_BYTES, row_key, slot_content

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The directory and the log of a workload that ran for a second on a plain filesystem."""
    base = tmp_path_factory.mktemp("verify")
    running = Running(base / "w", base / "log", 7)
    running.start()
    time.sleep(1.0)
    running.stop()
    return base / "w", base / "log"


def _lose_a_file(directory: Path) -> None:
    os.unlink(next(directory.glob("put*")))


def _lose_a_replacement(directory: Path) -> None:
    (directory / "replace3").write_bytes(b"an old version")


def _shorten_the_log(directory: Path) -> None:
    os.truncate(directory / "log", (directory / "log").stat().st_size // 2)


def _alter_the_log(directory: Path) -> None:
    with open(directory / "log", "r+b") as file:
        file.seek(10)
        file.write(b"\0\0\0\0")


def _alter_a_slot(directory: Path) -> None:
    with open(directory / "slots", "r+b") as file:
        file.seek(5000)
        file.write(bytes(100))


def _lose_rows(directory: Path) -> None:
    with closing(sqlite3.connect(directory / "wal.db")) as database:
        database.execute("delete from t where n = 2")
        database.commit()


def _alter_a_row(directory: Path) -> None:
    with closing(sqlite3.connect(directory / "delete.db")) as database:
        database.execute("update t set b = zeroblob(500) where n = 1")
        database.commit()


def _lose_a_key_of_lmdb(directory: Path) -> None:
    with lmdb.open(str(directory / "lmdb"), map_size=LMDB_MAP_BYTES) as env, env.begin(write=True) as txn:
        assert txn.delete(row_key(1))


def _lose_a_key_of_leveldb(directory: Path) -> None:
    with closing(plyvel.DB(str(directory / "leveldb"))) as database:
        database.delete(row_key(1))


def _zero_the_end_of_leveldb(directory: Path) -> None:
    """What was acknowledged lies behind zeros, or is gone."""
    log = max((directory / "leveldb").glob("*.log"))
    with open(log, "r+b") as file:
        file.write(bytes(log.stat().st_size))


def _break_the_chain(directory: Path) -> None:
    os.rmdir(directory / "chain" / "d2")


def _set_the_chain_back(directory: Path) -> None:
    shutil.rmtree(directory / "chain")
    (directory / "chain").mkdir()
    (directory / "chain" / "token0").touch()


def _bring_a_file_back(directory: Path) -> None:
    (directory / "put999999").touch()


def test_untouched_directory_is_acquitted_also_with_everything_promised(finished: tuple[Path, Path]) -> None:
    directory, log = finished
    assert verify(directory, Log(log, time.monotonic(), 0.0)) == []
    assert Log(log, time.monotonic(), None).n_promised() > 50


def test_slot_may_be_old_up_to_a_point_and_new_from_there_but_no_other_mixture() -> None:
    old, new = slot_content(3, 0), slot_content(3, 1)
    for at in (0, 1, 2000, SLOT_BYTES):
        assert is_mixed(old[:at] + new[at:], old, new)
        assert not is_mixed(old[:at] + bytes(SLOT_BYTES - at), old, new) or at == SLOT_BYTES
    assert not is_mixed(old[:1000] + new[1000:2000] + old[2000:], old, new)


@pytest.mark.parametrize(
    "damage",
    [
        _lose_a_file,
        _lose_a_replacement,
        _shorten_the_log,
        _alter_the_log,
        _alter_a_slot,
        _lose_rows,
        _alter_a_row,
        _lose_a_key_of_lmdb,
        _lose_a_key_of_leveldb,
        _zero_the_end_of_leveldb,
        _break_the_chain,
        _set_the_chain_back,
        _bring_a_file_back,
    ],
)
def test_damage_is_found(finished: tuple[Path, Path], tmp_path: Path, damage: Callable[[Path], None]) -> None:
    directory, log = finished
    shutil.copytree(directory, tmp_path / "w")
    damage(tmp_path / "w")
    assert len(verify(tmp_path / "w", Log(log, time.monotonic(), 0.0))) >= 1
