"""The state directory: one holder, one version, one hash key, and the mark of a clean end."""

from __future__ import annotations

import fcntl
import json
import os
import threading
import time
from typing import TYPE_CHECKING

import pytest

from sessfs.errors import StateInUse, StateTooNew, StoreCorrupt
from sessfs.local.state import StateDirectory, ensure_hash_key, lock_holder, read_hash_key

if TYPE_CHECKING:
    from pathlib import Path

KEY = bytes(range(32))


def test_state_is_held_by_one_process_only(tmp_path: Path) -> None:
    assert lock_holder(tmp_path / "state") is None
    state = StateDirectory(tmp_path / "state")
    assert lock_holder(tmp_path / "state") == os.getpid()
    with pytest.raises(StateInUse, match=str(os.getpid())):
        StateDirectory(tmp_path / "state")
    state.close()
    assert lock_holder(tmp_path / "state") is None
    StateDirectory(tmp_path / "state").close()


def test_state_looked_at_for_an_instant_is_not_in_use(tmp_path: Path) -> None:
    StateDirectory(tmp_path).close()
    fd = os.open(tmp_path / "lock", os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    looking = threading.Timer(0.05, os.close, [fd])
    looking.start()
    StateDirectory(tmp_path).close()
    looking.join()


def test_state_in_use_is_told_soon(tmp_path: Path) -> None:
    state = StateDirectory(tmp_path)
    start = time.monotonic()
    with pytest.raises(StateInUse):
        StateDirectory(tmp_path)
    assert 0.15 < time.monotonic() - start < 20
    state.close()


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (json.dumps({"version": 99}), StateTooNew),
        (json.dumps({"version": "one"}), StoreCorrupt),
        (json.dumps([]), StoreCorrupt),
        (json.dumps({}), StoreCorrupt),
        ("", StoreCorrupt),
        ("\udcff", StoreCorrupt),
    ],
)
def test_state_of_another_version_is_refused_and_let_go(tmp_path: Path, content: str, error: type[Exception]) -> None:
    (tmp_path / "format").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(error):
        StateDirectory(tmp_path)
    assert lock_holder(tmp_path) is None


def test_state_counts_as_clean_only_when_it_was_marked(tmp_path: Path) -> None:
    state = StateDirectory(tmp_path)
    assert state.was_clean
    (tmp_path / "meta").mkdir()
    state.close()
    state = StateDirectory(tmp_path)
    assert not state.was_clean
    state.mark_clean()
    state.close()
    state = StateDirectory(tmp_path)
    assert state.was_clean
    state.close()
    state = StateDirectory(tmp_path)
    assert not state.was_clean
    state.close()


def test_state_hash_key_is_made_once(tmp_path: Path) -> None:
    assert read_hash_key(tmp_path) is None
    assert ensure_hash_key(tmp_path, KEY) == KEY
    assert ensure_hash_key(tmp_path, bytes(32)) == KEY
    assert read_hash_key(tmp_path) == KEY
    (tmp_path / "hash-key").write_bytes(KEY[:31])
    with pytest.raises(StoreCorrupt, match="31 bytes"):
        read_hash_key(tmp_path)


def test_state_with_chunks_and_no_hash_key_is_corrupt(tmp_path: Path) -> None:
    (tmp_path / "chunks").mkdir()
    with pytest.raises(StoreCorrupt, match="hash-key is missing"):
        ensure_hash_key(tmp_path, KEY)


def test_state_random_keys_differ(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert ensure_hash_key(tmp_path / "a", None) != ensure_hash_key(tmp_path / "b", None)
