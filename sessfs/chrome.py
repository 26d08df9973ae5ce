"""What is known of Chrome's profile: the one module with Chrome's file names in it.

Sources: the profile of Chromium 156 on Linux, observed; Simple Cache's file names are those of
net/disk_cache/simple/simple_util.cc (sixteen hexadecimal digits, underscore, stream number or `s` for sparse).
"""

from __future__ import annotations

import re
from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

_SIMPLE_CACHE = re.compile(rb"[0-9a-f]{16}_[0-9s]\Z")


def wants_direct_io(name: bytes) -> bool:
    """True for a newly created Simple Cache file (HTTP cache, CacheStorage).

    Chrome extends and shrinks it with ftruncate around each large pwrite, and with a write-back page cache the kernel
    answers each size change by writing the dirty pages one by one; directly, each pwrite arrives whole. Such a file is
    never mapped while it is being created, and later opens are cached as usual.
    """
    return _SIMPLE_CACHE.match(name) is not None


CHROME_PROCESSES = (
    "chrome",
    "chromium",
    "chromium-browser",
    "chrome-headless-shell",
    "headless_shell",
    "chrome_crashpad_handler",
    "msedge",
    "brave",
)
"""File names of the programs that count as Chrome, as /proc/PID/exe gives them."""


class PathClass(IntEnum):
    """What of a profile leaves its node. A directory's class is that of everything below it."""

    TRAVELS = 0
    CACHE = 1
    """Rebuilt by Chrome when it is missing; travels only when asked to (`--upload-caches`)."""
    NODE_ONLY = 2
    """Means something on this node alone: locks of a running Chrome, crash dumps, metrics, temporary files."""


_CACHES = frozenset(
    {
        b"Cache_Data",
        b"Code Cache",
        b"GPUCache",
        b"DawnCache",
        b"DawnGraphiteCache",
        b"DawnWebGPUCache",
        b"GrShaderCache",
        b"ShaderCache",
        b"GPUPersistentCache",
        b"GraphiteDawnCache",
        b"component_crx_cache",
        b"extensions_crx_cache",
    }
)
_NODE_ONLY = re.compile(
    rb"(Singleton(Lock|Cookie|Socket)|Crashpad|Crash Reports|BrowserMetrics.*|CrashpadMetrics.*|DeferredBrowserMetrics"
    rb"|DevToolsActivePort|\.org\.chromium\.Chromium\..*|\.com\.google\.Chrome\..*|.*\.tmp)\Z",
    re.DOTALL,
)


def classify(name: bytes, parent: PathClass) -> PathClass:
    """Class of an entry called *name* in a directory of class *parent*."""
    if parent is PathClass.NODE_ONLY or _NODE_ONLY.match(name):
        return PathClass.NODE_ONLY
    if parent is PathClass.CACHE or name in _CACHES:
        return PathClass.CACHE
    return PathClass.TRAVELS


_JSON = frozenset({b"Preferences", b"Secure Preferences", b"Local State"})
_SQLITE = frozenset(
    b"Account Web Data|Affiliation Database|Cookies|DIPS|Extension Cookies|Favicons|History|InterestGroups"
    b"|Login Data|Login Data For Account|MediaDeviceSalts|Network Action Predictor|PrivateAggregation|QuotaManager"
    b"|Reporting and NEL|Safe Browsing Cookies|ServerCertificate|SharedStorage|Shortcuts|Top Sites|Trust Tokens"
    b"|Web Data".split(b"|")
)
_DATABASE = re.compile(
    rb"(\d{6,}\.(ldb|log|sst)|CURRENT|MANIFEST-\d+|.*\.(db|sqlite)|.*-(journal|wal))\Z", re.DOTALL | re.IGNORECASE
)
_LOCK_NAME = b"SingletonLock"
_LOCKS = frozenset({_LOCK_NAME, b"SingletonCookie", b"SingletonSocket"})


def is_json(name: bytes) -> bool:
    """True for the profile's settings: one JSON object a file."""
    return name in _JSON


def is_sqlite(name: bytes) -> bool:
    """True for databases known by their name; others are told by their header."""
    return name in _SQLITE


def is_kept(name: bytes) -> bool:
    """True for what Chrome makes anew, empty, where it can't read it: settings, SQLite, and the files of a LevelDB."""
    return is_json(name) or is_sqlite(name) or _DATABASE.match(name) is not None


def is_lock(name: bytes) -> bool:
    """True for the symlinks of a running Chrome, which let no other start with a copy of the profile."""
    return name in _LOCKS


def starts_with(name: bytes) -> bool:
    """True for the symlink that a Chrome makes first, and without which it ends."""
    return name == _LOCK_NAME


def lock_owner(name: bytes, target: bytes) -> tuple[str, int] | None:
    """(host, pid) of the Chrome that made this symbolic link, if it is the lock of a running Chrome; else None."""
    host, _, pid = target.rpartition(b"-")
    if name != _LOCK_NAME or not pid.isdigit():
        return None
    return host.decode(errors="replace"), int(pid)


# -- the layout of profiles

PROFILE = b"Default"
"""The directory, in a user data directory, of the one profile that a session has."""
REMOTE_AUTH_KEEPS = (b"Default", b"IndexedDB", b"Local Storage")
"""What whatsapp-web.js's RemoteAuth keeps of PROFILE, by names in it (1.34.7: `copyByRequiredDirs`)."""


def in_remote_auth(path: bytes) -> bool:
    """Whether RemoteAuth's zip has *path*, which is relative to the user data directory, as the zip's names are."""
    parts = path.split(b"/")
    return parts[0] == PROFILE and (len(parts) == 1 or parts[1] in REMOTE_AUTH_KEEPS)


_LOGIN = frozenset(REMOTE_AUTH_KEEPS) - {PROFILE}
_CLIENT = re.compile(rb"(session|RemoteAuth)(-[-\w]+)?\Z")
CLIENT_DIRECTORY = b"session"
"""What whatsapp-web.js's LocalAuth without a clientId calls Chrome's profile, below its dataPath."""
AUTH_DIRECTORY = b".wwebjs_auth"
"""The dataPath of whatsapp-web.js, when it is given none."""


def is_client_directory(name: bytes) -> bool:
    """True for what whatsapp-web.js calls a profile below its dataPath: LocalAuth's and RemoteAuth's, with a clientId
    and without.
    """
    return _CLIENT.match(name) is not None


def is_profile_root(names: Collection[bytes]) -> bool:
    """True if a directory with these *names* is what Chrome got as --user-data-dir."""
    return b"Local State" in names


def profile_part(names: Collection[bytes]) -> bytes | None:
    """Of a directory with these *names*: the one to look into, if it is to be told whether it is a profile that was
    reduced to what a login needs, as RemoteAuth's zip is.
    """
    return PROFILE if PROFILE in names else None


def is_login_data(names: Collection[bytes]) -> bool:
    """True if the `profile_part` with these *names* holds a login."""
    return not _LOGIN.isdisjoint(names)
