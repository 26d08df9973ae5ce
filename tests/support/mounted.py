"""A sessfs mount for tests, driven as an operator would: through the command line, in processes of its own.

The test process never serves the mount it looks at, and nothing here waits for a dead mount: before the mountpoint
is touched it must stand in /proc/self/mountinfo, and the way out of a hang is the connection's abort file.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sessfs.mount import control
from sessfs.mount.loopwatch import LIMIT_VARIABLE, MARK
from tests.support import posix

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

FSTYPE = "fuse.sessfs"
_FUSECTL = Path("/sys/fs/fuse/connections")
_COMMAND = (sys.executable, "-m", "sessfs.cli.entry")
_START_S = 30.0
_STOP_S = 60.0
LOOP_MS = os.environ.get(LIMIT_VARIABLE)
"""So many ms of CPU time the daemon's loop may give to one task, or one request, before others have their turn, if the
test run asks for that watch.
"""
HELD_LINES = 40


@dataclass(frozen=True)
class MountLine:
    """One line of /proc/self/mountinfo."""

    mountpoint: Path
    fstype: str
    device_minor: int


def mount_lines(mountpoint: Path | None = None, *, below: Path | None = None) -> list[MountLine]:
    """Return this namespace's mounts, all of them, those on *mountpoint*, or those on or below *below*."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        left, _, right = line.partition(" - ")
        fields = left.split(" ")
        path = Path(re.sub(r"\\(\d{3})", lambda match: chr(int(match[1], 8)), fields[4]))
        found.append(MountLine(path, right.split(" ")[0], int(fields[2].split(":")[1])))
    if mountpoint is not None:
        found = [line for line in found if line.mountpoint == mountpoint]
    if below is not None:
        found = [line for line in found if line.mountpoint.is_relative_to(below)]
    return found


@dataclass(frozen=True)
class Process:
    """A process, told apart by its start from a later one that got the same pid."""

    pid: int
    start_ticks: int

    def is_alive(self) -> bool:
        """Tell whether it runs; a zombie does not, unless it has threads left, which still have its files open."""
        now = _proc_stat(self.pid)
        if now is None or now.start_ticks != self.start_ticks:
            return False
        return now.state not in "ZX" or _n_threads(self.pid) > 1


@dataclass(frozen=True)
class _ProcStat:
    state: str
    parent: int
    start_ticks: int


def _n_threads(pid: int) -> int:
    try:
        return len(os.listdir(f"/proc/{pid}/task"))
    except (FileNotFoundError, ProcessLookupError):
        return 0


def _proc_stat(pid: int) -> _ProcStat | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat[stat.rindex(")") + 2 :].split()
    return _ProcStat(state=fields[0], parent=int(fields[1]), start_ticks=int(fields[19]))


def process(pid: int) -> Process:
    """Return the process that now has *pid*; AssertionError when there is none."""
    stat = _proc_stat(pid)
    assert stat is not None, f"no process has pid {pid}"
    return Process(pid, stat.start_ticks)


def descendants(pid: int) -> list[Process]:
    """Return the children of *pid*, and theirs."""
    stats: dict[int, _ProcStat] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (stat := _proc_stat(int(entry))) is not None:
            stats[int(entry)] = stat
    found: list[Process] = []
    wanted = {pid}
    while wanted:
        wanted = {child for child, stat in stats.items() if stat.parent in wanted}
        found.extend(Process(child, stats[child].start_ticks) for child in sorted(wanted))
    return found


def wait_gone(processes: Collection[Process], timeout_s: float) -> list[Process]:
    """Wait until none of *processes* runs, at most *timeout_s*; return those that still do."""
    posix.eventually(lambda: not any(each.is_alive() for each in processes), timeout_s)
    return [each for each in processes if each.is_alive()]


def rss_bytes(pid: int) -> int:
    """Return the resident memory of *pid*, shared pages counted whole."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0


def pss_bytes(pid: int) -> int:
    """Return the resident memory of *pid*, each shared page divided among those that share it."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


def _abort_connection(device_minor: int) -> None:
    """Answer every waiting request of the mount with ENOTCONN, even if its daemon hangs in an uninterruptible wait."""
    had_fusectl = bool(mount_lines(_FUSECTL))
    if not had_fusectl:
        subprocess.run(["mount", "-t", "fusectl", "none", str(_FUSECTL)], check=True)
    try:
        with contextlib.suppress(FileNotFoundError):
            (_FUSECTL / str(device_minor) / "abort").write_text("1")
    finally:
        if not had_fusectl:
            subprocess.run(["umount", str(_FUSECTL)], check=True)


class Mounted:
    """A temporary mountpoint and state directory with `sessfs mount` between them.

    As a context manager it mounts on entry; on exit it unmounts, and fails when a mount or a process is left over,
    after it has removed both by force. Not for use by several threads.

    *options* are further arguments of `sessfs mount`, *env* further variables of it and of the daemon. With *state*
    given, that directory is used and kept; otherwise it is a temporary one.
    """

    def __init__(
        self, *, options: Sequence[str] = (), env: Mapping[str, str] | None = None, state: Path | None = None
    ) -> None:
        self._base = Path(tempfile.mkdtemp(prefix="sessfs-test-"))
        self.path = self._base / "mnt"
        self.path.mkdir()
        self.state = state or self._base / "state"
        self.options = list(options)
        self.env = dict(env or {})
        self.pid = 0
        self._daemon: Process | None = None
        self._processes: set[Process] = set()
        self._held_before = self._held()

    def __enter__(self) -> Mounted:
        try:
            self.mount()
        except BaseException as error:
            for problem in self._tear_down():
                error.add_note(problem)
            raise
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        problems = self._tear_down()
        if error is not None:
            for problem in problems:
                error.add_note(problem)
        elif problems:
            raise AssertionError("; ".join(problems))

    def sessfs(self, *arguments: str, check: bool = True, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
        """Run the command to its end. Output goes through files: a daemon that kept a pipe open would block us here.

        With *check*, an exit status other than 0 is an AssertionError that shows what the command wrote.
        """
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            done = subprocess.run(
                [*_COMMAND, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=self._environment(),
                timeout=timeout_s,
            )
            out.seek(0)
            err.seek(0)
            result = subprocess.CompletedProcess(done.args, done.returncode, out.read(), err.read())
        if check:
            command = " ".join(arguments)
            assert result.returncode == 0, (
                f"`sessfs {command}` ended with {result.returncode}\n{result.stdout}{result.stderr}{self.log_tail()}"
            )
        return result

    def _environment(self) -> dict[str, str]:
        """Return the test's own environment without settings of sessfs, and what the test gave."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("SESSFS_")}
        watch = {LIMIT_VARIABLE: LOOP_MS} if LOOP_MS else {}
        return {**kept, **watch, **self.env}

    def mount(self) -> None:
        """Mount; on return the mountpoint answers, and `pid` is the daemon's. Mending a dead mount is up to the CLI."""
        self.sessfs("mount", str(self.path), "--state", str(self.state), *self.options)
        self.adopt()

    def start_mounting(self) -> subprocess.Popen[bytes]:
        """Begin to mount: the command, which is running. Whatever comes of it, `mount` is the next to be called."""
        return subprocess.Popen(
            [*_COMMAND, "mount", str(self.path), "--state", str(self.state), *self.options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=self._environment(),
        )

    def adopt(self) -> None:
        """Take over a mount that `sessfs mount` has just made here."""
        end = time.monotonic() + _START_S
        while not self.is_mounted():
            assert time.monotonic() < end, f"not in /proc/self/mountinfo after {_START_S} s{self.log_tail()}"
            time.sleep(0.01)
        status = self.sessfs("status", str(self.path), "--json")
        self.pid = int(json.loads(status.stdout)["pid"])
        self._daemon = process(self.pid)
        self._processes.add(self._daemon)

    def umount(self, timeout_s: float = _STOP_S) -> None:
        """Unmount as an operator does; on return the mount, its daemon and the daemon's workers are gone."""
        processes = self.processes()
        self.sessfs("umount", str(self.path), "--timeout", str(int(timeout_s)), timeout_s=timeout_s + 30)
        assert not self.is_mounted(), "umount returned 0, and the mount is still in /proc/self/mountinfo"
        left = wait_gone(processes, 5)
        assert not left, f"umount returned 0, and processes of the daemon still run: {left}"

    def processes(self) -> list[Process]:
        """Return the daemon and its workers, as of now."""
        if self._daemon is None or not self._daemon.is_alive():
            return []
        found = [self._daemon, *descendants(self.pid)]
        self._processes.update(found)
        return found

    def remount(self) -> None:
        """Unmount and mount."""
        self.umount()
        self.mount()

    def ensure(self) -> None:
        """Mount again if the daemon is dead, so that one broken test does not fail all that follow."""
        if not (self._daemon and self._daemon.is_alive() and self.is_mounted()):
            self.mount()

    def kill(self) -> None:
        """Kill the daemon with SIGKILL; on return it is gone, and the mount is dead or detached."""
        processes = self.processes()
        os.kill(self.pid, signal.SIGKILL)
        left = wait_gone(processes, 10)
        assert not left, f"processes outlive the daemon's SIGKILL by 10 s: {left}"

    def detach(self) -> None:
        """Take the dead mount of a killed daemon away, so that nothing uses its state directory any more."""
        for _ in mount_lines(self.path):
            posix.umount2(self.path, posix.MNT_DETACH)

    def seal(self) -> None:
        """Turn every hot file that is quiet enough into chunks now; on return that has happened."""
        self.control("seal", {}, timeout_s=60)

    def control(self, verb: str, arguments: Mapping[str, Any], *, timeout_s: float = 30) -> Any:
        """Ask the daemon through its control socket."""
        return control.call(self.state, verb, arguments, timeout_s=timeout_s, on_progress=None)

    def status(self) -> dict[str, Any]:
        """Return `sessfs status --json`."""
        answer: dict[str, Any] = json.loads(self.sessfs("status", str(self.path), "--json").stdout)
        return answer

    def fsck(self) -> dict[str, Any]:
        """Check the state of an unmounted filesystem, which must be clean; return the report."""
        done = self.sessfs("fsck", "--state", str(self.state), "--json", check=False)
        assert done.returncode == 0, f"fsck is not clean ({done.returncode}): {done.stdout}{done.stderr}"
        report: dict[str, Any] = json.loads(done.stdout)
        return report

    def is_mounted(self) -> bool:
        """Tell whether mountinfo has exactly our filesystem on the mountpoint (dead or alive)."""
        return any(line.fstype == FSTYPE for line in mount_lines(self.path))

    def n_mounts(self) -> int:
        """Return how many mounts are stacked on the mountpoint."""
        return len(mount_lines(self.path))

    def log_tail(self, n_bytes: int = 3000) -> str:
        """Return the end of the daemon's log, for messages."""
        try:
            text = (self.state / "sessfs.log").read_text(errors="replace")
        except OSError:
            return ""
        return f"\n--- sessfs.log\n{text[-n_bytes:]}"

    def _held(self) -> list[str]:
        """Return what the log says of who kept others from their turn for too long, each with what was seen of it."""
        lines = []
        for name in ("sessfs.log.1", "sessfs.log"):
            with contextlib.suppress(OSError):
                lines += (self.state / name).read_text(errors="replace").splitlines()
        return ["\n".join(lines[at : at + HELD_LINES]) for at, line in enumerate(lines) if MARK in line]

    def _tear_down(self) -> list[str]:
        """Unmount, by force if need be; return what was wrong."""
        problems: list[str] = []
        self.processes()
        if mount_lines(self.path):
            try:
                self.sessfs("umount", str(self.path), "--timeout", "30", timeout_s=60)
            except (AssertionError, subprocess.TimeoutExpired) as error:
                problems.append(f"umount at the end of the test failed: {error}")
        problems.extend(self._force())
        problems.extend(f"the daemon's log says: {one}" for one in self._held()[len(self._held_before) :])
        if mount_lines(below=self._base):
            problems.append(f"a mount is left below {self._base}, which is therefore kept")
        else:
            shutil.rmtree(self._base, ignore_errors=True)
        return problems

    def _force(self) -> list[str]:
        """End what is left of mounts and processes; return what that was."""
        problems: list[str] = []
        left = wait_gone(self._processes, 0 if mount_lines(self.path) else 10)
        if left:
            problems.append(f"processes were left over: {left}")
            for process_left in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process_left.pid, signal.SIGKILL)
        lines = mount_lines(self.path)
        if lines:
            problems.append(f"{len(lines)} mount(s) were left over")
        for line in reversed(lines):
            if line.fstype == FSTYPE:
                _abort_connection(line.device_minor)
            with contextlib.suppress(OSError):
                posix.umount2(self.path, posix.MNT_DETACH)
        wait_gone(left, 10)
        return problems
