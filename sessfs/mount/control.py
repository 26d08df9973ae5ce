"""The control socket: how commands speak to a running mount.

STATE/control.sock, one connection a call. The caller sends one line of JSON, {"verb": NAME, "params": {…}}; the daemon
answers with lines of JSON: any number of {"progress": {…}}, then {"result": {…}} or {"error": TEXT, "exit_code": N}.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
from typing import TYPE_CHECKING, Any

import trio

from sessfs.errors import NotMounted, SessfsError, UsageError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from pathlib import Path

    Progress = Callable[[dict[str, Any]], Awaitable[None]]
    Verb = Callable[[dict[str, Any], Progress], Awaitable[dict[str, Any]]]

log = logging.getLogger(__name__)
SOCKET_NAME = "control.sock"
MAX_REQUEST_BYTES = 1 << 20
READ_BYTES = 65_536


class DaemonError(SessfsError):
    """An error that the daemon answered, with its text and exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def call(
    state_dir: Path,
    verb: str,
    params: Mapping[str, Any],
    *,
    timeout_s: float | None,
    on_progress: Callable[[dict[str, Any]], None] | None,
) -> dict[str, Any]:
    """Ask the daemon of *state_dir* and return its result; blocks. *timeout_s* bounds the wait for each line.

    Raises NotMounted when no daemon listens or it does not answer in time, DaemonError with what it answered.
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
                        raise DaemonError(answer["error"], answer["exit_code"])
                    result: dict[str, Any] = answer["result"]
                    return result
        except TimeoutError as exc:
            raise NotMounted(f"the daemon of {state_dir} did not answer `{verb}` within {timeout_s} s") from exc
        except OSError as exc:
            raise NotMounted(f"no daemon listens for {state_dir}: {exc.strerror}; mount it (sessfs mount)") from exc
    raise NotMounted(f"the daemon of {state_dir} ended while it did `{verb}`; see {state_dir / 'sessfs.log'}")


def _connect(connection: socket.socket, path: Path) -> None:
    """Connect by way of an open directory: the address of a socket holds only 107 bytes, a path may be longer."""
    fd = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        connection.connect(f"/proc/self/fd/{fd}/{path.name}")
    finally:
        os.close(fd)


class ControlServer:
    """Serves the verbs it is given, each call in a task of its own."""

    def __init__(self, state_dir: Path, verbs: Mapping[str, Verb]) -> None:
        self._path = state_dir / SOCKET_NAME
        self._verbs = verbs

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen for ever; started, in trio's sense, once callers can connect."""
        self._path.unlink(missing_ok=True)
        listener = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        fd = os.open(self._path.parent, os.O_PATH | os.O_DIRECTORY)
        try:
            await listener.bind(f"/proc/self/fd/{fd}/{SOCKET_NAME}")
        finally:
            os.close(fd)
        os.chmod(self._path, 0o600)
        listener.listen(16)
        try:
            task_status.started()
            await trio.serve_listeners(self._serve, [trio.SocketListener(listener)])
        finally:
            self._path.unlink(missing_ok=True)

    async def _serve(self, stream: trio.SocketStream) -> None:
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async with stream:
                answer = await self._answer(stream)
                await stream.send_all(json.dumps(answer).encode() + b"\n")

    async def _answer(self, stream: trio.SocketStream) -> dict[str, Any]:
        async def progress(step: dict[str, Any]) -> None:
            await stream.send_all(json.dumps({"progress": step}).encode() + b"\n")

        try:
            request = json.loads(await _read_line(stream))
            verb = self._verbs.get(request["verb"])
            if verb is None:
                raise UsageError(f"the daemon knows no `{request['verb']}`: it is of another version than this command")
            return {"result": await verb(request.get("params", {}), progress)}
        except SessfsError as exc:
            return {"error": str(exc), "exit_code": exc.exit_code}
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise
        except Exception as exc:
            log.exception("bug in a control request")
            return {"error": f"bug in the daemon: {exc!r}; see its log", "exit_code": SessfsError.exit_code}


async def _read_line(stream: trio.SocketStream) -> bytes:
    buf = b""
    while b"\n" not in buf and len(buf) < MAX_REQUEST_BYTES:
        got = await stream.receive_some(READ_BYTES)
        if not got:
            break
        buf += got
    return buf
