"""Sessions as wholes, on a volume without a remote: clone, roll back, views, rename, remove; and what it costs."""

from __future__ import annotations

import errno
import random
from typing import TYPE_CHECKING

import pytest
import trio

from sessfs.errors import MountBusy, PosixError, UsageError
from sessfs.sync.keeping import Policy
from sessfs.types import ROOT_INO
from tests.support.lives import Local
from tests.support.volumes import assert_clean, open_box, snapshot

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.volumes import Attributes, Box

BIG = random.Random(1).randbytes(300_000)


async def fill(box: Box, name: bytes = b"user1") -> None:
    box.mkdir(name)
    box.mkdir(name + b"/dir", 0o700)
    await box.write(name + b"/dir/big", BIG)
    await box.write(name + b"/small", b"small")
    box.create(name + b"/empty")
    box.link(name + b"/small", name + b"/dir/linked")
    box.symlink(name + b"/link", b"dir/big")
    box.volume.xattrs.set(box.get(name + b"/small").ino, b"user.x", b"value")
    await box.write(name + b"/SingletonLock", b"stays on its node")


def content(tree: dict[bytes, Attributes], name: bytes) -> dict[bytes, Attributes]:
    """The tree with paths inside the session."""
    cut = len(name)
    return {
        path[cut:]: attributes._replace(links=tuple(link[cut:] for link in attributes.links))
        for path, attributes in tree.items()
    }


async def test_clone_shares_every_chunk(tmp_path: Path) -> None:
    async with open_box(tmp_path) as box:
        local = Local(box)
        await fill(box)
        await box.seal()
        before = box.volume.reader.totals()
        await local.lives.clone(b"user1", b"user2")
        assert box.volume.reader.totals() == before
        assert content(await snapshot(box, b"user2"), b"user2") == content(await snapshot(box, b"user1"), b"user1")
        assert local.kernel.names == [b"user2"]
        await box.write(b"user2/dir/big", b"changed", 1000)
        assert await box.read(b"user1/dir/big") == BIG
        assert box.find(b"user2/SingletonLock") is None
    assert_clean(tmp_path)


async def test_clone_of_hot_files_has_what_they_were(tmp_path: Path) -> None:
    async with open_box(tmp_path) as box:
        local = Local(box)
        await fill(box)
        await local.lives.clone(b"user1", b"user2")
        await box.write(b"user1/small", b"SMALL")
        assert await box.read(b"user2/small") == b"small"
        await box.seal()
    assert_clean(tmp_path)


async def test_clone_onto_a_name_that_is_taken_is_refused(tmp_path: Path) -> None:
    async with open_box(tmp_path) as box:
        local = Local(box)
        await fill(box)
        await box.write(b"file", b"x")
        for taken in (b"user1", b"file"):
            with pytest.raises(PosixError) as refused:
                await local.lives.clone(b"user1", taken)
            assert refused.value.errno == errno.EEXIST
        with pytest.raises(PosixError) as missing:
            await local.lives.clone(b"nobody", b"user3")
        assert missing.value.errno == errno.ENOENT
    assert_clean(tmp_path)


@pytest.mark.parametrize(
    "name", [b"", b".", b"..", b"a/b", b"a\0b", b"x" * 256, b".sessfs-foo", b".sessfs-view-7", b".sessfs-trash-0"]
)
async def test_clone_onto_a_name_that_no_session_may_have_is_refused(tmp_path: Path, name: bytes) -> None:
    async with open_box(tmp_path) as box:
        local = Local(box)
        await fill(box)
        with pytest.raises(UsageError, match="name of a session"):
            await local.lives.clone(b"user1", name)
        assert box.volume.namespace.list_names(ROOT_INO) == [b"user1"]
    assert_clean(tmp_path)


async def test_rollback_brings_back_what_was_and_keeps_what_it_replaces(tmp_path: Path) -> None:
    async with open_box(tmp_path) as box:
        local = Local(box)
        await fill(box)
        session = box.get(b"user1").ino
        good = await snapshot(box, b"user1")
        first = await local.history.take(session, "before the update")
        await box.write(b"user1/dir/big", b"damage" * 1000, 5000)
        box.unlink(b"user1/small")
        bad = await snapshot(box, b"user1")
        assert await local.lives.rollback(b"user1", first.sequence) == first
        now = box.get(b"user1").ino
        assert now != session
        assert await snapshot(box, b"user1") == good
        assert local.kernel.names == [b"user1"]
        infos = local.history.list(now)
        assert [info.mark for info in infos] == ["before the update", "before rollback"]
        assert local.history.list(session) == []
        await local.lives.rollback(b"user1", infos[-1].sequence)
        assert await snapshot(box, b"user1") == bad
        await box.drop_dead()
    assert_clean(tmp_path)
    async with open_box(tmp_path) as box:
        assert await snapshot(box, b"user1") == bad
        local = Local(box)
        await local.lives.rollback(b"user1", first.sequence)
        assert await snapshot(box, b"user1") == good
    assert_clean(tmp_path)


async def test_rollback_is_refused_while_a_file_is_open(tmp_path: Path) -> None:
    async with open_box(tmp_path) as box:
        local = Local(box)
        await fill(box)
        session = box.get(b"user1").ino
        info = await local.history.take(session)
        box.volume.inodes.note_open(box.get(b"user1/small"))
        assert local.lives.in_use(b"user1")
        with pytest.raises(MountBusy, match="user1"):
            await local.lives.rollback(b"user1", info.sequence)
        with pytest.raises(MountBusy, match="user1"):
            await local.lives.remove(b"user1")
        assert box.get(b"user1").ino == session
        assert local.history.list(session) == [info]
        box.volume.inodes.note_closed(box.get(b"user1/small"))
        await local.lives.rollback(b"user1", info.sequence)
    assert_clean(tmp_path)


async def test_rollback_to_a_snapshot_that_is_not_there(tmp_path: Path) -> None:
    async with open_box(tmp_path) as box:
        local = Local(box)
        await fill(box)
        await local.history.take(box.get(b"user1").ino)
        with pytest.raises(UsageError, match="there are: 1"):
            await local.lives.rollback(b"user1", 7)
        with pytest.raises(UsageError, match="no snapshot that was checked good"):
            local.history.newest_good(box.get(b"user1").ino)
        local.history.judge(box.get(b"user1").ino, 1, "good")
        assert local.history.newest_good(box.get(b"user1").ino).sequence == 1


async def test_rollback_to_the_one_that_its_own_snapshot_pushes_out(tmp_path: Path) -> None:
    async with open_box(tmp_path) as box:
        local = Local(box, Policy(1, 0, 0))
        await fill(box)
        good = await snapshot(box, b"user1")
        info = await local.history.take(box.get(b"user1").ino)
        box.unlink(b"user1/dir/big")
        await local.lives.rollback(b"user1", info.sequence)
        assert await snapshot(box, b"user1") == good
        assert [i.mark for i in local.history.list(box.get(b"user1").ino)] == ["before rollback"]
        await box.drop_dead()
    assert_clean(tmp_path)


async def test_rollback_keeps_what_sessfs_notes_at_the_session(tmp_path: Path) -> None:
    async with open_box(tmp_path) as box:
        local = Local(box)
        await fill(box)
        box.volume.inodes.set_xattr(box.get(b"user1").ino, b"trusted.sessfs.old", b"1")
        info = await local.history.take(box.get(b"user1").ino)
        box.volume.inodes.delete_xattr(box.get(b"user1").ino, b"trusted.sessfs.old")
        box.volume.inodes.set_xattr(box.get(b"user1").ino, b"trusted.sessfs.new", b"2")
        await local.lives.rollback(b"user1", info.sequence)
        assert dict(box.volume.inodes.iter_xattrs(box.get(b"user1").ino)) == {b"trusted.sessfs.new": b"2"}


@pytest.mark.parametrize("mark", ["\udcff", "x" * 256])
async def test_a_mark_that_cant_be_kept_is_refused_before_anything_is_taken(tmp_path: Path, mark: str) -> None:
    async with open_box(tmp_path) as box:
        local = Local(box)
        await fill(box)
        session = box.get(b"user1").ino
        with pytest.raises(UsageError, match="the mark"):
            await local.history.take(session, mark)
        assert local.history.list(session) == []
        info = await local.history.take(session, "x" * 255)
        with pytest.raises(UsageError, match="the mark"):
            await local.history.mark(session, info.sequence, mark)
        assert local.history.list(session) == [info]
    assert_clean(tmp_path)


async def test_view_shows_a_snapshot_and_is_no_session(tmp_path: Path) -> None:
    async with open_box(tmp_path) as box:
        local = Local(box)
        await fill(box)
        good = content(await snapshot(box, b"user1"), b"user1")
        info = await local.history.take(box.get(b"user1").ino)
        box.unlink(b"user1/small")
        view = await local.lives.open_view(b"user1", info.sequence)
        assert {path: a.content for path, a in good.items() if a.content is not None} == {
            path.removeprefix(view): content for path, content in (await box.contents()).items() if view in path
        }
        await box.write(view + b"/small", b"written to")
        assert set(box.volume.changes.sessions) == {box.get(b"user1").ino}
        local.lives.close_view(view)
        assert box.find(view) is None
        again = await local.lives.open_view(b"user1", info.sequence)
        assert again != view
        with pytest.raises(UsageError, match="not a view"):
            local.lives.close_view(b"user1")
    async with open_box(tmp_path) as box:
        assert box.find(again) is not None
        Local(box).lives.drop_views()
        assert box.volume.namespace.list_names(ROOT_INO) == [b"user1"]
        await box.drop_dead()
    assert_clean(tmp_path)


async def test_remove_and_rename(tmp_path: Path) -> None:
    async with open_box(tmp_path) as box:
        local = Local(box)
        await fill(box)
        await fill(box, b"user2")
        info = await local.history.take(box.get(b"user1").ino)
        local.lives.rename(b"user1", b".sessfs-trash-1")
        assert local.kernel.names == [b"user1", b".sessfs-trash-1"]
        assert local.history.list(box.get(b".sessfs-trash-1").ino) == [info]
        with pytest.raises(PosixError):
            local.lives.rename(b"user1", b"user3")
        with pytest.raises(PosixError):
            local.lives.rename(b"user2", b".sessfs-trash-1")
        await local.lives.remove(b".sessfs-trash-1")
        await local.lives.remove(b"user2")
        assert box.volume.namespace.list_names(ROOT_INO) == []
        await local.take_due()
        await box.drop_dead()
        assert box.volume.reader.totals().plain_bytes == 0
    assert_clean(tmp_path)


async def test_two_snapshots_of_the_same_hot_file_at_once(tmp_path: Path) -> None:
    async with open_box(tmp_path) as box:
        local = Local(box)
        await fill(box)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(local.history.take, box.get(b"user1").ino)
            nursery.start_soon(local.lives.clone, b"user1", b"user2")
            nursery.start_soon(local.lives.clone, b"user1", b"user3")
        for name in (b"user2", b"user3"):
            assert await box.read(name + b"/dir/big") == BIG
        assert not box.volume.fileio.retirement.is_frozen(box.get(b"user1/dir/big").hot_no)
        await box.write(b"user1/dir/big", b"goes on")
        await box.drop_dead()
    assert_clean(tmp_path)
