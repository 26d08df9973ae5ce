"""The control socket: how commands speak to a running mount. `control_server` is the daemon's side.

STATE/control.sock, one connection a call. The caller sends one line of JSON, {"verb": NAME, "params": {…}}; the daemon
answers with lines of JSON: any number of {"progress": {…}}, then {"result": {…}} or {"error": TEXT, "exit_code": N,
"kind": CLASS, "errno": N}.
"""

from __future__ import annotations

import json
import os
import socket
from typing import TYPE_CHECKING, Any

from sessfs import errors
from sessfs.errors import NotMounted, PosixError, SessfsError
from sessfs.mount.preflight import daemon_pid, lock_held

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from pathlib import Path

    Progress = Callable[[dict[str, Any]], Awaitable[None]]
    Verb = Callable[[dict[str, Any], Progress], Awaitable[dict[str, Any]]]

SOCKET_NAME = "control.sock"


class DaemonError(SessfsError):
    """An error that the daemon answered, of a class that is not known here, with its text and exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def _error(answer: Mapping[str, Any]) -> SessfsError:
    """What the daemon raised, of the same class."""
    kind = getattr(errors, str(answer.get("kind")), None)
    if kind is PosixError:
        return PosixError(int(answer["errno"]), answer["error"])
    if isinstance(kind, type) and issubclass(kind, SessfsError):
        return kind(answer["error"])
    return DaemonError(answer["error"], answer["exit_code"])


def call(
    state_dir: Path,
    verb: str,
    params: Mapping[str, Any],
    *,
    timeout_s: float | None,
    on_progress: Callable[[dict[str, Any]], None] | None,
) -> dict[str, Any]:
    """Ask the daemon of *state_dir* and return its result; blocks. *timeout_s* bounds the wait for each line.

    Raises NotMounted when no daemon listens or it does not answer in time, and what the daemon raised.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout_s)
        try:
            _connect(connection, state_dir / SOCKET_NAME)
            connection.sendall(json.dumps({"verb": verb, "params": dict(params)}).encode() + b"\n")
            with connection.makefile("rb") as lines:
                for line in lines:
                    answer = json.loads(line)
                    if "progress" in answer:
                        if on_progress is not None:
                            on_progress(answer["progress"])
                        continue
                    if "error" in answer:
                        raise _error(answer)
                    result: dict[str, Any] = answer["result"]
                    return result
        except TimeoutError as exc:
            raise NotMounted(f"the daemon of {state_dir} did not answer `{verb}` within {timeout_s} s") from exc
        except OSError as exc:
            raise NotMounted(_unheard(state_dir, exc)) from exc
    raise NotMounted(f"the daemon of {state_dir} ended while it did `{verb}`; see {state_dir / 'sessfs.log'}")


def _unheard(state_dir: Path, exc: OSError) -> str:
    if lock_held(state_dir):
        pid = daemon_pid(state_dir)
        return (
            f"the daemon of {state_dir} (pid {pid}) runs, but can't be spoken to by {state_dir / SOCKET_NAME} "
            f"({exc.strerror}): `sessfs umount` its mount, and mount it again"
        )
    return f"no daemon listens for {state_dir}: {exc.strerror}; mount it (sessfs mount)"


def _connect(connection: socket.socket, path: Path) -> None:
    """Connect by way of an open directory: the address of a socket holds only 107 bytes, a path may be longer."""
    fd = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        connection.connect(f"/proc/self/fd/{fd}/{path.name}")
    finally:
        os.close(fd)
