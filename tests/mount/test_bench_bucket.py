"""The bench's maker of very many sessions makes a bucket that fsck finds clean, and that a mount reads."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

from bench import manifests, many
from tests.support.mounted import Mounted

if TYPE_CHECKING:
    from pathlib import Path

COUNT = 30


def test_many_sessions_of_one(tmp_path: Path) -> None:
    remote = tmp_path / "remote"
    remote.mkdir()
    options = ["--remote", f"file://{remote}"]
    with Mounted(options=options) as first:
        many.make_template(first.path / many.TEMPLATE)
        first.umount()
    assert manifests.multiply(remote, many.TEMPLATE, COUNT) == many.FILES
    command = [sys.executable, "-m", "sessfs.cli.main", "fsck", *options, "--json"]
    checked = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert json.loads(checked.stdout)["clean"] is True
    with Mounted(options=options) as mounted:
        template, copy = mounted.path / many.TEMPLATE, mounted.path / manifests.session_name(COUNT - 1)
        names = sorted(str(path.relative_to(template)) for path in template.rglob("*"))
        assert names == sorted(str(path.relative_to(copy)) for path in copy.rglob("*"))
        for name in names:
            if (template / name).is_file():
                assert (template / name).read_bytes() == (copy / name).read_bytes()
        assert len(list(mounted.path.iterdir())) == COUNT + 1
