"""What a directory store promises beyond the contract: other processes, unmounted disks, crashes, odd names."""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from sessfs.errors import RemoteConflict, RemoteDenied, RemoteMissing, RemoteUnavailable
from sessfs.remote.directory import ABANDONED_S, PIECE_BYTES, DirectoryStore, key_to_path
from sessfs.remote.objectstore import KEY_MAX_BYTES, PART_MAX_BYTES
from tests.support.memorystore import MemoryStore

if TYPE_CHECKING:
    from pathlib import Path

PARTS = st.one_of(
    st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=12),
    st.text("ab%+.-/"[:-1], min_size=1, max_size=6),
    st.builds(lambda piece, n: (piece * PART_MAX_BYTES)[:n], st.sampled_from(["a", "%", "ab"]), st.integers(78, 255)),
).filter(lambda part: part not in (".", "..") and len(part.encode()) <= PART_MAX_BYTES)
KEYS = st.lists(PARTS, min_size=1, max_size=3).map("/".join).filter(lambda key: len(key.encode()) <= KEY_MAX_BYTES)


def compatible(keys: list[str]) -> list[str]:
    """Those of *keys* of which none is the directory of another."""
    return [key for key in keys if not any(other.startswith(key + "/") for other in keys)]


@given(st.lists(KEYS, max_size=12, unique=True).map(compatible), KEYS, st.integers(1, 5))
def test_listing_equals_that_of_memory(
    tmp_path_factory: pytest.TempPathFactory, keys: list[str], place: str, limit: int
) -> None:
    directory, memory = DirectoryStore(tmp_path_factory.mktemp("store")), MemoryStore()

    async def main() -> None:
        for key in keys:
            await directory.put(key, key.encode())
            await memory.put(key, key.encode())
        for prefix in ("", place[:1], place):
            for after in ("", place):
                there = await directory.list_page(prefix, after, limit)
                expected = await memory.list_page(prefix, after, limit)
                assert [(entry.key, entry.size) for entry in there] == [(entry.key, entry.size) for entry in expected]
        await directory.delete(keys)
        assert await directory.list_page("") == []

    trio.run(main)


@given(KEYS)
def test_file_names_fit_and_do_not_hide_in_ours(key: str) -> None:
    for name in key_to_path(key).split(b"/"):
        assert 0 < len(name) <= 255
        assert not name.startswith(b".")
    if len(key) < PIECE_BYTES and key.isalnum() and key.isascii():
        assert key_to_path(key) == key.encode()


async def test_object_is_a_plain_file_with_its_bytes(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    await store.put("nodes/a1/state", b"bytes")
    assert (tmp_path / "nodes/a1/state").read_bytes() == b"bytes"
    await store.delete(["nodes/a1/state"])
    assert sorted(os.listdir(tmp_path)) == [".lock", ".new"]


async def test_directory_that_goes_away_is_denied_not_empty(tmp_path: Path) -> None:
    """An unmounted disk leaves an empty mountpoint."""
    home = tmp_path / "disk"
    home.mkdir()
    store = DirectoryStore(home)
    await store.put("k", b"x")
    shutil.move(home, tmp_path / "away")

    async def all_denied() -> None:
        for attempt in (
            store.get("k"),
            store.list_page(""),
            store.put("k", b""),
            store.put_if("k", b"", None),
            store.delete(["k"]),
        ):
            with pytest.raises(RemoteDenied, match="mount its disk"):
                await attempt

    await all_denied()
    home.mkdir()
    await all_denied()
    DirectoryStore(home)  # another store at the same path is still another store
    await all_denied()
    shutil.rmtree(home)
    shutil.move(tmp_path / "away", home)
    assert (await store.get("k")).body == b"x"


async def test_etags_never_repeat_even_if_the_clock_stands_still(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path, now_ns=lambda: 1_700_000_000_000_000_000)
    etags = [await store.put("k", b"same") for _ in range(20)]
    assert len(set(etags)) == 20
    with pytest.raises(RemoteConflict):
        await store.put_if("k", b"mine", etags[0])


async def test_processes_racing_by_compare_and_swap_lose_no_increment(tmp_path: Path) -> None:
    script = (
        "import sys, trio; from sessfs.remote.directory import DirectoryStore\n"
        "from sessfs.errors import RemoteConflict\n"
        "async def main():\n"
        "    store, done = DirectoryStore(sys.argv[1]), 0\n"
        "    while done < 40:\n"
        "        blob = await store.get('counter')\n"
        "        try: await store.put_if('counter', str(int(blob.body) + 1).encode(), blob.etag)\n"
        "        except RemoteConflict: continue\n"
        "        done += 1\n"
        "trio.run(main)\n"
    )
    store = DirectoryStore(tmp_path)
    await store.put("counter", b"0")
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(trio.run_process, [sys.executable, "-c", script, str(tmp_path)])
    assert (await store.get("counter")).body == b"120"


async def test_writes_and_deletes_beside_each_other_do_not_fail(tmp_path: Path) -> None:
    """Directories come and go with their last key."""
    store = DirectoryStore(tmp_path)

    async def churn(name: str) -> None:
        for _ in range(30):
            await store.put(f"a/b/{name}", b"x")
            await store.delete([f"a/b/{name}"])
            await store.list_page("a/")

    async with trio.open_nursery() as nursery:
        for name in "pqrs":
            nursery.start_soon(churn, name)
    assert await store.list_page("") == []


def test_abandoned_writes_are_dropped_at_opening(tmp_path: Path) -> None:
    DirectoryStore(tmp_path)
    old, young = tmp_path / ".new/old", tmp_path / ".new/young"
    for path in (old, young):
        path.write_bytes(b"half")
    then_s = time.time() - ABANDONED_S - 60
    os.utime(old, (then_s, then_s))
    DirectoryStore(tmp_path)
    assert not old.exists()
    assert young.exists()


async def test_what_a_killed_writer_left_goes_with_the_old_versions(tmp_path: Path) -> None:
    """However young it is: an erasure promises that nothing is left. What somebody is writing stays."""
    store = DirectoryStore(tmp_path)
    left, busy = tmp_path / ".new/left", tmp_path / ".new/busy"
    left.write_bytes(b"half")
    with busy.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert await store.delete_old_versions(lambda key: False) == 1
        assert os.listdir(tmp_path / ".new") == ["busy"]
    assert await store.delete_old_versions(lambda key: False) == 1
    assert os.listdir(tmp_path / ".new") == []


@pytest.mark.parametrize("another", [False, True])
async def test_a_write_under_way_is_nothing_left_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, another: bool
) -> None:
    writer = DirectoryStore(tmp_path)
    cleaner = DirectoryStore(tmp_path) if another else writer
    began, go_on = threading.Event(), threading.Event()
    fsync = os.fsync

    def slow(fd: int) -> None:
        began.set()
        assert go_on.wait(10)
        fsync(fd)

    monkeypatch.setattr(os, "fsync", slow)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.put, "k", b"new")
        assert await trio.to_thread.run_sync(began.wait, 10)
        assert await cleaner.delete_old_versions(lambda key: True) == 0
        go_on.set()
    assert (await writer.get("k")).body == b"new"


async def test_failed_write_leaves_the_old_object_and_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = DirectoryStore(tmp_path)
    await store.put("k", b"old")

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        with pytest.raises(RemoteUnavailable, match="No space left"):
            await store.put("k", b"new")
    assert (await store.get("k")).body == b"old"
    assert os.listdir(tmp_path / ".new") == []


async def test_refused_access_is_denied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = DirectoryStore(tmp_path)
    real = os.open

    def refuse(path: bytes, *rest: int) -> int:
        if path.endswith(b"/k"):
            raise PermissionError(13, "Permission denied")
        return real(path, *rest)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(RemoteDenied, match="read and write access"):
        await store.get("k")
    monkeypatch.setattr(os, "open", real)
    with pytest.raises(RemoteMissing):
        await store.get("k")
