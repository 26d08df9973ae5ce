"""Order by likeness: every chunk once, those that share pieces side by side."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from sessfs.format.chunk import FrameCodec
from sessfs.format.likeness import Likeness


@given(st.lists(st.binary(max_size=3000), max_size=12))
def test_order_has_every_index_once(chunks: list[bytes]) -> None:
    assert sorted(Likeness().order(chunks)) == list(range(len(chunks)))


@given(st.lists(st.binary(max_size=200), max_size=8))
def test_order_of_chunks_too_small_to_share_anything_is_as_given(chunks: list[bytes]) -> None:
    assert Likeness().order(chunks) == list(range(len(chunks)))


def test_order_puts_a_chunk_behind_the_one_it_shares_most_with() -> None:
    source = random.Random(1)
    blocks = [source.randbytes(8000) for _ in range(8)]
    first, second = b"".join(blocks[:4]), b"".join(blocks[4:])
    like_second = b"x" * 100 + b"".join(blocks[4:7]) + source.randbytes(3000)
    like_first = b"y" * 100 + b"".join(blocks[1:3])
    assert Likeness().order([first, second, like_second, like_first]) == [0, 3, 1, 2]


def test_order_of_what_is_like_a_follower_keeps_the_leader() -> None:
    source = random.Random(2)
    a, b, c, other = (source.randbytes(8000) for _ in range(4))
    assert Likeness().order([a + b, other, b + c, c + source.randbytes(4000)]) == [0, 2, 3, 1]


def test_alike_chunks_in_one_frame_are_smaller() -> None:
    source = random.Random(3)
    rows = [source.randbytes(300) for _ in range(800)]
    kept = [row for row in rows if source.random() > 0.05]
    noise = [source.randbytes(32_000) for _ in range(40)]
    first = [b"".join(rows[at : at + 100]) for at in range(0, 800, 100)]
    second = [b"".join(kept[at : at + 100]) for at in range(0, len(kept), 100)]
    chunks = [*first, *noise, *second]

    def stored(order: list[int]) -> int:
        codec = FrameCodec(3)
        return sum(len(codec.encode([chunks[i] for i in order[at : at + 16]])) for at in range(0, len(order), 16))

    assert stored(Likeness().order(chunks)) < 0.93 * stored(list(range(len(chunks))))
