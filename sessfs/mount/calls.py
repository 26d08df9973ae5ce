"""Which handler serves which request: unpacking what the kernel asks, packing the answer.

A call's `start` takes the handlers, the request's header and its body, and returns the handler's coroutine; `pack`
makes the answer's bytes of what that returns, where it is not those bytes already.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pyfuse3 import FUSEError

from sessfs.mount import fusewire as wire
from sessfs.mount.fusewire import RequestContext

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping

    from sessfs.mount.fuseops import SessionOperations

    Header = tuple[int, int, int, int, int, int, int, int, int]
    Answer = Coroutine[Any, Any, Any]
    Start = Callable[[SessionOperations, Header, memoryview], Answer]


class Call(NamedTuple):
    """One kind of request, by the name of its handler."""

    name: str
    start: Start
    pack: Callable[[Any], bytes] | None = None
    answered: bool = True
    keeps_body: bool = False
    """Its handler still needs the request's bytes after it got a task."""
    is_interruptible: bool = True
    """It waits for what may take for ever, and a signal to whoever asked ends that. A commit is no such thing."""


def _caller(header: Header) -> RequestContext:
    return RequestContext(header[4], header[5], header[6])


def _names(body: memoryview, at: int = 0) -> list[bytes]:
    return bytes(body[at:-1]).split(b"\0")


def _lookup(ops: SessionOperations, header: Header, body: memoryview) -> Answer:
    return ops.lookup(header[3], bytes(body[:-1]))


def _forget(ops: SessionOperations, header: Header, body: memoryview) -> Answer:
    return ops.forget([(header[3], wire.FORGET_IN.unpack_from(body)[0])])


def _batch_forget(ops: SessionOperations, header: Header, body: memoryview) -> Answer:
    count = wire.BATCH_FORGET_IN.unpack_from(body)[0]
    start = wire.BATCH_FORGET_IN.size
    return ops.forget(list(wire.FORGET_ONE.iter_unpack(body[start : start + count * wire.FORGET_ONE.size])))


def _getattr(ops: SessionOperations, header: Header, body: memoryview) -> Answer:
    return ops.getattr(header[3], of_open=bool(wire.GETATTR_IN.unpack_from(body)[0] & wire.GETATTR_FH))


def _setattr(ops: SessionOperations, header: Header, body: memoryview) -> Answer:
    return ops.setattr(header[3], wire.unpack_wanted(body, ops.now_ns()), header[6])


def _readlink(ops: SessionOperations, header: Header, body: memoryview) -> Answer:
    return ops.readlink(header[3])


def _symlink(ops: SessionOperations, header: Header, body: memoryview) -> Answer:
    name, target = _names(body)
    return ops.symlink(header[3], name, target, _caller(header))


def _mknod(ops: SessionOperations, header: Header, body: memoryview) -> Answer:
    mode, rdev, _, _ = wire.MKNOD_IN.unpack_from(body)
    return ops.mknod(header[3], bytes(body[wire.MKNOD_IN.size : -1]), mode, rdev, _caller(header))


def _mkdir(ops: SessionOperations, header: Header, body: memoryview) -> Answer:
    mode, _ = wire.MKDIR_IN.unpack_from(body)
    return ops.mkdir(header[3], bytes(body[wire.MKDIR_IN.size : -1]), mode, _caller(header))


def _unlink(ops: SessionOperations, header: Header, body: memoryview) -> Answer:
    return ops.unlink(header[3], bytes(body[:-1]))


def _rmdir(ops: SessionOperations, header: Header, body: memoryview) -> Answer:
    return ops.rmdir(header[3], bytes(body[:-1]))


def _rename(ops: SessionOperations, header: Header, body: memoryview) -> Answer:
    old, new = _names(body, wire.RENAME_IN.size)
    return ops.rename(header[3], old, wire.RENAME_IN.unpack_from(body)[0], new, 0)


def _rename2(ops: SessionOperations, header: Header, body: memoryview) -> Answer:
    directory, flags, _ = wire.RENAME2_IN.unpack_from(body)
    old, new = _names(body, wire.RENAME2_IN.size)
    return ops.rename(header[3], old, directory, new, flags)


def _link(ops: SessionOperations, header: Header, body: memoryview) -> Answer:
    return ops.link(wire.LINK_IN.unpack_from(body)[0], header[3], bytes(body[wire.LINK_IN.size : -1]))


def _open(ops: SessionOperations, header: Header, body: memoryview) -> Answer:
    flags, more = wire.OPEN_IN.unpack_from(body)
    return ops.open(header[3], flags, _caller(header), kills_set_id=bool(more & wire.OPEN_KILL_SUIDGID))


def _create(ops: SessionOperations, header: Header, body: memoryview) -> Answer:
    flags, mode, _, _ = wire.CREATE_IN.unpack_from(body)
    return ops.create(header[3], bytes(body[wire.CREATE_IN.size : -1]), mode, flags, _caller(header))


def _read(ops: SessionOperations, header: Header, body: memoryview) -> Answer:
    fh, offset, size, _, _, _, _ = wire.RW_IN.unpack_from(body)
    return ops.read(fh, offset, size)


def _write(ops: SessionOperations, header: Header, body: memoryview) -> Answer:
    fh, offset, size, flags, _, _, _ = wire.RW_IN.unpack_from(body)
    content = body[wire.RW_IN.size : wire.RW_IN.size + size]
    cached, kills_set_id = bool(flags & wire.WRITE_CACHE), bool(flags & wire.WRITE_KILL_SUIDGID)
    return ops.write(fh, offset, content, header[6], cached=cached, kills_set_id=kills_set_id)


def _pack_size(size: int) -> bytes:
    return wire.SIZE_OUT.pack(size, 0)


def _statfs(ops: SessionOperations, header: Header, body: memoryview) -> Answer:
    return ops.statfs()


def _release(ops: SessionOperations, header: Header, body: memoryview) -> Answer:
    return ops.release(wire.RELEASE_IN.unpack_from(body)[0])


def _fsync(ops: SessionOperations, header: Header, body: memoryview) -> Answer:
    fh, flags, _ = wire.FSYNC_IN.unpack_from(body)
    return ops.fsync(fh, data_only=bool(flags & wire.FSYNC_FDATASYNC))


def _fsyncdir(ops: SessionOperations, header: Header, body: memoryview) -> Answer:
    return ops.fsyncdir(wire.FSYNC_IN.unpack_from(body)[0])


def _setxattr(ops: SessionOperations, header: Header, body: memoryview) -> Answer:
    size, flags = wire.SETXATTR_IN.unpack_from(body)
    name, _, rest = bytes(body[wire.SETXATTR_IN.size :]).partition(b"\0")
    return ops.setxattr(header[3], name, rest[:size], flags)


def _sized(value: bytes, room: int) -> bytes:
    """An xattr, or only its length where no room is offered; ERANGE when that is too little."""
    if not room:
        return _pack_size(len(value))
    if len(value) > room:
        raise FUSEError(errno.ERANGE)
    return value


async def _getxattr(ops: SessionOperations, header: Header, body: memoryview) -> bytes:
    room, _ = wire.GETXATTR_IN.unpack_from(body)
    return _sized(await ops.getxattr(header[3], bytes(body[wire.GETXATTR_IN.size : -1])), room)


async def _listxattr(ops: SessionOperations, header: Header, body: memoryview) -> bytes:
    room, _ = wire.GETXATTR_IN.unpack_from(body)
    return _sized(b"".join(name + b"\0" for name in await ops.listxattr(header[3])), room)


def _removexattr(ops: SessionOperations, header: Header, body: memoryview) -> Answer:
    return ops.removexattr(header[3], bytes(body[:-1]))


def _opendir(ops: SessionOperations, header: Header, body: memoryview) -> Answer:
    return ops.opendir(header[3])


def _readdir(ops: SessionOperations, header: Header, body: memoryview) -> Answer:
    fh, offset, size, _, _, _, _ = wire.RW_IN.unpack_from(body)
    return ops.readdir(fh, offset, size, plus=False)


def _readdirplus(ops: SessionOperations, header: Header, body: memoryview) -> Answer:
    fh, offset, size, _, _, _, _ = wire.RW_IN.unpack_from(body)
    return ops.readdir(fh, offset, size, plus=True)


def _releasedir(ops: SessionOperations, header: Header, body: memoryview) -> Answer:
    return ops.releasedir(wire.RELEASE_IN.unpack_from(body)[0])


CALLS: Final[Mapping[int, Call]] = {
    1: Call("lookup", _lookup),
    2: Call("forget", _forget, answered=False),
    3: Call("getattr", _getattr),
    4: Call("setattr", _setattr),
    5: Call("readlink", _readlink),
    6: Call("symlink", _symlink),
    8: Call("mknod", _mknod),
    9: Call("mkdir", _mkdir),
    10: Call("unlink", _unlink),
    11: Call("rmdir", _rmdir),
    12: Call("rename", _rename),
    13: Call("link", _link),
    14: Call("open", _open, pack=wire.FileInfo.pack),
    15: Call("read", _read),
    16: Call("write", _write, pack=_pack_size, keeps_body=True),
    17: Call("statfs", _statfs),
    18: Call("release", _release),
    20: Call("fsync", _fsync, is_interruptible=False),
    21: Call("setxattr", _setxattr),
    22: Call("getxattr", _getxattr, keeps_body=True),
    23: Call("listxattr", _listxattr, keeps_body=True),
    24: Call("removexattr", _removexattr),
    27: Call("opendir", _opendir),
    28: Call("readdir", _readdir),
    29: Call("releasedir", _releasedir),
    30: Call("fsyncdir", _fsyncdir, is_interruptible=False),
    35: Call("create", _create),
    42: Call("forget", _batch_forget, answered=False),
    44: Call("readdir", _readdirplus),
    45: Call("rename", _rename2),
}
"""By opcode. What is not here is answered ENOSYS, and the kernel asks for it no more or does without: flush (nothing is
kept for close), access, locks (the kernel's own), fallocate, lseek, copy_file_range, ioctl, tmpfile.
"""
INTERRUPT: Final = 36
"""Opcode of the one request that has no handler and gets no answer: whoever made another one got a signal."""


def interrupted_unique(body: memoryview) -> int:
    """Which request the INTERRUPT with that *body* is about."""
    unique: int = wire.INTERRUPT_IN.unpack_from(body)[0]
    return unique
