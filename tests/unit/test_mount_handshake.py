"""The answer to FUSE_INIT: what is added to libfuse's, and what is taken out of it."""

from __future__ import annotations

import struct

import pytest

from sessfs.mount.handshake import (
    CACHE_SYMLINKS,
    DIRECT_IO_ALLOW_MMAP,
    HANDLE_KILLPRIV_V2,
    IN_HEADER_BYTES,
    INIT_EXT,
    INIT_OPCODE,
    MAX_BACKGROUND,
    MAX_WRITE_BYTES,
    OUT_HEADER,
    improve,
)

INIT_IN = struct.Struct("<IIIII")
INIT_OUT = struct.Struct("<IIIIHHIIHHI28x")
WRITEBACK_CACHE, SETXATTR_EXT, POSIX_LOCKS = 1 << 16, 1 << 29, 1 << 1


def request(flags: int, opcode: int = INIT_OPCODE, flags2: int = 0) -> bytes:
    header = struct.pack("<II", 0, opcode).ljust(IN_HEADER_BYTES, b"\0")
    return header + INIT_IN.pack(7, 45, 1 << 20, flags, flags2)


def answer(
    flags: int,
    max_write: int = 1 << 20,
    max_pages: int = 256,
    flags2: int = 0,
    error: int = 0,
    background: tuple[int, int] = (12, 9),
) -> bytes:
    body = INIT_OUT.pack(7, 38, 1 << 20, flags, *background, max_write, 1, max_pages, 0, flags2)
    return OUT_HEADER.pack(OUT_HEADER.size + len(body), error, 1) + body


def improved(flags: int, max_write: int = 1 << 20, flags2: int = 0) -> bytes:
    return answer(flags, max_write, flags2=flags2, background=(MAX_BACKGROUND, MAX_BACKGROUND))


def test_handshake_adds_what_the_kernel_offers() -> None:
    offered = WRITEBACK_CACHE | HANDLE_KILLPRIV_V2
    assert improve(request(offered), answer(WRITEBACK_CACHE)) == improved(offered)
    assert improve(request(offered | CACHE_SYMLINKS), answer(0)) == improved(HANDLE_KILLPRIV_V2 | CACHE_SYMLINKS)


def test_handshake_second_word_of_flags_only_where_the_kernel_has_one() -> None:
    greedy = answer(INIT_EXT, flags2=0xFF)
    assert improve(request(INIT_EXT, flags2=0xFFFF), greedy) == improved(INIT_EXT, flags2=DIRECT_IO_ALLOW_MMAP)
    assert improve(request(INIT_EXT, flags2=0), greedy) == improved(INIT_EXT)
    assert improve(request(0, flags2=0xFFFF), answer(0)) == improved(0)
    assert improve(request(INIT_EXT)[: IN_HEADER_BYTES + 16], answer(0)) == improved(INIT_EXT)


def test_handshake_takes_out_what_the_loop_does_not_serve() -> None:
    greedy = answer(WRITEBACK_CACHE | SETXATTR_EXT | POSIX_LOCKS, max_write=16 << 20, max_pages=4096, flags2=0xFF)
    assert improve(request(0), greedy) == improved(WRITEBACK_CACHE, max_write=MAX_WRITE_BYTES)


@pytest.mark.parametrize(
    ("asked", "answered"),
    [
        (request(1 << 28, opcode=1), answer(0)),
        (request(1 << 28), answer(0, error=-71)),
        (request(1 << 28)[:40], answer(0)),
        (request(1 << 28), answer(0)[:40]),
    ],
)
def test_handshake_leaves_what_is_no_init_alone(asked: bytes, answered: bytes) -> None:
    assert improve(asked, answered) == answered
