"""Expiry and trash on a mount, with days of a few seconds: what the kernel shows afterwards is what is there."""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING, Any

import pytest

from sessfs import SessfsError, open_store
from sessfs.errors import UsageError
from tests.support.mounted import Mounted
from tests.support.posix import errno_of, noise, read_file, tree, write_file

if TYPE_CHECKING:
    from pathlib import Path

FEW_SECONDS = "0.00007"
"""In days."""
OLD_S = 6.5


def expire(mounted: Mounted, **params: Any) -> dict[str, str | None]:
    """A round: session → why it was kept, None when it was done."""
    return {row["name"]: row["kept"] for row in mounted.control("expire", params)["sessions"]}


def fill(mounted: Mounted, name: str) -> dict[bytes, Any]:
    (mounted.path / name / "Default").mkdir(parents=True)
    write_file(mounted.path / name / "Default" / "Preferences", noise(len(name), 200_000))
    write_file(mounted.path / name / "Local State", name.encode())
    return tree(mounted.path / name)


def test_hibernated_sessions_load_again(tmp_path: Path) -> None:
    options = ["--remote", f"file://{tmp_path}", "--interval", "1h", "--expire-days", FEW_SECONDS]
    with Mounted(options=options) as mounted:
        before = {name: fill(mounted, name) for name in ("alice", "bob", "carol")}
        time.sleep(OLD_S)
        assert set(expire(mounted).values()) == {"not uploaded"}
        mounted.sessfs("sync", str(mounted.path))
        fd = os.open(mounted.path / "bob" / "Local State", os.O_RDONLY)
        cwd = os.open(mounted.path / "carol" / "Default", os.O_RDONLY | os.O_DIRECTORY)
        dry = expire(mounted, dry_run=True)
        assert dry["alice"] is None
        assert (dry["bob"] or "").startswith("in use")
        assert tree(mounted.path / "alice") == before["alice"]
        done = expire(mounted)
        assert done["alice"] is None
        assert (done["bob"] or "").startswith("in use")
        assert (done["carol"] or "").startswith("in use")
        os.close(cwd)
        assert expire(mounted)["carol"] is None
        rows = {
            row["name"]: row
            for row in json.loads(mounted.sessfs("sessions", str(mounted.path), "--json").stdout)["sessions"]
        }
        assert (rows["alice"]["files"], rows["bob"]["files"]) == (0, 2)
        assert rows["alice"]["last_use"] is not None
        assert "expires" in rows["bob"]
        assert {name: tree(mounted.path / name) for name in before} == before
        write_file(mounted.path / "alice" / "new", b"goes on")
        os.close(fd)
        mounted.remount()
        assert {name: tree(mounted.path / name) for name in ("bob", "carol")} == {
            name: before[name] for name in ("bob", "carol")
        }
        assert read_file(mounted.path / "alice" / "new") == b"goes on"
        mounted.umount()
        mounted.fsck()


def test_removed_sessions_rest_in_the_trash() -> None:
    options = ["--expire-days", FEW_SECONDS, "--expire-action", "remove"]
    with Mounted(options=options) as mounted:
        before = fill(mounted, "alice")
        time.sleep(OLD_S)
        fill(mounted, "young")
        assert expire(mounted) == {"alice": None}
        assert os.listdir(mounted.path) == ["young"]
        assert errno_of(os.stat, mounted.path / "alice") != 0
        (entry,) = json.loads(mounted.sessfs("trash", "list", str(mounted.path), "--json").stdout)["trash"]
        assert (entry["name"], entry["logical_bytes"]) == ("alice", 200_005)
        assert entry["gone_for_good"][:10] > entry["removed"][:10]
        assert errno_of(os.stat, mounted.path / entry["entry"]) != 0
        fill(mounted, "alice")
        refused = mounted.sessfs("trash", "restore", str(mounted.path), "alice", check=False)
        assert (refused.returncode, "--as" in refused.stderr) == (2, True)
        mounted.sessfs("limit", str(mounted.path), "--max-sessions", "2")
        refused = mounted.sessfs("trash", "restore", str(mounted.path), "alice", "--as", "back", check=False)
        assert (refused.returncode, "2 sessions" in refused.stderr) == (1, True)
        mounted.sessfs("limit", str(mounted.path), "--max-sessions", "off")
        assert mounted.control("trash_restore", {"name": "alice", "as_name": "back"}) == {"name": "back"}
        assert tree(mounted.path / "back") == before
        mounted.remount()
        assert sorted(os.listdir(mounted.path)) == ["alice", "back", "young"]
        fd = os.open(mounted.path / "young" / "Local State", os.O_RDONLY)
        time.sleep(OLD_S)
        done = expire(mounted)
        assert {name for name, kept in done.items() if kept is None} == {"alice", "back"}
        os.close(fd)
        with pytest.raises(UsageError, match="empty name"):
            mounted.control("trash_empty", {"name": ""})
        with open_store(mounted.path) as store, pytest.raises(UsageError, match="empty name"):
            store.empty_trash("")
        with pytest.raises(UsageError, match="--as"):
            mounted.control("trash_restore", {"name": "back", "as_name": ""})
        refused = mounted.sessfs("trash", "empty", str(mounted.path), "", check=False)
        assert (refused.returncode, "empty" in refused.stderr) == (2, True)
        assert mounted.control("trash_empty", {"name": "back"}) == {"gone": ["back"]}
        assert [row["name"] for row in mounted.control("trash_list", {})["trash"]] == ["alice"]
        assert "alice" in mounted.sessfs("trash", "empty", str(mounted.path)).stdout
        assert mounted.control("trash_list", {}) == {"trash": []}
        assert "would be done" in mounted.sessfs("expire", str(mounted.path), "--dry-run").stdout
        mounted.umount()
        mounted.fsck()


def test_expiry_needs_somewhere_to_go() -> None:
    with Mounted() as mounted:
        mounted.umount()
        refused = mounted.sessfs("mount", str(mounted.path), "--expire-days", "30", check=False)
        assert (refused.returncode, "--expire-action remove" in refused.stderr) == (2, True)
        mounted.mount()


def test_the_api_does_what_the_commands_do() -> None:
    with Mounted(options=["--expire-days", "30", "--expire-action", "remove"]) as mounted:
        (mounted.path / "user1").mkdir()
        with open_store(mounted.path) as store:
            assert next(store.sessions()).expires is not None
            answer = store.limits("user1", {"max_session_bytes": 1 << 20})
            assert {row["limit"]: row["value"] for row in answer["limits"]}["max_session_bytes"] == 1 << 20
            assert store.limits(changes={"max_sessions": 5})["sessions_with_their_own"] == ["user1"]
            assert store.expire(dry_run=True)["sessions"] == []
            assert (store.trash(), store.empty_trash()) == ([], [])
            with pytest.raises(SessfsError, match="trash list"):
                store.restore_from_trash("user1")
        mounted.umount()
        with open_store(mounted.state) as store, pytest.raises(UsageError, match="takes a mount"):
            store.limits()
