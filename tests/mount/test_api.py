"""The Python API on a real mount, and the examples of docs/api.md, run."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

import pytest

import sessfs
from sessfs.errors import MountBusy, NotMounted, PosixError, UsageError
from tests.support import trees
from tests.support.mounted import Mounted

DOCUMENT = Path(__file__).resolve().parent.parent.parent / "docs" / "api.md"


def examples() -> list[str]:
    """The Python blocks of the document."""
    return re.findall(r"^```python\n(.*?)^```", DOCUMENT.read_text("utf-8"), re.MULTILINE | re.DOTALL)


def test_examples_of_the_document_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "remote").mkdir()
    (tmp_path / "backup").mkdir()
    (tmp_path / "key").write_text("the operator's")
    remote, key = f"file://{tmp_path}/remote", tmp_path / "key"
    with Mounted(options=["--remote", remote, "--key-file", str(key), "--interval", "1s"]) as mounted:
        (mounted.path / "user1").mkdir()
        trees.make_profile(mounted.path / "user1", odd=False)
        mounted.sessfs("sync", str(mounted.path))
        places = {
            "/srv/app/.whatsapp-sessions": str(mounted.path),
            "s3://BUCKET/PREFIX": remote,
            "/etc/sessfs.key": str(key),
            "/backup/": f"{tmp_path}/backup/",
            "/var/lib/sessfs/app": str(mounted.state),
        }
        said = []
        for example in examples():
            for there, here in places.items():
                example = example.replace(f'"{there}', f'"{here}')
            if str(mounted.state) in example:
                mounted.umount()
            exec(compile(example, str(DOCUMENT), "exec"), {})
            said.append(capsys.readouterr().out)
        if not mounted.is_mounted():
            mounted.fsck()
    assert len(said) == 4
    assert said[0].startswith("user1 ")
    assert "Default/Preferences 2 " in said[1]
    assert "\\xfd\\xfe\\xff" in said[1]
    assert (tmp_path / "backup" / "user1.tar.zst").stat().st_size > 0
    assert said[3].startswith(f"{errno.ENOENT} no/such/file")


def test_every_public_method_is_in_the_document() -> None:
    text = DOCUMENT.read_text("utf-8")
    for owner in (sessfs.Store, sessfs.Session):
        methods = [name for name, value in vars(owner).items() if callable(value) and not name.startswith("_")]
        assert methods
        assert not [name for name in methods if f"`{name}(" not in text]


def test_mount_by_the_api(mount: Mounted, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    trees.make_profile(tmp_path / "source", odd=False)
    with sessfs.open_store(mount.path) as store:
        steps: list[sessfs.ImportProgress] = []
        report = store.import_tree(tmp_path / "source", name="user1", progress=steps.append)
        assert [one.name for one in report.sessions] == ["user1"]
        assert report.n_refused == 0
        assert steps
        (record,) = store.sessions()
        assert record.name == "user1"
        assert record.files is not None
        assert store.status()["pid"] == mount.pid

        session = store.session("user1")
        # One profile becomes one user's session, as LocalAuth lays it out.
        path = next(entry.path for entry in session.files() if entry.path.endswith("Default/Preferences"))
        assert session.read(path) == b"{}"
        assert {entry.path for entry in session.walk()} == {
            os.fsdecode(path) for path in trees.look(mount.path / "user1")
        }
        first = session.snapshot("kept")
        (mount.path / "user1" / path).write_bytes(b'{"later": 1}')
        assert session.read(path, at=first.sequence) == b"{}"
        with session.open(path, at=first.sequence) as old:
            assert old.read(1) == b"{"
        assert session.history()[0] == first
        assert session.mark(first.sequence, "renamed").mark == "renamed"

        with (mount.path / "user1" / path).open("rb"), pytest.raises(MountBusy, match="in use"):
            session.rollback(first.sequence)
        session.rollback(first.sequence)
        assert session.read(path) == b"{}"
        clone = session.clone("user2")
        assert clone.read(path) == b"{}"
        with pytest.raises(PosixError, match="exists already") as caught:
            session.clone("user2")
        assert caught.value.errno == errno.EEXIST
        clone.remove()
        assert [one.name for one in store.sessions()] == ["user1"]
        with pytest.raises(UsageError, match="no remote to sync to"):
            store.sync()
        with pytest.raises(PosixError, match=f"no session user2: `sessfs sessions {mount.path}` lists them"):
            store.session("user2")
        assert not session.check(at=first.sequence).good
        assert session.history()[0].verdict == "bad"
    assert not [name for name in os.listdir(mount.path) if name != "user1"]
    mount.kill()
    with pytest.raises(NotMounted, match="is dead"):
        sessfs.open_store(mount.path)
    mount.detach()
    with sessfs.open_store(mount.state) as store:
        assert store.session("user1").read(path) == b"{}"
