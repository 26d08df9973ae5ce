"""Envelopes: how blobs are sealed for the remote, how session names become object keys, how the master key is kept.

A blob is sealed under a *context* that says what it is and where it lies, so that one blob never passes for another.
In the clear it gets a checksum; with a key it is encrypted and authenticated (AES-256-GCM), each context under a key of
its own. Session names are escaped, or encrypted deterministically (AES-SIV), so that a listing of keys gives them back.
The master key lies in the remote, wrapped by a key derived from the operator's secret. Byte layouts: docs/format.md.
"""

from __future__ import annotations

import base64
import os
import re
from typing import TYPE_CHECKING, Annotated, Literal, Protocol

import blake3
import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, AESSIV
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from sessfs.errors import KeyWrong, RemoteCorrupt, RemoteUnsuitable
from sessfs.format.wire import is_session_name

if TYPE_CHECKING:
    from collections.abc import Callable

SEAL_CHECKSUM_BYTES = 8
NONCE_BYTES = 12
TAG_BYTES = 16
SIV_BYTES = 16
MASTER_KEY_BYTES = 32
SIV_KEY_BYTES = 64
CONTENTS_INFO = b"sessfs contents 1"
NAMES_INFO = b"sessfs names 1"

PART_CHARS = 240
"""A longer name goes over several parts of a key: stores that keep objects as files allow 255 bytes a part."""
CONTINUED = "=/"
_UNSAFE = re.compile(rb"[^A-Za-z0-9._-]|\A\.")
_ESCAPE = re.compile(r"=([0-9A-F]{2})")

SALT_BYTES = 16
SCRYPT_N = 1 << 15
SCRYPT_R = 8
SCRYPT_P = 1
SCRYPT_MAX_BYTES = 512 << 20
WRAP_INFO = b"sessfs wrapped key 1"


class Envelope(Protocol):
    """Seals blobs and names for the remote. Stateless; any thread."""

    @property
    def encrypted(self) -> bool:
        """True when a stranger to the key can't read what is sealed."""

    def seal(self, plaintext: bytes, context: bytes) -> bytes:
        """What is stored for *plaintext*; opens only under the same *context*."""

    def open(self, sealed: bytes, context: bytes) -> bytes:
        """Inverse of `seal`. Raises RemoteCorrupt, naming the context, when anything was changed."""

    def seal_name(self, name: bytes) -> str:
        """The end of an object key that stands for the session *name*: always the same, and no two alike. Raises
        ValueError for what can't be a session's name.
        """

    def open_name(self, text: str) -> bytes:
        """Inverse of `seal_name`. Raises RemoteCorrupt for what `seal_name` never gives."""


def _fold(text: str) -> str:
    """*text* in parts of at most PART_CHARS. A part that goes on ends in `=`, so that no key is another's directory."""
    return CONTINUED.join(text[at : at + PART_CHARS] for at in range(0, len(text), PART_CHARS))


def _check_name(name: bytes) -> bytes:
    if not is_session_name(name):
        raise ValueError(f"not a session's name: {name!r}")
    return name


class PlainEnvelope:
    """No encryption: a checksum finds damage, names are readable."""

    @property
    def encrypted(self) -> bool:
        """See Envelope."""
        return False

    def seal(self, plaintext: bytes, context: bytes) -> bytes:
        """See Envelope: the plaintext, then SEAL_CHECKSUM_BYTES of checksum."""
        return plaintext + _checksum(plaintext, context)

    def open(self, sealed: bytes, context: bytes) -> bytes:
        """See Envelope."""
        plaintext, checksum = sealed[:-SEAL_CHECKSUM_BYTES], sealed[-SEAL_CHECKSUM_BYTES:]
        if checksum != _checksum(plaintext, context):
            raise RemoteCorrupt(f"{_text(context)} is damaged: its checksum does not match")
        return plaintext

    def seal_name(self, name: bytes) -> str:
        """See Envelope. Bytes other than ASCII letters, digits, `.`, `_`, `-` become `=` and two hexadecimal digits,
        and so does a leading `.`. Not `%`, which some S3 stores refuse in keys (Supabase does).
        """
        return _fold(_UNSAFE.sub(lambda match: b"=%02X" % match[0][0], _check_name(name)).decode("ascii"))

    def open_name(self, text: str) -> bytes:
        """See Envelope."""
        escaped = text.replace(CONTINUED, "")
        name = _ESCAPE.sub(lambda match: chr(int(match[1], 16)), escaped).encode("latin-1", errors="replace")
        return _accept_name(self, name, text)


def _checksum(plaintext: bytes, context: bytes) -> bytes:
    hasher = blake3.blake3(len(context).to_bytes(4, "little"))
    hasher.update(context)
    hasher.update(plaintext)
    return hasher.digest(length=SEAL_CHECKSUM_BYTES)


class AeadEnvelope:
    """AES-256-GCM for blobs, AES-SIV for names, under keys derived from the master key."""

    def __init__(self, master_key: bytes, random_bytes: Callable[[int], bytes] = os.urandom) -> None:
        """*master_key* is MASTER_KEY_BYTES long; *random_bytes* gives nonces."""
        if len(master_key) != MASTER_KEY_BYTES:
            raise ValueError(f"a master key has {MASTER_KEY_BYTES} bytes, not {len(master_key)}")
        self._contents_key = HKDF(SHA256(), MASTER_KEY_BYTES, None, CONTENTS_INFO).derive(master_key)
        self._names = AESSIV(HKDF(SHA256(), SIV_KEY_BYTES, None, NAMES_INFO).derive(master_key))
        self._random_bytes = random_bytes

    @property
    def encrypted(self) -> bool:
        """See Envelope."""
        return True

    def _cipher(self, context: bytes) -> AESGCM:
        # A key for each context: a random nonce may then repeat only among the few blobs ever sealed for one place.
        return AESGCM(HKDFExpand(SHA256(), MASTER_KEY_BYTES, context).derive(self._contents_key))

    def seal(self, plaintext: bytes, context: bytes) -> bytes:
        """See Envelope: nonce, ciphertext, tag."""
        nonce = self._random_bytes(NONCE_BYTES)
        return nonce + self._cipher(context).encrypt(nonce, plaintext, context)

    def open(self, sealed: bytes, context: bytes) -> bytes:
        """See Envelope."""
        if len(sealed) < NONCE_BYTES + TAG_BYTES:
            raise RemoteCorrupt(f"{_text(context)} is cut short: {len(sealed)} bytes")
        try:
            return self._cipher(context).decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], context)
        except InvalidTag as exc:
            raise RemoteCorrupt(f"{_text(context)} is damaged: it does not decrypt with the repository's key") from exc

    def seal_name(self, name: bytes) -> str:
        """See Envelope: AES-SIV, in lower-case base32 without padding."""
        sealed = self._names.encrypt(_check_name(name), None)
        return _fold(base64.b32encode(sealed).decode("ascii").rstrip("=").lower())

    def open_name(self, text: str) -> bytes:
        """See Envelope."""
        coded = text.replace(CONTINUED, "").upper()
        try:
            sealed = base64.b32decode(coded + "=" * (-len(coded) % 8))
            name = self._names.decrypt(sealed, None) if len(sealed) > SIV_BYTES else b""
        except (ValueError, InvalidTag) as exc:
            raise RemoteCorrupt(f"the object key …/{text} is no session name under the repository's key") from exc
        return _accept_name(self, name, text)


def _accept_name(envelope: Envelope, name: bytes, text: str) -> bytes:
    """Only what sealing gives is opened: two keys must never mean one session."""
    if not is_session_name(name) or envelope.seal_name(name) != text:
        raise RemoteCorrupt(f"the object key …/{text} does not stand for a session's name")
    return name


def _text(context: bytes) -> str:
    return context.decode(errors="replace")


class WrappedKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Key material, encrypted with a key derived from the operator's secret: as it stands in PREFIX/format."""

    kdf: Literal["scrypt"]
    n: Annotated[int, msgspec.Meta(ge=1 << 10, le=1 << 22)]
    r: Annotated[int, msgspec.Meta(ge=1, le=32)]
    p: Annotated[int, msgspec.Meta(ge=1, le=16)]
    salt: Annotated[bytes, msgspec.Meta(min_length=SALT_BYTES, max_length=SALT_BYTES)]
    nonce: Annotated[bytes, msgspec.Meta(min_length=NONCE_BYTES, max_length=NONCE_BYTES)]
    ciphertext: Annotated[bytes, msgspec.Meta(min_length=TAG_BYTES, max_length=1024)]


def _wrapping_cipher(secret: bytes, salt: bytes, n: int, r: int, p: int) -> AESGCM:
    # The last is scrypt's own bound (RFC 7914, section 2).
    if n & (n - 1) or 128 * n * r > SCRYPT_MAX_BYTES or n >= 1 << (16 * r):
        raise RemoteUnsuitable(f"the remote asks for scrypt with n={n}, r={r}: not what this sessfs grants")
    return AESGCM(Scrypt(salt=salt, length=MASTER_KEY_BYTES, n=n, r=r, p=p).derive(secret))


def wrap_key(master_key: bytes, secret: bytes, random_bytes: Callable[[int], bytes] = os.urandom) -> WrappedKey:
    """*master_key* (any key material), to be had again with *secret*: a passphrase, or the content of a key file. Takes
    about 0.1 s and 32 MB. Raises KeyWrong for an empty secret.
    """
    if not secret:
        raise KeyWrong("the key is empty: give a passphrase, or a key file with something in it")
    salt, nonce = random_bytes(SALT_BYTES), random_bytes(NONCE_BYTES)
    cipher = _wrapping_cipher(secret, salt, SCRYPT_N, SCRYPT_R, SCRYPT_P)
    sealed = cipher.encrypt(nonce, master_key, WRAP_INFO)
    return WrappedKey("scrypt", SCRYPT_N, SCRYPT_R, SCRYPT_P, salt, nonce, sealed)


def unwrap_key(wrapped: WrappedKey, secret: bytes) -> bytes:
    """Inverse of `wrap_key`; raises KeyWrong unless *secret* is the one it was wrapped with."""
    cipher = _wrapping_cipher(secret, wrapped.salt, wrapped.n, wrapped.r, wrapped.p)
    try:
        return cipher.decrypt(wrapped.nonce, wrapped.ciphertext, WRAP_INFO)
    except InvalidTag as exc:
        raise KeyWrong(
            "the key given is not the one this remote is encrypted with: check --key-file and SESSFS_KEY"
        ) from exc
