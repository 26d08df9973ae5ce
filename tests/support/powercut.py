"""A directory on an ext4 on a disk whose power can be cut. Root only: it needs a loop device and mounts."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.mounted import mount_lines
from tests.support.posix import MNT_DETACH, eventually, umount2

if TYPE_CHECKING:
    from collections.abc import Sequence


def run(arguments: Sequence[str]) -> str:
    """Run the command to its end, which must be a success; return what it says."""
    done = subprocess.run(arguments, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"{' '.join(arguments)}: {done.stderr}"
    return done.stdout.strip()


class PowerCut:
    """`path` is the directory; cut() takes the power away, restore() brings back what the disk has kept.

    As a context manager it ends with nothing mounted and no process left.
    """

    def __init__(self, seed: int, size_bytes: int = 400 << 20) -> None:
        self._base = Path(tempfile.mkdtemp(prefix="sessfs-power-"))
        self._disk = self._base / "disk"
        self._served = self._base / "served"
        self.path = self._base / "ext4"
        for folder in (self._disk, self._served, self.path):
            folder.mkdir()
        with open(self._disk / "image", "wb") as file:
            file.truncate(size_bytes)
        (self._disk / "seed").write_text(str(seed))
        self._process: subprocess.Popen[bytes] | None = None
        self._loop = ""

    def __enter__(self) -> PowerCut:
        try:
            self._start()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def _start(self) -> None:
        run(["mkfs.ext4", "-q", "-F", str(self._disk / "image")])
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.lyingdisk", str(self._served), str(self._disk)],
            stdin=subprocess.DEVNULL,
        )
        assert eventually(lambda: bool(mount_lines(self._served)), 20), "the lying disk does not start"
        self._loop = run(["losetup", "--find", "--show", str(self._served / "disk")])
        run(["mount", "-t", "ext4", self._loop, str(self.path)])

    def cut(self) -> float:
        """Cut the power; return its CLOCK_MONOTONIC moment. From then on the directory answers EIO, or from caches."""
        assert self._process is not None
        self._process.send_signal(signal.SIGUSR1)
        report = self._disk / "cut.json"
        assert eventually(report.exists, 30), "the lying disk does not take the signal"
        return float(json.loads(report.read_text())["monotonic_s"])

    def restore(self) -> None:
        """Mount what the disk has kept in the same place. No process may use the directory any more."""
        self._unserve()
        self._loop = run(["losetup", "--find", "--show", str(self._disk / "cut")])
        run(["mount", "-t", "ext4", self._loop, str(self.path)])

    def _unserve(self) -> None:
        """Take ext4, loop device and disk apart."""
        if mount_lines(self.path):
            umount2(self.path, 0)
        if self._loop:
            run(["losetup", "--detach", self._loop])
            self._loop = ""
        if mount_lines(self._served):
            umount2(self._served, MNT_DETACH)
        if self._process is not None:
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def _end(self) -> None:
        self._unserve()
        assert not mount_lines(below=self._base), f"a mount is left below {self._base}"
        shutil.rmtree(self._base)
