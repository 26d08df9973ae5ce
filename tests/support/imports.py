"""Imports as the tests drive them: by the command, or begun in a process that can be killed in the middle."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from tests.support import posix

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.mounted import Mounted

SESSIONS = int(os.environ.get("SESSFS_TEST_IMPORT_SESSIONS", "6"))
"""50 make 7 GB, of which most is the same: `make soak` does that."""
MANY = 20
"""From so many on the profiles of the tests are as large as real ones."""
CREATED_S = 300.0
BEGIN = """
import os, sys
from pathlib import Path
from sessfs.mount import control
found = os.stat(sys.argv[2])
params = {"source": sys.argv[2], "identity": [found.st_dev, found.st_ino], "as_name": None}
params |= {"verify": True, "dry_run": False, "skip_unsafe": False, "group_bytes": 1}
control.call(Path(sys.argv[1]), "import", params, timeout_s=None, on_progress=None)
"""
"""What the command does, but for the size of the groups."""


def run_import(mount: Mounted, source: Path, *options: str, code: int = 0) -> dict[str, Any]:
    """`sessfs import --json`; returns its report."""
    done = mount.sessfs("import", str(source), str(mount.path), "--json", *options, check=False, timeout_s=1800)
    assert done.returncode == code, done.stdout + done.stderr + mount.log_tail()
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def outcomes(report: dict[str, Any]) -> dict[str, str]:
    return {session["name"]: session["outcome"] for session in report["sessions"]}


def begin(mount: Mounted, source: Path, started: list[subprocess.Popen[bytes]]) -> subprocess.Popen[bytes]:
    """Import in a process of its own, a session at a time."""
    command = [sys.executable, "-c", BEGIN, str(mount.state), str(source)]
    with open(os.devnull, "r+b") as null:
        started.append(subprocess.Popen(command, stdin=null, stdout=null, stderr=null))
    return started[-1]


def wait_for_sessions(mount: Mounted, number: int) -> None:
    assert posix.eventually(lambda: len(os.listdir(mount.path)) >= number, CREATED_S)


def with_copies(made: list[Path], number: int) -> list[Path]:
    """*made*, and copies of them as the users that are missing up to *number*, each with something of its own."""
    users = list(made)
    for n in range(len(made) + 1, number + 1):
        copy = made[0].parent / f"user{n}"
        shutil.copytree(made[n % len(made)], copy, symlinks=True)
        (copy / "session/Default/own").write_bytes(os.urandom(500_000))
        users.append(copy)
    return users
