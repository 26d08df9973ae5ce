"""Seal processes that behave otherwise than they should: `python -m tests.support.sealprocesses PID HOW [WHAT]`.

HOW is what is wrong:

- `outlives`: it does not end with its daemon;
- `forgets`: nor does it know that its daemon is gone;
- `breaks-at-file INODE`: it ends when it is to seal that file;
- `breaks-at-chunk ID`: it raises what nobody has thought of when it is to drop that chunk.
"""

from __future__ import annotations

import os
import struct
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sessfs.local.chunkwriter import ChunkWriter
from sessfs.vfs import sealworker
from sessfs.vfs.children import Child

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sessfs.types import ChunkId
    from sessfs.vfs.sealjobs import SealedFile, SealFile

ROOT = Path(__file__).parents[2]


def child(*how: str) -> Callable[..., Child]:
    """What takes the place of Child to start such a process."""

    def start(module: str, **options: Any) -> Child:
        return Child("tests.support.sealprocesses", *how, **options)

    return start


def _outlive(knows: bool) -> None:
    def alive(parent: int) -> Callable[[], bool]:
        return lambda: not knows or os.getppid() == parent

    sealworker.end_with_parent = alive


def _break_at_file(ino: int) -> None:
    seal = sealworker.SealProcess._seal

    def seal_or_end(self: sealworker.SealProcess, file: SealFile) -> SealedFile:
        if file.ino == ino:
            os._exit(1)
        return seal(self, file)

    sealworker.SealProcess._seal = seal_or_end  # type: ignore[method-assign]


def _break_at_chunk(bad: bytes) -> None:
    drop = ChunkWriter.drop

    def drop_or_raise(self: ChunkWriter, ids: Iterable[ChunkId]) -> None:
        listed = list(ids)
        if bad in listed:
            struct.unpack("<Q", b"short")
        drop(self, listed)

    ChunkWriter.drop = drop_or_raise  # type: ignore[method-assign]


def main() -> None:
    """Be one."""
    how = sys.argv[2]
    if how in ("outlives", "forgets"):
        _outlive(knows=how == "outlives")
    elif how == "breaks-at-file":
        _break_at_file(int(sys.argv[3]))
    elif how == "breaks-at-chunk":
        _break_at_chunk(bytes.fromhex(sys.argv[3]))
    sealworker.main()


if __name__ == "__main__":
    main()
