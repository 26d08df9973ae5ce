"""LevelDB's formats, decoded as far as telling whether a database is whole needs it. Pure.

After LevelDB's own doc/log_format.md, doc/table_format.md, db/version_edit.cc, db/write_batch.cc and table/format.cc,
and for blocks, which may be compressed, Snappy's format_description.txt.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import google_crc32c
import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

BLOCK_BYTES = 32_768
HEADER_BYTES = 7
FOOTER_BYTES = 48
TABLE_MAGIC = 0xDB4775248B80FB57
TRAILER_BYTES = 5
BATCH_HEADER_BYTES = 12
MAX_LEVEL = 7
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4
_RAW, _SNAPPY = 0, 1
_HEADER = struct.Struct("<IHB")


class BadLevelDB(Exception):
    """What is wrong, in words for a person; not one of sessfs's errors: it becomes a finding."""


def masked_crc(content: bytes) -> int:
    """CRC32C as LevelDB stores it: rotated and offset, so that a CRC of bytes with CRCs in them is no trap."""
    crc: int = google_crc32c.value(content)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def read_varint(buf: bytes, pos: int) -> tuple[int, int]:
    """(number, position behind it). Raises BadLevelDB if *buf* ends first or it is longer than 64 bits."""
    value = shift = 0
    while shift < 64:
        if pos >= len(buf):
            raise BadLevelDB("a number is cut off")
        byte = buf[pos]
        pos += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, pos
        shift += 7
    raise BadLevelDB("a number has more than 64 bits")


def _read_bytes(buf: bytes, pos: int) -> tuple[bytes, int]:
    length, pos = read_varint(buf, pos)
    if length > len(buf) - pos:
        raise BadLevelDB("a text is cut off")
    return buf[pos : pos + length], pos + length


class LogScan(msgspec.Struct):
    """What LevelDB's reader finds in a log, or a MANIFEST, which is one, too."""

    records: list[bytes] = []
    offsets: list[int] = []
    """Where each record begins."""
    end: int = 0
    """Behind the last whole record: what follows is no record."""
    torn: str = ""
    """The writer died in the middle of a record: LevelDB takes this for the end."""
    fault: str = ""
    """Damage that LevelDB reports; reading stopped there."""


def scan_log(buf: bytes) -> LogScan:
    """All whole records of *buf*, and how it ends."""
    scan = LogScan()
    pending: list[bytes] = []
    start = 0
    for pos, kind, payload in _physical(buf, scan):
        if (kind in (_FULL, _FIRST)) == bool(pending):
            scan.fault = f"at {pos} a record's fragments do not follow each other"
            return scan
        if not pending:
            start = pos
        pending.append(payload)
        if kind in (_FULL, _LAST):
            scan.records.append(b"".join(pending))
            scan.offsets.append(start)
            scan.end = pos + HEADER_BYTES + len(payload)
            pending.clear()
    if pending and not scan.fault:
        scan.torn = f"its last record, at {start}, lacks its end"
    return scan


def _physical(buf: bytes, scan: LogScan) -> Iterator[tuple[int, int, bytes]]:
    """(offset, type, payload) of each fragment, until the end, a torn one or a damaged one, which *scan* is told."""
    pos = 0
    while pos < len(buf):
        block_end = min(pos - pos % BLOCK_BYTES + BLOCK_BYTES, len(buf))
        is_last_block = block_end % BLOCK_BYTES != 0
        left = block_end - pos
        if left < HEADER_BYTES:
            if is_last_block:
                scan.torn = f"the header of its last record, at {pos}, is cut off"
                return
            pos = block_end
            continue
        crc, length, kind = _HEADER.unpack_from(buf, pos)
        if kind == 0 and length == 0:
            if any(buf[pos:]):
                scan.fault = f"zeros at {pos}, and records behind them"
            else:
                scan.torn = f"zeros from {pos} to its end"
            return
        if HEADER_BYTES + length > left:
            if is_last_block:
                scan.torn = f"its last record, at {pos}, is cut off"
            else:
                scan.fault = f"the record at {pos} is longer than its block"
            return
        payload = buf[pos + HEADER_BYTES : pos + HEADER_BYTES + length]
        if masked_crc(buf[pos + 6 : pos + 7] + payload) != crc:
            scan.fault = f"the record at {pos} does not match its checksum"
            return
        if kind not in (_FULL, _FIRST, _MIDDLE, _LAST):
            scan.fault = f"the record at {pos} is of unknown type {kind}"
            return
        yield pos, kind, payload
        pos += HEADER_BYTES + length


def check_write_batch(record: bytes) -> None:
    """Raise BadLevelDB if *record* of a log is not a batch of puts and deletes, as many as it says."""
    if len(record) < BATCH_HEADER_BYTES:
        raise BadLevelDB("is too short for a batch")
    expected = int.from_bytes(record[8:12], "little")
    pos, count = BATCH_HEADER_BYTES, 0
    while pos < len(record):
        tag = record[pos]
        if tag > 1:
            raise BadLevelDB(f"has an operation of unknown type {tag}")
        _, pos = _read_bytes(record, pos + 1)
        if tag == 1:
            _, pos = _read_bytes(record, pos)
        count += 1
    if count != expected:
        raise BadLevelDB(f"has {count} operations, but says {expected}")


class VersionState(msgspec.Struct):
    """What a MANIFEST amounts to."""

    comparator: bytes | None = None
    log_number: int | None = None
    previous_log: int = 0
    next_file: int | None = None
    last_sequence: int | None = None
    tables: dict[int, int] = {}
    """Size by number of every table in use."""

    def lacking(self) -> list[str]:
        """What LevelDB would miss; empty if it opens."""
        needed = {
            "comparator": self.comparator,
            "log number": self.log_number,
            "next file number": self.next_file,
            "last sequence number": self.last_sequence,
        }
        return [name for name, value in needed.items() if value is None]


def read_versions(records: Sequence[bytes]) -> VersionState:
    """Apply the edits of a MANIFEST in order. Raises BadLevelDB, which says what of it does not decode."""
    state = VersionState()
    levels: dict[tuple[int, int], int] = {}
    for number, record in enumerate(records):
        try:
            _apply_edit(record, state, levels)
        except BadLevelDB as exc:
            raise BadLevelDB(f"edit {number} of the MANIFEST: {exc}") from exc
    state.tables = {table: size for (_, table), size in levels.items()}
    return state


def _apply_edit(record: bytes, state: VersionState, levels: dict[tuple[int, int], int]) -> None:
    """One VersionEdit. A table may be deleted at one level and added at another by the same edit, in this order."""
    pos = 0
    added: dict[tuple[int, int], int] = {}
    numbers: dict[int, int] = {}
    while pos < len(record):
        tag, pos = read_varint(record, pos)
        if tag == 1:
            state.comparator, pos = _read_bytes(record, pos)
        elif tag in (2, 3, 4, 9):
            numbers[tag], pos = read_varint(record, pos)
        elif tag == 5:
            _, pos = _read_level(record, pos)
            _, pos = _read_bytes(record, pos)
        elif tag == 6:
            level, pos = _read_level(record, pos)
            table, pos = read_varint(record, pos)
            levels.pop((level, table), None)
        elif tag == 7:
            level, pos = _read_level(record, pos)
            table, pos = read_varint(record, pos)
            size, pos = read_varint(record, pos)
            for _ in range(2):
                _, pos = _read_bytes(record, pos)
            added[level, table] = size
        else:
            raise BadLevelDB(f"unknown tag {tag}")
    levels.update(added)
    state.log_number = numbers.get(2, state.log_number)
    state.next_file = numbers.get(3, state.next_file)
    state.last_sequence = numbers.get(4, state.last_sequence)
    state.previous_log = numbers.get(9, state.previous_log)


def _read_level(record: bytes, pos: int) -> tuple[int, int]:
    level, pos = read_varint(record, pos)
    if level >= MAX_LEVEL:
        raise BadLevelDB(f"there is no level {level}")
    return level, pos


def check_table(buf: bytes) -> None:
    """Raise BadLevelDB unless *buf* is a table: its footer, and the checksum of every block that it has."""
    if len(buf) < FOOTER_BYTES:
        raise BadLevelDB("is too short for a table")
    footer = buf[-FOOTER_BYTES:]
    if int.from_bytes(footer[-8:], "little") != TABLE_MAGIC:
        raise BadLevelDB("does not end as a table does")
    offset, pos = read_varint(footer, 0)
    size, pos = read_varint(footer, pos)
    index_offset, pos = read_varint(footer, pos)
    index_size, _ = read_varint(footer, pos)
    for _, handle in _entries(_read_block(buf, offset, size)):
        _check_handle(buf, handle)
    for _, handle in _entries(_read_block(buf, index_offset, index_size)):
        _check_handle(buf, handle)


def _check_handle(buf: bytes, handle: bytes) -> None:
    offset, pos = read_varint(handle, 0)
    size, _ = read_varint(handle, pos)
    _check_block(buf, offset, size)


def _check_block(buf: bytes, offset: int, size: int) -> None:
    if offset + size + TRAILER_BYTES > len(buf) - FOOTER_BYTES:
        raise BadLevelDB(f"the block at {offset} reaches beyond its end")
    end = offset + size + 1
    if masked_crc(buf[offset:end]) != int.from_bytes(buf[end : end + 4], "little"):
        raise BadLevelDB(f"the block at {offset} does not match its checksum")


def _read_block(buf: bytes, offset: int, size: int) -> bytes:
    """The block's content, checked and decompressed."""
    _check_block(buf, offset, size)
    kind, content = buf[offset + size], buf[offset : offset + size]
    if kind == _RAW:
        return content
    if kind == _SNAPPY:
        return snappy_decompress(content)
    raise BadLevelDB(f"the block at {offset} is compressed by unknown method {kind}")


def _entries(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(key, value) of a block's entries."""
    restarts = int.from_bytes(block[-4:], "little")
    end = len(block) - 4 * (restarts + 1)
    if len(block) < 4 or end < 0:
        raise BadLevelDB("a block's restart points do not fit into it")
    pos, key = 0, b""
    while pos < end:
        shared, pos = read_varint(block, pos)
        unshared, pos = read_varint(block, pos)
        length, pos = read_varint(block, pos)
        if shared > len(key) or pos + unshared + length > end:
            raise BadLevelDB("a block's entry does not fit into it")
        key = key[:shared] + block[pos : pos + unshared]
        pos += unshared + length
        yield key, block[pos - length : pos]


def snappy_decompress(buf: bytes) -> bytes:
    """What *buf*, in Snappy's raw format, decompresses to. Raises BadLevelDB. For blocks of an index: it is slow."""
    expected, pos = read_varint(buf, 0)
    out = bytearray()
    while pos < len(buf) and len(out) <= expected:
        tag = buf[pos]
        pos += 1
        if tag & 3 == 0:
            length, pos = _literal_length(buf, pos, tag >> 2)
            if pos + length > len(buf):
                raise BadLevelDB("a compressed block is cut off")
            out += buf[pos : pos + length]
            pos += length
            continue
        width = (0, 1, 2, 4)[tag & 3]
        length = (tag >> 2 & 7) + 4 if width == 1 else (tag >> 2) + 1
        offset = int.from_bytes(buf[pos : pos + width], "little") | (tag >> 5 << 8 if width == 1 else 0)
        pos += width
        if not 0 < offset <= len(out):
            raise BadLevelDB("a compressed block copies from before its start")
        for _ in range(length):  # source and target may overlap
            out.append(out[-offset])
    if len(out) != expected:
        raise BadLevelDB(f"a compressed block has {len(out)} bytes, but says {expected}")
    return bytes(out)


def _literal_length(buf: bytes, pos: int, code: int) -> tuple[int, int]:
    if code < 60:
        return code + 1, pos
    width = code - 59
    return int.from_bytes(buf[pos : pos + width], "little") + 1, pos + width
