"""Exports of a directory to each format, byte for byte; and what never is left behind."""

from __future__ import annotations

import os
import stat
import subprocess
import tarfile
import zipfile
from typing import TYPE_CHECKING

import pytest
import zstandard

from sessfs.errors import SessfsError, UsageError
from sessfs.mount import syscalls
from sessfs.sessions.exporting import ExportFormat, ExportReport, ExportStep, export_tree, guess_format
from sessfs.sessions.trees import DirectoryTree, TreeNode
from tests.support import posix, trees

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    made = tmp_path / "source"
    made.mkdir()
    trees.make_profile(made)
    return made


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    made = tmp_path / "plain"
    made.mkdir()
    trees.make_profile(made, odd=False)
    return made


def export(source: Path, dest: Path, form: ExportFormat | None = None) -> ExportReport:
    tree = DirectoryTree(os.fsencode(source))
    try:
        return export_tree(tree, dest, form or guess_format(dest), syncfs=syscalls.syncfs)
    finally:
        tree.close()


def test_directory_has_everything(source: Path, tmp_path: Path) -> None:
    report = export(source, tmp_path / "out")
    assert trees.look(tmp_path / "out") == trees.look(source)
    assert not report.notes
    assert report.format == "dir"
    assert report.files + report.directories == len(trees.look(source))


EXPORT = """
from pathlib import Path
from sessfs.mount import syscalls
from sessfs.sessions.exporting import ExportFormat, export_tree
from sessfs.sessions.trees import DirectoryTree
become(65534, 65534)
tree = DirectoryTree(b"source")
say(export_tree(tree, Path("out"), ExportFormat.DIR, syncfs=syscalls.syncfs).notes)
"""


def test_directory_has_xattrs_of_what_is_read_only_without_root(tmp_path: Path) -> None:
    (tmp_path / "source/closed").mkdir(parents=True)
    (tmp_path / "source/f").touch()
    for path, mode in ((tmp_path, 0o755), (tmp_path / "source/closed", 0o555), (tmp_path / "source/f", 0o444)):
        os.setxattr(path, "user.x", b"1")
        os.chown(path, 65534, 65534)
        path.chmod(mode)
    os.chown(tmp_path / "source", 65534, 65534)
    assert posix.run_child(tmp_path, EXPORT) == []
    assert trees.look(tmp_path / "out") == trees.look(tmp_path / "source")


def test_directory_keeps_holes(source: Path, tmp_path: Path) -> None:
    export(source, tmp_path / "out")
    copied = (tmp_path / "out" / "holes").stat()
    assert copied.st_size == 3 << 20
    assert copied.st_blocks * 512 <= 16 << 10


def test_directory_keeps_holes_that_the_source_does_not_tell_of(tmp_path: Path) -> None:
    """A mount answers SEEK_HOLE with the end of the file, but counts its blocks."""
    from_mount = _WithoutSpans(os.fsencode(tmp_path / "source"))
    (tmp_path / "source").mkdir()
    with (tmp_path / "source" / "f").open("wb") as file:
        file.seek(5 << 20)
        file.write(b"x" * 5000)
        file.truncate(9 << 20)
    export_tree(from_mount, tmp_path / "out", ExportFormat.DIR, syncfs=syscalls.syncfs)
    assert trees.look(tmp_path / "out") == trees.look(tmp_path / "source")
    assert (tmp_path / "out" / "f").stat().st_blocks * 512 <= 16 << 10


class _WithoutSpans(DirectoryTree):
    def spans(self, node: TreeNode) -> object:  # type: ignore[override]
        return iter([(0, node.size)] if node.size else [])


@pytest.mark.parametrize("name", ["out.tar", "out.tar.zst"])
def test_tar_has_everything_as_gnu_tar_extracts_it(source: Path, tmp_path: Path, name: str) -> None:
    report = export(source, tmp_path / name)
    assert not report.notes
    (tmp_path / "out").mkdir()
    command = ["tar", "--xattrs", "--xattrs-include=*", "-xpf", "-", "-C", str(tmp_path / "out")]
    body = (tmp_path / name).read_bytes()
    if name.endswith("zst"):
        body = zstandard.ZstdDecompressor().decompressobj().decompress(body)
    subprocess.run(command, input=body, check=True, capture_output=True)
    assert trees.look(tmp_path / "out") == trees.look(source)


def test_tar_is_read_by_python_with_exact_times(source: Path, tmp_path: Path) -> None:
    export(source, tmp_path / "out.tar")
    with tarfile.open(tmp_path / "out.tar", encoding="utf-8", errors="surrogateescape") as tar:
        names = {os.fsencode(member.name) for member in tar}
        member = tar.getmember("Local State")
    assert names == {path or b"." for path in trees.look(source)}
    assert member.pax_headers["mtime"] == "1500000000.987654321"
    assert member.pax_headers["atime"] == "1600000000.123456789"
    assert member.pax_headers["SCHILY.xattr.user.bytes"].encode("utf-8", "surrogateescape") == b"\0\xff\n="


def test_tar_time_before_1970_is_exact(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "f").touch()
    os.utime(tmp_path / "source" / "f", ns=(-1, -1_500_000_000))
    export(tmp_path / "source", tmp_path / "out.tar")
    with tarfile.open(tmp_path / "out.tar") as tar:
        assert tar.getmember("f").pax_headers["mtime"] == "-1.500000000"
        assert tar.getmember("f").pax_headers["atime"] == "-0.000000001"


def test_tar_leaves_out_a_socket_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    os.mknod(tmp_path / "source" / "s", stat.S_IFSOCK | 0o600)
    os.mkfifo(tmp_path / "source" / "p")
    report = export(tmp_path / "source", tmp_path / "out.tar")
    assert report.notes == ["a socket was left out: a tar holds none"]
    with tarfile.open(tmp_path / "out.tar") as tar:
        assert [(m.name, m.isfifo()) for m in tar] == [(".", False), ("p", True)]


def test_zip_has_contents_modes_times_and_symlinks(plain: Path, tmp_path: Path) -> None:
    export(plain, tmp_path / "out.zip")
    expected = trees.look(plain)
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        assert archive.testzip() is None
        found = {info.filename.rstrip("/").encode(): info for info in archive.infolist()}
        assert set(found) == set(expected) - {b""}
        for path, info in found.items():
            seen = expected[path]
            assert info.external_attr >> 16 == seen.mode
            assert info.flag_bits & 0x08 == 0, "a data descriptor, which streaming readers trip over"
            assert int.from_bytes(info.extra[5:9], "little") == seen.mtime_ns // 10**9
            if seen.content is not None:
                assert archive.read(info) == seen.content
    (tmp_path / "out").mkdir()
    subprocess.run(["unzip", "-q", str(tmp_path / "out.zip"), "-d", str(tmp_path / "out")], check=True)
    unzipped = trees.look(tmp_path / "out")
    assert trees.contents(unzipped) == trees.contents(expected)


def test_zip_of_a_name_that_is_no_utf8_is_refused_and_leaves_nothing(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"not UTF-8.*tar"):
        export(source, tmp_path / "out.zip")
    assert sorted(os.listdir(tmp_path)) == ["source"]


def test_zip_time_outside_its_range_is_clamped(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    for name, seconds in (("old", -1), ("new", 6_000_000_000)):
        (tmp_path / "source" / name).touch()
        os.utime(tmp_path / "source" / name, (seconds, seconds))
    export(tmp_path / "source", tmp_path / "out.zip")
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        years = {info.filename: info.date_time[0] for info in archive.infolist()}
    assert years == {"old": 1980, "new": 2106}


def test_remoteauth_has_what_it_keeps(plain: Path, tmp_path: Path) -> None:
    export(plain, tmp_path / "out.zip", ExportFormat.REMOTEAUTH)
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        assert sorted(archive.namelist()) == [
            "Default/",
            "Default/IndexedDB/",
            "Default/IndexedDB/a.leveldb/",
            "Default/IndexedDB/a.leveldb/000003.log",
            "Default/IndexedDB/a.leveldb/CURRENT",
            "Default/Local Storage/",
            "Default/Local Storage/leveldb/",
            "Default/Local Storage/leveldb/LOG",
        ]


def test_remoteauth_finds_the_profile_one_level_down(tmp_path: Path) -> None:
    (tmp_path / "source" / "session-x").mkdir(parents=True)
    trees.make_profile(tmp_path / "source" / "session-x", odd=False)
    export(tmp_path / "source", tmp_path / "out.zip", ExportFormat.REMOTEAUTH)
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        assert "Default/IndexedDB/a.leveldb/CURRENT" in archive.namelist()


@pytest.mark.parametrize(
    ("directories", "reason"),
    [
        (["nothing"], "no Chrome profile"),
        (["a/Default", "b/Default"], "several profiles .a, b."),
        (["Default/Cache"], "nothing that RemoteAuth keeps"),
    ],
)
def test_remoteauth_of_no_profile_is_refused(tmp_path: Path, directories: list[str], reason: str) -> None:
    for directory in directories:
        (tmp_path / "source" / directory).mkdir(parents=True)
    with pytest.raises(UsageError, match=reason):
        export(tmp_path / "source", tmp_path / "out.zip", ExportFormat.REMOTEAUTH)
    assert os.listdir(tmp_path) == ["source"]


def test_empty_directory_may_be_there_nothing_else(plain: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    export(plain, tmp_path / "out")
    for taken in ("out", "out/Local State"):
        with pytest.raises(UsageError, match="exists"):
            export(plain, tmp_path / taken, ExportFormat.DIR)
    (tmp_path / "out.tar").touch()
    with pytest.raises(UsageError, match="overwrites nothing"):
        export(plain, tmp_path / "out.tar")
    (tmp_path / "empty.zip").mkdir()
    with pytest.raises(UsageError, match="overwrites nothing"):
        export(plain, tmp_path / "empty.zip")
    with pytest.raises(UsageError, match="is no directory"):
        export(plain, tmp_path / "absent" / "out")


class _Breaks(DirectoryTree):
    """Fails at the third file that is read."""

    def __init__(self, directory: bytes, error: BaseException) -> None:
        super().__init__(directory)
        self._error = error
        self._n_reads = 0

    def read(self, node: TreeNode, offset: int, length: int) -> bytes:
        self._n_reads += 1
        if self._n_reads == 3:
            raise self._error
        return super().read(node, offset, length)


@pytest.mark.parametrize("name", ["out", "out.tar", "out.tar.zst", "out.zip"])
@pytest.mark.parametrize("error", [SessfsError("broken"), KeyboardInterrupt()])
def test_failure_leaves_nothing(plain: Path, tmp_path: Path, name: str, error: BaseException) -> None:
    tree = _Breaks(os.fsencode(plain), error)
    with pytest.raises(type(error)):
        export_tree(tree, tmp_path / name, guess_format(tmp_path / name), syncfs=syscalls.syncfs)
    tree.close()
    assert os.listdir(tmp_path) == ["plain"]


@pytest.mark.parametrize("name", ["out", "out.tar", "out.zip"])
def test_nothing_has_the_name_before_the_end(plain: Path, tmp_path: Path, name: str) -> None:
    seen = []

    def look(step: ExportStep) -> None:
        seen.append((step.done_bytes, step.total_bytes))
        assert not (tmp_path / name).exists()

    tree = DirectoryTree(os.fsencode(plain))
    export_tree(tree, tmp_path / name, guess_format(tmp_path / name), syncfs=syscalls.syncfs, progress=look)
    tree.close()
    assert (tmp_path / name).exists()
    assert seen[-1][0] == seen[-1][1] > 3 << 20
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_file_that_got_shorter_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "f").write_bytes(b"x" * 100)
    tree = DirectoryTree(os.fsencode(tmp_path / "source"))
    node = tree.find(b"f")
    os.truncate(tmp_path / "source" / "f", 50)
    with pytest.raises(SessfsError, match="shorter"):
        tree.read(node, 0, 100)
    tree.close()


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("a.tar", "tar"),
        ("a.TAR", "tar"),
        ("a.tar.zst", "tar.zst"),
        ("a.tzst", "tar.zst"),
        ("a.zip", "zip"),
        ("a", "dir"),
    ],
)
def test_format_by_suffix(tmp_path: Path, name: str, form: str) -> None:
    assert guess_format(tmp_path / name) == form
