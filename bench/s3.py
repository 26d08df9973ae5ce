"""A local S3 service: `rclone serve s3` of a directory, which it keeps as plain files and checks signatures for."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench.targets import BenchError

if TYPE_CHECKING:
    from collections.abc import Iterator

RCLONE: Final = Path(sys.executable).parent / "rclone"
BUCKET: Final = "bench"
_KEY_ID: Final = "sessfs-bench"
_SECRET: Final = "not-a-secret"
_START_S: Final = 30.0
_PR_SET_PDEATHSIG: Final = 1


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def serve(directory: Path) -> Iterator[list[str]]:
    """Serve *directory*, in which BUCKET is made, and give the options that mount it. The credentials are in the
    environment meanwhile. --single-node, since rclone ignores conditions on writes.
    """
    (directory / BUCKET).mkdir(parents=True, exist_ok=True)
    port = _free_port()
    command = [str(RCLONE), "serve", "s3", str(directory), "--addr", f"127.0.0.1:{port}"]
    command += ["--auth-key", f"{_KEY_ID},{_SECRET}", "--config", os.devnull]
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=_die_with_parent,
    ) as server:
        try:
            with _environment(AWS_ACCESS_KEY_ID=_KEY_ID, AWS_SECRET_ACCESS_KEY=_SECRET, AWS_REGION="us-east-1"):
                _wait_listening(server, port)
                url = f"http://127.0.0.1:{port}"
                yield ["--remote", f"s3://{BUCKET}/p", "--endpoint-url", url, "--path-style", "--single-node"]
        finally:
            server.terminate()
            try:
                server.wait(10)
            except subprocess.TimeoutExpired:
                server.kill()


@contextlib.contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def _wait_listening(server: subprocess.Popen[bytes], port: int) -> None:
    end = time.monotonic() + _START_S
    while time.monotonic() < end and server.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    raise BenchError(f"rclone serve s3 does not listen on port {port}: try `{RCLONE} serve s3 --help`")
