"""Blocks that are used again."""

from __future__ import annotations

from sessfs.local.memory import SPARE_BLOCKS, Blocks, has_views


def test_blocks_are_used_again_once_no_view_is_left() -> None:
    blocks = Blocks(1000)
    first = blocks.take()
    assert len(first) == 1000
    part = memoryview(first)[10:20]
    assert has_views(first)
    blocks.give(first)
    assert blocks.take() is not first
    del part
    assert not has_views(first)
    assert blocks.take() is first
    assert len(first) == 1000


def test_blocks_keeps_few() -> None:
    blocks = Blocks(10)
    made = [blocks.take() for _ in range(SPARE_BLOCKS + 3)]
    for block in made:
        blocks.give(block)
    again = [blocks.take() for _ in made]
    assert sum(any(block is other for other in made) for block in again) == SPARE_BLOCKS
