"""One use of each method of a store, for tests that make it fail: a store holding {"there": b"old"} goes in, and what
comes out is whether everything is as it must be.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sessfs.remote.objectstore import Blob

if TYPE_CHECKING:
    from sessfs.remote.objectstore import ObjectStore


async def _get(store: ObjectStore) -> bool:
    return (await store.get("there")).body == b"old"


async def _put(store: ObjectStore) -> bool:
    etag = await store.put("new", b"body")
    return await store.get("new") == Blob(b"body", etag)


async def _put_if_absent(store: ObjectStore) -> bool:
    etag = await store.put_if("new", b"body 1", None)
    blob = await store.get("new")
    return (blob.body, blob.etag) == (b"body 1", etag)


async def _put_if_etag(store: ObjectStore) -> bool:
    etag = await store.put_if("there", b"body 2", (await store.get("there")).etag)
    blob = await store.get("there")
    return (blob.body, blob.etag) == (b"body 2", etag)


async def _list(store: ObjectStore) -> bool:
    return [entry.key for entry in await store.list_page("")] == ["there"]


async def _delete(store: ObjectStore) -> bool:
    await store.delete(["there", "never"])
    return await store.list_page("") == []


ACTS = [
    ("get", _get),
    ("put", _put),
    ("put_if", _put_if_absent),
    ("put_if", _put_if_etag),
    ("list_page", _list),
    ("delete", _delete),
]
