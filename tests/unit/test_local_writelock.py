"""The right to write `chunks/`: one process at a time, until it ends, however it ends."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from sessfs.errors import LocalStoreError, StateInUse
from sessfs.local.writelock import WriteLock, lock_file

if TYPE_CHECKING:
    from pathlib import Path

HOLD = """
import sys, time
from pathlib import Path
from sessfs.local.writelock import WriteLock
lock = WriteLock(Path(sys.argv[1]), create=True)
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path: Path, started: list[subprocess.Popen[bytes]]) -> subprocess.Popen[bytes]:
    """Another process that has the lock."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "chunks")], stdout=subprocess.PIPE)
    started.append(process)
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == b"held\n"
    return process


def test_writelock_is_refused_in_bounded_time_and_names_who_has_it(
    tmp_path: Path, holder: subprocess.Popen[bytes]
) -> None:
    began_s = time.monotonic()
    with pytest.raises(StateInUse, match=rf"process {holder.pid} .*{tmp_path}"):
        WriteLock(tmp_path / "chunks", create=False, patience_s=0.2)
    assert time.monotonic() - began_s < 10
    assert holder.poll() is None


@pytest.mark.parametrize("is_stopped", [False, True])
def test_writelock_goes_with_a_holder_that_is_killed(
    tmp_path: Path, holder: subprocess.Popen[bytes], is_stopped: bool
) -> None:
    if is_stopped:
        holder.send_signal(signal.SIGSTOP)
    holder.kill()
    with WriteLock(tmp_path / "chunks", create=False, patience_s=10) as lock:
        lock.check()
        assert lock_file(tmp_path / "chunks").read_text() == f"{os.getpid()}\n"


def test_writelock_is_not_handed_on_to_children(tmp_path: Path, started: list[subprocess.Popen[bytes]]) -> None:
    with WriteLock(tmp_path / "chunks", create=True):
        started.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], close_fds=False))
    WriteLock(tmp_path / "chunks", create=False, patience_s=0.2).close()


def test_writelock_of_a_state_that_was_removed_says_so_and_makes_nothing(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    with WriteLock(state / "chunks", create=True) as lock:
        shutil.rmtree(state)
        with pytest.raises(LocalStoreError, match="removed or replaced"):
            lock.check()
        with pytest.raises(LocalStoreError, match="can't be opened"):
            WriteLock(state / "chunks", create=False, patience_s=0)
        assert not state.exists()
        state.mkdir()
        # Another state in its place is not what the lock was taken for.
        with WriteLock(state / "chunks", create=True), pytest.raises(LocalStoreError, match="removed or replaced"):
            lock.check()


def test_writelock_outlasts_that_the_database_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "chunks").mkdir()
    with WriteLock(tmp_path / "chunks", create=True) as lock:
        (tmp_path / "chunks").rename(tmp_path / "old")
        (tmp_path / "chunks").mkdir()
        lock.check()
        with pytest.raises(StateInUse):
            WriteLock(tmp_path / "chunks", create=False, patience_s=0)
