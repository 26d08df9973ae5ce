"""docs/format.md says what the code does, and leaves nothing out: sizes, fields, constants, tables, keys, contexts."""

from __future__ import annotations

import importlib
import re
import struct
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sessfs.format.envelope import NONCE_BYTES, TAG_BYTES, WrappedKey, wrap_key
from sessfs.format.manifest import ManifestRef
from sessfs.format.recipe import EXTENT_BYTES
from sessfs.format.repository import KeptSnapshot, SessionObject, decode_session_object, encode_session_object
from sessfs.format.segment import (
    Checkpoint,
    SegmentBuilder,
    checkpoint_key,
    encode_checkpoint,
    segment_key,
    session_key,
    state_key,
)
from sessfs.local.chunkstore import CHUNK_TABLES, encode_frame_record
from sessfs.local.inodes import META_TABLES
from sessfs.types import ChunkId
from tests.support.formats import AEAD, ENVELOPES, MASTER_KEY, PLAIN
from tests.support.golden import full_manifest

ROOT = Path(__file__).resolve().parent.parent.parent
TEXT = (ROOT / "docs" / "format.md").read_text("utf-8")
LINES = TEXT.splitlines()
CODES = {"u16": "H", "u32": "I", "u64": "Q", "i64": "q"}
NAME = r"`((?:[a-z_]+\.)+\w+)`"


def _lookup(dotted: str) -> Any:
    """`local.inodes.INO` → the object."""
    module, _, name = dotted.rpartition(".")
    return getattr(importlib.import_module(f"sessfs.{module}"), name)


def _rows(start: int) -> list[list[str]]:
    """Cells of the first table at or after line *start*, without its head."""
    while not LINES[start].startswith("|"):
        start += 1
    rows = []
    for line in LINES[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip().strip("|").split(" | ")])
    return rows


def _captions(pattern: str) -> dict[str, tuple[re.Match[str], list[list[str]]]]:
    """Dotted name → (match, rows of the table below) of every line that *pattern* matches."""
    found = {}
    for number, line in enumerate(LINES):
        match = re.fullmatch(pattern, line)
        if match is not None:
            assert not LINES[number + 1], f"{line}: an empty line, then the table"
            found[match[1]] = (match, _rows(number + 2))
    return found


def _tables_with_head(head: str) -> list[list[str]]:
    """Rows of all tables with that first column."""
    starts = [number for number, line in enumerate(LINES) if line.startswith(f"| {head} |")]
    assert starts
    return [row for start in starts for row in _rows(start)]


# -- structures

BYTE_TABLES = _captions(rf"{NAME}, (\d+) bytes:")
SMALL_RECORDS = {row[0].strip("`"): row[1:] for row in _tables_with_head("record")}


def _layout(types: list[str]) -> str:
    """The format of `struct` for these types; `bytes` come as `bytes N`."""
    orders = {">" if kind.endswith(" BE") else "<" for kind in types}
    assert len(orders) == 1, types
    codes = [f"{kind[6:]}s" if kind.startswith("bytes ") else CODES[kind.removesuffix(" BE")] for kind in types]
    return orders.pop() + "".join(codes)


@pytest.mark.parametrize("name", BYTE_TABLES)
def test_byte_table_is_the_structure(name: str) -> None:
    match, rows = BYTE_TABLES[name]
    layout: struct.Struct = _lookup(name)
    assert int(match[2]) == layout.size
    at = 0
    for offset, length, _, _ in rows:
        assert int(offset) == at
        at += int(length)
    assert at == layout.size
    types = [f"bytes {length}" if kind == "bytes" else kind for _, length, kind, _ in rows]
    assert _layout(types) == layout.format


@pytest.mark.parametrize("name", SMALL_RECORDS)
def test_small_record_is_the_structure(name: str) -> None:
    size, text = SMALL_RECORDS[name]
    layout: struct.Struct = _lookup(name)
    assert int(size) == layout.size
    assert _layout(re.findall(r"\b(?:[ui]\d\d)(?: BE)?", text)) == layout.format


def _modules(*folders: str) -> list[str]:
    return [
        f"{folder}.{path.stem}"
        for folder in folders
        for path in sorted((ROOT / "sessfs" / folder).glob("*.py"))
        if path.stem != "__init__"
    ]


def _defined(kind: type, *folders: str) -> set[str]:
    """Dotted names of all *kind* that modules in these folders make themselves."""
    found = set()
    for module in _modules(*folders):
        source = (ROOT / "sessfs" / f"{module.replace('.', '/')}.py").read_text("utf-8")
        for name, value in vars(importlib.import_module(f"sessfs.{module}")).items():
            if isinstance(value, kind) and re.search(rf"^{name} = |^class {name}\(", source, re.MULTILINE):
                found.add(f"{module}.{name}")
    return found


def test_every_structure_is_documented() -> None:
    assert _defined(struct.Struct, "format", "local") == {*BYTE_TABLES, *SMALL_RECORDS}


# -- records

ARRAYS = _captions(rf"{NAME}, (?:msgpack )?array of (\d+).*:")
OBJECTS = _captions(rf"{NAME}, (?:PREFIX/\S+, )?members.*:")
NOT_STORED = {"format.repository.SessionObject", "format.wire._Versioned"}


def _fields(record: Any) -> tuple[str, ...]:
    return record._fields if hasattr(record, "_fields") else record.__struct_fields__


@pytest.mark.parametrize("name", ARRAYS)
def test_array_has_these_elements(name: str) -> None:
    match, rows = ARRAYS[name]
    record = _lookup(name)
    assert hasattr(record, "_fields") or record.__struct_config__.array_like
    assert [row[0].strip("`") for row in rows] == list(_fields(record))
    assert int(match[2]) == len(rows)


@pytest.mark.parametrize("name", OBJECTS)
def test_object_has_these_members(name: str) -> None:
    _, rows = OBJECTS[name]
    record = _lookup(name)
    assert not record.__struct_config__.array_like
    assert [row[0].strip("`") for row in rows] == list(_fields(record))


def test_every_record_is_documented() -> None:
    structs = _defined(type(msgspec.Struct), "format", "local")
    assert structs - NOT_STORED <= {*ARRAYS, *OBJECTS}


# -- constants and tables

CONSTANTS = {row[0].strip("`"): row[1] for row in _tables_with_head("constant")}


@pytest.mark.parametrize("name", CONSTANTS)
def test_constant_has_this_value(name: str) -> None:
    value = _lookup(name)
    assert CONSTANTS[name] == (f'"{value.decode()}"' if isinstance(value, bytes) else str(value))


def test_every_version_and_magic_is_documented() -> None:
    found = set()
    for module in [*_modules("format"), "config", "sync.gc_marks"]:
        for name in vars(importlib.import_module(f"sessfs.{module}")):
            if re.fullmatch(r"\w+_(VERSION|MAGIC|END)", name):
                found.add(name)
    assert found == {name.rpartition(".")[2] for name in CONSTANTS if re.search(r"_(VERSION|MAGIC|END)$", name)}


@pytest.mark.parametrize(("environment", "tables"), [("meta", META_TABLES), ("chunks", CHUNK_TABLES)])
def test_every_table_is_documented(environment: str, tables: tuple[str, ...]) -> None:
    rows = _tables_with_head(f"table of `{environment}/`")
    assert {row[0].strip("`") for row in rows} == set(tables)


def test_tables_name_only_structures_there_are() -> None:
    documented = {name.rpartition(".")[2] for name in [*BYTE_TABLES, *SMALL_RECORDS]}
    values = [
        cell for row in _tables_with_head("table of `meta/`") + _tables_with_head("table of `chunks/`") for cell in row
    ]
    assert {word for cell in values for word in re.findall(r"\b[A-Z_]{5,}\b", cell)} <= documented


def test_info_strings_are_documented() -> None:
    for name in ("CONTENTS_INFO", "NAMES_INFO", "WRAP_INFO"):
        assert f'"{_lookup(f"format.envelope.{name}").decode()}"' in TEXT


# -- keys and contexts


def test_key_layout_is_documented() -> None:
    number = f"{7:016x}"
    for key in (state_key("NODE"), segment_key("NODE", 7), checkpoint_key("NODE", 7)):
        assert f"    PREFIX/{key.replace(number, 'NUMBER')} " in TEXT
    for name in ("format.repository.FORMAT_KEY", "format.repository.HOLDER_KEY"):
        assert f"    PREFIX/{_lookup(name)} " in TEXT
    assert session_key(PLAIN, b"NAME") in TEXT


def _context(kind: str, **values: object) -> bytes:
    """A context as documented, with its words in capitals replaced."""
    (line,) = re.findall(rf"^    ({kind} .*)$", TEXT, re.MULTILINE)
    for word, value in values.items():
        line = line.replace(word, str(value))
    assert not re.search(r"\b[A-Z]{3,}\b", line)
    return line.encode()


@pytest.mark.parametrize("envelope", ENVELOPES, ids=["plain", "encrypted"])
def test_blobs_of_a_segment_open_under_the_documented_contexts(envelope: Any) -> None:
    builder = SegmentBuilder("n1", 10, 1, envelope)
    at, length = builder.add_frame(b"record")
    ref = builder.add_manifest(full_manifest([(at, length), (at, length)]))
    start = builder.size_bytes
    body = builder.finish(1)
    footer_length, _, _ = _lookup("format.segment.TRAILER").unpack(body[-12:])
    place = {"NODE": "n1", "NUMBER": f"{10:016x}"}
    assert envelope.open(body[at : at + length], _context("frame", OFFSET=at, **place)) == b"record"
    envelope.open(body[ref.offset : ref.offset + ref.length], _context("manifest", OFFSET=ref.offset, **place))
    envelope.open(body[start : start + footer_length], _context("footer", OFFSET=start, **place))
    assert start + footer_length + 12 == len(body)
    checkpoint = encode_checkpoint(Checkpoint("n1", 10, 1, []), envelope)
    envelope.open(checkpoint[8:], _context("checkpoint", **place))


def test_mark_opens_under_the_documented_context() -> None:
    name = AEAD.seal_name(b"user")
    kept = KeptSnapshot(5, 0, ManifestRef("n", 1, 8, 9), AEAD_MARK.format(name=name))
    encoded = encode_session_object(SessionObject(b"user", None, None, 0, [kept]), AEAD)
    assert decode_session_object(encoded, AEAD).kept == [kept]
    sealed = msgspec.convert(msgspec.json.decode(encoded)["kept"][0][3], bytes)
    assert AEAD.open(sealed, _context("mark", SEQUENCE=5, NAME=name)).decode() == kept.mark


AEAD_MARK = "the operator's word for {name}"


def test_documented_overheads() -> None:
    rows = {row[0].strip("`"): row for row in _tables_with_head("cipher")}
    assert len(PLAIN.seal(b"", b"c")) == int(rows["none"][2])
    assert len(AEAD.seal(b"", b"c")) == int(rows["aes-256-gcm"][2]) == NONCE_BYTES + TAG_BYTES


def test_documented_lengths_of_the_wrapped_key() -> None:
    lengths = {
        row[0].strip("`"): re.search(r"of (\d+) bytes", row[1]) for row in OBJECTS["format.envelope.WrappedKey"][1]
    }
    wrapped: WrappedKey = wrap_key(MASTER_KEY + bytes(32), b"secret")
    for name in ("salt", "nonce", "ciphertext"):
        found = lengths[name]
        assert found is not None
        assert int(found[1]) == len(getattr(wrapped, name))


def test_documented_names_have_these_keys() -> None:
    rows = _tables_with_head("name")
    assert len(rows) >= 4
    for name, key in rows:
        assert key.strip("`") == session_key(PLAIN, name.strip("`").encode())


# -- sizes


def _longest_key(envelope: Any) -> int:
    return max(len(session_key(envelope, name)) for name in (b"\xff" * 255, b"a" * 255))


def _measured() -> dict[str, tuple[int, int]]:
    entries = [(ChunkId(bytes(20)), 32768)] * 16
    head = len(encode_frame_record(entries, b""))
    uuid = b"0123456789abcdef0123456789abcdef0123"
    empty = SessionObject(b"user-1", None, None, 0, [])
    return {
        "extent of a recipe": (EXTENT_BYTES, EXTENT_BYTES),
        "recipe of 1 MiB in chunks of 32 KiB": (32 * EXTENT_BYTES, 32 * EXTENT_BYTES),
        "frame record of 16 chunks, besides the zstd frame": (head, head),
        "the same, sealed": (len(PLAIN.seal(bytes(head), b"c")), len(AEAD.seal(bytes(head), b"c"))),
        "key of a session with a name of 36 letters and digits": (
            len(session_key(PLAIN, uuid)),
            len(session_key(AEAD, uuid)),
        ),
        "longest key of a session, without the prefix": (_longest_key(PLAIN), _longest_key(AEAD)),
        "session's object that was never published, name `user-1`": (
            len(encode_session_object(empty, PLAIN)),
            len(encode_session_object(empty, AEAD)),
        ),
    }


def test_documented_sizes_are_measured() -> None:
    rows = {row[0]: (int(row[1]), int(row[2])) for row in _tables_with_head("what")}
    assert rows == _measured()
