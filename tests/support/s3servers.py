"""S3 servers that run here, started once a session: rclone (a disk, checks signatures), moto (conditional writes).

The fixtures that start them are in s3fixtures.py; scripts and other processes may use `running` directly.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import boto3

from sessfs.remote.urls import RemoteSettings

if TYPE_CHECKING:
    from collections.abc import Iterator

KEY_ID = "sessfs-test"
SECRET = "not-a-secret"
START_S = 60.0
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A running server; `settings` makes what open_remote takes, for a bucket that exists."""

    name: str
    url: str
    pid: int

    def make_bucket(self, bucket: str) -> None:
        """Create *bucket*; its name is not in use yet."""
        client = boto3.session.Session(KEY_ID, SECRET, region_name="us-east-1").client("s3", endpoint_url=self.url)
        client.create_bucket(Bucket=bucket)
        client.close()

    def settings(self, bucket: str, prefix: str = "p") -> RemoteSettings:
        return RemoteSettings(f"s3://{bucket}/{prefix}".rstrip("/"), endpoint_url=self.url)


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def running(name: str, command: list[str], port: int, log: Path) -> Iterator[Endpoint]:
    """Run a server, apart from this process's terminal and signals; end it, and it alone, afterwards.

    The kernel ends it if this process is killed.
    """
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )
    try:
        _wait_listening(process, port, log)
        yield Endpoint(name, f"http://127.0.0.1:{port}", process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _wait_listening(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    end_s = time.monotonic() + START_S
    while time.monotonic() < end_s and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    raise RuntimeError(f"{process.args!r} does not listen on {port}: {log.read_text()[-2000:]}")


def rclone_command(directory: Path, port: int) -> list[str]:
    """`rclone serve s3` of *directory*: each directory in it is a bucket."""
    return [
        str(Path(sys.executable).parent / "rclone"),
        *("serve", "s3", str(directory), "--addr", f"127.0.0.1:{port}", "--auth-key", f"{KEY_ID},{SECRET}"),
        *("--config", os.devnull),
    ]


def moto_command(port: int) -> list[str]:
    return [str(Path(sys.executable).parent / "moto_server"), "-H", "127.0.0.1", "-p", str(port)]
