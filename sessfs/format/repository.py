"""The JSON objects of the remote: PREFIX/format, the state of a node, the session objects, and who holds the prefix.

Each is one line of JSON with a checksum as its last member, so that a person can read it and damage is found. Fields:
docs/format.md.
"""

from __future__ import annotations

import base64
import binascii
import os
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec

from sessfs.errors import KeyWrong, RemoteCorrupt, RemoteUnsuitable
from sessfs.format import wire
from sessfs.format.chunk import CHUNK_AVG_BYTES, CHUNK_MAX_BYTES, CHUNK_MIN_BYTES, HASH_KEY_BYTES
from sessfs.format.envelope import (
    MASTER_KEY_BYTES,
    AeadEnvelope,
    PlainEnvelope,
    WrappedKey,
    unwrap_key,
    wrap_key,
)
from sessfs.format.manifest import ManifestRef  # noqa: TC001, msgspec reads annotations at run time

if TYPE_CHECKING:
    from collections.abc import Callable

    from sessfs.format.envelope import Envelope

FORMAT_KEY = "format"
HOLDER_KEY = "holder"
FORMAT_VERSION = 1
STATE_VERSION = 2
SESSION_VERSION = 2
HOLDER_VERSION = 1
REPOSITORY_ID_BYTES = 16
CIPHER_NONE = "none"
CIPHER_AES = "aes-256-gcm"

Text = Annotated[str, msgspec.Meta(max_length=255)]
Verdict = Literal["", "good", "bad"]
Pid = Annotated[int, msgspec.Meta(ge=0, le=(1 << 31) - 1)]
Rfc3339 = Annotated[str, msgspec.Meta(pattern=r"\A\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:\d\d)\Z")]


# -- PREFIX/format


class Chunker(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How contents are cut: all nodes of a repository must cut alike, or they find no duplicates."""

    algorithm: str = "fastcdc"
    min: int = CHUNK_MIN_BYTES
    avg: int = CHUNK_AVG_BYTES
    max: int = CHUNK_MAX_BYTES
    normalization: int = 2


class Format(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The object PREFIX/format, written once. *hash_key* is None where *wrapped* holds it (cipher not "none")."""

    version: int
    repository_id: Annotated[str, msgspec.Meta(pattern=rf"\A[0-9a-f]{{{2 * REPOSITORY_ID_BYTES}}}\Z")]
    chunker: Chunker
    cipher: str
    hash_key: Annotated[bytes, msgspec.Meta(min_length=HASH_KEY_BYTES, max_length=HASH_KEY_BYTES)] | None
    wrapped: WrappedKey | None


def new_format(hash_key: bytes, secret: bytes | None, random_bytes: Callable[[int], bytes] = os.urandom) -> Format:
    """A new repository whose chunk ids are made with *hash_key*; encrypted, with a new master key, when *secret* is
    given. Raises KeyWrong for an empty secret.
    """
    if len(hash_key) != HASH_KEY_BYTES:
        raise ValueError(f"a hash key has {HASH_KEY_BYTES} bytes, not {len(hash_key)}")
    repository_id = random_bytes(REPOSITORY_ID_BYTES).hex()
    if secret is None:
        return Format(FORMAT_VERSION, repository_id, Chunker(), CIPHER_NONE, hash_key, None)
    wrapped = wrap_key(random_bytes(MASTER_KEY_BYTES) + hash_key, secret, random_bytes)
    return Format(FORMAT_VERSION, repository_id, Chunker(), CIPHER_AES, None, wrapped)


def rewrap_format(
    form: Format, secret: bytes, new_secret: bytes, random_bytes: Callable[[int], bytes] = os.urandom
) -> Format:
    """The same repository, to be opened with *new_secret* instead of *secret*; nothing else in the remote changes.
    Raises KeyWrong when *secret* does not open it, or it is not encrypted.
    """
    keys = _unwrap(form, secret)
    return msgspec.structs.replace(form, wrapped=wrap_key(keys, new_secret, random_bytes))


def encode_format(form: Format) -> bytes:
    """The bytes of PREFIX/format."""
    return wire.encode_json(form)


def decode_format(encoded: bytes) -> Format:
    """Inverse of `encode_format`. Raises RemoteCorrupt, or RemoteUnsuitable when only a newer sessfs can use it."""
    form = wire.decode_json(encoded, Format, FORMAT_VERSION, FORMAT_KEY)
    if form.cipher not in (CIPHER_NONE, CIPHER_AES):
        raise RemoteUnsuitable(f"the remote is encrypted with {form.cipher}, which this sessfs does not know")
    is_encrypted = form.cipher != CIPHER_NONE
    if (form.wrapped is None) == is_encrypted or (form.hash_key is None) != is_encrypted:
        raise RemoteCorrupt(f"{FORMAT_KEY} has other keys than its cipher, {form.cipher}, needs")
    return form


def open_format(form: Format, secret: bytes | None) -> tuple[bytes, Envelope]:
    """The key of the chunk ids, and the envelope of everything in the repository. Raises KeyWrong when a key is needed
    and missing or wrong, or given where none is needed; RemoteUnsuitable when contents are cut in another way.
    """
    if form.chunker != Chunker():
        raise RemoteUnsuitable(
            f"the remote's contents are cut by {form.chunker.algorithm} with other parameters than this sessfs has: "
            "use the sessfs that made it"
        )
    if form.cipher == CIPHER_NONE:
        if secret is not None:
            raise KeyWrong(
                "a key was given, but the remote is not encrypted: leave --key-file and SESSFS_KEY away, or encrypt "
                "from the start under another prefix"
            )
        assert form.hash_key is not None
        return form.hash_key, PlainEnvelope()
    if secret is None:
        raise KeyWrong("the remote is encrypted: give its key by --key-file or SESSFS_KEY")
    keys = _unwrap(form, secret)
    return keys[MASTER_KEY_BYTES:], AeadEnvelope(keys[:MASTER_KEY_BYTES])


def _unwrap(form: Format, secret: bytes) -> bytes:
    """Master key and hash key."""
    if form.wrapped is None:
        raise KeyWrong("the remote is not encrypted, so it has no key to change")
    keys = unwrap_key(form.wrapped, secret)
    if len(keys) != MASTER_KEY_BYTES + HASH_KEY_BYTES:
        raise RemoteCorrupt(f"{FORMAT_KEY} wraps {len(keys)} bytes of keys")
    return keys


# -- PREFIX/nodes/<node>/state


class NodeState(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a node says of itself. *beat* grows with each write. *fenced_by* names the node that took over; *clean*: all
    sessions were released. Segments up to *last_segment* count; a checkpoint covers those up to *last_checkpoint*, and
    exists if *has_checkpoint* (else there was nothing to write down). *has_roster*: PREFIX/roster exists, and names
    each session that has an object of its own but is not in the node's catalogue; version 1 knew of none.
    """

    node: wire.NodeName
    hostname: Text
    incarnation: wire.Count
    last_segment: wire.Count = 0
    last_checkpoint: wire.Count = 0
    has_checkpoint: bool = False
    beat: wire.Count = 0
    fenced_by: Text | None = None
    clean: bool = False
    has_roster: bool = False
    version: int = STATE_VERSION


def encode_state(state: NodeState) -> bytes:
    """The bytes of a node's state object."""
    return wire.encode_json(state)


def decode_state(encoded: bytes, what: str = "a node's state") -> NodeState:
    """Inverse of `encode_state`, an older version being brought up to this one; raises RemoteCorrupt or
    RemoteUnsuitable, naming *what*.
    """
    state = wire.decode_json(encoded, NodeState, STATE_VERSION, what)
    if state.last_checkpoint > state.last_segment:
        raise RemoteCorrupt(
            f"{what}: a checkpoint of segment {state.last_checkpoint}, the last is {state.last_segment}"
        )
    return msgspec.structs.replace(state, version=STATE_VERSION)


# -- PREFIX/sessions/<session>


class KeptSnapshot(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A snapshot that collection must leave alone; *mark* is the operator's word for it, or empty; *verdict* what a
    check found, "good" or "bad", or empty.
    """

    sequence: wire.Count
    taken_ns: wire.TimeNs
    manifest: ManifestRef
    mark: str = ""
    verdict: Verdict = ""


class SessionObject(msgspec.Struct, frozen=True):
    """A session as its own object has it: held by (node, incarnation) or free; its latest manifest, None while it was
    never published, as of the last release; kept snapshots, oldest first.
    """

    name: bytes
    holder: tuple[str, int] | None
    manifest: ManifestRef | None
    sequence: int
    kept: list[KeptSnapshot]


class _SessionRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """SessionObject in JSON: the name as in the object's key, marks sealed where the repository is encrypted."""

    version: int
    name: Annotated[str, msgspec.Meta(max_length=900)]
    holder: tuple[wire.NodeName, wire.Count] | None
    manifest: ManifestRef | None
    sequence: wire.Count
    kept: list[KeptSnapshot]


def _mark_context(name: str, sequence: int) -> bytes:
    return f"mark of snapshot {sequence} of sessions/{name}".encode()


def encode_session_object(record: SessionObject, envelope: Envelope) -> bytes:
    """The bytes of a session's object. Raises ValueError for what can't be a session's name."""
    name = envelope.seal_name(record.name)
    kept = record.kept
    if envelope.encrypted:
        kept = [msgspec.structs.replace(one, mark=_seal_mark(one, name, envelope)) for one in kept]
    return wire.encode_json(
        _SessionRecord(SESSION_VERSION, name, record.holder, record.manifest, record.sequence, kept)
    )


def decode_session_object(encoded: bytes, envelope: Envelope, what: str = "a session's object") -> SessionObject:
    """Inverse of `encode_session_object`; raises RemoteCorrupt or RemoteUnsuitable, naming *what*."""
    record = wire.decode_json(encoded, _SessionRecord, SESSION_VERSION, what)
    name = envelope.open_name(record.name)
    kept = record.kept
    if envelope.encrypted:
        kept = [msgspec.structs.replace(one, mark=_open_mark(one, record.name, envelope)) for one in kept]
    return SessionObject(name, record.holder, record.manifest, record.sequence, kept)


def _seal_mark(kept: KeptSnapshot, name: str, envelope: Envelope) -> str:
    sealed = envelope.seal(kept.mark.encode(), _mark_context(name, kept.sequence))
    return base64.b64encode(sealed).decode("ascii")


def _open_mark(kept: KeptSnapshot, name: str, envelope: Envelope) -> str:
    context = _mark_context(name, kept.sequence)
    try:
        return envelope.open(base64.b64decode(kept.mark, validate=True), context).decode()
    except (binascii.Error, ValueError) as exc:
        raise RemoteCorrupt(f"the {context.decode()} does not decode") from exc


# -- PREFIX/holder


class Holder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The one node that may write under the prefix; *hostname*, *pid* and *since* (RFC 3339) are for people."""

    node: wire.NodeName
    incarnation: wire.Count
    hostname: Text
    pid: Pid
    since: Rfc3339
    version: int = HOLDER_VERSION


def encode_holder(holder: Holder) -> bytes:
    """The bytes of PREFIX/holder."""
    return wire.encode_json(holder)


def decode_holder(encoded: bytes) -> Holder:
    """Inverse of `encode_holder`; raises RemoteCorrupt or RemoteUnsuitable."""
    return wire.decode_json(encoded, Holder, HOLDER_VERSION, HOLDER_KEY)
