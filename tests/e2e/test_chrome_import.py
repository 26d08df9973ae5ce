"""Profiles that Chromium made go in and out whole, and Chromium goes on with them: logged in, every record there."""

from __future__ import annotations

import json
import shutil
from fnmatch import fnmatch
from typing import TYPE_CHECKING

import pytest

from tests.e2e.chromelife import FIRST_LIFE, Life, User, measure, open_page, run_life
from tests.support.imports import MANY, SESSIONS, begin, outcomes, run_import, wait_for_sessions, with_copies
from tests.support.mounted import Mounted
from tests.support.profiles import describe

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

FILL = ("pair", "worker", "caches", "add=1500", "local=50")
FULL = tuple(step.format(records=20_000) for step in FIRST_LIFE)
PROFILES = 3
LEFT_OUT = ("DevToolsActivePort", "Singleton*")
"""What Chromium leaves behind that means something to that process alone."""


def test_imported_user_restarts_logged_in(tmp_path: Path) -> None:
    """Refused while Chromium runs; imported when it has ended; then the same client goes on in the mount."""
    tree = tmp_path / ".whatsapp-sessions"
    before = User("user1", "seed-of-user1", tree / "user1")
    with open_page() as page, Mounted() as mounted:
        after = User(before.name, before.seed, mounted.path / "user1")
        with Life(page, before, "qr", [*FILL, "pause=4000"]) as life:
            pid = life.wait_event("chromium")["pid"]
            life.wait_event("ready")
            refused = mounted.sessfs("import", str(tree), str(mounted.path), "--json", check=False)
            assert refused.returncode == 1
            (session,) = json.loads(refused.stdout)["sessions"]
            assert session["outcome"] == "refused"
            assert f"pid {pid}" in session["reason"]
            assert not after.data_path.exists()
            life.finish().check()
        done = mounted.sessfs("import", str(tree), str(mounted.path))
        assert f"dataPath {mounted.path}/NAME" in done.stdout
        verified = run_life(page, after, "ready", ["verify", "add=100", "verify"]).verified
        assert (verified.errors, verified.messages, verified.local_keys) == ((), 1600, 50)
        assert verified.user == "user1"
        mounted.umount()
        mounted.fsck()


def chromium_tree(root: Path, number: int) -> list[Path]:
    """Profiles that Chromium filled and closed, and copies of them with something of their own; *number* in all."""
    users = [User(f"user{n}", f"tree-{n}", root / f"user{n}") for n in range(1, PROFILES + 1)]
    large = number >= MANY
    with open_page("large" if large else "core") as page:
        for user in users:
            run_life(page, user, "qr", FULL if large else FILL, 300.0)
    return with_copies([user.data_path for user in users], number)


def what_travels(session: Path) -> dict[str, tuple[object, ...]]:
    """Everything of *session* but LEFT_OUT, as `describe` tells it."""
    found = describe(session, left_out=True)
    return {name: what for name, what in found.items() if not any(fnmatch(name.split("/")[-1], p) for p in LEFT_OUT)}


@pytest.mark.scale
def test_tree_of_many_users_goes_in_and_out(tmp_path: Path, started: list[subprocess.Popen[bytes]]) -> None:
    """Imported, killed in the middle, imported again, compared, exported, compared; with 50 sessions 7 GB."""
    tree = tmp_path / ".whatsapp-sessions"
    users = chromium_tree(tree, SESSIONS)
    size = measure(tree)
    with Mounted() as mount:
        planned = run_import(mount, tree, "--dry-run")
        assert outcomes(planned) == {user.name: "would be imported" for user in users}
        names = {what.rpartition(": ")[0].split("/")[-1] for what in planned["left_out"]}
        assert all(any(fnmatch(name, pattern) for pattern in LEFT_OUT) for name in names), names
        command = begin(mount, tree, started)
        wait_for_sessions(mount, SESSIONS // 2)
        mount.kill()
        assert command.wait(60) != 0
        mount.mount()
        whole = [user for user in users if (mount.path / user.name).exists()]
        assert 1 <= len(whole) < SESSIONS
        for user in whole:
            assert describe(mount.path / user.name, left_out=True) == what_travels(user), user.name
        report = run_import(mount, tree)
        assert outcomes(report) == {u.name: "already there" if u in whole else "imported" for u in users}
        assert (report["refused"], report["verified"]) == (0, True)
        for user in users:
            wanted = what_travels(user)
            assert describe(mount.path / user.name, left_out=True) == wanted, user.name
            mount.sessfs("export", str(mount.path / user.name), str(tmp_path / "out"))
            assert describe(tmp_path / "out", left_out=True) == wanted, user.name
            shutil.rmtree(tmp_path / "out")
        mount.umount()
        mount.fsck()
    shutil.rmtree(tree)
    print(f"\n{SESSIONS} sessions, {size.files} files, {size.logical_bytes / 1e9:.2f} GB")
