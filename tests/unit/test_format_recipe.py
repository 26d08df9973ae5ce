"""Recipes: extents come back, are found at any offset, and are sliced on their boundaries."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessfs.errors import StoreCorrupt
from sessfs.format.recipe import EXTENT_BYTES, HOLE_MAX_BYTES, Extent, Recipe, encode_extent, encode_hole
from sessfs.types import HOLE, ChunkId
from tests.support.formats import chunk_ids

parts = st.lists(st.tuples(st.one_of(chunk_ids, st.just(HOLE)), st.integers(1, 5000)), max_size=12)


def _recipe(pieces: list[tuple[ChunkId, int]]) -> Recipe:
    return Recipe(b"".join(encode_extent(chunk, length) for chunk, length in pieces))


def _extents(pieces: list[tuple[ChunkId, int]]) -> list[Extent]:
    """The same by plain addition."""
    found, start = [], 0
    for chunk, length in pieces:
        found.append(Extent(start, start + length, chunk))
        start += length
    return found


@given(parts)
def test_extents_come_back(pieces: list[tuple[ChunkId, int]]) -> None:
    recipe, expected = _recipe(pieces), _extents(pieces)
    assert list(recipe) == expected
    assert [recipe.at(index) for index in range(len(recipe))] == expected
    assert recipe.size == sum(length for _, length in pieces)
    assert recipe.allocated == sum(length for chunk, length in pieces if chunk != HOLE)
    assert list(recipe.iter_chunks()) == [chunk for chunk, _ in pieces if chunk != HOLE]
    assert [extent.is_hole for extent in recipe] == [chunk == HOLE for chunk, _ in pieces]


@given(parts, st.integers(0, 60_000), st.integers(1, 60_000))
def test_overlapping_extents_are_found(pieces: list[tuple[ChunkId, int]], start: int, length: int) -> None:
    end = start + length
    expected = [extent for extent in _extents(pieces) if extent.start < end and extent.end > start]
    assert list(_recipe(pieces).overlapping(start, end)) == expected


@given(parts, st.data())
def test_slices_lie_on_boundaries(pieces: list[tuple[ChunkId, int]], data: st.DataObject) -> None:
    recipe = _recipe(pieces)
    bounds = [0, *(extent.end for extent in recipe)]
    first = data.draw(st.integers(0, len(bounds) - 1))
    last = data.draw(st.integers(first, len(bounds) - 1))
    packed = recipe.slice_packed(bounds[first], bounds[last])
    assert packed == recipe.packed[first * EXTENT_BYTES : last * EXTENT_BYTES]


@given(parts, st.integers(0, 60_000), st.integers(0, 60_000))
def test_slice_off_the_boundaries_is_a_bug(pieces: list[tuple[ChunkId, int]], start: int, end: int) -> None:
    recipe = _recipe(pieces)
    bounds = {0, *(extent.end for extent in recipe)}
    if start not in bounds or end not in bounds:
        with pytest.raises(ValueError, match="boundaries"):
            recipe.slice_packed(start, end)


@given(st.binary(max_size=100))
def test_only_whole_extents_are_a_recipe(packed: bytes) -> None:
    if len(packed) % EXTENT_BYTES == 0:
        assert Recipe(packed).packed == packed
    else:
        with pytest.raises(StoreCorrupt, match=f"recipe of {len(packed)} bytes"):
            Recipe(packed)


@pytest.mark.parametrize(
    ("length", "n_extents"),
    [(0, 0), (1, 1), (HOLE_MAX_BYTES, 1), (HOLE_MAX_BYTES + 1, 2), (3 * HOLE_MAX_BYTES, 3), (1 << 40, 257)],
)
def test_holes_of_any_length(length: int, n_extents: int) -> None:
    recipe = Recipe(encode_hole(length))
    assert (recipe.size, recipe.allocated, len(recipe)) == (length, 0, n_extents)
    assert all(extent.is_hole and extent.end > extent.start for extent in recipe)
