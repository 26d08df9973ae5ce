"""Open the repository behind `--remote`: its format, its keys, and what a state directory remembers of it."""

from __future__ import annotations

import logging
import os
import secrets
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from sessfs.errors import (
    RemoteConflict,
    RemoteDenied,
    RemoteMissing,
    RemoteUnavailable,
    RemoteUnsuitable,
    UsageError,
)
from sessfs.format.chunk import HASH_KEY_BYTES
from sessfs.format.repository import FORMAT_KEY, decode_format, encode_format, new_format, open_format
from sessfs.local.state import write_durably
from sessfs.remote.recovery import refuse_lost_format
from sessfs.remote.retrying import RetryPolicy
from sessfs.remote.urls import Remote, RemoteSettings, open_remote

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from sessfs.config import Settings
    from sessfs.format.envelope import Envelope

log = logging.getLogger(__name__)
START_DEADLINE_S = 20.0
RETRY_CAP_MIN_S = 1.0
ANSWER_DEADLINE_S = 20.0
"""Who waits in a system call gets EIO about this long after the remote stopped answering: such a wait can't be ended by
a signal, and too many of them would leave nobody to serve the rest.
"""


class Repository:
    """An opened repository: the store, how its objects are sealed, and the key of its chunk ids."""

    def __init__(self, remote: Remote, envelope: Envelope, hash_key: bytes, *, is_new_here: bool) -> None:
        self.is_new_here = is_new_here
        """True when this state had never seen the repository before."""
        self.remote = remote
        self.envelope = envelope
        self.hash_key = hash_key


def remote_settings(settings: Settings) -> RemoteSettings:
    """What the store needs of the settings; there must be a remote."""
    assert settings.remote is not None
    return RemoteSettings(
        url=settings.remote,
        endpoint_url=settings.endpoint_url,
        region=settings.region,
        addressing="path" if settings.path_style else "auto",
        upload_limit=settings.upload_limit_bytes_per_s,
        single_node=settings.single_node,
    )


def read_secret(settings: Settings) -> bytes | None:
    """The key given by --key-file or SESSFS_KEY, None when none was. Raises UsageError when it can't be read."""
    if settings.key_file is not None:
        try:
            return settings.key_file.read_bytes().strip()
        except OSError as exc:
            raise UsageError(f"the key file {settings.key_file} can't be read: {exc.strerror}") from exc
    text = os.environ.get("SESSFS_KEY")
    return text.encode() if text else None


async def open_repository(remote: Remote, secret: bytes | None, state: CachedState, deadline_s: float) -> Repository:
    """Read PREFIX/format, or make it when the remote is new; where it can't be read, what the state remembers of it.

    Raises RemoteUnavailable or RemoteDenied when it can't be read and nothing is remembered, KeyWrong, RemoteCorrupt
    when it is missing and other objects of a repository are not, and
    RemoteUnsuitable when the state belongs to another repository, or to one that is not there, or a new remote has no
    conditional writes.
    """
    store = remote.within(deadline_s)
    try:
        encoded = (await store.get(FORMAT_KEY)).body
    except RemoteMissing as exc:
        await refuse_lost_format(store)
        if state.format is not None:
            raise RemoteUnsuitable(
                f"there is no repository at {remote.url}, but this state was used with one: check --remote; "
                "for a new repository mount with an empty --state"
            ) from exc
        await remote.require_conditional_writes(deadline_s)
        encoded = encode_format(new_format(state.hash_key or secrets.token_bytes(HASH_KEY_BYTES), secret))
        try:
            await store.put_if(FORMAT_KEY, encoded, None)
        except RemoteConflict:
            encoded = (await store.get(FORMAT_KEY)).body
    except (RemoteUnavailable, RemoteDenied) as exc:
        if state.format is None:
            raise
        log.warning("the remote can't be used, going on with what is here: %s", exc)
        encoded = state.format
    hash_key, envelope = open_format(decode_format(encoded), secret)
    if state.hash_key is not None and state.hash_key != hash_key:
        raise RemoteUnsuitable(
            "this state belongs to another remote (its chunk ids have another key): mount with an empty --state, or "
            "with the remote it was used with"
        )
    is_new_here = state.format is None
    state.remember(encoded, hash_key)
    return Repository(remote, envelope, hash_key, is_new_here=is_new_here)


class CachedState:
    """What a state directory remembers of the repository and of the node it is: small files beside the databases."""

    def __init__(self, state_dir: Path, hash_key: bytes | None) -> None:
        self._file = state_dir / "repository"
        self._node = state_dir / "node"
        self.hash_key = hash_key
        self.format = self._file.read_bytes() if self._file.exists() else None

    def remember(self, encoded: bytes, hash_key: bytes) -> None:
        """Keep the repository's format."""
        if encoded != self.format:
            write_durably(self._file, encoded)
            self.format = encoded
        self.hash_key = hash_key

    def node_name(self) -> str:
        """The name of the node that this state directory is, made on first use."""
        if not self._node.exists():
            host = "".join(c for c in socket.gethostname() if c.isascii() and (c.isalnum() or c == "-"))[:40]
            write_durably(self._node, f"{host or 'node'}-{secrets.token_hex(6)}".encode())
        return self._node.read_text()


@asynccontextmanager
async def opened_repository(settings: Settings, state: CachedState) -> AsyncIterator[Repository | None]:
    """The repository of the settings' remote, None when there is none. Errors as `open_repository`; UsageError for a
    state that was used with a remote and is to be used without: what is not here would seem to be empty.
    """
    if settings.remote is None:
        if state.format is not None:
            raise UsageError(
                f"{settings.state_dir} was used with a remote, which may have sessions that are not here: give it by "
                "--remote URL (or in /etc/fstab or /etc/sessfs.toml), or mount with another --state"
            )
        yield None
        return
    # The longest pause between two tries: an interval, so that all is sent within two of the remote's return.
    policy = RetryPolicy(cap_s=min(max(settings.interval_s, RETRY_CAP_MIN_S), RetryPolicy().cap_s))
    async with open_remote(remote_settings(settings), policy) as remote:
        yield await open_repository(remote, read_secret(settings), state, START_DEADLINE_S)
