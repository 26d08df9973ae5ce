"""Regular files: what open, read, write and truncate promise. Each test runs on a plain directory and on a mount."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import stat
import threading
from typing import TYPE_CHECKING

import pytest

from tests.support.posix import Child, errno_of, eventually, noise, read_file, run_child, write_file

if TYPE_CHECKING:
    from pathlib import Path

FOUR_GIB = 1 << 32


def test_create_new_name_is_empty_and_has_the_mode_less_umask(directory: Path) -> None:
    before = os.umask(0o027)
    try:
        fd = os.open(directory / "a", os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
    finally:
        os.umask(before)
    status = os.fstat(fd)
    assert stat.S_ISREG(status.st_mode)
    assert stat.S_IMODE(status.st_mode) == 0o640
    assert (status.st_size, status.st_nlink, status.st_uid, status.st_gid) == (0, 1, os.getuid(), os.getgid())
    assert os.read(fd, 10) == b""
    os.close(fd)


def test_create_excl_existing_name_is_eexist(directory: Path) -> None:
    write_file(directory / "a", b"kept")
    os.mkdir(directory / "d")
    os.symlink("nowhere", directory / "s")
    for name in ("a", "d", "s"):
        assert errno_of(os.open, directory / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY) == errno.EEXIST
    assert read_file(directory / "a") == b"kept"
    assert not os.path.lexists(directory / "nowhere")


def test_open_errors_are_those_of_posix(directory: Path) -> None:
    write_file(directory / "f", b"")
    os.mkdir(directory / "d")
    os.symlink("f", directory / "s")
    assert errno_of(os.open, directory / "missing", os.O_RDONLY) == errno.ENOENT
    assert errno_of(os.open, directory / "d", os.O_WRONLY) == errno.EISDIR
    assert errno_of(os.open, directory / "d", os.O_RDWR | os.O_CREAT) == errno.EISDIR
    assert errno_of(os.open, directory / "f", os.O_RDONLY | os.O_DIRECTORY) == errno.ENOTDIR
    assert errno_of(os.open, directory / "f" / "x", os.O_RDONLY) == errno.ENOTDIR
    assert errno_of(os.open, directory / "missing" / "x", os.O_CREAT | os.O_WRONLY) == errno.ENOENT
    assert errno_of(os.open, directory / "s", os.O_RDONLY | os.O_NOFOLLOW) == errno.ELOOP
    assert errno_of(os.open, os.fsencode(directory) + b"/f/", os.O_RDONLY) == errno.ENOTDIR


def test_open_trunc_empties_the_file_for_every_reader(directory: Path) -> None:
    write_file(directory / "a", noise(1, 100_000))
    reader = os.open(directory / "a", os.O_RDONLY)
    assert len(os.pread(reader, 200_000, 0)) == 100_000
    os.close(os.open(directory / "a", os.O_WRONLY | os.O_TRUNC))
    assert os.fstat(reader).st_size == 0
    assert os.pread(reader, 10, 0) == b""
    os.close(reader)


def test_open_through_dangling_symlink_with_creat_creates_its_target(directory: Path) -> None:
    os.symlink("target", directory / "s")
    write_file(directory / "s", b"through")
    assert read_file(directory / "target") == b"through"
    assert os.readlink(directory / "s") == "target"


def test_append_goes_to_the_end_whatever_the_position(directory: Path) -> None:
    fd = os.open(directory / "a", os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(fd, b"one")
    os.lseek(fd, 0, os.SEEK_SET)
    os.write(fd, b"two")
    assert os.lseek(fd, 0, os.SEEK_CUR) == 6
    with open(directory / "a", "r+b", buffering=0) as other:
        other.truncate(4)
    os.write(fd, b"three")
    assert os.pread(fd, 99, 0) == b"onetthree"
    os.close(fd)


def test_append_reopened_file_keeps_what_was_there(directory: Path) -> None:
    """libfuse#191: the shell's >> wrote at 0."""
    write_file(directory / "a", b"q" * 100)
    write_file(directory / "a", b"r" * 7, extra_flags=os.O_APPEND)
    assert read_file(directory / "a") == b"q" * 100 + b"r" * 7


def test_append_from_four_processes_keeps_records_whole(directory: Path) -> None:
    """juicefs#6594: records of two appenders overwrote each other."""
    body = """
fd = os.open("log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
wait()
for _ in range(300):
    os.write(fd, sys.argv[1].encode() * 96 + b"\\n")
say(0)
"""
    with contextlib.ExitStack() as stack:
        children = [stack.enter_context(Child(directory, body, letter)) for letter in "ABCD"]
        for child in children:
            child.tell()
        for child in children:
            child.hear()
            child.finish()
    lines = read_file(directory / "log").split(b"\n")[:-1]
    assert len(lines) == 1200
    assert all(len(line) == 96 and len(set(line)) == 1 for line in lines)
    assert all(sum(line[:1] == letter for line in lines) == 300 for letter in (b"A", b"B", b"C", b"D"))


def test_write_then_read_through_another_descriptor_and_process(directory: Path) -> None:
    content = noise(2, 300_000)
    writer = os.open(directory / "a", os.O_WRONLY | os.O_CREAT, 0o644)
    reader = os.open(directory / "a", os.O_RDONLY)
    os.write(writer, content)
    assert os.pread(reader, 400_000, 0) == content
    os.pwrite(writer, b"changed", 4093)
    assert os.pread(reader, 7, 4093) == b"changed"
    assert run_child(directory, 'say(open("a", "rb").read()[4093:4100].decode())') == "changed"
    os.close(writer)
    os.close(reader)


def test_write_at_every_kind_of_offset_reads_back(directory: Path) -> None:
    """Page, chunk and request sizes, one less and one more, against a bytearray."""
    model = bytearray()
    fd = os.open(directory / "a", os.O_RDWR | os.O_CREAT, 0o600)
    edges = [0, 1, 4095, 4096, 4097, 32_768, 65_535, 131_071, 131_072, 131_073, 262_144, 1_048_575, 1_048_577]
    for turn, offset in enumerate(edges[::-1] + edges[::2]):
        for size in (1, 4096, 5000, 131_073):
            piece = noise(turn * 10 + size, size)
            assert os.pwrite(fd, piece, offset) == size
            if len(model) < offset + size:
                model.extend(bytes(offset + size - len(model)))
            model[offset : offset + size] = piece
    assert os.fstat(fd).st_size == len(model)
    assert os.pread(fd, len(model) + 10, 0) == bytes(model)
    os.close(fd)
    assert read_file(directory / "a") == bytes(model)


def test_write_vectors_and_positions(directory: Path) -> None:
    fd = os.open(directory / "a", os.O_RDWR | os.O_CREAT, 0o600)
    assert os.writev(fd, [b"ab", b"", b"cdef"]) == 6
    assert os.lseek(fd, 0, os.SEEK_CUR) == 6
    assert os.pwrite(fd, b"X", 1) == 1
    assert os.lseek(fd, 0, os.SEEK_CUR) == 6
    first, second = bytearray(2), bytearray(9)
    assert os.preadv(fd, [first, second], 0) == 6
    assert bytes(first + second) == b"aXcdef" + bytes(5)
    assert os.lseek(fd, -2, os.SEEK_END) == 4
    assert errno_of(os.lseek, fd, -1, os.SEEK_SET) == errno.EINVAL
    os.close(fd)


def test_read_and_write_need_the_mode_of_the_descriptor(directory: Path) -> None:
    write_file(directory / "a", b"abc")
    reader = os.open(directory / "a", os.O_RDONLY)
    writer = os.open(directory / "a", os.O_WRONLY)
    assert errno_of(os.write, reader, b"x") == errno.EBADF
    assert errno_of(os.read, writer, 1) == errno.EBADF
    assert errno_of(os.ftruncate, reader, 0) == errno.EINVAL
    assert read_file(directory / "a") == b"abc"
    os.close(reader)
    os.close(writer)


def test_truncate_down_then_up_shows_zeros_not_old_bytes(directory: Path) -> None:
    path = directory / "a"
    write_file(path, b"\xff" * 200_000)
    for size in (150_001, 4097, 4096, 100, 0):
        os.truncate(path, size)
        assert os.stat(path).st_size == size
        os.truncate(path, 200_000)
        assert read_file(path) == b"\xff" * size + bytes(200_000 - size)
        write_file(path, b"\xff" * 200_000)


def test_truncate_with_open_descriptor_moves_end_of_file_at_once(directory: Path) -> None:
    fd = os.open(directory / "a", os.O_RDWR | os.O_CREAT, 0o600)
    os.write(fd, b"x" * 10_000)
    os.truncate(directory / "a", 3)
    assert os.lseek(fd, 0, os.SEEK_END) == 3
    assert os.pread(fd, 100, 0) == b"xxx"
    os.ftruncate(fd, 5)
    assert os.pread(fd, 100, 0) == b"xxx\0\0"
    os.pwrite(fd, b"end", 8)
    assert os.pread(fd, 100, 0) == b"xxx\0\0\0\0\0end"
    os.close(fd)


def test_truncate_errors(directory: Path) -> None:
    os.mkdir(directory / "d")
    assert errno_of(os.truncate, directory / "d", 0) == errno.EISDIR
    assert errno_of(os.truncate, directory / "missing", 0) == errno.ENOENT
    write_file(directory / "a", b"abc")
    assert errno_of(os.truncate, directory / "a", -1) == errno.EINVAL
    assert read_file(directory / "a") == b"abc"


def test_simple_cache_pattern_of_truncate_around_each_write(directory: Path) -> None:
    """Chrome's Simple Cache: extend, pwrite 512 KiB, shrink, again; its names get a path of their own on our mount."""
    path = directory / "0123456789abcdef_0"
    model = bytearray()
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    for turn in range(6):
        piece = noise(turn, 512 * 1024 - turn * 77)
        start = len(model)
        os.ftruncate(fd, start + len(piece) + 4096)
        assert os.pwrite(fd, piece, start) == len(piece)
        model += piece
        os.ftruncate(fd, len(model))
        assert os.fstat(fd).st_size == len(model)
        assert os.pread(fd, 5000, max(0, start - 100)) == bytes(model[max(0, start - 100) :][:5000])
    os.close(fd)
    assert read_file(path) == bytes(model)
    reopened = os.open(path, os.O_RDWR)
    mapped = mmap.mmap(reopened, len(model))
    assert mapped[:] == bytes(model)
    mapped.close()
    os.close(reopened)
    write_file(path, b"short")
    assert read_file(path) == b"short"


def test_sparse_file_reads_zeros_and_takes_no_room(directory: Path) -> None:
    path = directory / "sparse"
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    os.pwrite(fd, b"front", 0)
    os.pwrite(fd, b"back", 500 << 20)
    os.fsync(fd)
    status = os.fstat(fd)
    assert status.st_size == (500 << 20) + 4
    assert status.st_blocks * 512 < 4 << 20
    assert os.pread(fd, 10, 0) == b"front\0\0\0\0\0"
    assert os.pread(fd, 1 << 20, 100 << 20) == bytes(1 << 20)
    assert os.pread(fd, 10, (500 << 20) - 2) == b"\0\0back"
    os.close(fd)


def test_offsets_over_2_and_4_gib(directory: Path) -> None:
    """wwebjs PR#2412: sizes above 31 bits."""
    fd = os.open(directory / "big", os.O_RDWR | os.O_CREAT, 0o600)
    far = FOUR_GIB + 12_345
    os.pwrite(fd, b"END", far)
    os.pwrite(fd, b"MID", (1 << 31) - 1)
    os.pwrite(fd, b"EDGE", FOUR_GIB - 2)
    assert os.fstat(fd).st_size == far + 3
    assert os.pread(fd, 5, (1 << 31) - 2) == b"\0MID\0"
    assert os.pread(fd, 6, FOUR_GIB - 3) == b"\0EDGE\0"
    assert os.pread(fd, 10, far) == b"END"
    assert os.lseek(fd, 0, os.SEEK_END) == far + 3
    os.ftruncate(fd, 1 << 31)
    assert os.pread(fd, 3, (1 << 31) - 2) == b"\0M"
    os.ftruncate(fd, FOUR_GIB * 4)
    assert os.pread(fd, 10, FOUR_GIB - 2) == bytes(10)
    os.close(fd)
    assert os.stat(directory / "big").st_size == FOUR_GIB * 4


def test_unlinked_open_file_works_until_closed(directory: Path) -> None:
    """juicefs PR#5488, PR#5664, nodejs/node#38684: stat, ftruncate, fsync, fchmod, utime of an unlinked open file."""
    os.mkdir(directory / "d")
    path = directory / "d" / "f"
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    os.write(fd, b"x" * 100_000)
    mapped = mmap.mmap(fd, 100_000)
    os.unlink(path)
    assert os.listdir(directory / "d") == []
    os.rmdir(directory / "d")
    os.mkdir(directory / "d")
    assert (os.fstat(fd).st_nlink, os.fstat(fd).st_size) == (0, 100_000)
    mapped[5:8] = b"map"
    mapped.flush()
    assert os.pread(fd, 3, 5) == b"map"
    mapped.close()
    os.ftruncate(fd, 5)
    os.pwrite(fd, b"yy", 5)
    os.fchmod(fd, 0o640)
    os.fchown(fd, 1, 2)
    os.utime(fd, ns=(1_000_000_001, 2_000_000_003))
    os.setxattr(fd, "user.gone", b"1")
    os.fsync(fd)
    status = os.fstat(fd)
    assert os.pread(fd, 99, 0) == b"xxxxxyy"
    assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o640, 1, 2)
    assert (status.st_atime_ns, status.st_mtime_ns) == (1_000_000_001, 2_000_000_003)
    assert os.getxattr(fd, "user.gone") == b"1"
    again = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    assert os.read(again, 99) == b"xxxxxyy"
    os.close(again)
    os.close(fd)


def test_unlinked_name_can_be_created_at_once_while_the_old_file_is_open(directory: Path) -> None:
    write_file(directory / "a", b"old")
    old = os.open(directory / "a", os.O_RDWR)
    os.unlink(directory / "a")
    assert errno_of(os.stat, directory / "a") == errno.ENOENT
    write_file(directory / "a", b"new")
    assert os.fstat(old).st_ino != os.stat(directory / "a").st_ino
    os.pwrite(old, b"OLD!", 0)
    assert (os.pread(old, 9, 0), read_file(directory / "a")) == (b"OLD!", b"new")
    os.close(old)
    assert read_file(directory / "a") == b"new"


def test_setattr_right_after_unlink_is_enoent_each_time(directory: Path) -> None:
    """pyfuse3#53: SETATTR for a vanished inode ended the mount."""
    path = directory / "f"
    for _ in range(200):
        write_file(path, b"x")
        os.unlink(path)
        assert errno_of(os.lstat, path) == errno.ENOENT
        assert errno_of(os.chmod, path, 0o600) == errno.ENOENT
        assert errno_of(os.truncate, path, 1) == errno.ENOENT
    assert os.listdir(directory) == []


def test_size_seen_while_another_thread_appends_never_shrinks(directory: Path) -> None:
    """juicefs PR#7238: a getattr answered from before a write set the size back."""
    path = directory / "s"
    write_file(path, b"0")
    done = threading.Event()

    def append() -> None:
        fd = os.open(path, os.O_WRONLY | os.O_APPEND)
        for _ in range(3000):
            os.write(fd, b"z" * 333)
        os.close(fd)
        done.set()

    thread = threading.Thread(target=append)
    thread.start()
    last = 0
    shrunk = []
    while not done.is_set():
        size = os.stat(path).st_size
        if size < last:
            shrunk.append((last, size))
        last = size
    thread.join()
    assert shrunk == []
    assert os.stat(path).st_size == 1 + 3000 * 333


def test_posix_fallocate_extends_with_zeros(directory: Path) -> None:
    fd = os.open(directory / "p", os.O_RDWR | os.O_CREAT, 0o600)
    os.write(fd, b"abc")
    os.posix_fallocate(fd, 0, 4 << 20)
    assert os.fstat(fd).st_size == 4 << 20
    assert os.pread(fd, 5, 0) == b"abc\0\0"
    mapped = mmap.mmap(fd, 4 << 20)
    mapped[-4:] = b"tail"
    mapped.flush()
    assert os.pread(fd, 8, (4 << 20) - 4) == b"tail"
    mapped.close()
    os.close(fd)


@pytest.mark.parametrize("size", [0, 1, 777_777])
def test_copy_file_range_copies_all(directory: Path, size: int) -> None:
    content = noise(3, size)
    write_file(directory / "from", content)
    source = os.open(directory / "from", os.O_RDONLY)
    target = os.open(directory / "to", os.O_RDWR | os.O_CREAT, 0o600)
    while os.copy_file_range(source, target, 1 << 20):
        pass
    assert os.fstat(target).st_size == size
    os.close(source)
    os.close(target)
    assert read_file(directory / "to") == content


def test_sendfile_copies_all(directory: Path) -> None:
    content = noise(4, 1_234_567)
    write_file(directory / "from", content)
    source = os.open(directory / "from", os.O_RDONLY)
    target = os.open(directory / "to", os.O_RDWR | os.O_CREAT, 0o600)
    while os.sendfile(target, source, None, 1 << 20):
        pass
    os.close(source)
    os.close(target)
    assert read_file(directory / "to") == content


def test_large_file_reads_back_in_any_order(directory: Path) -> None:
    content = noise(5, 24 << 20)
    write_file(directory / "large", content)
    fd = os.open(directory / "large", os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    step = 1_000_003
    for turn in range(60):
        offset = turn * 7 * step % len(content)
        assert os.pread(fd, step, offset) == content[offset : offset + step]
    os.close(fd)
    assert read_file(directory / "large") == content


def test_open_file_is_kept_by_a_process_killed_in_the_middle(directory: Path) -> None:
    """What a killed writer had been told was written is there: the page cache is the kernel's, not the process's."""
    with Child(
        directory, 'fd = os.open("k", os.O_WRONLY | os.O_CREAT); os.write(fd, b"w" * 70000); say(0); wait()'
    ) as child:
        child.hear()
        child.kill()
    assert eventually(lambda: read_file(directory / "k") == b"w" * 70_000, 5)
