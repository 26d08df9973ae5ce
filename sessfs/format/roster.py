"""The roster: which sessions were released, so that a session whose own object is lost is not taken for removed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from sessfs.errors import RemoteCorrupt
from sessfs.format import wire

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sessfs.format.envelope import Envelope

ROSTER_KEY = "roster"
ROSTER_MAGIC = b"SFSROS"
ROSTER_VERSION = 1
ROSTER_CONTEXT = b"roster"


class Roster(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Names of all sessions that have an object of their own as of the last release, ascending."""

    names: list[wire.SessionName]


def encode_roster(names: Iterable[bytes], envelope: Envelope) -> bytes:
    """The bytes of PREFIX/roster."""
    plain = wire.compress(msgspec.msgpack.encode(Roster(sorted(names))))
    return wire.put_head(ROSTER_MAGIC, ROSTER_VERSION, envelope.seal(plain, ROSTER_CONTEXT))


def decode_roster(encoded: bytes, envelope: Envelope) -> frozenset[bytes]:
    """Inverse of `encode_roster`. Raises RemoteCorrupt, RemoteUnsuitable."""
    sealed = wire.take_head(encoded, ROSTER_MAGIC, ROSTER_VERSION, ROSTER_KEY)
    plain = wire.decompress(envelope.open(sealed, ROSTER_CONTEXT), ROSTER_KEY)
    names = frozenset(wire.decode_msgpack(plain, Roster, ROSTER_KEY).names)
    # One by one, 100,000 of them would take long.
    together = b" ".join(names)
    if b"/" in together or b"\0" in together or b".." in names:
        wrong = next(name for name in names if not wire.is_session_name(name))
        raise RemoteCorrupt(f"{ROSTER_KEY} names a session {wrong!r}")
    return names
