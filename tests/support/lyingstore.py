"""A store that does not keep what it is sent, and answers as if it did."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING

from tests.support.memorystore import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Callable

    from sessfs.remote.objectstore import Capabilities


def flip(body: bytes) -> bytes:
    """One bit in the middle is another."""
    damaged = bytearray(body)
    damaged[len(body) // 2] ^= 1
    return bytes(damaged)


def cut_short(body: bytes) -> bytes:
    """The last byte is missing."""
    return body[:-1]


def frame(body: bytes) -> bytes:
    """As a proxy leaves it that takes chunked signing for content."""
    return b"%x;chunk-signature=%s\r\n" % (len(body), b"a" * 64) + body + b"\r\n"


def drop(body: bytes) -> None:
    """Nothing is kept."""


class LyingStore(MemoryStore):
    """Damages bodies of segments by *damage*, while that is set. *etags*: "kept" are MD5s of what it keeps, "sent" of
    what it was sent, "opaque" no checksum at all.
    """

    def __init__(self, etags: str) -> None:
        super().__init__()
        self.etags = etags
        self.damage: Callable[[bytes], bytes | None] | None = None
        self._sent: dict[str, bytes] = {}

    def capabilities(self) -> Capabilities:
        return replace(super().capabilities(), md5_etags=self.etags != "opaque")

    def etag(self, key: str) -> str:
        body = self._sent.get(key, b"") if self.etags == "sent" else self.objects.get(key, b"")
        if self.etags == "opaque":
            return hashlib.blake2b(body, digest_size=20).hexdigest()
        return hashlib.md5(body, usedforsecurity=False).hexdigest()

    def _put(self, key: str, body: bytes) -> str:
        self._sent[key] = body
        kept = self.damage(body) if self.damage is not None and "/segments/" in key else body
        if kept is None:
            self.objects.pop(key, None)
            return self.etag(key)
        return super()._put(key, kept)
