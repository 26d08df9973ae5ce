"""Unknown is not absent: whatever the store answers, nothing that it has looks missing, empty or different."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from typing import TYPE_CHECKING

import pytest

from tests.support import posix
from tests.support.remotes import forget, remount_refused, try_mount, wait_published
from tests.support.s3proxy import Mood

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.mounted import Mounted
    from tests.support.remotes import Bucket

pytest_plugins = ["tests.support.s3fixtures", "tests.support.remotefixtures"]

CONTENT = os.urandom(1_500_000)
NAMES = ("one", "two", "three")
BAD = (Mood.DENIED, Mood.RESET, Mood.SILENT)
"""As 500, but for the time that clients spend on it, is RESET: tests/fault has every kind of failure."""
HONEST_ERRNOS = (errno.EIO, errno.EACCES)
"""EACCES is what a refusal of the store (403) gives."""
WAIT_S = 90.0


@pytest.fixture
def filled(bucket: Bucket) -> Bucket:
    """A bucket with three sessions."""
    with bucket.mounted() as mounted:
        for name in NAMES:
            (mounted.path / name).mkdir()
            (mounted.path / name / "file").write_bytes(CONTENT)
        mounted.umount()
    return bucket


@contextlib.contextmanager
def bad(bucket: Bucket, mood: Mood) -> Iterator[None]:
    """The store is in that mood for a while."""
    bucket.proxy.mood = mood
    try:
        yield
    finally:
        bucket.proxy.mood = Mood.HONEST


class Reading(threading.Thread):
    """Reads a file; *found* is its content, or the error."""

    def __init__(self, path: Path) -> None:
        super().__init__(daemon=True)
        self._path = path
        self.found: bytes | OSError | None = None

    def run(self) -> None:
        try:
            self.found = self._path.read_bytes()
        except OSError as exc:
            self.found = exc


def assert_unknown(attempts: list[object], mood: Mood) -> None:
    """Each attempt fails with an honest error, or waits for long; all at the same time."""
    outcomes: dict[int, object] = {}

    def run(number: int, attempt: object) -> None:
        assert callable(attempt)
        try:
            outcomes[number] = attempt()
        except OSError as exc:
            outcomes[number] = exc.errno

    threads = [threading.Thread(target=run, args=each, daemon=True) for each in enumerate(attempts)]
    for thread in threads:
        thread.start()
    end = time.monotonic() + (3 if mood is Mood.SILENT else WAIT_S)
    for thread in threads:
        thread.join(max(end - time.monotonic(), 0))
    wrong = {number: found for number, found in outcomes.items() if found not in HONEST_ERRNOS}
    assert not wrong, f"answers in the mood {mood}: {wrong}"
    if mood is not Mood.SILENT:
        assert len(outcomes) == len(attempts), "an attempt still waits"


@pytest.mark.parametrize("mood", BAD, ids=lambda mood: mood.value)
def test_names_and_chunks_are_never_taken_for_absent(filled: Bucket, mood: Mood) -> None:
    """`ls`, names that only the remote has, names that nobody has, and chunks that are not here."""
    with filled.mounted() as mounted:
        assert (mounted.path / "three" / "file").stat().st_size == len(CONTENT)  # its tree is here, its chunks are not
        time.sleep(1)
        reader = Reading(mounted.path / "three" / "file")
        with bad(filled, mood):
            reader.start()
            assert_unknown(
                [
                    lambda: os.listdir(mounted.path),
                    lambda: os.stat(mounted.path / "one"),
                    lambda: (mounted.path / "two" / "file").read_bytes(),
                    lambda: os.mkdir(mounted.path / "nobody has this"),
                ],
                mood,
            )
            assert reader.found is None, "chunks of a file that is known come, however late, and no error does"
            # What was just looked at does not stay wrong in some cache, neither here nor in the kernel.
        assert posix.eventually(lambda: reads(mounted), WAIT_S)
        reader.join(WAIT_S)
        assert reader.found == CONTENT
        assert set(os.listdir(mounted.path)) - {"nobody has this"} == set(NAMES)
        assert mood is Mood.SILENT or not (mounted.path / "nobody has this").exists()
        mounted.umount()
        mounted.fsck()


def reads(mounted: Mounted) -> bool:
    """Whether all is there; an error still counts as not yet."""
    try:
        found = [(mounted.path / name / "file").read_bytes() for name in NAMES]
    except OSError as exc:
        if exc.errno not in HONEST_ERRNOS:
            raise
        return False
    assert found == [CONTENT] * len(NAMES)
    return True


@pytest.mark.parametrize("mood", [Mood.ERROR_500, Mood.DENIED], ids=lambda mood: mood.value)
def test_an_empty_state_does_not_mount_without_the_remote(filled: Bucket, mood: Mood) -> None:
    """Also when the format can be read, and only what comes next fails."""
    before = filled.objects().keys()
    filled.proxy.only = None if mood is Mood.DENIED else lambda request: not request.key.endswith("/format")
    with bad(filled, mood):
        done = try_mount(filled.mounted())
        assert done.returncode in (30, 31, 32), done.stderr
    filled.proxy.only = None
    assert before <= filled.objects().keys()
    with filled.mounted() as mounted:
        assert sorted(os.listdir(mounted.path)) == sorted(NAMES)


@pytest.mark.parametrize("mood", [Mood.RESET, Mood.DENIED], ids=lambda mood: mood.value)
def test_a_used_state_mounts_without_the_remote(filled: Bucket, mood: Mood) -> None:
    """What is here is served, what is not is unknown, and what is written meanwhile is sent once the remote is back."""
    with filled.mounted() as mounted:
        assert (mounted.path / "one" / "file").read_bytes() == CONTENT
        wait_kept(mounted)
        mounted.umount()
        with bad(filled, mood):
            mounted.mount()
            assert (mounted.path / "one" / "file").read_bytes() == CONTENT
            (mounted.path / "one" / "new").write_text("written without the remote")
            assert_unknown([lambda: os.listdir(mounted.path), lambda: os.stat(mounted.path / "two")], mood)
            status = mounted.status()
            assert status["remote"]["node"]["open"] is False
            assert [w for w in status["warnings"] if "the remote" in w]
            assert status["at_risk_bytes"] > 0
            assert mounted.sessfs("sync", str(mounted.path), "--timeout", "2", check=False).returncode == 40
        assert posix.eventually(lambda: mounted.control("status", {})["remote"]["node"]["open"], WAIT_S)
        wait_published(mounted)
        assert sorted(os.listdir(mounted.path)) == sorted(NAMES)
        forget(mounted)
        with filled.mounted("--take-over", "--stale", "1s") as second:
            assert (second.path / "one" / "new").read_text() == "written without the remote"


def test_what_another_node_did_meanwhile_is_seen_though_the_kernel_knew_better(filled: Bucket) -> None:
    """A state that was mounted without the remote, and looked at, while another node had the prefix for a while."""
    with filled.mounted() as mounted:
        assert (mounted.path / "one" / "file").read_bytes() == CONTENT
        wait_kept(mounted)
        mounted.umount()
        with bad(filled, Mood.RESET):
            mounted.mount()
            assert (mounted.path / "one" / "file").read_bytes() == CONTENT
            with filled.bypassed().mounted() as second:
                (second.path / "one" / "file").write_text("by the second")
                second.umount()
            assert (mounted.path / "one" / "file").read_bytes() == CONTENT
        assert posix.eventually(lambda: mounted.control("status", {})["remote"]["node"]["open"], WAIT_S)
        assert posix.eventually(lambda: (mounted.path / "one" / "file").read_bytes() == b"by the second", 5)


def wait_kept(mounted: Mounted) -> None:
    """Return once chunks that were fetched are in the local store."""
    assert posix.eventually(lambda: mounted.control("status", {})["stored_bytes"] > len(CONTENT) // 2, 10)


def test_a_state_of_another_repository_is_refused(filled: Bucket, tmp_path: Path) -> None:
    """A bucket that was emptied, or exchanged for another, is not taken for one where all sessions were deleted."""
    with filled.mounted(state=tmp_path / "state") as mounted:
        assert (mounted.path / "one" / "file").read_bytes() == CONTENT
        mounted.umount()
        for key in filled.list_keys():
            filled.client().delete_object(Bucket=filled.name, Key=f"fleet/{key}")
        done = mounted.sessfs("mount", str(mounted.path), "--state", str(mounted.state), *mounted.options, check=False)
        assert done.returncode == 36
        assert "there is no repository at" in done.stderr
        assert not filled.list_keys()
        with filled.mounted() as other:
            other.umount()
        again = mounted.sessfs("mount", str(mounted.path), "--state", str(mounted.state), *mounted.options, check=False)
        assert again.returncode == 36
        assert "belongs to another remote" in again.stderr


def test_a_missing_segment_is_an_error_not_an_empty_file(filled: Bucket) -> None:
    segments = [key for key in filled.list_keys("nodes/") if "/segments/" in key]
    with filled.mounted() as mounted:
        assert (mounted.path / "one" / "file").stat().st_size == len(CONTENT)
        time.sleep(1)
        for key in segments:
            filled.client().delete_object(Bucket=filled.name, Key=f"fleet/{key}")
        with pytest.raises(OSError, match="Input/output error"):
            (mounted.path / "one" / "file").read_bytes()
        with pytest.raises(OSError, match="Input/output error"):
            os.listdir(mounted.path / "two")
        assert sorted(os.listdir(mounted.path)) == sorted(NAMES)


def test_remount_of_a_state_whose_key_is_gone_is_refused(bucket: Bucket, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("a key")
    with bucket.mounted("--key-file", str(key)) as mounted:
        mounted.umount()
        mounted.options = bucket.options()
        assert remount_refused(mounted).returncode == 39
