"""Archives for tests of imports: made, laid out, refused."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
from typing import TYPE_CHECKING

import pytest
import zstandard

from sessfs.sessions.importing_archives import ArchiveRefused, Limits, unpack

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LIMITS = Limits(room_bytes=1 << 30)


def lay_out(archive: Path, limits: Limits = LIMITS) -> Path:
    target = archive.parent / "out"
    target.mkdir()
    unpack(str(archive), str(target), limits, lambda written: None)
    return target


def refused(archive: Path, match: str, limits: Limits = LIMITS) -> None:
    with pytest.raises(ArchiveRefused, match=match):
        lay_out(archive, limits)
    # Nothing of it may lie anywhere but where it is removed with the rest.
    assert sorted(path.name for path in archive.parent.iterdir()) == sorted({archive.name, "out"})


def tar_of(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for member, content in members:
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def info(name: str, kind: bytes = tarfile.REGTYPE, linkname: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.mode = kind, linkname, 0o644
    return member


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "": lambda plain: plain,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
    ".zst": zstandard.ZstdCompressor(write_checksum=True).compress,
}


def pax_records(*records: tuple[str, bytes]) -> bytes:
    """Records of a pax header, each with its length."""
    packed = b""
    for key, value in records:
        rest = b" " + key.encode() + b"=" + value + b"\n"
        length = len(rest) + 1
        while length != len(str(length)) + len(rest):
            length += 1
        packed += str(length).encode() + rest
    return packed


def with_headers(path: Path, headers: list[tuple[bytes, bytes]]) -> Path:
    """A tar, compressed, of one file, before which there are *headers*: of a type, with a content."""
    members = [(info("header", kind), content) for kind, content in headers]
    plain = tar_of(path.parent / "plain", *members, (info("f"), b"1")).read_bytes()
    (path.parent / "plain").unlink()
    path.write_bytes(COMPRESSORS[".zst"](plain))
    return path
