"""A disk that fails to give the bytes of one file, for processes that are started from here on."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

_SITE = """
import errno, os

_preadv = os.preadv


def preadv(fd, buffers, offset):
    with open({mark!r}) as mark:
        if mark.read() == str(os.fstat(fd).st_ino):
            raise OSError(errno.EIO, "Input/output error")
    return _preadv(fd, buffers, offset)


os.preadv = preadv
"""


class BadSector:
    """No file is bad at first."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        directory.mkdir()
        self._mark = directory / "bad"
        (directory / "sitecustomize.py").write_text(_SITE.format(mark=str(self._mark)))
        self.mend()
        paths = [str(directory), *filter(None, [os.environ.get("PYTHONPATH")])]
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))

    def strike(self, path: Path) -> None:
        """That file, and no other, can't be read."""
        self._mark.write_text(str(path.stat().st_ino))

    def mend(self) -> None:
        """Every file can be read."""
        self._mark.write_text("")
