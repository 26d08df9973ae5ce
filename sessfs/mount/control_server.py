"""The daemon's side of the control socket; `control` says what goes over it."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
from typing import TYPE_CHECKING, Any

import trio

from sessfs.errors import SessfsError, UsageError
from sessfs.mount.control import SOCKET_NAME

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from sessfs.mount.control import Verb

log = logging.getLogger(__name__)
MAX_REQUEST_BYTES = 1 << 20
READ_BYTES = 65_536


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
        ours = os.stat(self._path)
        listener.listen(16)
        try:
            task_status.started()
            await trio.serve_listeners(self._serve, [trio.SocketListener(listener)])
        finally:
            # The directory may have been renamed, and another daemon be where it was.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.stat(self._path), ours):
                    self._path.unlink()

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
            kind = type(exc).__name__
            return {"error": str(exc), "exit_code": exc.exit_code, "kind": kind, "errno": exc.errno}
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
