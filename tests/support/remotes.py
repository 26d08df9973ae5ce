"""Remotes for mounts under test: a bucket behind a proxy that counts, or a directory; and what lies in them.

The fixtures are in remotefixtures.py.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import boto3

from tests.support.mounted import Mounted
from tests.support.s3proxy import Proxy, proxied
from tests.support.s3servers import KEY_ID, SECRET, Endpoint

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from pathlib import Path

PREFIX = "fleet"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": KEY_ID,
    "AWS_SECRET_ACCESS_KEY": SECRET,
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
}


@dataclass(frozen=True)
class Bucket:
    """A new bucket of a running server. Mounts reach it through `proxy`, tests look into it directly."""

    endpoint: Endpoint
    name: str
    proxy: Proxy

    def client(self) -> Any:
        """A boto3 client that goes past the proxy."""
        session = boto3.session.Session(KEY_ID, SECRET, region_name="us-east-1")
        return session.client("s3", endpoint_url=self.endpoint.url)

    def list_keys(self, below: str = "") -> list[str]:
        """Keys under the mounts' prefix, without it."""
        pages = self.client().get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=f"{PREFIX}/{below}")
        return [one["Key"].removeprefix(f"{PREFIX}/") for page in pages for one in page.get("Contents", [])]

    def read(self, key: str) -> bytes:
        """The object's bytes."""
        body: bytes = self.client().get_object(Bucket=self.name, Key=f"{PREFIX}/{key}")["Body"].read()
        return body

    def objects(self) -> dict[str, bytes]:
        """Everything under the prefix."""
        return {key: self.read(key) for key in self.list_keys()}

    def options(self, *more: str, interval: str = "1s", host: str = "127.0.0.1") -> list[str]:
        """Options of a mount of this bucket."""
        url = f"s3://{self.name}/{PREFIX}"
        return ["--remote", url, "--endpoint-url", self.proxy.url(host), "--interval", interval, *more]

    def bypassed(self) -> Bucket:
        """The same bucket, for mounts that reach the server without the proxy."""
        port = urlsplit(self.endpoint.url).port
        assert port is not None
        return replace(self, proxy=Proxy(self.proxy.upstream, port))

    def mounted(self, *more: str, state: Path | None = None, interval: str = "1s") -> Mounted:
        """A mount of this bucket, to be entered."""
        return Mounted(options=self.options(*more, interval=interval), env=CREDENTIALS, state=state)


@contextlib.contextmanager
def new_bucket(endpoint: Endpoint) -> Iterator[Bucket]:
    """A bucket of *endpoint*, and its proxy."""
    name = f"b-{secrets.token_hex(6)}"
    endpoint.make_bucket(name)
    with proxied(endpoint.url) as proxy:
        yield Bucket(endpoint, name, proxy)


def wait_published(mounted: Mounted, timeout_s: float = 30.0) -> dict[str, Any]:
    """Return the status once nothing of the mount is at risk any more."""
    end = time.monotonic() + timeout_s
    while True:
        status = mounted.control("status", {})
        if status["at_risk_bytes"] == 0 and status["at_risk_seconds"] == 0:
            answer: dict[str, Any] = status
            return answer
        assert time.monotonic() < end, f"still at risk after {timeout_s} s: {status}{mounted.log_tail()}"
        time.sleep(0.1)


def forget(mounted: Mounted) -> None:
    """Kill the daemon and take its dead mount away: the machine is gone, its state is left alone."""
    mounted.kill()
    mounted.detach()


def remount_refused(mounted: Mounted) -> subprocess.CompletedProcess[str]:
    """Try to mount; AssertionError when that works."""
    done = mounted.sessfs("mount", str(mounted.path), "--state", str(mounted.state), *mounted.options, check=False)
    assert done.returncode != 0, f"it was not refused: {done.stdout}{done.stderr}"
    assert not mounted.is_mounted()
    return done


def try_mount(mounted: Mounted) -> subprocess.CompletedProcess[str]:
    """`remount_refused` of what was not entered; cleans up. A state directory that was given is kept."""
    try:
        return remount_refused(mounted)
    finally:
        if mounted.is_mounted():
            mounted.umount()
        shutil.rmtree(mounted.path.parent)
