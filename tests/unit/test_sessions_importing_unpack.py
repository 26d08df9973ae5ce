"""The directory that archives are unpacked into, and the process that does it."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from sessfs.errors import LocalStoreError, SessfsError, StoreFull
from sessfs.sessions.importing_archives import ArchiveRefused
from sessfs.sessions.importing_unpack import FAILURES, STAGING, clear_staging, failure
from tests.support import posix

if TYPE_CHECKING:
    from pathlib import Path

USE = """
from pathlib import Path
from sessfs.mount.daemon import disk_use_bytes
become(65534, 65534)
say(disk_use_bytes(Path()))
"""
CLEAR = """
from pathlib import Path
from sessfs.sessions.importing_unpack import clear_staging
become(65534, 65534)
clear_staging(Path())
"""


def test_staging_of_a_killed_import_is_cleared(tmp_path: Path) -> None:
    (tmp_path / STAGING / "1-2/deep").mkdir(parents=True)
    clear_staging(tmp_path)
    clear_staging(tmp_path)
    assert list(tmp_path.iterdir()) == []


def chown(tree: Path) -> None:
    for path in (tree, *tree.rglob("*")):
        os.chown(path, 65534, 65534, follow_symlinks=False)


def test_staging_is_cleared_by_who_may_not_write_in_all_of_it(tmp_path: Path) -> None:
    """A directory of an archive has the mode that it has there."""
    staging = tmp_path / "state" / STAGING
    (staging / "1-2/closed/within").mkdir(parents=True)
    (staging / "1-2/closed/within/f").touch()
    (staging / "1-2/link").symlink_to(tmp_path / "outside")
    (tmp_path / "outside").mkdir(mode=0o500)
    chown(tmp_path)
    (staging / "1-2/closed/within").chmod(0o400)
    (staging / "1-2/closed").chmod(0)
    assert posix.run_child(tmp_path / "state", USE) <= 8192, "the link alone"
    posix.run_child(tmp_path / "state", CLEAR)
    assert list((tmp_path / "state").iterdir()) == []
    assert (tmp_path / "outside").stat().st_mode & 0o777 == 0o500


def test_staging_that_can_not_be_cleared_is_no_error(tmp_path: Path) -> None:
    staging = tmp_path / STAGING
    (staging / "1-2/within").mkdir(parents=True)
    (staging / "3-4").mkdir()
    chown(tmp_path)
    os.chown(staging / "1-2", 0, 0)
    posix.run_child(tmp_path, CLEAR)
    assert os.listdir(staging) == ["1-2"]


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (OSError(errno.ENOSPC, "No space", b"/a/f"), StoreFull, "x.tar can't be unpacked: /a/f: No space"),
        (OSError(errno.EDQUOT, "Quota", "/a/f"), StoreFull, "x.tar can't be unpacked: /a/f: Quota"),
        (OSError(errno.EIO, "Input/output error"), LocalStoreError, "x.tar can't be unpacked: Input/output error"),
        (OSError(errno.EPERM, "Not permitted", 3), LocalStoreError, "x.tar can't be unpacked: Not permitted"),
        (ArchiveRefused("is no archive"), ArchiveRefused, "is no archive"),
    ],
)
def test_failures_are_told_apart(error: OSError | SessfsError, kind: type[SessfsError], text: str) -> None:
    said = failure("x.tar", error)
    assert (FAILURES[str(said["kind"])], said["error"]) == (kind, text)
