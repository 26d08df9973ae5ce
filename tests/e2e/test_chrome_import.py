"""Chromium goes on in the mount with a profile that was imported: logged in, every record there."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tests.e2e.chromelife import Life, User, open_page, run_life
from tests.support.mounted import Mounted

if TYPE_CHECKING:
    from pathlib import Path

FILL = ("pair", "worker", "caches", "add=1500", "local=50")


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
