"""Tars that are damaged, cut short or made to fill the memory are refused; how their writers end them is not damage."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
import weakref
from typing import TYPE_CHECKING

import pytest

from sessfs.sessions.importing_archives import Limits
from sessfs.sessions.importing_tars import read_tar
from tests.support.archives import COMPRESSORS, info, lay_out, pax_records, refused, tar_of, with_headers

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def plain_tar(directory: Path) -> tuple[bytes, list[int]]:
    """A tar of three files, and where the header of each is."""
    members = [(info(name), os.urandom(3000)) for name in "abc"]
    plain = tar_of(directory / "plain", *members).read_bytes()
    (directory / "plain").unlink()
    with tarfile.open(fileobj=io.BytesIO(plain)) as archive:
        return plain, [member.offset for member in archive]


def flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


DAMAGES: dict[str, Callable[[bytes, list[int]], bytes]] = {
    "a bit of the second header": lambda plain, at: flipped(plain, at[1] + 110),
    "cut where a member begins": lambda plain, at: plain[: at[1]],
    "cut where the last content ends": lambda plain, at: plain[: at[2] + 512 + 3072],
    "cut after one block of zeros": lambda plain, at: plain[: at[2] + 512 + 3072 + 512],
    "cut inside of a header": lambda plain, at: plain[: at[1] + 100],
    "cut inside of the padding": lambda plain, at: plain[: at[1] - 10],
    "no second header": lambda plain, at: plain[: at[1]] + bytes(512) + plain[at[1] + 512 :],
    "no second header, nor its content": lambda plain, at: plain[: at[1]] + bytes(at[2] - at[1]) + plain[at[2] :],
    "another tar behind it": lambda plain, at: plain + plain,
}
COMPRESSED_DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "a bit of the content": lambda packed: flipped(packed, len(packed) // 2),
    "a bit of the checksum": lambda packed: flipped(packed, len(packed) - 6),
    "no end": lambda packed: packed[:-8],
    "cut by a byte": lambda packed: packed[:-1],
}


@pytest.mark.parametrize("ending", sorted(COMPRESSORS))
@pytest.mark.parametrize("damage", sorted(DAMAGES))
def test_damaged_tar_is_refused(tmp_path: Path, damage: str, ending: str) -> None:
    plain, headers = plain_tar(tmp_path)
    archive = tmp_path / f"x.tar{ending}"
    archive.write_bytes(COMPRESSORS[ending](DAMAGES[damage](plain, headers)))
    refused(archive, "damaged, or no tar.*near '[abc]'")


@pytest.mark.parametrize("ending", sorted(set(COMPRESSORS) - {""}))
@pytest.mark.parametrize("damage", sorted(COMPRESSED_DAMAGES))
def test_damaged_compression_is_refused(tmp_path: Path, damage: str, ending: str) -> None:
    """The tar in it may be whole, as far as its own checks go."""
    packed = COMPRESSORS[ending](plain_tar(tmp_path)[0])
    if ending == ".zst" and damage == "a bit of the checksum":
        packed = flipped(packed, len(packed) - 1)
    else:
        packed = COMPRESSED_DAMAGES[damage](packed)
    (tmp_path / f"x.tar{ending}").write_bytes(packed)
    refused(tmp_path / f"x.tar{ending}", "damaged")


@pytest.mark.parametrize("number", [1, 2, 20])
@pytest.mark.parametrize("form", ["v7", "ustar", "gnu", "posix"])
def test_end_that_tar_writes_is_one(tmp_path: Path, form: str, number: int) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "f").write_bytes(os.urandom(9000))
    assert os.system(f"tar --format={form} -b {number} -C {tmp_path} -cf {tmp_path}/x.tar in") == 0
    assert (lay_out(tmp_path / "x.tar") / "in/f").read_bytes() == (tmp_path / "in/f").read_bytes()


def test_end_without_padding_is_one(tmp_path: Path) -> None:
    """As bsdtar, Go and Node write it."""
    plain, headers = plain_tar(tmp_path)
    (tmp_path / "x.tar").write_bytes(plain[: headers[2] + 512 + 3072 + 1024])
    assert sorted(os.listdir(lay_out(tmp_path / "x.tar"))) == ["a", "b", "c"]


def test_several_frames_of_zstd_are_one_tar(tmp_path: Path) -> None:
    """As pzstd writes it, which begins with a frame to be skipped."""
    plain, _ = plain_tar(tmp_path)
    skipped = b"\x50\x2a\x4d\x18\x04\0\0\0" + b"skip"
    packed = b"".join(COMPRESSORS[".zst"](part) + skipped for part in (plain[:1000], plain[1000:], b""))
    (tmp_path / "x.tar.zst").write_bytes(packed)
    assert sorted(os.listdir(lay_out(tmp_path / "x.tar.zst"))) == ["a", "b", "c"]


def test_bomb_behind_the_end_is_refused(tmp_path: Path) -> None:
    plain, _ = plain_tar(tmp_path)
    (tmp_path / "x.tar.gz").write_bytes(gzip.compress(plain + bytes(16 << 20), 9))
    refused(tmp_path / "x.tar.gz", "becomes more than 250 times its size.* bomb", Limits(1 << 30, free_bytes=1 << 20))


LONG = bytes(2 << 20)
LONG_HEADERS = {
    "pax": [(tarfile.XHDTYPE, pax_records(("comment", LONG)))],
    "global pax": [(tarfile.XGLTYPE, pax_records(("comment", LONG)))],
    "long name": [(tarfile.GNUTYPE_LONGNAME, LONG)],
    "long link": [(tarfile.GNUTYPE_LONGLINK, LONG)],
    "many": [(tarfile.XHDTYPE, pax_records(("comment", LONG[: 300 << 10])))] * 4,
    "many short ones": [(tarfile.XHDTYPE, pax_records(("comment", b"x")))] * 1500,
    "map of holes": [(tarfile.XHDTYPE, pax_records(("GNU.sparse.map", b"0,0," * (300 << 10) + b"0,0")))],
}


@pytest.mark.parametrize("kind", sorted(LONG_HEADERS))
def test_long_headers_are_refused_unread(tmp_path: Path, kind: str) -> None:
    archive = with_headers(tmp_path / "x.tar.zst", LONG_HEADERS[kind])
    refused(archive, "headers of one member are longer than 1048576 bytes|one member has hundreds of headers")


def test_global_headers_that_grow_with_each_member_are_refused(tmp_path: Path) -> None:
    members = []
    for n in range(4):
        records = pax_records((f"comment{n}", LONG[: 300 << 10]))
        members += [(info("header", tarfile.XGLTYPE), records), (info(str(n)), b"1")]
    refused(tar_of(tmp_path / "x.tar", *members), "near '2': the headers for all members are longer than 1048576 bytes")


def test_members_are_not_kept(tmp_path: Path) -> None:
    plain = tar_of(tmp_path / "x.tar", *((info(f"{n:0100}"), b"") for n in range(2000))).read_bytes()
    kept = []
    for member, _ in read_tar(io.BytesIO(plain), lambda n_bytes: None):
        kept.append(weakref.ref(member))
    assert sum(member() is not None for member in kept) <= 3
