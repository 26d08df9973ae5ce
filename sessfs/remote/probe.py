"""Find out what an endpoint really does, by trying: documentation and version numbers do not tell.

Some ignore If-None-Match or If-Match and overwrite, some refuse the header, some check it for objects that exist but
not for absent ones. A lease that trusts any of them loses data, so only all four answers together count.
"""

from __future__ import annotations

import secrets
from dataclasses import replace
from typing import TYPE_CHECKING

from sessfs.errors import RemoteConflict, RemoteMissing, RemoteUnsuitable

if TYPE_CHECKING:
    from sessfs.remote.objectstore import Capabilities, ObjectStore

PROBE_PREFIX = "probe/"


async def probe(store: ObjectStore) -> Capabilities:
    """Try reading, listing, conditional writes and deleting under `probe/`, clean up, and say what was found.

    Sends about nine small requests. Several nodes may probe at once. Raises RemoteUnsuitable if the endpoint does not
    give back what it was given or its listing misses it; RemoteUnavailable and RemoteDenied as any request. Probe
    through a Retrying store if a passing fault should not matter.
    """
    name = f"{PROBE_PREFIX}{secrets.token_hex(8)}"
    first, second = f"{name}-1", f"{name}-2"
    try:
        conditional = await _conditional_writes(store, first, second)
        await _read_back(store, first, second)
    finally:
        await store.delete([first, second])
    await _check_deleted(store, first)
    return replace(store.capabilities(), conditional_writes=conditional)


async def _conditional_writes(store: ObjectStore, first: str, second: str) -> bool:
    """Whether put_if is compare-and-swap; on return an object is at *first*."""
    try:
        etag = await store.put_if(first, secrets.token_bytes(16), None)
        kept = (
            await _refused(store, first, None)
            and await _refused(store, first, _other(etag))
            and await _refused(store, second, etag)
        )
        if not kept:
            return False
        changed = await store.put_if(first, secrets.token_bytes(16), etag)
        return await _refused(store, first, etag) and changed != etag
    except (RemoteUnsuitable, RemoteConflict):
        # The header is not known there, or the write that had to succeed was refused.
        await store.put(first, secrets.token_bytes(16))
        return False


async def _refused(store: ObjectStore, key: str, etag: str | None) -> bool:
    """Whether a conditional write that must not happen is refused."""
    try:
        await store.put_if(key, secrets.token_bytes(16), etag)
    except RemoteConflict:
        return True
    return False


def _other(etag: str) -> str:
    """An etag of the same form that is not *etag*."""
    last = "0" if etag[-1] != "0" else "1"
    return etag[:-1] + last


async def _read_back(store: ObjectStore, first: str, second: str) -> None:
    body = secrets.token_bytes(64)
    etag = await store.put(first, body)
    whole = await store.get(first)
    part = await store.get(first, 16, 32)
    listed = [entry.key for entry in await store.list_page(first)]
    if whole.body != body or part.body != body[16:48] or whole.etag != etag or listed != [first]:
        where = store.capabilities()
        raise RemoteUnsuitable(
            f"{where.endpoint} at {where.location} does not give back what was just written there; "
            "use another endpoint, or remove the cache or proxy before it"
        )
    await store.put(second, body)


async def _check_deleted(store: ObjectStore, key: str) -> None:
    where = store.capabilities()
    try:
        await store.get(key)
    except RemoteMissing:
        return
    raise RemoteUnsuitable(
        f"{where.endpoint} at {where.location} still has {key} after it was deleted; use another endpoint"
    )
