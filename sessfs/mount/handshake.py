"""The first exchange with the kernel, FUSE_INIT: with features that pyfuse3's libfuse can't ask it for.

Without FUSE_HANDLE_KILLPRIV_V2 the kernel asks for the xattr security.capability before each write(2), cached or not:
one request a write where a page of writes would otherwise be one request in all; without FUSE_DIRECT_IO_ALLOW_MMAP
(Linux 6.6) a file opened with direct I/O can't be mapped shared. libfuse before 3.17 does not know these flags, and
pyfuse3 has no say in them, nor in how many requests the kernel lets run in the background. So FUSE_INIT goes through a
socket pair: libfuse reads the kernel's request from it and writes its answer to it, the answer is improved on its way
to the kernel, and from then on the device is the request loop's; libfuse still sends notifications on it. Layouts:
struct fuse_init_in and fuse_init_out of <linux/fuse.h>.
"""

from __future__ import annotations

import logging
import os
import socket
import struct
from pathlib import Path

import pyfuse3
import trio

from sessfs.errors import StartFailed

log = logging.getLogger(__name__)
IN_HEADER_BYTES = 40
OUT_HEADER = struct.Struct("<IiQ")
INIT_OPCODE = 26
OPCODE = struct.Struct("<I")
OPCODE_OFFSET = 4
IN_FLAGS_OFFSET = IN_HEADER_BYTES + 12
IN_FLAGS2_OFFSET = IN_HEADER_BYTES + 16
OUT_FLAGS_OFFSET = OUT_HEADER.size + 12
FLAGS = struct.Struct("<I")
BACKGROUND_OFFSET = OUT_HEADER.size + 16
BACKGROUND = struct.Struct("<HH")
"""max_background, congestion_threshold."""
MAX_WRITE_OFFSET = OUT_HEADER.size + 20
MAX_PAGES_OFFSET = OUT_HEADER.size + 28
MAX_PAGES = struct.Struct("<H")
FLAGS2_OFFSET = OUT_HEADER.size + 32
BUFFER_BYTES = 2 << 20
MAX_WRITE_BYTES = 1 << 20
PAGE_BYTES = 4096
MAX_BACKGROUND = 4096
"""So many reads ahead and writes of pages may be under way; the kernel's 12 are for a daemon that answers each at once.
Here two dozen reads that wait for the remote kept all sessions from reading, and from writing back what they fsync.
"""
PARALLEL_DIROPS = 1 << 18
"""One look-up that waits for the remote does not keep all others in its directory waiting."""
CACHE_SYMLINKS = 1 << 23
HANDLE_KILLPRIV_V2 = 1 << 28
INIT_EXT = 1 << 30
"""There is a second word of flags in the answer."""
DIRECT_IO_ALLOW_MMAP = 1 << (36 - 32)
WANTED_FLAGS2 = DIRECT_IO_ALLOW_MMAP
WANTED_FLAGS = INIT_EXT | PARALLEL_DIROPS | CACHE_SYMLINKS | HANDLE_KILLPRIV_V2
HANDLED_FLAGS = sum(1 << bit for bit in (0, 3, 4, 5, 7, 8, 9, 12, 13, 15, 16, 19, 22)) | WANTED_FLAGS
"""Of what libfuse asks for, by itself or in a later version, what the request loop can serve: async read, atomic
O_TRUNC, export support, big writes, splice (three), auto-invalidation, readdirplus, async direct I/O, write-back cache,
killpriv, max_pages. Not locks, ACLs, or requests in other layouts.
"""


def find_device() -> int:
    """The descriptor of /dev/fuse that pyfuse3.init left open in this process; StartFailed unless there is just one."""
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            if os.readlink(entry) == "/dev/fuse":
                found.append(int(entry.name))
        except FileNotFoundError:
            continue
    if len(found) != 1:
        raise StartFailed(f"{len(found)} descriptors of /dev/fuse are open, not one")
    return found[0]


def improve(request: bytes, answer: bytes) -> bytes:
    """The answer to FUSE_INIT with those of WANTED_FLAGS that the kernel's request offers, without flags and sizes that
    the request loop can't serve; unchanged if either is not what it should be.
    """
    if len(request) < IN_FLAGS_OFFSET + FLAGS.size or len(answer) < FLAGS2_OFFSET + FLAGS.size:
        return answer
    if OPCODE.unpack_from(request, OPCODE_OFFSET)[0] != INIT_OPCODE or OUT_HEADER.unpack_from(answer)[1] != 0:
        return answer
    improved = bytearray(answer)
    offered = FLAGS.unpack_from(request, IN_FLAGS_OFFSET)[0]
    offered2 = 0
    if offered & INIT_EXT and len(request) >= IN_FLAGS2_OFFSET + FLAGS.size:
        offered2 = FLAGS.unpack_from(request, IN_FLAGS2_OFFSET)[0]
    asked = FLAGS.unpack_from(answer, OUT_FLAGS_OFFSET)[0]
    FLAGS.pack_into(improved, OUT_FLAGS_OFFSET, asked & HANDLED_FLAGS | offered & WANTED_FLAGS)
    FLAGS.pack_into(improved, FLAGS2_OFFSET, offered2 & WANTED_FLAGS2)
    BACKGROUND.pack_into(improved, BACKGROUND_OFFSET, MAX_BACKGROUND, MAX_BACKGROUND)
    max_write = min(FLAGS.unpack_from(answer, MAX_WRITE_OFFSET)[0], MAX_WRITE_BYTES)
    FLAGS.pack_into(improved, MAX_WRITE_OFFSET, max_write)
    max_pages = min(MAX_PAGES.unpack_from(answer, MAX_PAGES_OFFSET)[0], MAX_WRITE_BYTES // PAGE_BYTES)
    MAX_PAGES.pack_into(improved, MAX_PAGES_OFFSET, max_pages)
    return bytes(improved)


async def shake_hands() -> int:
    """Answer FUSE_INIT: from then on the mount answers. Call after pyfuse3.init; returns the descriptor of the device,
    which pyfuse3.close closes.
    """
    number = find_device()
    device = os.dup(number)
    try:
        await trio.lowlevel.wait_readable(device)
        request = os.read(device, BUFFER_BYTES)
        answer = await _let_libfuse_answer(number, device, request)
        os.write(device, improve(request, answer))
    finally:
        os.close(device)
    return number


async def _let_libfuse_answer(number: int, device: int, request: bytes) -> bytes:
    """Have libfuse read *request* from a socket in the device's place, put the device back, and return its answer."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        with theirs:
            os.dup2(theirs.fileno(), number, inheritable=False)
        ours.send(request)
        async with trio.open_nursery() as nursery:
            ended = trio.Event()

            async def first_loop() -> None:
                await pyfuse3.main()
                ended.set()

            nursery.start_soon(first_loop)
            await trio.lowlevel.wait_readable(ours.fileno())
            answer = ours.recv(BUFFER_BYTES)
            os.dup2(device, number, inheritable=False)
            while not ended.is_set():
                # The loop may be on its way to waiting: tell it until it has heard.
                trio.lowlevel.notify_closing(number)
                await trio.sleep(0.001)
    return answer
