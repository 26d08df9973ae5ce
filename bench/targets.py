"""What is compared: a plain directory, sessfs, and libfuse's passthrough_ll, each made anew for each measurement."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bench.rows import Target

SESSFS: Final = Path(sys.executable).parent / "sessfs"
PASSTHROUGH_OPTIONS: Final = "writeback,cache=always,timeout=3600"
START_S: Final = 20.0


class BenchError(Exception):
    """Something that is measured did not do its part; the message says what."""


def is_mounted(path: Path) -> bool:
    """Whether *path*, which has no special characters, is a mountpoint, without touching it."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return any(line.split(" ")[4] == str(path) for line in lines)


def _run(command: Sequence[str], timeout_s: float) -> str:
    """Run to the end and return what it printed. Through files: a daemon that keeps a pipe open would block us here."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=_env())
        # Popen.wait with a timeout looks every 50 ms.
        pidfd = os.pidfd_open(process.pid)
        try:
            if not select.select([pidfd], [], [], timeout_s)[0]:
                process.kill()
                raise BenchError(f"{' '.join(command)} took longer than {timeout_s:g} s")
        finally:
            os.close(pidfd)
            code = process.wait()
        out.seek(0)
        err.seek(0)
        if code != 0:
            raise BenchError(f"{' '.join(command)} ended with {code}: {err.read()}")
        return out.read()


def _env() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("SESSFS_")}


class Sessfs:
    """A mounted sessfs, driven by its commands."""

    def __init__(self, mountpoint: Path, state: Path, options: Sequence[str] = ()) -> None:
        self.path = mountpoint
        self.state = state
        self._options = list(options)

    def mount(self) -> None:
        """Mount; on return it answers."""
        self.path.mkdir(exist_ok=True)
        _run([str(SESSFS), "mount", str(self.path), "--state", str(self.state), *self._options], 60)

    def umount(self) -> None:
        """Unmount; on return everything is durable."""
        _run([str(SESSFS), "umount", str(self.path), "--timeout", "60"], 90)

    def status(self) -> dict[str, Any]:
        """`sessfs status --json`."""
        found: dict[str, Any] = json.loads(_run([str(SESSFS), "status", str(self.path), "--json"], 60))
        return found

    def sync(self, timeout_s: float = 110) -> None:
        """`sessfs sync`: everything is in the remote on return."""
        _run([str(SESSFS), "sync", str(self.path), "--timeout", f"{timeout_s:g}"], timeout_s + 10)

    def wait_sealed(self, timeout_s: float = 60.0) -> None:
        """Wait until no file is hot; mount with a short --seal-idle. The kernel's pages must be written back before."""
        end = time.monotonic() + timeout_s
        while self.status()["hot_bytes"]:
            if time.monotonic() > end:
                raise BenchError(f"after {timeout_s} s {self.status()['hot_bytes']} bytes are still not sealed")
            time.sleep(0.3)

    def end(self) -> None:
        """Unmount, if it is mounted; where that fails, detach it: the daemon then ends with its last user."""
        if not is_mounted(self.path):
            return
        try:
            self.umount()
        except (BenchError, subprocess.TimeoutExpired) as exc:
            print(f"bench: {exc}; detaching the mount", file=sys.stderr)
            subprocess.run(["umount", "-l", str(self.path)], stdin=subprocess.DEVNULL)


@contextlib.contextmanager
def temporary(base: Path) -> Iterator[Path]:
    """A directory below *base*; removed at the end, unless something is still mounted in it."""
    path = Path(tempfile.mkdtemp(prefix="bench-", dir=base))
    try:
        yield path
    finally:
        if str(path) + "/" in Path("/proc/self/mountinfo").read_text():
            print(f"bench: {path} is kept, since something is mounted in it", file=sys.stderr)
        else:
            shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def open_sessfs(base: Path, options: Sequence[str] = ()) -> Iterator[Sessfs]:
    """A new sessfs with an empty state below *base*."""
    with temporary(base) as directory:
        mounted = Sessfs(directory / "mnt", directory / "state", options)
        try:
            mounted.mount()
            yield mounted
        finally:
            mounted.end()


@contextlib.contextmanager
def _open_passthrough(program: Path, base: Path, flags: Sequence[str]) -> Iterator[Path]:
    with temporary(base) as directory:
        source, mountpoint = directory / "source", directory / "mnt"
        source.mkdir()
        mountpoint.mkdir()
        command = [str(program), "-f", *flags, "-o", f"source={source},{PASSTHROUGH_OPTIONS}", str(mountpoint)]
        with (directory / "log").open("wb") as log:
            server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            end = time.monotonic() + START_S
            while not is_mounted(mountpoint):
                if server.poll() is not None or time.monotonic() > end:
                    raise BenchError(f"passthrough_ll does not start: {(directory / 'log').read_text()}")
                time.sleep(0.01)
            yield mountpoint
        finally:
            if is_mounted(mountpoint) and (
                subprocess.run(["umount", str(mountpoint)], stdin=subprocess.DEVNULL).returncode != 0
            ):
                subprocess.run(["umount", "-l", str(mountpoint)], stdin=subprocess.DEVNULL)
            try:
                server.wait(10)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


class Targets:
    """Opens targets below one directory."""

    def __init__(self, base: Path, passthrough: Path) -> None:
        self.base = base
        self._passthrough = passthrough

    @contextlib.contextmanager
    def open(self, target: Target) -> Iterator[Path]:
        """A new, empty session directory on *target*. What earlier measurements left dirty is written out first."""
        os.sync()
        with contextlib.ExitStack() as stack:
            if target == "ext4":
                root = stack.enter_context(temporary(self.base))
            elif target == "sessfs":
                root = stack.enter_context(open_sessfs(self.base)).path
            else:
                flags = ["-s"] if target == "pt-s" else []
                root = stack.enter_context(_open_passthrough(self._passthrough, self.base, flags))
            session = root / "user"
            session.mkdir()
            yield session
