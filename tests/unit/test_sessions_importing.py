"""Imports into an open volume, without a mount: whole sessions or nothing, whatever happens on the way."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
import sys
import tarfile
import zipfile
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from sessfs.errors import LocalStoreError, UsageError
from sessfs.sessions import importing_storing
from sessfs.sessions.importing import Importer
from sessfs.sessions.importing_archives import ArchiveRefused
from sessfs.sessions.importing_report import ImportOptions, ImportProgress, ImportReport, Outcome
from sessfs.sessions.importing_unpack import STAGING
from sessfs.types import TIME_MAX_NS
from tests.support.lives import Local
from tests.support.profiles import Shape, make_profile, make_tree
from tests.support.volumes import assert_clean, open_box

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path
    from typing import IO

    from tests.support.volumes import Box

PROFILE = ("Local State", "Default/Preferences")
SMALL = Shape(scripts=2, script_kib=40, records=60)


def read_quietly(path: Path) -> bytes:
    """The content, without a change of the time of access."""
    with open(os.open(path, os.O_RDONLY | os.O_NOATIME), "rb") as file:
        return file.read()


def start(command: list[str], stdout: IO[bytes] | None = None) -> subprocess.Popen[bytes]:
    """A process beside the test, which is to end it."""
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stdout)


def pack_folder(folder: Path, archive: Path) -> None:
    """A tar of what is in it, and of itself as `./`, as an export writes it."""
    subprocess.run(["tar", "--format=posix", "-C", folder, "-cf", archive, "."], check=True)


def everything(source: Path) -> list[Path]:
    """The source and what is in it, but for what stays on its machine."""
    return [source, *(path for path in source.rglob("*") if not path.name.startswith("Singleton"))]


class Place:
    """A volume that is imported into."""

    def __init__(self, box: Box, crash_point: Callable[[str], None]) -> None:
        self.box = box
        self.steps: list[ImportProgress] = []
        self.on_step: Callable[[ImportProgress], Awaitable[None]] | None = None
        self.importer = Importer(
            box.volume, Local(box).lives, clock_ns=box.clock.ns, monotonic_s=box.clock.s, crash_point=crash_point
        )

    async def say(self, step: ImportProgress) -> None:
        self.steps.append(step)
        if self.on_step is not None:
            await self.on_step(step)

    async def take(self, source: Path, options: ImportOptions = ImportOptions()) -> ImportReport:  # noqa: B008
        return await self.importer.run(source, options, self.say)

    def names(self) -> list[bytes]:
        return self.box.volume.namespace.list_names(self.box.get(b"").ino)

    async def assert_same(self, session: bytes, source: Path) -> None:
        """The session is what the source is, byte for byte and attribute for attribute, but for what stays there."""
        there = {session, *(path for path, _ in self.box.walk(session))}
        paths = everything(source)
        assert there == {os.path.join(session, os.fsencode(p.relative_to(source))).rstrip(b"/.") for p in paths}
        for path in paths:
            at, name = path.lstat(), os.fsencode(path.relative_to(source))
            inode = self.box.get(session if name == b"." else session + b"/" + name)
            found = (inode.mode, inode.uid, inode.gid, inode.mtime_ns)
            assert found == (at.st_mode, at.st_uid, at.st_gid, at.st_mtime_ns), path
            if stat.S_ISDIR(at.st_mode):
                continue
            assert inode.atime_ns == at.st_atime_ns
            if stat.S_ISREG(at.st_mode):
                assert await self.box.volume.fileio.read(inode, 0, inode.size + 1) == read_quietly(path)
                assert inode.nlink == at.st_nlink
            xattrs = {
                os.fsencode(key): os.getxattr(path, key, follow_symlinks=False)
                for key in os.listxattr(path, follow_symlinks=False)
            }
            assert dict(self.box.volume.inodes.iter_xattrs(inode.ino)) == xattrs


@asynccontextmanager
async def place(state: Path, crash_point: Callable[[str], None] = lambda name: None) -> AsyncIterator[Place]:
    async with open_box(state) as box:
        yield Place(box, crash_point)
        await box.drop_dead()
    assert_clean(state)


def outcomes(report: ImportReport) -> dict[str, Outcome]:
    return {session.name: session.outcome for session in report.sessions}


def only_reason(report: ImportReport) -> str:
    (session,) = report.sessions
    assert session.outcome is Outcome.REFUSED
    return session.reason


async def test_tree_is_imported_whole(tmp_path: Path) -> None:
    users = make_tree(tmp_path / "tree", 3, SMALL)
    files = [path for user in users for path in user.rglob("*") if path.is_file() and not path.is_symlink()]
    before = [path.stat().st_atime_ns for path in files]
    async with place(tmp_path / "state") as there:
        report = await there.take(tmp_path / "tree")
        assert outcomes(report) == dict.fromkeys(["user1", "user2", "user3"], Outcome.IMPORTED)
        assert report.n_refused == 0
        for user in users:
            await there.assert_same(os.fsencode(user.name), user)
        assert report.sessions[1].new_bytes < 0.7 * report.sessions[1].total_bytes
        assert report.stored_bytes == there.box.volume.reader.totals().stored_bytes > 0
        assert there.steps[-1].done_bytes <= there.steps[-1].total_bytes
    assert [path.stat().st_atime_ns for path in files] == before


async def test_times_beyond_what_can_be_kept_are_clamped(tmp_path: Path) -> None:
    """ext4 has times up to 2446. Such a one failed the commit after the import, which ended the mount."""
    far_ns = 15 * 10**18
    user = make_tree(tmp_path / "tree", 1, SMALL)[0]
    path = user / "far"
    path.write_bytes(b"content")
    os.utime(path, ns=(far_ns, far_ns))
    if path.stat().st_mtime_ns != far_ns:
        pytest.skip("the filesystem of the temporary directory has no such times")
    async with place(tmp_path / "state") as there:
        report = await there.take(tmp_path / "tree")
        assert outcomes(report) == {"user1": Outcome.IMPORTED}
        report = await there.take(tmp_path / "tree")
        assert outcomes(report) == {"user1": Outcome.THERE}
    async with open_box(tmp_path / "state") as box:
        assert box.get(b"user1/far").mtime_ns == TIME_MAX_NS
        assert await box.read(b"user1/far") == b"content"


async def test_import_again_finds_everything_there(tmp_path: Path) -> None:
    make_tree(tmp_path / "tree", 2, SMALL)
    async with place(tmp_path / "state") as there:
        await there.take(tmp_path / "tree")
        stored = there.box.volume.reader.totals()
        assert outcomes(await there.take(tmp_path / "tree")) == dict.fromkeys(["user1", "user2"], Outcome.THERE)
        assert there.box.volume.reader.totals() == stored


async def test_dry_run_changes_nothing(tmp_path: Path) -> None:
    make_tree(tmp_path / "tree", 2, SMALL)
    async with place(tmp_path / "state") as there:
        report = await there.take(tmp_path / "tree", ImportOptions(dry_run=True))
        assert outcomes(report) == dict.fromkeys(["user1", "user2"], Outcome.PLANNED)
        assert there.names() == []
        assert there.box.volume.reader.totals().plain_bytes == 0


def _append(path: Path) -> None:
    at = path.stat()
    with path.open("ab") as file:
        file.write(b"x")
    os.utime(path, ns=(at.st_atime_ns, at.st_mtime_ns))


def _flip(path: Path) -> None:
    at = path.stat()
    with path.open("r+b") as file:
        file.write(b"x")
    os.utime(path, ns=(at.st_atime_ns, at.st_mtime_ns))


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda p: _append(p / "Local State"), "session/Local State differs in its content"),
        (lambda p: _flip(p / "Local State"), "are not what was stored"),
        (lambda p: (p / "new").touch(), "session differs in its time"),
        (lambda p: os.utime(p / "Local State"), "session/Local State differs in its time"),
        (lambda p: (p / "Local State").chmod(0o600), "session/Local State differs in its mode"),
        (lambda p: os.setxattr(p / "Local State", "user.a", b"1"), "differs in its extended attributes"),
    ],
)
async def test_another_session_of_the_name_is_refused_and_stays(
    tmp_path: Path, change: Callable[[Path], object], what: str
) -> None:
    (user,) = make_tree(tmp_path / "tree", 1, SMALL)
    async with place(tmp_path / "state") as there:
        await there.take(tmp_path / "tree")
        shutil.copytree(user, tmp_path / "copy", symlinks=True)
        change(user / "session")
        report = await there.take(tmp_path / "tree")
        assert what in only_reason(report)
        assert "--as" in only_reason(report)
        assert there.names() == [b"user1"]
        assert (
            await there.box.read(b"user1/session/Local State") == (tmp_path / "copy/session/Local State").read_bytes()
        )


async def test_profile_of_a_running_chrome_is_refused_with_its_pid(tmp_path: Path) -> None:
    users = make_tree(tmp_path / "tree", 2, SMALL)
    with start(["sleep", "60"]) as chrome:
        try:
            (users[0] / "session/SingletonLock").unlink()
            (users[0] / "session/SingletonLock").symlink_to(f"{socket.gethostname()}-{chrome.pid}")
            async with place(tmp_path / "state") as there:
                report = await there.take(tmp_path / "tree")
                assert outcomes(report) == {"user1": Outcome.REFUSED, "user2": Outcome.IMPORTED}
                assert f"pid {chrome.pid}" in report.sessions[0].reason
                assert there.names() == [b"user2"]
        finally:
            chrome.kill()


async def test_profile_with_a_file_open_for_writing_is_refused(tmp_path: Path) -> None:
    (user,) = make_tree(tmp_path / "tree", 1, SMALL)
    held = user / "session/Default/Preferences"
    with held.open("ab") as file:
        writer = start(["tail", "-f", "/dev/null"], file)
    with writer:
        try:
            async with place(tmp_path / "state") as there:
                reason = only_reason(await there.take(tmp_path / "tree"))
                assert f"tail (pid {writer.pid}: {held})" in reason
        finally:
            writer.kill()


@pytest.mark.parametrize("target", ["/etc/passwd", "../../..", "Default/link/../../../../x", "Default/up/../.."])
async def test_link_that_leads_out_is_refused_or_left_out(tmp_path: Path, target: str) -> None:
    (user,) = make_tree(tmp_path / "tree", 1, SMALL)
    (user / "session/Default/up").symlink_to("../..")
    (user / "session/bad").symlink_to(target)
    (user / "session/dangling").symlink_to("Default/nothing")
    async with place(tmp_path / "state") as there:
        reason = only_reason(await there.take(tmp_path / "tree"))
        assert reason.startswith(f"{user}/session/bad is a link that leads out of its session, to {target}")
        assert there.names() == []
        report = await there.take(tmp_path / "tree", ImportOptions(skip_unsafe=True))
        assert outcomes(report) == {"user1": Outcome.IMPORTED}
        assert any("session/bad: a link" in line for line in report.left_out)
        assert there.box.find(b"user1/session/bad") is None
        assert there.box.find(b"user1/session/dangling") is not None


async def test_pipe_is_refused_socket_is_left_out(tmp_path: Path) -> None:
    (user,) = make_tree(tmp_path / "tree", 1, SMALL)
    with socket.socket(socket.AF_UNIX) as listening:
        os.symlink(user / "session", "/tmp/sessfs-import-test")
        try:
            listening.bind("/tmp/sessfs-import-test/socket")
        finally:
            os.unlink("/tmp/sessfs-import-test")
    async with place(tmp_path / "state") as there:
        os.mkfifo(user / "session/pipe")
        assert "session/pipe is a device or a named pipe" in only_reason(await there.take(tmp_path / "tree"))
        report = await there.take(tmp_path / "tree", ImportOptions(skip_unsafe=True))
        assert outcomes(report) == {"user1": Outcome.IMPORTED}
        assert there.box.find(b"user1/session/socket") is None
        assert there.box.find(b"user1/session/pipe") is None


@pytest.mark.parametrize("stage", ["storing", "comparing"])
async def test_source_that_changes_meanwhile_is_not_installed(tmp_path: Path, stage: str) -> None:
    users = make_tree(tmp_path / "tree", 2, SMALL)
    async with place(tmp_path / "state") as there:

        async def disturb(step: ImportProgress) -> None:
            if step.stage == stage and step.session == "user2":
                _flip(users[0] / "session/Local State")

        there.on_step = disturb
        report = await there.take(tmp_path / "tree", ImportOptions(verify=stage == "comparing"))
        # What changed after it was installed is none of our business.
        changed = Outcome.REFUSED if stage == "storing" else Outcome.IMPORTED
        assert outcomes(report) == {"user1": changed, "user2": Outcome.IMPORTED}
        if stage == "storing":
            assert "changed while it was imported" in report.sessions[0].reason
            assert there.names() == [b"user2"]


async def test_file_that_is_new_meanwhile_is_found(tmp_path: Path) -> None:
    (user,) = make_tree(tmp_path / "tree", 1, SMALL)
    async with place(tmp_path / "state") as there:

        async def disturb(step: ImportProgress) -> None:
            (user / "session/Default/new").touch()

        there.on_step = disturb
        assert "changed while it was imported" in only_reason(await there.take(tmp_path / "tree"))
        assert there.names() == []


DAMAGE = """
import sys
from pathlib import Path
from sessfs.local.chunkstore import CHUNK_TABLES, FRAMES
from sessfs.local.db import Database
db = Database(Path(sys.argv[1]), CHUNK_TABLES, 1 << 30)
for key, record in list(db.scan(FRAMES))[1:]:
    db.put(FRAMES, key, record[:-40] + bytes(byte ^ 0x55 for byte in record[-40:]))
assert db.write_batch(db.cut())
"""
"""Flips bits in every frame but the first, from outside, as a bad disk does."""


async def test_damage_in_the_store_is_found_before_it_says_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (user,) = make_tree(tmp_path / "tree", 1, Shape(scripts=8, script_kib=300, records=2000))
    monkeypatch.setattr(importing_storing, "RANGE_BYTES", 100_000)
    async with open_box(tmp_path / "state") as box:
        there = Place(box, lambda name: None)

        async def damage(step: ImportProgress) -> None:
            if step.stage == "comparing" and len(there.steps) == first_compared():
                await trio.run_process([sys.executable, "-c", DAMAGE, str(box.path / "chunks")])

        def first_compared() -> int:
            return 1 + [step.stage for step in there.steps].index("comparing")

        there.on_step = damage
        assert "can't be read back from the store" in only_reason(await there.take(user))
        assert there.names() == []


async def test_interrupted_import_leaves_whole_sessions_and_goes_on(
    tmp_path: Path,
) -> None:
    users = make_tree(tmp_path / "tree", 4, SMALL)

    class Cut(Exception):
        pass

    installed = 0

    def crash(name: str) -> None:
        nonlocal installed
        installed += name == "installed"
        if installed == 2:
            raise Cut

    async with open_box(tmp_path / "state") as box:
        there = Place(box, crash)
        with pytest.raises(Cut):
            await there.take(tmp_path / "tree", ImportOptions(group_bytes=1))
        await box.commit()
        box.copy_state(tmp_path / "killed")
    async with place(tmp_path / "killed") as there:
        assert there.names() == [b"user1", b"user2"]
        report = await there.take(tmp_path / "tree")
        assert list(outcomes(report).values()) == [Outcome.THERE] * 2 + [Outcome.IMPORTED] * 2
        for user in users:
            await there.assert_same(os.fsencode(user.name), user)


async def test_cancelled_import_gives_back_what_it_stored(tmp_path: Path) -> None:
    make_tree(tmp_path / "tree", 2, SMALL)
    async with place(tmp_path / "state") as there:
        with trio.CancelScope() as scope:

            async def stop(step: ImportProgress) -> None:
                if step.stage == "comparing":
                    scope.cancel()
                    await trio.lowlevel.checkpoint()

            there.on_step = stop
            await there.take(tmp_path / "tree")
        assert scope.cancelled_caught
        await there.box.drop_dead()
        assert there.names() == []
        assert there.box.volume.reader.totals().plain_bytes == 0
        there.on_step = None
        assert (await there.take(tmp_path / "tree")).n_refused == 0


async def test_seal_process_that_ends_meanwhile_ends_the_import(tmp_path: Path) -> None:
    make_tree(tmp_path / "tree", 2, SMALL)
    async with place(tmp_path / "state") as there:

        async def kill(step: ImportProgress) -> None:
            pid = there.box.volume.seal_pid
            if pid is not None and step.session == "user1":
                os.kill(pid, 9)
                await trio.to_thread.run_sync(lambda: os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT))

        there.on_step = kill
        with pytest.raises(LocalStoreError, match="seal process ended"):
            await there.take(tmp_path / "tree")
        there.on_step = None
        assert there.names() == []
        assert (await there.take(tmp_path / "tree")).n_refused == 0


async def test_seals_go_on_while_it_imports(tmp_path: Path) -> None:
    """A chunk that both have is stored once, and stays when either goes."""
    (user,) = make_tree(tmp_path / "tree", 1, SMALL)
    script = user / "session/Default/Service Worker/CacheStorage/1/0000000000000000_0"
    async with place(tmp_path / "state") as there:
        there.box.mkdir(b"other")

        async def seal(step: ImportProgress) -> None:
            if step.stage == "storing":
                await there.box.write(b"other/f", read_quietly(script))
                await there.box.seal()

        there.on_step = seal
        assert (await there.take(tmp_path / "tree")).n_refused == 0
        await there.assert_same(b"user1", user)
        there.box.unlink(b"other/f")
        await there.box.drop_dead()
        await there.assert_same(b"user1", user)


async def test_hard_links_between_sessions_become_files_of_each(tmp_path: Path) -> None:
    first, second = make_tree(tmp_path / "tree", 2, SMALL)
    os.link(first / "session/Local State", second / "session/shared")
    async with place(tmp_path / "state") as there:
        assert (await there.take(tmp_path / "tree")).n_refused == 0
        assert there.box.get(b"user1/session/Local State").nlink == 1
        assert await there.box.read(b"user2/session/shared") == (first / "session/Local State").read_bytes()


async def test_big_file_is_imported_in_ranges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importing_storing, "RANGE_BYTES", 100_000)
    make_profile(tmp_path / "p", "p", SMALL)
    content = os.urandom(450_000) + bytes(300_000) + os.urandom(70_000)
    (tmp_path / "p/big").write_bytes(content)
    async with place(tmp_path / "state") as there:
        assert (await there.take(tmp_path / "p")).n_refused == 0
        assert await there.box.read(b"p/session/big") == content
        assert outcomes(await there.take(tmp_path / "p")) == {"p": Outcome.THERE}


async def test_tar_is_imported_and_nothing_is_left(tmp_path: Path) -> None:
    users = make_tree(tmp_path / ".whatsapp-sessions", 2, SMALL)
    await trio.run_process(
        [
            "tar",
            "--format=posix",
            "--xattrs",
            "-C",
            str(tmp_path),
            "-czf",
            str(tmp_path / "x.tar.gz"),
            users[0].parent.name,
        ]
    )
    async with place(tmp_path / "state") as there:
        report = await there.take(tmp_path / "x.tar.gz")
        assert outcomes(report) == dict.fromkeys(["user1", "user2"], Outcome.IMPORTED)
        assert report.sessions[0].source == f"{tmp_path}/x.tar.gz:.whatsapp-sessions/user1"
        for user in users:
            assert (
                await there.box.read(os.fsencode(user.name) + b"/session/Local State")
                == (user / "session/Local State").read_bytes()
            )
            assert there.box.get(os.fsencode(user.name)).mtime_ns == user.stat().st_mtime_ns
        assert outcomes(await there.take(tmp_path / "x.tar.gz")) == dict.fromkeys(["user1", "user2"], Outcome.THERE)
        assert os.listdir(tmp_path / "state" / STAGING) == []


async def test_remote_auth_zip_becomes_a_session_for_local_auth(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "RemoteAuth-7.zip", "w") as file:
        file.writestr("Default/IndexedDB/x/CURRENT", b"MANIFEST-000001\n")
        file.writestr("Default/Local Storage/leveldb/CURRENT", b"MANIFEST-000001\n")
    async with place(tmp_path / "state") as there:
        report = await there.take(tmp_path / "RemoteAuth-7.zip", ImportOptions(as_name=b"user7"))
        assert outcomes(report) == {"user7": Outcome.IMPORTED}
        assert await there.box.read(b"user7/session/Default/IndexedDB/x/CURRENT") == b"MANIFEST-000001\n"


@pytest.mark.parametrize("name", ["x.tar", "x.zip"])
async def test_the_same_archive_twice_is_there_already(tmp_path: Path, name: str) -> None:
    """Its own folder is the session: a tar has an entry for that, this zip for no directory at all."""
    (user,) = make_tree(tmp_path / "tree", 1, SMALL)
    os.chmod(user, 0o750)
    os.utime(user, ns=(1_000_000_007, 1_000_000_007))
    if name == "x.tar":
        pack_folder(user, tmp_path / name)
    else:
        with zipfile.ZipFile(tmp_path / name, "w") as file:
            file.write(user / "session/Local State", "session/Local State")
            file.writestr("session/Default/Preferences", b"{}")
    options = ImportOptions(as_name=b"twice")
    async with place(tmp_path / "state") as there:
        assert outcomes(await there.take(tmp_path / name, options)) == {"twice": Outcome.IMPORTED}
        if name == "x.tar":
            inode = there.box.get(b"twice")
            assert (stat.S_IMODE(inode.mode), inode.mtime_ns) == (0o750, 1_000_000_007)
        again = await there.take(tmp_path / name, options)
        assert outcomes(again) == {"twice": Outcome.THERE}, again.sessions


async def test_archive_that_attacks_leaves_nothing(tmp_path: Path) -> None:
    make_tree(tmp_path / "tree", 1, SMALL)
    with tarfile.open(tmp_path / "x.tar", "w") as file:
        file.add(tmp_path / "tree", "tree")
        file.addfile(tarfile.TarInfo("../../evil"))
    async with place(tmp_path / "state") as there:
        with pytest.raises(ArchiveRefused, match=r"'../../evil' leads out"):
            await there.take(tmp_path / "x.tar")
        assert there.names() == []
        assert os.listdir(tmp_path / "state" / STAGING) == []


async def test_link_out_of_an_archive_is_refused_by_its_name_in_it(tmp_path: Path) -> None:
    (user,) = make_tree(tmp_path / "tree", 1, SMALL)
    (user / "session/bad").symlink_to("/etc/passwd")
    with tarfile.open(tmp_path / "x.tar", "w") as file:
        file.add(tmp_path / "tree", "tree")
    async with place(tmp_path / "state") as there:
        reason = only_reason(await there.take(tmp_path / "x.tar"))
        assert reason.startswith(f"{tmp_path}/x.tar:tree/user1/session/bad is a link that leads out")


async def test_only_the_archive_is_named_not_where_it_was_laid_out(tmp_path: Path) -> None:
    (made,) = make_tree(tmp_path / "tree", 1, SMALL)
    pack_folder(made, tmp_path / "x.tar")
    for name, members in (
        ("none.zip", ["f"]),
        ("two.zip", [f"{user}/session/{part}" for user in "ab" for part in PROFILE]),
    ):
        with zipfile.ZipFile(tmp_path / name, "w") as file:
            for member in members:
                file.writestr(member, b"{}")
    async with place(tmp_path / "state") as there:
        (session,) = (await there.take(tmp_path / "x.tar")).sessions
        assert session.source == f"{tmp_path}/x.tar"
        with pytest.raises(UsageError, match=rf"\A{tmp_path}/none.zip holds no session"):
            await there.take(tmp_path / "none.zip")
        with pytest.raises(UsageError, match=rf"and {tmp_path}/two.zip holds 2"):
            await there.take(tmp_path / "two.zip", ImportOptions(as_name=b"one"))


async def test_read_only_volume_is_refused(tmp_path: Path) -> None:
    make_tree(tmp_path / "tree", 1, SMALL)
    async with place(tmp_path / "state") as there:
        there.box.volume.make_read_only("for a test")
        with pytest.raises(UsageError, match="read-only: for a test"):
            await there.take(tmp_path / "tree")


async def test_source_of_another_kind_is_refused_unopened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.tar")
    async with place(tmp_path / "state") as there:
        with trio.fail_after(60), pytest.raises(UsageError, match="neither a directory nor a regular file"):
            await there.take(tmp_path / "x.tar")


async def test_xattrs_that_the_disk_can_not_hold_arrive(tmp_path: Path) -> None:
    """A mount holds 64 KiB each, ext4 about 4 of all of a file: what a mount exports it takes back."""
    make_tree(tmp_path / "tree", 1, SMALL)
    large = {"SCHILY.xattr.user.a": "a" * 5000, "SCHILY.xattr.user.b": "b" * 60_000, "SCHILY.xattr.user.c": "c"}

    def with_xattrs(member: tarfile.TarInfo) -> tarfile.TarInfo:
        if member.name in ("tree/user1", "tree/user1/session/Local State"):
            member.pax_headers = large
        return member

    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.PAX_FORMAT) as file:
        file.add(tmp_path / "tree", "tree", filter=with_xattrs)
    async with place(tmp_path / "state") as there:
        assert outcomes(await there.take(tmp_path / "x.tar")) == {"user1": Outcome.IMPORTED}
        for path in (b"user1", b"user1/session/Local State"):
            found = dict(there.box.volume.inodes.iter_xattrs(there.box.get(path).ino))
            assert found == {b"user.a": b"a" * 5000, b"user.b": b"b" * 60_000, b"user.c": b"c"}
        assert outcomes(await there.take(tmp_path / "x.tar")) == {"user1": Outcome.THERE}
