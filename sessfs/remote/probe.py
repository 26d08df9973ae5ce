"""Find out what an endpoint really does, by trying: documentation and version numbers do not tell.

Some ignore If-None-Match or If-Match and overwrite, some refuse the header, some check it for objects that exist but
not for absent ones. A lease that trusts any of them loses data, so only all four answers together count.
"""

from __future__ import annotations

import secrets
from dataclasses import replace
from typing import TYPE_CHECKING

from sessfs.errors import RemoteConflict, RemoteMissing, RemoteUnsuitable
from sessfs.remote.parallel import for_each, over

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sessfs.remote.objectstore import Capabilities, ObjectStore

PROBE_PREFIX = "probe/"


async def probe(store: ObjectStore) -> Capabilities:
    """Try reading, listing, conditional writes and deleting under `probe/`, clean up, and say what was found.

    Sends a dozen small requests, of which six at most wait for each other. Several nodes may probe at once. Raises
    RemoteUnsuitable if the endpoint does not give back what it was given or its listing misses it; RemoteUnavailable
    and RemoteDenied as any request. Probe through a Retrying store if a passing fault should not matter.
    """
    name = f"{PROBE_PREFIX}{secrets.token_hex(8)}"
    first, second, third = (f"{name}-{number}" for number in (1, 2, 3))
    conditional = False

    async def try_conditions() -> None:
        nonlocal conditional
        conditional = await _conditional_writes(store, first, second)

    try:
        await _together(try_conditions, lambda: _read_back(store, third))
    finally:
        await store.delete([first, second, third])
    await _check_deleted(store, third)
    return replace(store.capabilities(), conditional_writes=conditional)


async def _together(*works: Callable[[], Awaitable[None]]) -> None:
    await for_each(over(works), lambda work: work(), len(works))


async def _conditional_writes(store: ObjectStore, first: str, second: str) -> bool:
    """Whether put_if is compare-and-swap."""
    refused: list[bool] = []

    async def attempt(key: str, etag: str | None) -> None:
        refused.append(await _refused(store, key, etag))

    try:
        etag = await store.put_if(first, secrets.token_bytes(16), None)
        await _together(
            lambda: attempt(first, None), lambda: attempt(first, _other(etag)), lambda: attempt(second, etag)
        )
        if not all(refused):
            return False
        changed = await store.put_if(first, secrets.token_bytes(16), etag)
        return await _refused(store, first, etag) and changed != etag
    except (RemoteUnsuitable, RemoteConflict):
        # The header is not known there, or the write that had to succeed was refused.
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


async def _read_back(store: ObjectStore, key: str) -> None:
    body = secrets.token_bytes(64)
    etag = await store.put(key, body)
    is_same: list[bool] = []

    async def whole() -> None:
        found = await store.get(key)
        is_same.append(found.body == body and found.etag == etag)

    async def part() -> None:
        is_same.append((await store.get(key, 16, 32)).body == body[16:48])

    async def listed() -> None:
        is_same.append([entry.key for entry in await store.list_page(key)] == [key])

    await _together(whole, part, listed)
    if not all(is_same):
        where = store.capabilities()
        raise RemoteUnsuitable(
            f"{where.endpoint} at {where.location} does not give back what was just written there; "
            "use another endpoint, or remove the cache or proxy before it"
        )


async def _check_deleted(store: ObjectStore, key: str) -> None:
    where = store.capabilities()
    try:
        await store.get(key)
    except RemoteMissing:
        return
    raise RemoteUnsuitable(
        f"{where.endpoint} at {where.location} still has {key} after it was deleted; use another endpoint"
    )
