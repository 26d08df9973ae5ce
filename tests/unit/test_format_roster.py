"""The roster: names of sessions, sealed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessfs.errors import RemoteCorrupt, RemoteUnsuitable
from sessfs.format import wire
from sessfs.format.roster import ROSTER_CONTEXT, ROSTER_MAGIC, ROSTER_VERSION, Roster, decode_roster, encode_roster
from tests.support.formats import ENVELOPE_IDS, ENVELOPES, PLAIN

if TYPE_CHECKING:
    from sessfs.format.envelope import Envelope

NAMES = st.binary(min_size=1, max_size=255).filter(wire.is_session_name)


@given(names=st.sets(NAMES, max_size=50))
def test_roster_round_trip(names: set[bytes]) -> None:
    for envelope in ENVELOPES:
        assert decode_roster(encode_roster(names, envelope), envelope) == names


@pytest.mark.parametrize("envelope", ENVELOPES, ids=ENVELOPE_IDS)
def test_every_damage_of_a_roster_is_found(envelope: Envelope) -> None:
    body = encode_roster([b"anna", b"."], envelope)
    for at in range(len(body)):
        # A version that only a newer sessfs knows can't be told from damage.
        with pytest.raises((RemoteCorrupt, RemoteUnsuitable), match="roster"):
            decode_roster(body[:at] + bytes([body[at] ^ 0x10]) + body[at + 1 :], envelope)
        with pytest.raises(RemoteCorrupt, match="roster"):
            decode_roster(body[:at], envelope)


@pytest.mark.parametrize("name", [b"..", b"a/b", b"a\0", b"/"], ids=repr)
def test_roster_with_what_can_be_no_session_is_damage(name: bytes) -> None:
    plain = wire.compress(msgspec.msgpack.encode(Roster([b"anna", name])))
    body = wire.put_head(ROSTER_MAGIC, ROSTER_VERSION, PLAIN.seal(plain, ROSTER_CONTEXT))
    with pytest.raises(RemoteCorrupt, match="names a session"):
        decode_roster(body, PLAIN)
