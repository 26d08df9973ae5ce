"""Zips for whatsapp-web.js's RemoteAuth: restored, and made, by its own code."""

from __future__ import annotations

import os
import subprocess
import zipfile
from pathlib import Path

from sessfs.mount import syscalls
from sessfs.sessions.exporting import ExportFormat, export_tree
from sessfs.sessions.trees import DirectoryTree
from tests.e2e.chromelife import ensure_npm
from tests.support import trees

SCRIPT = Path(__file__).parent / "remoteauth.mjs"


def node(*arguments: str | Path) -> str:
    """Run the script; what it printed."""
    ensure_npm()
    command = ["node", str(SCRIPT), *(str(one) for one in arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=SCRIPT.parent, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_remoteauth_restores_what_was_exported(tmp_path: Path) -> None:
    """And backs up the very same: names, and contents."""
    (tmp_path / "source").mkdir()
    trees.make_profile(tmp_path / "source", odd=False)
    (tmp_path / "source" / "Default" / "IndexedDB" / "large").write_bytes(os.urandom(3 << 20))
    (tmp_path / "source" / "Default" / "IndexedDB" / "ü 名").write_bytes(b"named oddly")
    tree = DirectoryTree(os.fsencode(tmp_path / "source"))
    export_tree(tree, tmp_path / "our.zip", ExportFormat.REMOTEAUTH, syncfs=syscalls.syncfs)
    tree.close()

    (tmp_path / "data").mkdir()
    restored = Path(node("extract", tmp_path / "data", tmp_path / "our.zip"))
    expected = {
        path: content
        for path, content in trees.contents(trees.look(tmp_path / "source")).items()
        if path in (b"", b"Default") or path.startswith((b"Default/IndexedDB", b"Default/Local Storage"))
    }
    assert trees.contents(trees.look(restored)) == expected

    theirs = node("compress", tmp_path / "data")
    with zipfile.ZipFile(theirs) as their, zipfile.ZipFile(tmp_path / "our.zip") as our:
        read = [{name: archive.read(name) for name in archive.namelist()} for archive in (their, our)]
    assert read[0] == read[1]
