"""Objects of a remote deleted behind the back of real mounts: what commands say, and that putting back is enough."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import pytest

from tests.support.mounted import Mounted
from tests.support.remotes import try_mount

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

NAMES = ["anna", "bert"]
CONTENT = {name: os.urandom(150_000) for name in NAMES}
LOST = 35


def options(remote: Path) -> list[str]:
    return ["--remote", f"file://{remote}", "--interval", "1s", "--grace", "1s"]


def fill(remote: Path, *, release: bool) -> None:
    """Two sessions, by a machine that is gone then."""
    remote.mkdir()
    with Mounted(options=options(remote)) as mounted:
        for name in NAMES:
            (mounted.path / name).mkdir()
            (mounted.path / name / "file").write_bytes(CONTENT[name])
        mounted.sessfs("sync", str(mounted.path))
        if release:
            mounted.umount()
        else:
            mounted.kill()


def put_back_and_read(remote: Path, *flags: str) -> None:
    with Mounted(options=[*options(remote), *flags]) as mounted:
        assert sorted(os.listdir(mounted.path)) == NAMES
        assert {name: (mounted.path / name / "file").read_bytes() for name in NAMES} == CONTENT
        mounted.umount()


def refused(remote: Path, *wanted: str) -> None:
    """A mount of an empty state, fsck and gc from outside end with an error that says *wanted*, several times over."""
    done = [try_mount(Mounted(options=options(remote)))]
    with Mounted() as bystander:
        done += [looked(bystander, remote, command) for command in LOOKS]
    for one in done:
        assert one.returncode == LOST, one
        assert all(word in one.stdout + one.stderr for word in wanted), one


LOOKS = (["fsck"], ["gc", "--grace", "0"], ["gc", "--grace", "0"], ["gc", "--grace", "0"])


def looked(mounted: Mounted, remote: Path, command: list[str]) -> subprocess.CompletedProcess[str]:
    return mounted.sessfs(*command, "--remote", f"file://{remote}", check=False)


@pytest.mark.parametrize("key", ["holder", "state", "format"])
def test_a_lost_object_of_a_node_that_crashed_is_an_error_and_can_be_put_back(tmp_path: Path, key: str) -> None:
    """For all others, and other states of the node, see tests/fault/test_remote_objects.py."""
    remote = tmp_path / "remote"
    fill(remote, release=False)
    (lost,) = [path for path in remote.rglob(key) if path.is_file()]
    lost.rename(tmp_path / "lost")
    refused(remote, str(lost.relative_to(remote)), "is missing", "put the object back")
    shutil.copy(tmp_path / "lost", lost)
    put_back_and_read(remote, "--take-over", "--stale", "1s")


def test_take_over_goes_on_without_the_holder(tmp_path: Path) -> None:
    remote = tmp_path / "remote"
    fill(remote, release=False)
    (remote / "holder").unlink()
    put_back_and_read(remote, "--take-over", "--stale", "1s")
    put_back_and_read(remote)


def test_a_session_whose_object_is_lost_is_listed_and_can_not_be_opened(tmp_path: Path) -> None:
    remote = tmp_path / "remote"
    fill(remote, release=True)
    lost = remote / "sessions" / "anna"
    lost.rename(tmp_path / "lost")
    with Mounted(options=options(remote)) as mounted:
        with pytest.raises(OSError, match="Input/output error"):
            (mounted.path / "anna" / "file").read_bytes()
        assert sorted(os.listdir(mounted.path)) == NAMES
        with pytest.raises(OSError, match="Input/output error"):
            os.listdir(mounted.path / "anna")
        (mounted.path / "carl").mkdir()
        (mounted.path / "carl").rmdir()
        assert any("sessions/anna is missing" in warning for warning in mounted.status()["warnings"])
        assert "sessions/anna is missing" in (mounted.state / "sessfs.log").read_text()
        for _ in range(3):
            done = mounted.sessfs("gc", str(mounted.path), "--grace", "0", check=False)
            assert (done.returncode, "sessions/anna is missing" in done.stderr) == (LOST, True), done
        mounted.umount()
        for command in LOOKS:
            done = looked(mounted, remote, command)
            assert (done.returncode, "sessions/anna is missing" in done.stdout + done.stderr) == (LOST, True), done
        shutil.copytree(remote, tmp_path / "other")
        (tmp_path / "lost").rename(lost)
        put_back_and_read(remote)
        done = mounted.sessfs("fsck", "--remote", f"file://{tmp_path}/other", "--repair", "--read-data", "100")
        assert "sessions/anna was made anew" in done.stdout
    put_back_and_read(tmp_path / "other")
