"""Positions in a listing: the name's own, whatever else comes and goes."""

from __future__ import annotations

import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessfs.local import listings
from sessfs.local.db import Database, TableName
from sessfs.local.listings import POSITION_BITS, Listing, home_of
from sessfs.types import Ino

ONE = TableName("one")
names = st.binary(min_size=1, max_size=255).filter(lambda name: not {0, 47} & set(name))


def listing_of(found: dict[bytes, int]) -> Listing:
    return Listing([*found], [(ino, stat.S_IFREG) for ino in found.values()])


def entries(listing: Listing) -> dict[bytes, int]:
    assert len(listing) == len(listing.inos) == len(listing.kinds) == len(listing.positions)
    return dict(zip(listing.names, listing.inos, strict=True))


@given(names)
def test_home_is_between_the_dots_and_the_end(name: bytes) -> None:
    assert 2 < home_of(name) < 1 << POSITION_BITS
    assert listing_of({name: 5}).positions[0] == home_of(name)


def test_homes_do_not_change_from_one_version_to_the_next() -> None:
    """A program may keep a position while sessfs is upgraded."""
    assert [home_of(name) for name in (b"a", b"f3000", b"x" * 255)] == [784, 3511563682184, 90984161615328]


def test_names_that_differ_in_five_bytes_have_homes_of_their_own() -> None:
    for start in (b"", b"profile/" * 8):
        for end in (b"", b".tmp", b"y" * 200):
            found = {home_of(b"%sfile-%05d%s" % (start, number, end)) for number in range(20_000)}
            assert len(found) == 20_000


@pytest.mark.parametrize("prime", [1, 3, 1009, None])
@given(
    first=st.dictionaries(st.integers(0, 40), st.integers(1, 9)),
    acts=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 9)), max_size=60),
)
def test_names_stay_where_they_are_while_others_come_and_go(
    prime: int | None, first: dict[int, int], acts: list[tuple[int, int]]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if prime is not None:
            patch.setattr(listings, "_PRIME", prime)
        model = {b"name %d" % number: ino for number, ino in first.items()}
        listing = listing_of(model)
        for number, ino in acts:
            name, before = b"name %d" % number, dict(zip(listing.names, listing.positions, strict=True))
            if ino:
                listing.put(name, Ino(ino), stat.S_IFDIR)
                model[name] = ino
            else:
                listing.remove(name)
                model.pop(name, None)
            assert entries(listing) == model
            assert [*listing.positions] == sorted(set(listing.positions))
            now = dict(zip(listing.names, listing.positions, strict=True))
            assert {each: before[each] for each in before if each in now} == {
                each: now[each] for each in before if each in now
            }
            for index, position in enumerate(listing.positions):
                assert listing.after(position) == index + 1
                assert listing.after(position - 1) == index
        if prime is None:
            assert [*listing.positions] == [*listing_of(model).positions]


@given(
    layers=st.lists(st.dictionaries(st.integers(0, 30), st.binary(max_size=4) | st.none()), min_size=3, max_size=3),
    prefix=st.integers(0, 3),
)
def test_collect_gives_what_scan_does(
    layers: list[dict[int, bytes | None]], prefix: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    db = Database(tmp_path_factory.mktemp("db"), (ONE,), 1 << 20)
    for number, layer in enumerate(layers):
        for key, value in layer.items():
            whole = (key % 4).to_bytes(8, "big") + b"%d" % key
            if value is None:
                db.delete(ONE, whole)
            else:
                db.put(ONE, whole, value)
        if number < 2:
            batch = db.cut()
            if number == 0:
                assert db.write_batch(batch)
                db.settle(batch, durable=True)
    wanted = prefix.to_bytes(8, "big")
    assert db.collect(ONE, wanted) == dict(db.scan(ONE, wanted))
    db.close()
