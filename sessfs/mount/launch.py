"""Start a daemon and wait until its mount answers.

Protocol with `python -m sessfs.mount.daemon`: the settings come on stdin, as JSON, until its end; on the descriptor
of `--ready-fd` the daemon writes one line, {"ok": true, "pid": N} when the mount answers, or {"ok": false,
"error": TEXT, "exit_code": N}. Its stdout and stderr are STATE/sessfs.log once it has settings, unless it runs in the
foreground.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, NoReturn

import msgspec

from sessfs.errors import HostError, StartFailed
from sessfs.mount import mountinfo, preflight, spawn

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from sessfs.config import Settings

START_TIMEOUT_S = 120.0
LOG_ROTATE_BYTES = 16 * 1024 * 1024
"""A log larger than this becomes sessfs.log.1 at the next mount."""
_LOG_TAIL_LINES = 5


class _Ready(msgspec.Struct):
    ok: bool
    pid: int = 0
    error: str = ""
    exit_code: int = StartFailed.exit_code


class DaemonRefused(HostError):
    """The daemon itself said why it can't start; its message and exit code are passed on."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def launch(
    settings: Settings,
    early: spawn.Started | None = None,
    *,
    argv: Sequence[str] = spawn.DAEMON_ARGV,
    timeout_s: float = START_TIMEOUT_S,
) -> int:
    """Mount: check the machine, start the daemon detached, and return its pid once the mount answers.

    The daemon is *early*, or else a new one by *argv*, its command without `--ready-fd`. Raises what preflight.check
    raises, DaemonRefused with the daemon's own words and exit code, or StartFailed with the last lines of the log. When
    it raises, no daemon that was told its settings is left.
    """
    preflight.check(settings)
    log = settings.state_dir / "sessfs.log"
    _rotate(log)
    log_start = log.stat().st_size if log.exists() else 0
    daemon = early or _spawn(argv, log)
    # One that died at once is reported by the ready pipe, with its log.
    daemon.tell(settings.to_json())
    process, ready = daemon.process, daemon.ready
    try:
        answer = _read_ready(ready, process, time.monotonic() + timeout_s)
    except BaseException as exc:
        _stop(process)
        if isinstance(exc, StartFailed):
            raise StartFailed(f"{exc}{_tail(log, log_start)}") from exc
        raise
    finally:
        os.close(ready)
    if not answer.ok:
        _stop(process)
        raise DaemonRefused(answer.error, answer.exit_code)
    _check_mounted(settings, process, log, log_start)
    # Reaps it, should this process outlive it, and keeps Popen from complaining that it still runs.
    threading.Thread(target=process.wait, name="reaper", daemon=True).start()
    return answer.pid or process.pid


def run_foreground(settings: Settings, *, argv: Sequence[str] = spawn.DAEMON_ARGV) -> NoReturn:
    """Become the daemon: never returns, the log goes to stderr, and the exit code is the daemon's.

    Raises what preflight.check raises.
    """
    preflight.check(settings)
    read_end, write_end = os.pipe()
    os.write(write_end, settings.to_json())
    os.close(write_end)
    os.dup2(read_end, 0)
    os.close(read_end)
    os.chdir("/")
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(argv[0], list(argv))


def _spawn(argv: Sequence[str], log: Path) -> spawn.Started:
    with open(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600), "wb") as log_file:
        return spawn.start(argv, log_file)


def _read_ready(ready: int, process: subprocess.Popen[bytes], deadline: float) -> _Ready:
    """The daemon's line. Raises StartFailed at *deadline*, when the daemon ends, and for a line that is none."""
    line = b""
    exited = os.pidfd_open(process.pid)
    try:
        while b"\n" not in line:
            left_s = deadline - time.monotonic()
            readable, _, _ = select.select([ready, exited], [], [], max(left_s, 0))
            if not readable:
                raise StartFailed(f"the daemon (pid {process.pid}) did not mount in time, and was ended")
            # What it wrote before it ended comes first.
            part = os.read(ready, 65536) if ready in readable else b""
            if not part:
                raise StartFailed(f"the daemon (pid {process.pid}) ended before the mount answered")
            line += part
    finally:
        os.close(exited)
    try:
        return msgspec.json.decode(line, type=_Ready)
    except (msgspec.DecodeError, msgspec.ValidationError) as exc:
        raise StartFailed(f"the daemon (pid {process.pid}) answered {line!r}, which is no answer") from exc


def _check_mounted(settings: Settings, process: subprocess.Popen[bytes], log: Path, log_start: int) -> None:
    """Return if the mount is really there and answers. Else end the daemon and raise StartFailed."""
    problem = "is not in mountinfo"
    try:
        mount = mountinfo.find_mount(settings.mountpoint)
        if mount is not None and mount.fs_type == mountinfo.FS_TYPE:
            if preflight.answers(settings.mountpoint):
                return
            problem = "does not answer"
    except TimeoutError as exc:
        problem = f"hangs ({exc})"
    _stop(process)
    preflight.detach_dead(settings.mountpoint)
    raise StartFailed(f"the daemon said it is ready, but {settings.mountpoint} {problem}{_tail(log, log_start)}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the daemon that this call started, and reap it."""
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _rotate(log: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        if log.stat().st_size > LOG_ROTATE_BYTES:
            log.replace(log.with_suffix(".log.1"))


def _tail(log: Path, start: int) -> str:
    """The last lines written to *log* since *start*, for the end of a message."""
    try:
        with log.open("rb") as file:
            file.seek(start)
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        lines = []
    shown = [line.strip() for line in lines if line.strip()][-_LOG_TAIL_LINES:]
    return f"; {log} ends with: {' | '.join(shown)}" if shown else f"; {log} says nothing"
