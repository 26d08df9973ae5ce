"""What every test shares: hypothesis profiles, markers, and the mounts.

Profiles (`--hypothesis-profile=NAME`): `dev` (the default, also of `make test`: the same examples each time, so that
what it says is about the change), `soak` (hours of new examples, and the blob that repeats a failure).
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

from tests.support.mounted import Mounted

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from pathlib import Path

_SLOW = (HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much)

settings.register_profile("dev", deadline=None, suppress_health_check=_SLOW, derandomize=True)
settings.register_profile("soak", deadline=None, suppress_health_check=_SLOW, max_examples=1_000, print_blob=True)
settings.load_profile("dev")


def pytest_configure(config: pytest.Config) -> None:
    """Declare the markers; --strict-markers refuses any other."""
    config.addinivalue_line("markers", "mount: needs /dev/fuse and root")
    config.addinivalue_line("markers", "crash: kills the daemon or cuts the power of its disk; minutes")
    config.addinivalue_line("markers", "scale: builds tens of thousands of files")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give the tests of a folder its marker, so that `-m 'not mount'` needs no line in each file."""
    for item in items:
        folder = item.path.parent.name
        if folder in ("mount", "model", "crash", "e2e"):
            item.add_marker("mount")
        if folder == "crash":
            item.add_marker("crash")


@pytest.fixture
def mount() -> Iterator[Mounted]:
    """A mount of its own, with an empty state; unmounted, and its state checked by fsck, when the test is over."""
    with Mounted() as mounted:
        yield mounted
        if mounted.is_mounted():
            mounted.umount()
            mounted.fsck()


@pytest.fixture(scope="session")
def shared_mount() -> Iterator[Mounted]:
    """One mount for all tests that need no mount of their own; fsck must find it clean at the very end."""
    with Mounted() as mounted:
        yield mounted
        mounted.umount()
        mounted.fsck()


@pytest.fixture(scope="session")
def _numbers() -> Iterator[int]:
    return itertools.count(1)


@pytest.fixture
def sessdir(shared_mount: Mounted, _numbers: Iterator[int]) -> Path:
    """A new, empty session directory on the shared mount. Mounts again if an earlier test killed the daemon."""
    shared_mount.ensure()
    path = shared_mount.path / f"s{next(_numbers)}"
    path.mkdir(mode=0o755)
    return path


@pytest.fixture(params=["plain", "mount"])
def directory(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """An empty directory: once on the filesystem under the temporary directory, which proves the test, once on ours."""
    if request.param == "mount":
        path: Path = request.getfixturevalue("sessdir")
        return path
    path = tmp_path / "plain"
    path.mkdir(mode=0o755)
    return path


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Commands that a test started and may have left running."""
    commands: list[subprocess.Popen[bytes]] = []
    yield commands
    for command in commands:
        command.kill()
        command.wait()
