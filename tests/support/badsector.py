"""A disk that fails to give the bytes of one file, or to say where its holes are, to processes started from here on."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

_SITE = """
import errno, os


def failing(name):
    function = getattr(os, name)

    def fail(fd, *args):
        with open({mark!r}) as mark:
            if mark.read() == name + str(os.fstat(fd).st_ino):
                raise OSError(errno.EIO, "Input/output error")
        return function(fd, *args)

    setattr(os, name, fail)


failing("preadv")
failing("lseek")
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

    def strike(self, path: Path, call: Literal["preadv", "lseek"] = "preadv") -> None:
        """With that file, and no other, the system call fails."""
        self._mark.write_text(call + str(path.stat().st_ino))

    def mend(self) -> None:
        """There is no such file any more."""
        self._mark.write_text("")
