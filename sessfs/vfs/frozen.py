"""Hot files that keep their bytes until they are sealed for a snapshot, and how many go to the seal process at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from sessfs.vfs.sealjobs import iter_groups

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sessfs.types import ChunkId
    from sessfs.vfs.sealjobs import SealFile

JOB_BYTES = 64 << 20
JOB_FILES = 256


class FrozenFile(NamedTuple):
    """A hot file that a snapshot is to be made of, and its number."""

    file: SealFile
    number: int
    kept: tuple[ChunkId, ...]
    """Chunks of the content as it was before, pinned until the file is sealed."""
    ticket: int
    """For `Retirement.thaw`."""


def iter_jobs(frozen: Sequence[FrozenFile]) -> Iterator[list[FrozenFile]]:
    """Groups of files that one request may hold."""
    return iter_groups(frozen, lambda item: item.file.spans[-1].end, JOB_BYTES, JOB_FILES)
