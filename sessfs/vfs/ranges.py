"""Arithmetic on byte ranges: lists of half-open [start, end), in order and disjoint. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Range = tuple[int, int]


class Part(NamedTuple):
    """A piece of a requested range that lies wholly inside, or wholly outside, the ranges it was held against."""

    start: int
    end: int
    inside: bool


def split(start: int, end: int, ranges: Sequence[Range]) -> Iterator[Part]:
    """[start, end) cut at the borders of *ranges*, in order; nothing where it is empty."""
    at = start
    for low, high in ranges:
        if high <= at:
            continue
        if low >= end or at >= end:
            break
        if low > at:
            yield Part(at, low, False)
            at = low
        stop = min(high, end)
        yield Part(at, stop, True)
        at = stop
    if at < end:
        yield Part(at, end, False)


def subtract(ranges: Sequence[Range], start: int, end: int) -> list[Range]:
    """*ranges* without the bytes of [start, end)."""
    if start >= end:
        return list(ranges)
    left = []
    for low, high in ranges:
        if low < start:
            left.append((low, min(high, start)))
        if high > end:
            left.append((max(low, end), high))
    return [(low, high) for low, high in left if low < high]


def total(ranges: Sequence[Range]) -> int:
    """Number of bytes in *ranges*."""
    return sum(high - low for low, high in ranges)
