"""Answers to the kernel's READDIR and READDIRPLUS, and what it may keep of them."""

from __future__ import annotations

import stat
import struct
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, NamedTuple

import pytest
from pyfuse3 import FUSEError

from sessfs.local.inodes import INO, INODES
from sessfs.local.listings import POSITION_BITS
from sessfs.mount import directories
from sessfs.mount.directories import Directories
from sessfs.mount.fusewire import ENTRY_BYTES, FOPEN_CACHE_DIR, FOPEN_KEEP_CACHE, pack_entry
from tests.support.volumes import open_box

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from sessfs.local.inodes import Inode
    from sessfs.types import Ino
    from tests.support.volumes import Box

BOTH = FOPEN_CACHE_DIR | FOPEN_KEEP_CACHE
OPEN_OUT = struct.Struct("<QII")
DIRENT = struct.Struct("<QQII")
NODE = struct.Struct("<Q")


class Found(NamedTuple):
    name: bytes
    ino: int
    position: int
    kind: int
    known: int
    """nodeid of fuse_direntplus: 0 where the kernel is told no attributes."""


class Mount:
    """One directory, d, with the files that were asked for."""

    def __init__(self, box: Box, count: int) -> None:
        self.box = box
        box.mkdir(b"s")
        self.ino: Ino = box.mkdir(b"s/d").ino
        for number in range(count):
            box.create(b"s/d/file%03d" % number)
        self.inodes = box.volume.inodes
        names = box.volume.namespace
        self.directories = Directories(self.inodes, self.found, lambda ino: names.get(ino).parent)

    def found(self, inode: Inode) -> bytes:
        return pack_entry(inode, 0, 1, 1)

    def open(self) -> tuple[int, int]:
        fh, flags, _ = OPEN_OUT.unpack(self.directories.open(self.ino))
        return fh, flags

    def read(self, fh: int, position: int = 0, size: int = 4096, *, plus: bool = False) -> list[Found]:
        answer = self.directories.read(fh, position, size, plus=plus)
        assert len(answer) <= size
        found, at = [], 0
        while at < len(answer):
            known = NODE.unpack_from(answer, at)[0] if plus else 0
            at += ENTRY_BYTES if plus else 0
            ino, place, length, kind = DIRENT.unpack_from(answer, at)
            at += DIRENT.size
            found.append(Found(answer[at : at + length], ino, place, kind, known))
            at += length + -length % 8
        return found

    def read_all(self, fh: int, size: int = 4096, *, plus: bool = False) -> list[Found]:
        found = part = self.read(fh, 0, size, plus=plus)
        while part:
            part = self.read(fh, part[-1].position, size, plus=plus)
            found = found + part
        return found


@asynccontextmanager
async def mounted(tmp_path: Path, count: int) -> AsyncIterator[Mount]:
    async with open_box(tmp_path / "state") as box:
        yield Mount(box, count)


@pytest.mark.parametrize("size", [400, 4096, 65_536])
async def test_both_kinds_of_listing_agree(tmp_path: Path, size: int) -> None:
    async with mounted(tmp_path, 100) as mount:
        mount.box.mkdir(b"s/d/below")
        mount.box.symlink(b"s/d/link", b"x")
        fh, _ = mount.open()
        plain, rich = (mount.read_all(fh, size, plus=plus) for plus in (False, True))
        assert [one._replace(known=0) for one in rich] == plain
        assert {one.name for one in plain} == {b".", b"..", b"below", b"link", *(b"file%03d" % n for n in range(100))}
        for one in plain[2:]:
            inode = mount.box.get(b"s/d/" + one.name)
            assert (one.ino, one.kind) == (inode.ino, inode.mode >> 12)
        assert [(one.ino, one.kind) for one in plain[:2]] == [(mount.ino, 4), (mount.box.get(b"s").ino, 4)]


async def test_the_kernel_is_told_attributes_once_and_counts_as_it_was_told(tmp_path: Path) -> None:
    async with mounted(tmp_path, 20) as mount:
        fh, _ = mount.open()
        first, second = mount.read_all(fh, plus=True), mount.read_all(fh, plus=True)
        assert [one.known for one in first] == [0, 0, *(one.ino for one in first[2:])]
        assert [one.known for one in second] == [0] * 22
        ino = first[5].ino
        mount.box.volume.namespace.forget(mount.box.get(b"s/d/" + first[5].name).ino, 1)
        assert [one.ino for one in mount.read_all(fh, plus=True) if one.known] == [ino]


async def test_a_damaged_inode_hides_no_other_name(tmp_path: Path) -> None:
    async with mounted(tmp_path, 0) as mount:
        mount.box.create(b"s/d/sound")
        damaged = mount.box.create(b"s/d/damaged").ino
        mount.box.create(b"s/d/also sound")
        await mount.box.volume.committer.commit()
    async with open_box(tmp_path / "state") as box:
        box.volume.meta.delete(INODES, INO.pack(damaged))
        names = box.volume.namespace
        inodes = box.volume.inodes
        directory = box.get(b"s/d").ino
        listed = Directories(inodes, lambda one: pack_entry(one, 0, 1, 1), lambda ino: names.get(ino).parent)
        fh, _, _ = OPEN_OUT.unpack(listed.open(directory))
        answer = listed.read(fh, 0, 4096, plus=True)
        assert all(name in answer for name in (b"sound", b"damaged", b"also sound"))
        assert not inodes.is_known(damaged)
        assert inodes.is_known(box.get(b"s/d/sound").ino)


async def test_the_copy_is_kept_while_nothing_changes_and_cleared_after(tmp_path: Path) -> None:
    async with mounted(tmp_path, 300) as mount:
        fh, flags = mount.open()
        # The first time nothing is known of a copy.
        assert flags == FOPEN_CACHE_DIR
        mount.read_all(fh)
        assert mount.open()[1] == BOTH
        for change in (
            lambda: mount.box.create(b"s/d/new"),
            lambda: mount.box.rename(b"s/d/new", b"s/d/file001"),
            lambda: mount.box.link(b"s/d/file001", b"s/d/other"),
            lambda: mount.box.unlink(b"s/d/other"),
        ):
            change()
            # Until somebody reads, the kernel may not have cleared it yet.
            assert [mount.open()[1] for _ in range(2)] == [FOPEN_CACHE_DIR] * 2
            fh, _ = mount.open()
            mount.read_all(fh)
            assert mount.open()[1] == BOTH


async def test_a_handle_that_begins_after_a_change_shares_nothing_with_a_half_made_copy(tmp_path: Path) -> None:
    async with mounted(tmp_path, 300) as mount:
        one, two = mount.open()[0], mount.open()[0]
        begun = mount.read(one, size=1000)
        mount.box.unlink(b"s/d/file000")
        # A handle of its own is past the copy, and leaves it alone.
        assert mount.open()[1] == FOPEN_KEEP_CACHE
        rest = mount.read_all(two)
        assert not {entry.position for entry in begun} & {entry.position for entry in rest}
        mask = (1 << POSITION_BITS) - 1
        assert {entry.position & mask for entry in begun if entry.name != b"file000"} < {
            entry.position & mask for entry in rest
        }
        # Both positions are the same place.
        assert mount.read(one, begun[-1].position) == mount.read(one, begun[-1].position & mask)


async def test_positions_stay_below_2_to_the_63_however_often_that_happens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert directories.LAST_GENERATION << POSITION_BITS < 1 << 63
    monkeypatch.setattr(directories, "LAST_GENERATION", 6)
    async with mounted(tmp_path, 300) as mount:
        one, two = mount.open()[0], mount.open()[0]
        for _ in range(directories.LAST_GENERATION + 5):
            mount.read(one, size=1000)
            mount.box.unlink(b"s/d/file000")
            mount.box.create(b"s/d/file000")
            last = mount.read(two, size=200)[-1]
        assert last.position >> POSITION_BITS == directories.LAST_GENERATION
        assert mount.open()[1] == FOPEN_KEEP_CACHE
        assert len(mount.read_all(two)) == 302


async def test_nothing_is_kept_of_directories_that_the_kernel_forgot(tmp_path: Path) -> None:
    async with mounted(tmp_path, 3) as mount:
        fh, _ = mount.open()
        mount.read(fh, size=100)
        mount.directories.close(fh)
        mount.directories.close(fh)
        mount.directories.forget(mount.ino)
        assert not mount.directories._copies
        assert not mount.inodes.listings.unchanged
        assert not mount.inodes.listings._kept
        with pytest.raises(FUSEError):
            mount.directories.ino_of(fh)


async def test_the_products_own_names_are_left_out_at_the_top_alone(tmp_path: Path) -> None:
    async with mounted(tmp_path, 0) as mount:
        for path in (b".sessfs-trash-1", b"s/d/.sessfs-trash-1"):
            mount.box.mkdir(path)
        root, _, _ = OPEN_OUT.unpack(mount.directories.open(mount.box.get(b"").ino))
        for plus in (False, True):
            assert [one.name for one in mount.read_all(root, plus=plus)] == [b".", b"..", b"s"]
        fh, _ = mount.open()
        assert [one.name for one in mount.read_all(fh)] == [b".", b"..", b".sessfs-trash-1"]
        assert stat.S_ISDIR(mount.box.get(b"s/d/.sessfs-trash-1").mode)
