"""Archives: what is in them comes out whole, and nothing that attacks gets anywhere."""

from __future__ import annotations

import errno
import gzip
import os
import stat
import struct
import tarfile
import zipfile
from typing import TYPE_CHECKING

import pytest

from sessfs.sessions import importing_archives
from sessfs.sessions.exporting import export_tree, guess_format
from sessfs.sessions.importing_archives import ArchiveRefused, Limits, unpack
from sessfs.sessions.trees import DirectoryTree
from sessfs.types import TIME_MAX_NS, TIME_MIN_NS
from tests.support.archives import COMPRESSORS, LIMITS, info, lay_out, pax_records, refused, tar_of, with_headers
from tests.support.profiles import describe, make_tree

if TYPE_CHECKING:
    from pathlib import Path

setxattr = os.setxattr


def pack(tree: Path, path: Path) -> Path:
    """As GNU tar does, with times to the nanosecond and xattrs."""
    command = f"tar --format=posix --xattrs -C {tree.parent} -cf {path} {tree.name}"
    assert os.system(command) == 0
    return path


@pytest.mark.parametrize("ending", sorted(COMPRESSORS))
def test_tar_comes_out_with_all_attributes(tmp_path: Path, ending: str) -> None:
    (tmp_path / "in").mkdir()
    tree = tmp_path / "in" / "tree"
    make_tree(tree, 1)
    plain = pack(tree, tmp_path / "in" / "plain").read_bytes()
    (tmp_path / "a").mkdir()
    archive = tmp_path / "a" / f"x.tar{ending}"
    archive.write_bytes(COMPRESSORS[ending](plain))
    assert describe(lay_out(archive) / "tree", left_out=True) == describe(tree, left_out=True)


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("99999999999.5", TIME_MAX_NS),
        ("-1e300", TIME_MIN_NS),
        ("1e999999", TIME_MAX_NS),
        ("1e99999999", 0),
        ("inf", TIME_MAX_NS),
        ("nan", 0),
        ("soon", 0),
    ],
)
def test_tar_with_an_impossible_time_comes_out(tmp_path: Path, said: str, kept: int) -> None:
    member = info("f")
    member.pax_headers = {"mtime": said, "atime": said}
    out = lay_out(tar_of(tmp_path / "x.tar", (member, b"content")))
    assert (out / "f").read_bytes() == b"content"
    # The filesystem that it comes out on may have a narrower range.
    assert abs((out / "f").stat().st_mtime_ns) <= abs(kept)


def test_zip_comes_out_with_modes_links_and_times(tmp_path: Path) -> None:
    archive = tmp_path / "x.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        plain = zipfile.ZipInfo("d/f", (2024, 5, 6, 7, 8, 10))
        plain.external_attr = (stat.S_IFREG | 0o640) << 16
        plain.compress_type = zipfile.ZIP_DEFLATED
        file.writestr(plain, b"content" * 1000)
        exact = zipfile.ZipInfo("d/g", (2024, 5, 6, 7, 8, 10))
        exact.extra = struct.pack("<HHBi", 0x5455, 5, 1, 1_700_000_001)
        file.writestr(exact, b"")
        link = zipfile.ZipInfo("d/l")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        file.writestr(link, b"f")
    out = lay_out(archive)
    assert (out / "d/f").read_bytes() == b"content" * 1000
    assert stat.S_IMODE((out / "d/f").stat().st_mode) == 0o640
    assert (out / "d/f").stat().st_mtime_ns == 1_714_979_290 * 10**9
    assert (out / "d/g").stat().st_mtime_ns == 1_700_000_001 * 10**9
    assert os.readlink(out / "d/l") == "f"


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/tmp/evil-of-sessfs", "a/.."])
def test_tar_members_that_lead_out_are_refused(tmp_path: Path, name: str) -> None:
    refused(tar_of(tmp_path / "x.tar", (info("ok"), b"1"), (info(name), b"2")), "member .*(absolute|leads out)")
    assert not os.path.lexists("/tmp/evil-of-sessfs")
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/tmp/evil-of-sessfs"])
def test_zip_members_that_lead_out_are_refused(tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        file.writestr("ok", b"1")
        file.writestr(name, b"2")
    refused(tmp_path / "x.zip", "member .*(absolute|leads out)")
    assert not os.path.lexists("/tmp/evil-of-sessfs")


@pytest.mark.parametrize("target", ["/tmp", "..", "."])
def test_nothing_is_written_through_a_link(tmp_path: Path, target: str) -> None:
    archive = tar_of(tmp_path / "x.tar", (info("l", tarfile.SYMTYPE, target), b""), (info("l/evil-of-sessfs"), b"2"))
    refused(archive, "'l/evil-of-sessfs' lies below 'l', which is no directory")
    assert not os.path.lexists("/tmp/evil-of-sessfs")


def test_nothing_is_written_over_a_link(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("whole")
    archive = tar_of(
        tmp_path / "x.tar", (info("l", tarfile.SYMTYPE, str(tmp_path / "victim")), b""), (info("l"), b"broken")
    )
    with pytest.raises(ArchiveRefused, match="is there twice"):
        lay_out(archive)
    assert (tmp_path / "victim").read_text() == "whole"


@pytest.mark.parametrize("target", ["/etc/passwd", "../victim", "later", "l"])
def test_hard_links_to_anything_but_a_file_before_are_refused(tmp_path: Path, target: str) -> None:
    archive = tar_of(
        tmp_path / "x.tar",
        (info("l", tarfile.SYMTYPE, "/etc/passwd"), b""),
        (info("h", tarfile.LNKTYPE, target), b""),
        (info("later"), b"1"),
    )
    refused(archive, "member 'h' is a hard link to")


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, b"?"])
def test_devices_and_pipes_are_refused(tmp_path: Path, kind: bytes) -> None:
    refused(tar_of(tmp_path / "x.tar", (info("dev", kind), b"")), "member 'dev' is a device")


def test_devices_in_a_zip_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        member = zipfile.ZipInfo("dev")
        member.external_attr = (stat.S_IFCHR | 0o666) << 16
        file.writestr(member, b"")
    refused(tmp_path / "x.zip", "member 'dev' is a device")


@pytest.mark.parametrize("second", ["a/f", "./a//f", "a/f/"])
def test_duplicates_are_refused(tmp_path: Path, second: str) -> None:
    refused(tar_of(tmp_path / "x.tar", (info("a/f"), b"1"), (info(second), b"2")), "is there twice")


def test_duplicate_directories_are_refused(tmp_path: Path) -> None:
    archive = tar_of(tmp_path / "x.tar", (info("d", tarfile.DIRTYPE), b""), (info("d", tarfile.DIRTYPE), b""))
    refused(archive, "member 'd' is there twice")


def test_own_folder_of_an_archive_has_its_attributes(tmp_path: Path) -> None:
    root = info("./", tarfile.DIRTYPE)
    root.mode, root.mtime, root.pax_headers = 0o751, 1000, {"mtime": "1000.5", "SCHILY.xattr.user.a": "1"}
    if os.geteuid() == 0:
        root.uid, root.gid = 1234, 5678
    # Whoever appends to a tar names it once more.
    out = lay_out(tar_of(tmp_path / "x.tar", (root, b""), (info("./f"), b"1"), (root, b"")))
    found = out.stat()
    assert (stat.S_IMODE(found.st_mode), found.st_mtime_ns) == (0o751, 1_000_500_000_000)
    assert (found.st_uid, found.st_gid) == ((1234, 5678) if os.geteuid() == 0 else (os.geteuid(), os.getegid()))
    assert os.getxattr(out, "user.a") == b"1"


def test_directories_that_an_archive_does_not_name_are_the_same_each_time(tmp_path: Path) -> None:
    """The newest in them is what they are as new as."""
    members = [info("f"), info("a/b/f"), info("a/b/g")]
    for time, member in zip((500, 1000, 2000), members, strict=True):
        member.mtime = time
    out = lay_out(tar_of(tmp_path / "x.tar", *((member, b"1") for member in members)))
    for path in (out, out / "a", out / "a/b"):
        assert (stat.S_IMODE(path.stat().st_mode), path.stat().st_mtime) == (0o700, 2000)


def test_names_that_differ_in_case_or_form_alone_are_not_duplicates(tmp_path: Path) -> None:
    names = ["f", "F", "\u00e9", "e\u0301"]
    out = lay_out(tar_of(tmp_path / "x.tar", *((info(name), b"1") for name in names)))
    assert sorted(path.name for path in out.iterdir()) == sorted(names)


def test_setuid_bits_do_not_come_out(tmp_path: Path) -> None:
    member = info("f")
    member.mode = 0o6755
    assert stat.S_IMODE((lay_out(tar_of(tmp_path / "x.tar", (member, b"1"))) / "f").stat().st_mode) == 0o755


def test_bomb_is_refused_by_what_it_becomes(tmp_path: Path) -> None:
    plain = tar_of(tmp_path / "plain", (info("zeros"), bytes(8 << 20))).read_bytes()
    (tmp_path / "plain").unlink()
    (tmp_path / "x.tar.gz").write_bytes(gzip.compress(plain, 9))
    refused(tmp_path / "x.tar.gz", "member 'zeros' makes it .* bomb", Limits(1 << 30, free_bytes=1 << 20))


def test_bomb_is_refused_by_what_it_declares(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("fine", b"1")
        file.writestr("zeros", bytes(8 << 20))
    with pytest.raises(ArchiveRefused, match="'zeros' makes it 8388609 bytes, more than 250 times"):
        lay_out(tmp_path / "x.zip", Limits(1 << 30, free_bytes=1 << 20))
    assert os.listdir(tmp_path / "out") == ["fine"]


def test_sparse_bomb_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    assert os.system(f"tar -C {tmp_path} -Scf {tmp_path}/x.tar sparse") == 0
    (tmp_path / "sparse").unlink()
    refused(tmp_path / "x.tar", "'sparse' makes it 1099511627776 bytes")


def test_more_than_there_is_room_for_is_refused(tmp_path: Path) -> None:
    archive = tar_of(tmp_path / "x.tar", (info("a"), bytes(600)), (info("b"), bytes(600)))
    refused(archive, "member 'b' makes it 1200 bytes, and there is room for 1000", Limits(1000))


def test_too_many_members_are_refused(tmp_path: Path) -> None:
    archive = tar_of(tmp_path / "x.tar", *((info(str(n)), b"") for n in range(5)))
    refused(archive, "member '4' is one more than 4", Limits(1 << 30, n_members=4))


def test_too_deep_members_are_refused(tmp_path: Path) -> None:
    refused(tar_of(tmp_path / "x.tar", (info("d/" * 300 + "f"), b"1")), "path that is too long")


def test_encrypted_zip_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        file.writestr("f", b"1")
    plain = bytearray((tmp_path / "x.zip").read_bytes())
    plain[plain.rindex(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "x.zip").write_bytes(plain)
    refused(tmp_path / "x.zip", "member 'f' is encrypted")


@pytest.mark.parametrize("ending", sorted(COMPRESSORS))
def test_archive_cut_short_is_refused(tmp_path: Path, ending: str) -> None:
    plain = tar_of(tmp_path / "plain", (info("f"), os.urandom(300_000))).read_bytes()
    (tmp_path / "plain").unlink()
    whole = COMPRESSORS[ending](plain)
    (tmp_path / f"x.tar{ending}").write_bytes(whole[: len(whole) // 2])
    refused(tmp_path / f"x.tar{ending}", "damaged")


def test_damaged_zip_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        file.writestr("f", b"content" * 100)
    plain = bytearray((tmp_path / "x.zip").read_bytes())
    plain[200] ^= 1
    (tmp_path / "x.zip").write_bytes(plain)
    refused(tmp_path / "x.zip", "damaged.*near 'f'")


@pytest.mark.parametrize("content", [b"", b"PK", b"#!/bin/sh\n" * 100, b"\x1f\x8b" + bytes(50)])
def test_what_is_no_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    refused(tmp_path / "x", "damaged, or no tar")


def test_what_became_a_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x")
    refused(tmp_path / "x", "is no regular file")


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE])
def test_an_owner_that_can_not_be_is_refused(tmp_path: Path, kind: bytes) -> None:
    member = info("odd", kind, "target")
    member.pax_headers = {"uid": str(1 << 40)}
    refused(tar_of(tmp_path / "x.tar", (info("ok"), b""), (member, b"")), "near 'odd'")


@pytest.mark.parametrize(
    ("name", "size"), [("user.a\0b", 1), ("user.", 1), ("user." + "x" * 251, 1), ("user.big", 65537)]
)
def test_xattrs_that_no_file_can_have_are_refused(tmp_path: Path, name: str, size: int) -> None:
    member = info("odd")
    member.pax_headers = {f"SCHILY.xattr.{name}": "x" * size}
    refused(tar_of(tmp_path / "x.tar", (member, b"")), "member 'odd' has an xattr that no file can have")


ODD_XATTRS = {b"user.a=b": b"\0\xff=", b"user.\xff\xfe%": b"", b"user.plain": b"\xff\n", b"user.%41": b"1"}


@pytest.mark.parametrize("name", ["x.tar", "x.tar.zst"])
def test_xattrs_of_any_name_that_an_export_wrote_come_out(tmp_path: Path, name: str) -> None:
    (tmp_path / "source/d").mkdir(parents=True)
    (tmp_path / "source/f").touch()
    for path in (tmp_path / "source/d", tmp_path / "source/f"):
        for key, value in ODD_XATTRS.items():
            os.setxattr(path, key, value)
    tree = DirectoryTree(os.fsencode(tmp_path / "source"))
    export_tree(tree, tmp_path / name, guess_format(tmp_path / name), syncfs=lambda fd: None)
    tree.close()
    out = lay_out(tmp_path / name)
    for path in (out / "d", out / "f"):
        assert {os.fsencode(key): os.getxattr(path, key) for key in os.listxattr(path)} == ODD_XATTRS


def test_xattrs_as_libarchive_writes_them_come_out(tmp_path: Path) -> None:
    member = info("f")
    member.pax_headers = {"LIBARCHIVE.xattr.user.a%3Db": "eA", "LIBARCHIVE.xattr.security.x": "eA"}
    out = lay_out(tar_of(tmp_path / "x.tar", (member, b"")))
    assert {key: os.getxattr(out / "f", key) for key in os.listxattr(out / "f")} == {"user.a=b": b"x"}


@pytest.mark.parametrize("value", ["e", "e\udcff==", "{}"])
def test_xattrs_in_no_base64_are_refused(tmp_path: Path, value: str) -> None:
    plain = pax_records(("LIBARCHIVE.xattr.user.a", value.encode("utf-8", "surrogateescape")))
    archive = with_headers(tmp_path / "x.tar.zst", [(tarfile.XHDTYPE, plain)])
    refused(archive, "near 'f'")


def with_large_xattrs(path: Path, number: int) -> Path:
    members = []
    for n in range(number):
        member = info(f"f{n}")
        member.pax_headers = {"SCHILY.xattr.user.big": f"{n}" * 5000, "SCHILY.xattr.user.small": "1"}
        members.append((member, b""))
    return tar_of(path, *members)


def no_room(where: int, name: bytes, value: bytes) -> None:
    if len(value) > 4096:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), where)
    setxattr(where, name, value)


def test_xattrs_that_the_disk_can_not_hold_are_carried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = with_large_xattrs(tmp_path / "x.tar", 2)
    monkeypatch.setattr("os.setxattr", no_room)
    (tmp_path / "out").mkdir()
    carried = unpack(str(archive), str(tmp_path / "out"), LIMITS, lambda written: None)
    found = {name: (tmp_path / "out" / name).stat() for name in ("f0", "f1")}
    assert carried == {(at.st_dev, at.st_ino): {b"user.big": name[1:].encode() * 5000} for name, at in found.items()}
    assert os.listxattr(tmp_path / "out/f0") == ["user.small"]


def test_more_xattrs_than_can_be_carried_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.setxattr", no_room)
    monkeypatch.setattr(importing_archives, "MAX_CARRIED_BYTES", 8000)
    refused(with_large_xattrs(tmp_path / "x.tar", 2), "member 'f1' has xattrs that the disk .* can't hold .*unpack it")


def test_owner_that_a_container_does_not_have_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def chown(where: int | bytes, uid: int, gid: int, *, follow_symlinks: bool = True) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), where)

    monkeypatch.setattr("os.chown", chown)
    member = info("f")
    member.uid, member.gid = 70_000, 80_000
    refused(tar_of(tmp_path / "x.tar", (member, b"")), "member 'f' belongs to 70000:80000, which the container")


def test_zip_that_lies_about_a_name_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        file.writestr("f\u00e9", b"1")
    plain = (tmp_path / "x.zip").read_bytes().replace("f\u00e9".encode(), b"f\xff\xff")
    (tmp_path / "x.zip").write_bytes(plain)
    refused(tmp_path / "x.zip", "member 'f.*' says that its name is UTF-8, and it is not")
