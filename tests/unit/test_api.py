"""The Python API on state directories and remotes, and what it costs to import."""

from __future__ import annotations

import errno
import io
import os
import stat
import subprocess
import sys
import threading
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

import sessfs
from sessfs.api.portal import Portal
from sessfs.api.store import no_session
from sessfs.errors import (
    LocalStoreError,
    NotMounted,
    PosixError,
    RemoteCorrupt,
    RemoteMissing,
    RemoteUnavailable,
    SessfsError,
    StateInUse,
    UsageError,
)
from sessfs.format.envelope import PlainEnvelope
from sessfs.format.repository import FORMAT_KEY, SessionObject, encode_format, encode_session_object, new_format
from sessfs.format.segment import session_key
from sessfs.remote.directory import DirectoryStore
from tests.support import trees
from tests.support.volumes import HASH_KEY, assert_clean, open_box, open_machine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.volumes import Box

BIG = bytes(range(256)) * 4096


async def fill(box: Box, session: bytes = b"user1") -> None:
    """A session with a large file, one with a hole, hard links, a symlink, an odd name, an xattr."""
    box.mkdir(session)
    box.mkdir(session + b"/dir", 0o710)
    await box.write(session + b"/big", BIG)
    await box.write(session + b"/dir/hole", b"end", 1 << 20)
    box.link(session + b"/big", session + b"/dir/again")
    box.symlink(session + b"/link", b"big")
    await box.write(session + b"/" + trees.NOT_UTF8, b"odd")
    box.volume.xattrs.set(box.get(session + b"/big").ino, b"user.x", b"\0value")


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A state directory that nobody has open, with the session `user1`."""

    async def make() -> None:
        async with open_box(tmp_path / "state") as box:
            await fill(box)
            await box.seal()

    trio.run(make)
    return tmp_path / "state"


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A remote with the session `user1`, published and released."""
    (tmp_path / "remote").mkdir()

    async def make() -> None:
        store = DirectoryStore(str(tmp_path / "remote"))
        await store.put(FORMAT_KEY, encode_format(new_format(HASH_KEY, None)))
        async with open_machine(tmp_path / "machine", store) as machine:
            await fill(machine)

    trio.run(make)
    return f"file://{tmp_path}/remote"


@pytest.fixture(params=["state", "url"])
def target(request: pytest.FixtureRequest) -> str:
    """Either, as what open_store takes."""
    return str(request.getfixturevalue(request.param))


# -- reading, alike on both


def test_walk_has_every_entry_with_its_attributes(target: str) -> None:
    with sessfs.open_store(target) as store:
        entries = {entry.path: entry for entry in store.session("user1").walk()}
    assert list(entries) == ["", "big", "dir", "dir/again", "dir/hole", "link", os.fsdecode(trees.NOT_UTF8)]
    assert entries["dir"].is_dir
    assert stat.S_IMODE(entries["dir"].mode) == 0o710
    assert entries["big"].size == len(BIG)
    assert entries["big"].ino == entries["dir/again"].ino
    assert entries["big"].nlink == 2
    assert entries["big"].xattrs == {"user.x": b"\0value"}
    assert (entries["link"].is_symlink, entries["link"].target) == (True, "big")
    assert entries["dir/hole"].mtime_ns > 1_700_000_000_000_000_000


def test_files_are_the_regular_ones(target: str) -> None:
    with sessfs.open_store(target) as store:
        assert [e.path for e in store.session(b"user1").files()] == [
            "big",
            "dir/again",
            "dir/hole",
            os.fsdecode(trees.NOT_UTF8),
        ]


def test_read_and_open(target: str) -> None:
    with sessfs.open_store(target) as store:
        session = store.session("user1")
        assert session.read("big") == session.read("./dir//again") == BIG
        assert session.read(trees.NOT_UTF8) == b"odd"
        assert session.read("dir/hole") == bytes(1 << 20) + b"end"
        with session.open(Path("big")) as file:
            assert file.seekable()
            assert file.read(10) == BIG[:10]
            assert file.seek(-5, io.SEEK_END) == len(BIG) - 5
            assert file.read() == BIG[-5:]
            assert file.read() == b""
            file.seek(700_001)
            assert file.read(50_000) == BIG[700_001:750_001]
            with pytest.raises(OSError, match="Invalid"):
                file.seek(-1)
        assert file.closed


@pytest.mark.parametrize(
    ("path", "number"),
    [
        ("absent", errno.ENOENT),
        ("big/below", errno.ENOENT),
        ("dir", errno.EISDIR),
        ("", errno.EISDIR),
        ("link", errno.ELOOP),
        ("../user1/big", errno.EINVAL),
        ("/big", errno.EINVAL),
    ],
)
def test_open_of_what_is_no_file(target: str, path: str, number: int) -> None:
    with sessfs.open_store(target) as store, pytest.raises(PosixError) as caught:
        store.session("user1").open(path)
    assert caught.value.errno == number


@pytest.mark.parametrize("name", ["absent", ".", "..", "", "a/b", ".sessfs-view-1", "x" * 256])
def test_session_that_is_not_there(target: str, name: str) -> None:
    with sessfs.open_store(target) as store, pytest.raises(PosixError if name == "absent" else UsageError):
        store.session(name)


def test_session_that_is_not_there_is_answered_by_those_that_are(target: str) -> None:
    with sessfs.open_store(target) as store, pytest.raises(PosixError, match=r"no session absent; there are: .*user1"):
        store.session("absent")


def test_of_many_sessions_ten_are_named() -> None:
    assert str(no_session("here", b"x", [])).endswith("here has no session x; there are: none")
    names = [f"user{number:02}" for number in range(12)]
    assert str(no_session("here", b"x", names)).endswith("user08, user09, and 2 more")


@pytest.mark.parametrize("name", ["out", "out.tar", "out.tar.zst", "out.zip"])
def test_export_to_each_format(target: str, tmp_path: Path, name: str) -> None:
    with sessfs.open_store(target) as store:
        session = store.session("user1")
        if name == "out.zip":
            with pytest.raises(UsageError, match="not UTF-8"):
                session.export(tmp_path / name)
            return
        steps: list[sessfs.ExportStep] = []
        report = session.export(tmp_path / name, progress=steps.append)
        assert (report.files, report.directories) == (5, 2)
        assert report.content_bytes == len(BIG) + (1 << 20) + 3 + 3
        assert steps[-1].done_bytes == steps[-1].total_bytes == report.content_bytes
        with pytest.raises(UsageError, match="exists"):
            session.export(tmp_path / name)
    if name == "out":
        seen = trees.look(tmp_path / "out")
        assert seen[b"big"].content == BIG
        assert seen[b"dir/again"].first == b"big"
        assert seen[b"big"].xattrs == {"user.x": b"\0value"}
        assert (tmp_path / "out/dir/hole").stat().st_blocks * 512 <= 16 << 10


def test_export_to_an_unknown_format(target: str, tmp_path: Path) -> None:
    with sessfs.open_store(target) as store, pytest.raises(UsageError, match=r"rar.*tar\.zst"):
        store.session("user1").export(tmp_path / "x", format="rar")


def test_check_reads_the_session(target: str) -> None:
    with sessfs.open_store(target) as store:
        report = store.session("user1").check()
    assert not report.good
    assert report.wrong == ("nothing of a Chrome profile is here",)


def test_closed_store_says_so(target: str) -> None:
    store = sessfs.open_store(target)
    session = store.session("user1")
    store.close()
    store.close()
    with pytest.raises(UsageError, match="is closed: open it again"):
        list(session.walk())


# -- a state directory


def test_state_gives_back_what_was_written_and_is_clean_afterwards(state: Path) -> None:
    with sessfs.open_store(state) as store:
        (record,) = store.sessions()
        assert (record.name, record.files) == ("user1", 4)
        assert record.logical_bytes is not None
        assert record.logical_bytes > len(BIG)
        status = store.status()
    assert status["pid"] == os.getpid()
    assert status["state_dir"] == str(state)
    assert_clean(state)


def test_state_is_held_until_it_is_closed(state: Path) -> None:
    with (
        sessfs.open_store(state),
        pytest.raises(StateInUse, match=f"pid {os.getpid()}"),
    ):
        sessfs.open_store(state)
    sessfs.open_store(state).close()


def test_state_history_snapshot_rollback(state: Path) -> None:
    with sessfs.open_store(state) as store:
        session = store.session("user1")
        assert session.history() == []
        first = session.snapshot("word")
        assert (first.mark, first.verdict) == ("word", "")
        assert session.history() == [first]
        assert session.read("big", at=first.sequence) == BIG
        assert not session.check(at=first.sequence).good
        assert [one.verdict for one in session.history()] == ["bad"]
        with pytest.raises(UsageError, match="no snapshot that was checked good"):
            session.rollback()
        assert session.rollback(first.sequence).sequence == first.sequence
        assert session.read("big") == BIG
        with pytest.raises(UsageError, match="there are:"):
            session.read("big", at=99)
        with pytest.raises(UsageError, match="there are:"):
            list(session.walk(at=99))
    with sessfs.open_store(state) as store:
        assert [one.sequence for one in store.session("user1").history()] == [first.sequence]
    assert_clean(state)


def test_state_snapshot_is_what_was_and_outlives_what_came_after(state: Path, tmp_path: Path) -> None:
    with sessfs.open_store(state) as store:
        taken = store.session("user1").snapshot()

    async def change() -> None:
        async with open_box(state) as box:
            await box.write(b"user1/big", b"changed")
            box.unlink(b"user1/dir/hole")

    trio.run(change)
    with sessfs.open_store(state) as store:
        session = store.session("user1")
        assert session.read("big") == b"changed" + BIG[7:]
        session.export(tmp_path / "old", at=taken.sequence)
        session.export(tmp_path / "new")
    assert trees.look(tmp_path / "old")[b"big"].content == BIG
    assert set(trees.look(tmp_path / "old")) - set(trees.look(tmp_path / "new")) == {b"dir/hole"}


def test_state_clone_and_remove(state: Path) -> None:
    with sessfs.open_store(state) as store:
        clone = store.session("user1").clone("user2")
        assert clone.name == "user2"
        assert clone.read("big") == BIG
        with pytest.raises(PosixError, match="exists already"):
            store.session("user1").clone("user2")
        store.session("user1").remove()
        assert [record.name for record in store.sessions()] == ["user2"]
        assert clone.read("dir/again") == BIG
    assert_clean(state)


def test_state_keeps_no_promise_of_a_policy_that_it_does_not_know(state: Path) -> None:
    """A mount may keep more snapshots than the default: whoever only opens its state must not drop them."""
    with sessfs.open_store(state) as store:
        session = store.session("user1")
        numbers = [session.snapshot().sequence for _ in range(1)]

    async def touch(number: int) -> None:
        async with open_box(state) as box:
            await box.write(b"user1/n", b"%d" % number)

    for number in range(12):
        trio.run(touch, number)
        with sessfs.open_store(state) as store:
            numbers.append(store.session("user1").snapshot().sequence)
    with sessfs.open_store(state) as store:
        assert [one.sequence for one in store.session("user1").history()] == numbers


def test_state_cant_sync(state: Path) -> None:
    with sessfs.open_store(state) as store, pytest.raises(UsageError, match="takes a mount"):
        store.sync()


def test_state_of_a_machine_with_a_remote(tmp_path: Path, url: str) -> None:
    """What is here is read; what is in the remote alone is an error that says so, and no empty session."""

    async def second() -> None:
        store = DirectoryStore(str(tmp_path / "remote"))
        async with open_machine(tmp_path / "other", store, name="b", take_over=True) as machine:
            await machine.load(b"user1")
            machine.mkdir(b"mine")
            await machine.write(b"mine/f", b"here")

    trio.run(second)
    (tmp_path / "other" / "repository").write_bytes(b"as a mount leaves it")
    with sessfs.open_store(tmp_path / "other") as store:
        assert store.session("mine").read("f") == b"here"
        with pytest.raises(RemoteUnavailable, match="in the remote only"):
            store.session("user1").read("big")


def test_state_that_broke_is_an_error(state: Path) -> None:
    (state / "hash-key").write_bytes(b"short")
    with pytest.raises(LocalStoreError, match="hash-key"):
        sessfs.open_store(state)


# -- a remote


def test_remote_lists_names_and_who_holds_it(url: str) -> None:
    with sessfs.open_store(url) as store:
        assert [record.name for record in store.sessions()] == ["user1"]
        assert store.status() == {
            "remote": url,
            "encrypted": False,
            "holder": {"node": "a", "hostname": "host-a", "since": store.status()["holder"]["since"]},
        }


def test_remote_is_never_written(url: str, tmp_path: Path) -> None:
    def everything() -> dict[Path, tuple[int, bytes]]:
        files = [path for path in (tmp_path / "remote").rglob("*") if path.is_file()]
        return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}

    before = everything()
    with sessfs.open_store(url) as store:
        session = store.session("user1")
        session.export(tmp_path / "out")
        session.history()
        for forbidden in (
            session.snapshot,
            session.rollback,
            session.remove,
            lambda: session.clone("other"),
            lambda: store.sync(),
        ):
            with pytest.raises(UsageError, match="a remote is only read here; mount it"):
                forbidden()
    assert everything() == before


def test_remote_beside_its_live_holder_shows_what_was_published(tmp_path: Path) -> None:
    (tmp_path / "remote").mkdir()
    remote = f"file://{tmp_path}/remote"

    def look() -> dict[str, list[str]]:
        with sessfs.open_store(remote) as store:
            found = {}
            for record in store.sessions():
                found[record.name] = [entry.path for entry in store.session(record.name).walk()]
            return found

    async def live() -> None:
        bucket = DirectoryStore(str(tmp_path / "remote"))
        await bucket.put(FORMAT_KEY, encode_format(new_format(HASH_KEY, None)))
        async with open_machine(tmp_path / "machine", bucket) as machine:
            machine.mkdir(b"one")
            await machine.write(b"one/f", b"1")
            await machine.publish()
            assert await trio.to_thread.run_sync(look) == {"one": ["", "f"]}
            await machine.write(b"one/g", b"2")
            machine.mkdir(b"two")
            await machine.publish()
            await machine.write(b"two/unpublished", b"3")
            assert await trio.to_thread.run_sync(look) == {"one": ["", "f", "g"], "two": [""]}
            machine.unlink(b"one/f")
            machine.unlink(b"one/g")
            machine.rmdir(b"one")
            await machine.publish()
            assert await trio.to_thread.run_sync(look) == {"two": ["", "unpublished"]}

    trio.run(live)
    assert look() == {"two": ["", "unpublished"]}


def test_remote_session_that_was_announced_and_never_published(url: str, tmp_path: Path) -> None:
    record = SessionObject(name=b"announced", holder=("a", 1), manifest=None, sequence=0, kept=[])
    key = session_key(PlainEnvelope(), b"announced")
    trio.run(DirectoryStore(str(tmp_path / "remote")).put, key, encode_session_object(record, PlainEnvelope()))
    with sessfs.open_store(url) as store, pytest.raises(UsageError, match="never uploaded"):
        list(store.session("announced").walk())


def test_remote_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "remote").mkdir()
    with pytest.raises(RemoteMissing, match="check the URL"):
        sessfs.open_store(f"file://{tmp_path}/remote")
    with pytest.raises(SessfsError):
        sessfs.open_store(f"file://{tmp_path}/absent")


def test_remote_with_a_damaged_segment(url: str, tmp_path: Path) -> None:
    (segment,) = (tmp_path / "remote" / "nodes").rglob("segments/*")
    body = bytearray(segment.read_bytes())
    body[200] ^= 1
    segment.write_bytes(bytes(body))
    with sessfs.open_store(url) as store:
        session = store.session("user1")
        with pytest.raises(RemoteCorrupt, match="user1"):
            session.export(tmp_path / "out")
    assert not (tmp_path / "out").exists()


# -- targets, imports, threads


def test_open_store_of_nothing(tmp_path: Path) -> None:
    for absent in (tmp_path, tmp_path / "absent", "relative"):
        with pytest.raises(UsageError, match="neither the mountpoint"):
            sessfs.open_store(absent)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UsageError, match="s3://BUCKET"):
        sessfs.open_store("http://somewhere/else")
    with pytest.raises(UsageError, match="no URL of a remote"):
        sessfs.open_store(tmp_path, key_file="k")


def test_every_public_name_is_there_and_none_costs_an_import() -> None:
    for name in sessfs.__all__:
        assert getattr(sessfs, name).__name__ == name
    assert set(sessfs.__all__) <= set(dir(sessfs))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = sessfs.nothing  # type: ignore[attr-defined]
    heavy = "sorted(m for m in sys.modules if m.startswith('sessfs.') or m in ('trio', 'lmdb', 'msgspec'))"
    for code, expected in (
        (f"import sys, sessfs; print({heavy})", "[]"),
        ("import sys, sessfs.vfs.sealworker, sessfs.mount.daemon; print('sessfs.api' in sys.modules)", "False"),
        ("import sys, sessfs.api; print('pyfuse3' in sys.modules, 'boto3' in sys.modules)", "False False"),
    ):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == expected


def test_portal_raises_what_ended_its_context() -> None:
    @asynccontextmanager
    async def breaks(at: str) -> AsyncIterator[str]:
        if at == "enter":
            raise NotMounted("entering")
        async with trio.open_nursery() as nursery:
            yield at
            if at == "leave":
                raise LocalStoreError("leaving")
            nursery.cancel_scope.cancel()

    with pytest.raises(NotMounted, match="entering"):
        Portal(lambda: breaks("enter"), "thing")
    portal = Portal(lambda: breaks("leave"), "thing")
    assert portal.held == "leave"
    assert portal.do(len, "four") == 4
    with pytest.raises(LocalStoreError, match="leaving"):
        portal.close()
    portal.close()
    assert threading.active_count() < 20
