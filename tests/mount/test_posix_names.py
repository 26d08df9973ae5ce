"""Names and what they can stand for: any bytes, directories, symlinks, hard links, fifos, sockets, device nodes."""

from __future__ import annotations

import errno
import os
import socket
import stat
import threading
from typing import TYPE_CHECKING

import pytest

from tests.support.posix import Child, errno_of, link_descriptor, noise, read_file, write_file

if TYPE_CHECKING:
    from pathlib import Path

ODD_NAMES = [
    b"a" * 255,
    "é".encode() * 127,
    b"\xff\xfe raw",
    b"\x01\x7f\x80",
    "i\u0307".encode(),
    "\u0130".encode(),
    "\u212a".encode(),
    b"k",
    b"K",
    b" lead",
    b"trail ",
    b"new\nline",
    b'*?"<>|\\',
    b".hidden",
    b"...",
    "e\u0301".encode(),
    "\u00e9".encode(),
]


def test_names_of_any_bytes_are_kept_apart_and_exact(directory: Path) -> None:
    here = os.fsencode(directory)
    for number, name in enumerate(ODD_NAMES):
        write_file(here + b"/" + name, b"%d" % number)
    assert sorted(os.listdir(here)) == sorted(ODD_NAMES)
    for number, name in enumerate(ODD_NAMES):
        assert read_file(here + b"/" + name) == b"%d" % number
        os.rename(here + b"/" + name, here + b"/moved")
        os.rename(here + b"/moved", here + b"/" + name)
    for name in ODD_NAMES:
        os.unlink(here + b"/" + name)
    assert os.listdir(here) == []


def test_names_of_256_bytes_are_enametoolong_in_every_call(directory: Path) -> None:
    long = directory / ("b" * 256)
    write_file(directory / "f", b"")
    calls = [
        (os.open, (long, os.O_CREAT | os.O_WRONLY)),
        (os.stat, (long,)),
        (os.mkdir, (long,)),
        (os.mkfifo, (long,)),
        (os.mknod, (long, stat.S_IFREG | 0o600)),
        (os.symlink, ("x", long)),
        (os.link, (directory / "f", long)),
        (os.rename, (directory / "f", long)),
        (os.rename, (long, directory / "g")),
        (os.unlink, (long,)),
        (os.rmdir, (long,)),
        (os.chmod, (long, 0o600)),
        (os.listxattr, (long,)),
    ]
    assert [(call.__name__, errno_of(call, *arguments)) for call, arguments in calls] == [
        (call.__name__, errno.ENAMETOOLONG) for call, _ in calls
    ]
    assert os.listdir(directory) == ["f"]


def test_path_of_3_kilobytes_can_be_made_and_removed(directory: Path) -> None:
    """fapolicyd#43, py-lmdb#152: keys of a database made of paths."""
    path = os.fsencode(directory)
    for _ in range(12):
        path += b"/" + b"D" * 250
        os.mkdir(path)
    write_file(path + b"/leaf", b"deep")
    os.setxattr(path + b"/leaf", "user." + "n" * 250, b"v")
    assert read_file(path + b"/leaf") == b"deep"
    os.unlink(path + b"/leaf")
    while path != os.fsencode(directory):
        os.rmdir(path)
        path = os.path.dirname(path)


def test_mkdir_and_rmdir_with_their_errors(directory: Path) -> None:
    os.mkdir(directory / "d", 0o751)
    status = os.stat(directory / "d")
    assert stat.S_ISDIR(status.st_mode)
    assert stat.S_IMODE(status.st_mode) == 0o751 & ~_umask()
    write_file(directory / "f", b"")
    os.symlink("d", directory / "s")
    assert errno_of(os.mkdir, directory / "d") == errno.EEXIST
    assert errno_of(os.mkdir, directory / "f") == errno.EEXIST
    assert errno_of(os.mkdir, directory / "missing" / "x") == errno.ENOENT
    assert errno_of(os.mkdir, directory / "f" / "x") == errno.ENOTDIR
    assert errno_of(os.rmdir, directory / "missing") == errno.ENOENT
    assert errno_of(os.rmdir, directory / "f") == errno.ENOTDIR
    assert errno_of(os.rmdir, directory / "s") == errno.ENOTDIR
    assert errno_of(os.unlink, directory / "d") == errno.EISDIR
    write_file(directory / "d" / "x", b"")
    assert errno_of(os.rmdir, directory / "d") == errno.ENOTEMPTY
    os.unlink(directory / "d" / "x")
    os.rmdir(directory / "d")
    assert not os.path.lexists(directory / "d")


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def test_rmdir_of_an_open_directory_leaves_it_empty_and_closed_to_new_names(directory: Path) -> None:
    os.mkdir(directory / "d")
    fd = os.open(directory / "d", os.O_RDONLY | os.O_DIRECTORY)
    os.rmdir(directory / "d")
    assert os.fstat(fd).st_nlink == 0
    assert errno_of(os.open, "x", os.O_CREAT | os.O_WRONLY, 0o600, dir_fd=fd) == errno.ENOENT
    assert errno_of(os.mkdir, "x", dir_fd=fd) == errno.ENOENT
    assert os.listdir(fd) == []
    os.fsync(fd)
    os.close(fd)


def test_directory_link_count_is_two_and_one_for_each_subdirectory(directory: Path) -> None:
    assert os.stat(directory).st_nlink == 2
    os.mkdir(directory / "a")
    os.mkdir(directory / "a" / "b")
    write_file(directory / "a" / "f", b"")
    assert (os.stat(directory).st_nlink, os.stat(directory / "a").st_nlink) == (3, 3)
    os.rename(directory / "a" / "b", directory / "b")
    assert (os.stat(directory).st_nlink, os.stat(directory / "a").st_nlink) == (4, 2)
    os.rmdir(directory / "b")
    assert os.stat(directory).st_nlink == 3


def test_symlink_is_kept_exactly_and_may_dangle(directory: Path) -> None:
    """puppeteer#4860: Chrome's SingletonLock is a symlink to host-pid."""
    lock = directory / "SingletonLock"
    os.symlink("host-with-name-12345", lock)
    assert os.readlink(lock) == "host-with-name-12345"
    assert os.lstat(lock).st_size == 20
    assert stat.S_ISLNK(os.lstat(lock).st_mode)
    assert not lock.exists()
    assert errno_of(os.symlink, "x", lock) == errno.EEXIST
    assert errno_of(os.open, lock, os.O_CREAT | os.O_EXCL | os.O_RDWR) == errno.EEXIST
    os.unlink(lock)
    os.symlink("h2-1", lock)
    assert os.readlink(lock) == "h2-1"


@pytest.mark.parametrize("length", [1, 59, 60, 1000, 4095])
def test_symlink_target_of_any_length(directory: Path, length: int) -> None:
    target = (b"\xfe/x" * 2000)[:length]
    here = os.fsencode(directory)
    os.symlink(target, here + b"/s")
    assert os.readlink(here + b"/s") == target
    assert os.lstat(here + b"/s").st_size == length


def test_symlink_errors_and_loops(directory: Path) -> None:
    os.symlink("loop2", directory / "loop1")
    os.symlink("loop1", directory / "loop2")
    write_file(directory / "f", b"")
    assert errno_of(os.stat, directory / "loop1") == errno.ELOOP
    assert errno_of(os.open, directory / "loop1", os.O_RDONLY) == errno.ELOOP
    assert errno_of(os.readlink, directory / "f") == errno.EINVAL
    assert errno_of(os.symlink, "", directory / "e") == errno.ENOENT
    assert errno_of(os.symlink, "x" * 4096, directory / "e") == errno.ENAMETOOLONG
    assert errno_of(os.readlink, directory / "missing") == errno.ENOENT


def test_symlink_has_an_owner_and_times_of_its_own(directory: Path) -> None:
    write_file(directory / "f", b"")
    os.symlink("f", directory / "s")
    before = os.stat(directory / "f")
    os.chown(directory / "s", 12, 34, follow_symlinks=False)
    os.utime(directory / "s", ns=(1_000_000_007, 1_000_000_009), follow_symlinks=False)
    link, target = os.lstat(directory / "s"), os.stat(directory / "f")
    assert (link.st_uid, link.st_gid, link.st_mtime_ns) == (12, 34, 1_000_000_009)
    assert (target.st_uid, target.st_mtime_ns) == (before.st_uid, before.st_mtime_ns)


def test_hard_link_is_the_same_file_under_two_names(directory: Path) -> None:
    """fuse-ext2#97, fuse-overlayfs#109: st_ino and st_nlink of the other name."""
    os.mkdir(directory / "d")
    write_file(directory / "a", b"1")
    os.link(directory / "a", directory / "d" / "b")
    first, second = os.stat(directory / "a"), os.stat(directory / "d" / "b")
    assert (first.st_ino, first.st_nlink) == (second.st_ino, second.st_nlink)
    assert first.st_nlink == 2
    fd = os.open(directory / "a", os.O_WRONLY | os.O_APPEND)
    os.write(fd, b"2" * 9000)
    assert read_file(directory / "d" / "b") == b"1" + b"2" * 9000
    os.chmod(directory / "d" / "b", 0o604)
    os.setxattr(directory / "d" / "b", "user.x", b"y")
    assert stat.S_IMODE(os.stat(directory / "a").st_mode) == 0o604
    assert os.getxattr(directory / "a", "user.x") == b"y"
    os.unlink(directory / "a")
    assert (os.stat(directory / "d" / "b").st_nlink, os.fstat(fd).st_nlink) == (1, 1)
    os.write(fd, b"3")
    os.close(fd)
    assert read_file(directory / "d" / "b")[-1:] == b"3"


def test_hard_link_errors(directory: Path) -> None:
    write_file(directory / "a", b"1")
    os.mkdir(directory / "d")
    assert errno_of(os.link, directory / "a", directory / "a") == errno.EEXIST
    assert errno_of(os.link, directory / "a", directory / "d") == errno.EEXIST
    assert errno_of(os.link, directory / "d", directory / "e") == errno.EPERM
    assert errno_of(os.link, directory / "missing", directory / "e") == errno.ENOENT
    assert errno_of(os.link, directory / "a", directory / "missing" / "e") == errno.ENOENT
    fd = os.open(directory / "a", os.O_RDONLY)
    os.unlink(directory / "a")
    assert errno_of(link_descriptor, fd, directory / "e") == errno.ENOENT
    os.close(fd)
    assert os.listdir(directory) == ["d"]


def test_hard_link_to_symlink_and_to_fifo(directory: Path) -> None:
    os.symlink("nowhere", directory / "s")
    os.link(directory / "s", directory / "s2", follow_symlinks=False)
    assert os.readlink(directory / "s2") == "nowhere"
    assert os.lstat(directory / "s2").st_nlink == 2
    os.mkfifo(directory / "p")
    os.link(directory / "p", directory / "p2")
    assert os.stat(directory / "p2").st_ino == os.stat(directory / "p").st_ino


def test_two_hundred_hard_links_count_right(directory: Path) -> None:
    write_file(directory / "0", noise(1, 5000))
    for number in range(1, 200):
        os.link(directory / "0", directory / str(number))
    assert os.stat(directory / "117").st_nlink == 200
    for number in range(199):
        os.unlink(directory / str(number))
    assert os.stat(directory / "199").st_nlink == 1
    assert read_file(directory / "199") == noise(1, 5000)


def test_fifo_carries_bytes_between_processes(directory: Path) -> None:
    os.mkfifo(directory / "p", 0o640)
    status = os.stat(directory / "p")
    assert stat.S_ISFIFO(status.st_mode)
    assert stat.S_IMODE(status.st_mode) == 0o640 & ~_umask()
    received: list[bytes] = []
    thread = threading.Thread(target=lambda: received.append(read_file(directory / "p")))
    thread.start()
    with Child(directory, 'open("p", "wb").write(b"through the pipe"); say(0)') as child:
        child.hear()
    thread.join(20)
    assert received == [b"through the pipe"]
    assert os.stat(directory / "p").st_size == 0


def test_unix_socket_can_be_bound_connected_and_removed(directory: Path) -> None:
    """curvine#1257, bindfs#132: Chrome's SingletonSocket."""
    with Child(
        directory,
        """
import socket
server = socket.socket(socket.AF_UNIX); server.bind("S"); server.listen(1); say(0)
peer, _ = server.accept(); peer.send(peer.recv(9).upper()); wait()
""",
    ) as child:
        child.hear()
        assert stat.S_ISSOCK(os.lstat(directory / "S").st_mode)
        here = os.open(directory, os.O_PATH)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(f"/proc/self/fd/{here}/S")
            client.send(b"hi")
            assert client.recv(9) == b"HI"
        os.close(here)
    assert errno_of(os.open, directory / "S", os.O_RDONLY) == errno.ENXIO
    os.unlink(directory / "S")
    assert os.listdir(directory) == []


@pytest.mark.parametrize("kind", [stat.S_IFCHR, stat.S_IFBLK])
@pytest.mark.parametrize(("major", "minor"), [(1, 3), (0, 0), (255, 255), (259, 70_000)])
def test_device_node_keeps_its_number(directory: Path, kind: int, major: int, minor: int) -> None:
    os.mknod(directory / "n", kind | 0o620, os.makedev(major, minor))
    status = os.stat(directory / "n")
    assert stat.S_IFMT(status.st_mode) == kind
    assert (os.major(status.st_rdev), os.minor(status.st_rdev)) == (major, minor)
    assert stat.S_IMODE(status.st_mode) == 0o620 & ~_umask()
    os.chmod(directory / "n", 0o600)
    os.rename(directory / "n", directory / "m")
    assert os.stat(directory / "m").st_rdev == os.makedev(major, minor)


def test_mknod_makes_regular_files_too(directory: Path) -> None:
    os.mknod(directory / "r", stat.S_IFREG | 0o640)
    assert stat.S_ISREG(os.stat(directory / "r").st_mode)
    write_file(directory / "r", b"x")
    assert errno_of(os.mknod, directory / "r", stat.S_IFIFO | 0o600) == errno.EEXIST
    assert read_file(directory / "r") == b"x"


def test_unlink_errors(directory: Path) -> None:
    write_file(directory / "f", b"")
    assert errno_of(os.unlink, directory / "missing") == errno.ENOENT
    assert errno_of(os.unlink, directory / "f" / "x") == errno.ENOTDIR
    assert errno_of(os.unlink, os.fsencode(directory) + b"/f/") == errno.ENOTDIR


def test_inode_numbers_are_unique_and_stay(directory: Path) -> None:
    for number in range(300):
        write_file(directory / f"f{number}", b"")
    inodes = {name: os.stat(directory / name).st_ino for name in os.listdir(directory)}
    assert len(set(inodes.values())) == 300
    os.rename(directory / "f7", directory / "moved")
    assert os.stat(directory / "moved").st_ino == inodes["f7"]
    assert os.stat(directory / "f8").st_ino == inodes["f8"]


def test_current_opened_while_absent_then_renamed_into_place_reads_whole(directory: Path) -> None:
    """RamDrive PR#9: a cached "no such name" outlived the rename, and LevelDB read an empty CURRENT."""
    for number in range(200):
        database = directory / f"ldb{number}"
        os.mkdir(database)
        for _ in range(3):
            assert errno_of(os.open, database / "CURRENT", os.O_RDONLY) == errno.ENOENT
        fd = os.open(database / "000001.dbtmp", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.write(fd, b"MANIFEST-000001\n")
        os.fdatasync(fd)
        os.close(fd)
        os.rename(database / "000001.dbtmp", database / "CURRENT")
        assert read_file(database / "CURRENT") == b"MANIFEST-000001\n"
        assert os.stat(database / "CURRENT").st_size == 16
        assert os.listdir(database) == ["CURRENT"]


def test_names_created_by_every_call_appear_after_a_failed_lookup(directory: Path) -> None:
    """The other ways for a name to come into being after the kernel has learnt that it does not exist."""
    write_file(directory / "f", b"")
    makers = {
        "create": lambda path: write_file(path, b""),
        "mkdir": os.mkdir,
        "mkfifo": os.mkfifo,
        "symlink": lambda path: os.symlink("f", path),
        "link": lambda path: os.link(directory / "f", path),
    }
    for name, make in makers.items():
        assert errno_of(os.lstat, directory / name) == errno.ENOENT
        make(directory / name)
        assert errno_of(os.lstat, directory / name) == 0, name
