"""From `--remote URL` to a store that is ready to use: s3://bucket/prefix or file:///dir."""

from __future__ import annotations

import importlib
import os
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast
from urllib.parse import unquote, urlsplit

import trio

from sessfs.errors import RemoteUnsuitable, UsageError
from sessfs.remote.directory import DirectoryStore
from sessfs.remote.objectstore import Capabilities, Limited, ObjectStore
from sessfs.remote.probe import probe
from sessfs.remote.retrying import Health, HealthReport, Retrying, RetryPolicy
from sessfs.remote.single_node import SingleNodeStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ADDRESSING = ("auto", "path", "virtual")


@dataclass(frozen=True, slots=True)
class S3Location:
    """A bucket, and the prefix of all keys in it, without slashes at its ends."""

    bucket: str
    prefix: str


@dataclass(frozen=True, slots=True)
class DirectoryLocation:
    """An absolute path."""

    path: str


@dataclass(frozen=True, slots=True)
class RemoteSettings:
    """What the command line says of the remote."""

    url: str
    endpoint_url: str | None = None
    region: str | None = None
    addressing: str = "auto"
    upload_limit: float | None = None
    """Bytes per second, None for no limit."""
    connections: int = 16
    uploads: int = 8
    """Of the connections, at most so many for uploads; less than *connections*, so that reads find one."""
    connect_timeout_s: float = 10.0
    read_timeout_s: float = 30.0
    in_flight_bytes: int = 64 << 20
    """Bound on the bodies being uploaded at once, and again on those being read."""
    single_node: bool = False
    """The operator vouches that one node at a time writes, so that the endpoint need not have conditional writes."""


def parse_remote(url: str) -> S3Location | DirectoryLocation:
    """What *url* names. Raises UsageError, which says what is wrong with it."""
    parts = urlsplit(url)
    if parts.scheme == "s3" and not (parts.query or parts.fragment or "@" in parts.netloc or ":" in parts.netloc):
        prefix = parts.path.removeprefix("/").removesuffix("/")
        if len(parts.netloc) < 3:
            raise UsageError(f"--remote {url} names no bucket (at least 3 characters): write s3://BUCKET/PREFIX")
        if any(part in ("", ".", "..") for part in prefix.split("/")) and prefix:
            raise UsageError(f"--remote {url} has an empty or dotted part in its prefix: write s3://BUCKET/PREFIX")
        return S3Location(parts.netloc, prefix)
    if parts.scheme == "file" and parts.netloc in ("", "localhost") and not (parts.query or parts.fragment):
        path = unquote(parts.path)
        if os.path.isabs(path):
            return DirectoryLocation(os.path.normpath(path))
    raise UsageError(f"--remote {url} can't be used: write s3://BUCKET/PREFIX or file:///ABSOLUTE/DIRECTORY")


class Remote:
    """The opened remote: `store` for work that may wait, `within` for what may not, and what `status` shows."""

    def __init__(self, settings: RemoteSettings, store: Retrying, single_node: SingleNodeStore | None) -> None:
        """*single_node* is below *store*, where the settings say so."""
        self._settings = settings
        self._store = store
        self._single_node = single_node
        self._capabilities: Capabilities | None = None

    @property
    def url(self) -> str:
        """As it was given."""
        return self._settings.url

    @property
    def store(self) -> ObjectStore:
        """Retries without end; cancel it to give up."""
        return self._store

    def within(self, deadline_s: float) -> ObjectStore:
        """The same store, whose calls raise RemoteUnavailable after *deadline_s* seconds of trying."""
        return self._store.within(deadline_s)

    async def probe(self, deadline_s: float | None = None) -> Capabilities:
        """Try out the endpoint once, and remember what was found; later calls return that without a request.

        Retries until *deadline_s* for each request, None for ever. Errors as sessfs.remote.probe.probe.
        """
        if self._capabilities is None:
            self._capabilities = await probe(self._store if deadline_s is None else self.within(deadline_s))
            if self._single_node is not None and not self._capabilities.conditional_writes:
                self._single_node.stand_in()
        return self._capabilities

    async def require_conditional_writes(self, deadline_s: float | None = None) -> None:
        """To be called before the first conditional write. Raises RemoteUnsuitable where nodes can't be kept apart and
        the operator does not vouch for it; else as `probe`.
        """
        found = await self.probe(deadline_s)
        if not found.conditional_writes and self._single_node is None:
            raise RemoteUnsuitable(
                f"{found.location or self._settings.url} has no conditional writes, so two mounts could not be kept "
                "apart: if this is the only one, say so with --single-node"
            )

    def capabilities(self) -> Capabilities:
        """What is known of the endpoint: as probed, if it was."""
        return self._capabilities or self._store.capabilities()

    def health(self) -> HealthReport:
        """Whether it answers."""
        return self._store.health.report()

    async def wait_answer(self) -> None:
        """Return when it has answered anything after this call."""
        await self._store.health.wait_answer()


@asynccontextmanager
async def open_remote(settings: RemoteSettings, policy: RetryPolicy | None = None) -> AsyncIterator[Remote]:
    """Build the stack: Retrying(Limited(S3Store or DirectoryStore)), with a SingleNodeStore below Limited if the
    settings say so. Sends no request, so it works without a network.

    Raises UsageError for a URL or setting that can't be used, RemoteDenied or RemoteUnsuitable if the directory or the
    AWS configuration can't.
    """
    health = Health()
    base = await _open_base(settings, health)
    single_node = SingleNodeStore(base) if settings.single_node else None
    limited = Limited(
        single_node or base,
        requests=settings.connections,
        uploads=settings.uploads,
        upload_limit=settings.upload_limit,
    )
    try:
        yield Remote(settings, Retrying(limited, policy, health), single_node)
    finally:
        with trio.CancelScope(shield=True):
            await base.aclose()


async def _open_base(settings: RemoteSettings, health: Health) -> ObjectStore:
    location = parse_remote(settings.url)
    if settings.addressing not in ADDRESSING:
        raise UsageError(f"addressing {settings.addressing!r} can't be used: write one of {', '.join(ADDRESSING)}")
    if isinstance(location, DirectoryLocation):
        return await trio.to_thread.run_sync(DirectoryStore, location.path)
    # Not a plain import: botocore costs a mount without S3 20 MB of memory and a command 0.2 s: only this branch pays.
    s3 = await trio.to_thread.run_sync(importlib.import_module, "sessfs.remote.s3")
    opened = await s3.open_s3(
        s3.S3Settings(
            bucket=location.bucket,
            prefix=location.prefix,
            endpoint_url=settings.endpoint_url,
            region=settings.region,
            addressing=settings.addressing,
            connections=settings.connections,
            connect_timeout_s=settings.connect_timeout_s,
            read_timeout_s=settings.read_timeout_s,
            upload_bytes=settings.in_flight_bytes,
            download_bytes=settings.in_flight_bytes,
        ),
        health,
    )
    return cast("ObjectStore", opened)
