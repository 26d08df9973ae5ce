"""The seal process when its daemon dies, when a mount fails, and when it breaks at one file or one chunk."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import lmdb
import pytest
import trio

from sessfs.errors import LocalStoreError, StateInUse
from sessfs.format.recipe import Recipe
from sessfs.local import writelock
from sessfs.local.chunkstore import CHUNK_TABLES
from sessfs.vfs import sealclient, sealing, volume
from sessfs.vfs.children import Child
from sessfs.vfs.sealjobs import DropRequest
from tests.support.mounted import Process, process, wait_gone
from tests.support.posix import eventually
from tests.support.sealprocesses import ROOT, child
from tests.support.volumes import HASH_KEY, NEVER_S, Clock, assert_clean, open_box, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.volumes import Box

DAEMON = """
import os, signal, sys
from pathlib import Path
import trio
from sessfs.vfs import sealclient
from tests.support.sealprocesses import child
from tests.support.volumes import open_box
from tests.unit.test_vfs_sealprocess import N_FILES, content

async def main():
    how = sys.argv[2]
    if how in ("outlives", "forgets"):
        sealclient.Child = child(how)
    async with open_box(Path(sys.argv[1])) as box:
        if how == "is starting":
            os.kill(box.volume.seal_pid, signal.SIGSTOP)
        box.mkdir(b"s")
        await box.write(b"s/first", content(99)[:300_000])
        for number in range(N_FILES):
            await box.write(b"s/%d" % number, content(number))
        await box.commit()
        if how != "is starting":
            inode = box.get(b"s/first")
            await box.volume.sealer._seal([inode])
            await box.commit()
        print(box.volume.seal_pid, flush=True)
        await box.seal()

trio.run(main)
"""
N_FILES = 4
SIZE = 6 << 20


def content(number: int) -> bytes:
    return random.Random(number).randbytes(SIZE)


def stored(state: Path) -> int:
    return (state / "chunks" / "data.mdb").stat().st_blocks * 512


class Killed:
    """A daemon that was killed, and its seal process, which was stopped before."""

    def __init__(self, state: Path, how: str) -> None:
        self.state = state
        self._daemon = subprocess.Popen(
            [sys.executable, "-c", DAEMON, str(state), how],
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        assert self._daemon.stdout is not None
        with self._daemon.stdout:
            self.seal: Process = process(int(self._daemon.stdout.readline()))

    def kill(self, *, at_bytes: int) -> None:
        """Kill the daemon once so much is stored, its seal process being stopped."""
        assert eventually(lambda: stored(self.state) >= at_bytes, 60)
        os.kill(self.seal.pid, signal.SIGSTOP)
        self._daemon.kill()
        self._daemon.wait()

    def resume(self) -> None:
        if self.seal.is_alive():
            os.kill(self.seal.pid, signal.SIGCONT)

    def end(self) -> None:
        """Leave nothing behind."""
        self._daemon.kill()
        self._daemon.wait()
        if self.seal.is_alive():
            os.kill(self.seal.pid, signal.SIGKILL)


@contextmanager
def killed(state: Path, how: str) -> Iterator[Killed]:
    made = Killed(state, how)
    try:
        yield made
    finally:
        made.end()


async def check_all(state: Path) -> None:
    """Every file is as it was written, now and after all was sealed anew and changed."""
    async with open_box(state) as box:
        for number in range(N_FILES):
            assert await box.read(b"s/%d" % number) == content(number)
        assert await box.read(b"s/first") == content(99)[:300_000]
        for number in range(0, N_FILES, 2):
            box.unlink(b"s/%d" % number)
        await box.write(b"s/new", content(1000))
        await box.drop_dead()
        await box.seal()
    assert_clean(state)
    async with open_box(state) as box:
        for number in range(1, N_FILES, 2):
            assert await box.read(b"s/%d" % number) == content(number)
        assert await box.read(b"s/new") == content(1000)


@pytest.mark.parametrize(("point", "at_bytes"), [("has nothing to do", 0), ("is at work", 4 << 20)])
async def test_seal_process_is_killed_with_its_daemon_even_if_it_is_stopped(
    tmp_path: Path, point: str, at_bytes: int
) -> None:
    state = tmp_path / "state"
    with killed(state, point) as former:
        former.kill(at_bytes=at_bytes)
        assert not wait_gone([former.seal], 10)
        await check_all(state)


async def test_seal_process_whose_daemon_died_before_it_knew_its_name_ends_and_makes_nothing(tmp_path: Path) -> None:
    """It was stopped before it could ask to be killed."""
    state = tmp_path / "state"
    with killed(state, "is starting") as former:
        former.kill(at_bytes=0)
        async with open_box(state) as box:
            await box.seal()
            before = stored(state)
            former.resume()
            assert not await trio.to_thread.run_sync(wait_gone, [former.seal], 20)
            assert stored(state) == before
        await check_all(state)


@pytest.mark.parametrize(("how", "at_bytes"), [("outlives", 0), ("outlives", 4 << 20), ("forgets", 4 << 20)])
async def test_next_daemon_waits_for_a_seal_process_that_outlives_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, at_bytes: int
) -> None:
    """Even were nothing to kill it: the lock alone keeps the next one out, in bounded time, and says who has it."""
    state = tmp_path / "state"
    with killed(state, how) as former:
        former.kill(at_bytes=at_bytes)
        assert former.seal.is_alive()
        with monkeypatch.context() as patch:
            patch.setattr(writelock, "PATIENCE_S", 0.2)
            with pytest.raises(StateInUse, match=f"process {former.seal.pid} still writes the chunks of {state}"):
                async with open_box(state):
                    pass
        former.resume()
        await check_all(state)
        assert not former.seal.is_alive()


async def test_seal_process_that_outlives_its_daemon_begins_no_transaction(tmp_path: Path) -> None:
    """The one that was under way when it was stopped comes to its end."""
    state = tmp_path / "state"
    with killed(state, "outlives") as former:
        former.kill(at_bytes=4 << 20)
        before = last_transaction(state)
        former.resume()
        assert not wait_gone([former.seal], 20)
        assert last_transaction(state) - before in (0, 1)
        await check_all(state)


def last_transaction(state: Path) -> int:
    """The number of the last one that is durable in `chunks/`."""
    with lmdb.open(str(state / "chunks"), readonly=True, max_dbs=len(CHUNK_TABLES)) as env:
        return int(env.info()["last_txnid"])


async def test_mount_that_fails_leaves_no_child_and_nothing_is_made_again(tmp_path: Path) -> None:
    """Neither in a state that was wiped meanwhile, nor beside the next mount."""
    state = tmp_path / "state"
    clock = Clock()
    failed = volume.Volume(
        state,
        commit_interval_s=NEVER_S,
        seal_idle_s=NEVER_S,
        cache_bound_bytes=1 << 40,
        clock_ns=clock.ns,
        monotonic_s=clock.s,
        hash_key=HASH_KEY,
    )
    await failed.start(0, 0)
    assert failed.seal_pid is not None
    seal = process(failed.seal_pid)
    os.kill(seal.pid, signal.SIGSTOP)
    await failed.abandon()
    assert not seal.is_alive()
    assert not (state / "clean").exists()
    shutil.rmtree(state)
    await trio.sleep(0.3)
    assert not state.exists()
    async with open_box(state) as box:
        box.mkdir(b"s")
    assert_clean(state)


async def test_seal_process_makes_nothing_in_a_state_that_was_wiped(tmp_path: Path) -> None:
    """It had begun to start when the state went, and nobody ended it."""
    state = tmp_path / "state"
    async with open_box(state) as box:
        hello = box.volume._client._hello
    shutil.rmtree(state)
    client = sealclient.SealProcessClient(hello)
    with pytest.raises(LocalStoreError, match=r"chunks\.lock can't be opened"):
        await client.call(DropRequest([]))
    assert client.pid is None
    assert not state.exists()


async def test_volume_that_can_not_be_opened_holds_nothing(tmp_path: Path) -> None:
    state = tmp_path / "state"
    async with open_box(state) as box:
        box.mkdir(b"s")
    key = (state / "hash-key").read_bytes()
    (state / "hash-key").write_bytes(b"short")
    for _ in range(2):
        with pytest.raises(LocalStoreError, match="5 bytes"):
            async with open_box(state):
                pass
    (state / "hash-key").write_bytes(key)
    async with open_box(state) as box:
        assert box.find(b"s")
    assert_clean(state)


async def test_child_is_not_killed_when_idle_threads_of_its_parent_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux kills it with the thread that started it: that must be one that lasts."""
    monkeypatch.setattr("trio._core._thread_cache.IDLE_TIMEOUT", 0.05)
    async with open_box(tmp_path / "state") as box:
        pid = box.volume.seal_pid
        await trio.to_thread.run_sync(time.sleep, 0)
        box.mkdir(b"s")
        await box.write(b"s/f", content(1))
        await box.seal()
        await trio.sleep(0.5)
        await box.drop_dead()
        await box.write(b"s/f", content(2))
        await box.seal()
        assert box.volume.seal_pid == pid
    assert_clean(tmp_path / "state")


async def test_child_is_ended_by_force_when_it_does_not_end_by_itself() -> None:
    stopped = Child("http.server")
    assert stopped.pid is not None
    os.kill(stopped.pid, signal.SIGSTOP)
    with trio.fail_after(10):
        await stopped.end(0.1)
    assert stopped.pid is None


# -- one bad file, one bad chunk


async def test_one_file_at_which_the_seal_process_breaks_stays_hot_and_all_others_are_sealed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sealing, "TICK_S", 0.01)
    monkeypatch.setattr(sealing, "RETRY_S", 0.01)
    async with open_box(tmp_path / "state", seal_idle_s=1.0) as box:
        box.mkdir(b"s")
        inodes = [await box.write(b"s/%d" % number, content(number)[:50_000]) for number in range(5)]
        bad = inodes[2]
        with monkeypatch.context() as patch:
            _break(patch, "breaks-at-file", str(bad.ino))
            await _restart(box)
            box.clock.advance(100)
            await wait_until(lambda: not any(inode.hot_no for inode in inodes if inode is not bad), 60)
            assert bad.hot_no
            assert await box.read(b"s/2") == content(2)[:50_000]
            await wait_until(lambda: box.volume.sealer.failed is None, 20)
        assert any(f"inode {bad.ino} of session s can't be sealed" in record.message for record in caplog.records)
        await _restart(box)
        await box.seal()
        assert not bad.hot_no
        assert await box.read(b"s/2") == content(2)[:50_000]


@pytest.mark.parametrize("evicts", [False, True])
async def test_one_chunk_at_which_the_seal_process_breaks_is_set_aside_and_all_others_are_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, evicts: bool
) -> None:
    monkeypatch.setattr(sealing, "TICK_S", NEVER_S)
    async with open_box(tmp_path / "state") as box:
        box.mkdir(b"s")
        await box.write(b"s/f", content(1))
        await box.seal()
        ids = list(Recipe(box.volume.inodes.load_recipe(box.get(b"s/f")).packed).iter_chunks())
        bad = ids[7]
        _break(monkeypatch, "breaks-at-chunk", bad.hex())
        await _restart(box)
        if evicts:
            monkeypatch.setattr(box.volume.places, "may_evict", lambda cid: True)
            act = partial(box.volume.sealer.evict, ids)
        else:
            box.unlink(b"s/f")
            await box.commit()
            act = box.drop_dead
        with pytest.raises(LocalStoreError, match=r"bug in the seal process: error\("):
            await act()
        # Other work that goes well in between does not hide it.
        await box.write(b"s/g", content(2)[:50_000])
        await box.seal()
        others = set(box.volume.reader.iter_ids()) - set(ids)
        await box.commit()
        await act()
        assert set(box.volume.reader.iter_ids()) == {bad, *others}
        assert [bad.hex() in what for what in box.volume.sealer.set_aside] == [True]
        await box.write(b"s/g", content(2))
        await box.seal()
        assert not box.get(b"s/g").hot_no
        await act()


def _break(patch: pytest.MonkeyPatch, *how: str) -> None:
    """The next seal processes break so."""
    patch.setenv("PYTHONPATH", str(ROOT))
    patch.setattr(sealclient, "Child", child(*how))


async def _restart(box: Box) -> None:
    """Have another seal process from here on."""
    await box.volume._client.stop()
