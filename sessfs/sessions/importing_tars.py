"""A tar, read forwards from its first byte to its last: whole, or an error.

Python's tarfile takes a damaged header for the end, reads headers of any size into memory, and stops before the
checksums that end a compressed stream. Here none of that happens.
"""

from __future__ import annotations

import tarfile
from functools import partial
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import IO, BinaryIO, Self

MAX_HEADER_BYTES = 1 << 20
"""What stands before one member, long names, attributes and maps of holes included."""
COPY_BYTES = 1 << 20


def read_tar(
    stream: IO[bytes], count: Callable[[int], None]
) -> Iterator[tuple[tarfile.TarInfo, Callable[[], IO[bytes]]]]:
    """The members of the tar that *stream* holds, each with what opens the content of a regular file, which is gone
    when the next member is asked for. *count* is told how many bytes were read so far, and may raise. Once the iterator
    has ended, the tar was whole, and the stream is at its end. Raises tarfile.TarError when it is not, other errors of
    tarfile when headers make no sense, and whatever *stream* raises.
    """
    blocks = _Blocks(stream, count)
    try:
        with _Tar(
            fileobj=cast("BinaryIO", blocks), tarinfo=_Member, encoding="utf-8", errors="surrogateescape"
        ) as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()
                if _size_of(archive.pax_headers) > MAX_HEADER_BYTES:
                    raise tarfile.ReadError(f"the headers for all members are longer than {MAX_HEADER_BYTES} bytes")
                if member.size < 0:
                    raise tarfile.ReadError("a header makes no sense: its content has a negative size")
                blocks.end_header()
                yield member, partial(_open, archive, member)
                blocks.begin_header()
    except _End:
        blocks.check_end()
    except RecursionError as exc:
        # tarfile goes deeper by each header of the same member.
        raise tarfile.ReadError("one member has hundreds of headers") from exc


def _open(archive: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    content = archive.extractfile(member)
    assert content is not None
    return content


def _size_of(headers: dict[str, str]) -> int:
    return sum(len(key) + len(value) for key, value in headers.items())


class _End(tarfile.HeaderError):
    """A block of zeros is where a header may be. tarfile passes on what it does not know."""


class _Member(tarfile.TarInfo):
    """Only a block of zeros ends the tar."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """See TarInfo. Raises ReadError, or _End."""
        if len(buf) != tarfile.BLOCKSIZE:
            raise tarfile.ReadError("it is cut short: the two blocks of zeros that end a tar are missing")
        if not any(buf):
            raise _End("zeros")
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as exc:
            raise tarfile.ReadError(f"a header has a {exc}") from exc

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> Self:
        """See TarInfo. Raises ReadError, or _End."""
        try:
            return super().fromtarfile(tarfile_)
        except _End:
            raise
        except tarfile.HeaderError as exc:
            # Of several headers of one member, the later ones.
            raise tarfile.ReadError(f"a header makes no sense: {exc}") from exc


class _Tar(tarfile.TarFile):
    members: list[tarfile.TarInfo]
    """All that were read, for a seeking reader: to be emptied."""
    pax_headers: dict[str, str]
    """The global ones so far."""


class _Blocks:
    """The stream as tarfile reads it: forwards, and as many bytes as it asks for unless the stream ends before."""

    def __init__(self, stream: IO[bytes], count: Callable[[int], None]) -> None:
        self._stream = stream
        self._count = count
        self._at = 0
        self._header_left: int | None = MAX_HEADER_BYTES

    def begin_header(self) -> None:
        """What is read from here on are headers of one member."""
        self._header_left = MAX_HEADER_BYTES

    def end_header(self) -> None:
        """What is read from here on is content."""
        self._header_left = None

    def read(self, size: int) -> bytes:
        """See above. Raises ReadError before it reads too long a header."""
        if self._header_left is not None:
            if not 0 <= size <= self._header_left:
                raise tarfile.ReadError(f"the headers of one member are longer than {MAX_HEADER_BYTES} bytes")
            self._header_left -= size
        parts = []
        while size > 0 and (part := self._read(size)):
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def _read(self, size: int) -> bytes:
        found = self._stream.read(min(size, COPY_BYTES))
        self._at += len(found)
        self._count(self._at)
        return found

    def tell(self) -> int:
        """How many bytes were read."""
        return self._at

    def seek(self, to: int) -> None:
        """Skip what is before *to*. Raises ReadError when the stream ends before, or was read further."""
        if to < self._at:
            raise tarfile.ReadError("a header makes no sense: its content lies before it")
        while self._at < to:
            if not self._read(to - self._at):
                raise tarfile.ReadError("it is cut short: the content of a member is missing")

    def check_end(self) -> None:
        """After the first block of zeros: raise ReadError unless another one and nothing but zeros follow."""
        n_zeros = 0
        while block := self._read(COPY_BYTES):
            if block.count(0) != len(block):
                raise tarfile.ReadError("something follows its end: a header is damaged, or it is several tars in one")
            n_zeros += len(block)
        if n_zeros < tarfile.BLOCKSIZE:
            raise tarfile.ReadError("it is cut short: one of the two blocks of zeros that end a tar is missing")
