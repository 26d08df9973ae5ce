"""What a directory that is to be imported is: which sessions it holds, and what they will be called."""

from __future__ import annotations

import os
import re
import stat
from typing import NamedTuple

from sessfs import chrome
from sessfs.errors import UsageError
from sessfs.sessions.names import check_name

MAX_WRAPPERS = 8
OTHER_NAME = "give another with --as"
_ENDINGS = re.compile(r"\.(zip|tar|tgz|tzst|txz|tbz2?|tar\.(gz|zst|xz|bz2))\Z", re.IGNORECASE)


class SessionSource(NamedTuple):
    """One session to be: its name in the mount, and the directory that becomes *prefix* in it (empty: the session
    itself).
    """

    name: bytes
    directory: bytes
    prefix: tuple[bytes, ...] = ()


class LeftOut(NamedTuple):
    """What of the source is not taken, and why."""

    path: bytes
    reason: str


class Layout(NamedTuple):
    """What was recognised. *data_path* is what whatsapp-web.js's dataPath has to be after the move."""

    kind: str
    sessions: list[SessionSource]
    left_out: list[LeftOut]
    data_path: str


def check_kind(path: str, found: os.stat_result) -> None:
    """Raises UsageError unless a source of this status (links followed) is a directory or a regular file: to open
    anything else may wait for ever.
    """
    if not stat.S_ISDIR(found.st_mode) and not stat.S_ISREG(found.st_mode):
        raise UsageError(f"{path} is neither a directory nor a regular file: give a tree of sessions, a tar or a zip")


def label_of(path: str) -> bytes:
    """What a source is called: its last name, without the ending of an archive."""
    return os.fsencode(_ENDINGS.sub("", os.path.basename(path)))


def recognise(root: bytes, label: bytes, as_name: bytes | None, *, parent_label: bytes = b"") -> Layout:
    """What *root* holds; *label* is what it is called, *parent_label* what the directory around it is. With *as_name*
    it has to be one session, of that name. Raises UsageError, which says what was looked for, and OSError.
    """
    if as_name is not None:
        check_name(as_name, OTHER_NAME)
    names = _directories(root)
    if is_profile(root):
        found = _one_profile(root, label, as_name, parent_label)
    elif clients := [name for name in names if chrome.is_client_directory(name) and is_profile(_join(root, name))]:
        found = _clients(root, clients, label, as_name)
    elif users := [name for name in names if _is_user(root, name)]:
        found = _users(root, users, as_name)
    else:
        raise UsageError(
            f"{_show(root)} holds no session: it is neither a profile of Chrome, nor a directory of whatsapp-web.js "
            "(session, session-ID, RemoteAuth-ID), nor one with a directory for each user"
        )
    for session in found.sessions:
        check_name(session.name, OTHER_NAME)
    return found


def recognise_archive(root: bytes, label: bytes, as_name: bytes | None) -> Layout:
    """`recognise` for what an archive held: directories that hold nothing but one other are looked through."""
    parent_label = b""
    for _ in range(MAX_WRAPPERS):
        names = _directories(root)
        if len(names) != 1 or is_profile(root) or chrome.is_client_directory(names[0]) or _is_user(root, names[0]):
            break
        root, parent_label, label = _join(root, names[0]), label, names[0]
    return recognise(root, label, as_name, parent_label=parent_label)


def is_profile(directory: bytes) -> bool:
    """True if the directory is a profile of Chrome, whole or reduced to a login."""
    names = _names(directory)
    if chrome.is_profile_root(names):
        return True
    part = chrome.profile_part(names)
    return part is not None and chrome.is_login_data(_names(_join(directory, part)))


def _one_profile(root: bytes, label: bytes, as_name: bytes | None, parent_label: bytes) -> Layout:
    if as_name is None and chrome.is_client_directory(label) and label != chrome.CLIENT_DIRECTORY:
        return Layout("profile", [SessionSource(label, root)], [], "MOUNTPOINT")
    name = as_name or (parent_label if label == chrome.CLIENT_DIRECTORY else label)
    if not name or name in (chrome.AUTH_DIRECTORY, b"/"):
        return Layout("profile", [SessionSource(chrome.CLIENT_DIRECTORY, root)], [], "MOUNTPOINT")
    return Layout("profile", [SessionSource(name, root, (chrome.CLIENT_DIRECTORY,))], [], "MOUNTPOINT/NAME")


def _clients(root: bytes, clients: list[bytes], label: bytes, as_name: bytes | None) -> Layout:
    if as_name is not None:
        return Layout("user", [SessionSource(as_name, root)], [], "MOUNTPOINT/NAME")
    if clients == [chrome.CLIENT_DIRECTORY] and label not in (chrome.AUTH_DIRECTORY, b""):
        return Layout("user", [SessionSource(label, root)], [], "MOUNTPOINT/NAME")
    sessions = [SessionSource(name, _join(root, name)) for name in clients]
    return Layout("whatsapp-web.js", sessions, _others(root, clients, "not a profile"), "MOUNTPOINT")


def _users(root: bytes, users: list[bytes], as_name: bytes | None) -> Layout:
    if as_name is not None and len(users) > 1:
        raise UsageError(f"--as names one session, and {_show(root)} holds {len(users)}: import them one by one")
    sessions = [SessionSource(as_name or name, _join(root, name)) for name in users]
    return Layout("users", sessions, _others(root, users, "no profile of Chrome in it"), "MOUNTPOINT/NAME")


def _is_user(root: bytes, name: bytes) -> bool:
    """True for a user's directory: it is a profile, or holds some as whatsapp-web.js calls them."""
    directory = _join(root, name)
    if name == chrome.AUTH_DIRECTORY:
        return False
    if is_profile(directory):
        return True
    return any(chrome.is_client_directory(each) and is_profile(_join(directory, each)) for each in _names(directory))


def _others(root: bytes, taken: list[bytes], reason: str) -> list[LeftOut]:
    return [LeftOut(_join(root, name), reason) for name in sorted(_names(root) - set(taken))]


def _directories(directory: bytes) -> list[bytes]:
    """Names of the directories in it, links not followed, sorted."""
    with os.scandir(directory) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))


def _names(directory: bytes) -> set[bytes]:
    """The names in it; none when it is no directory, or may not be read."""
    try:
        if not stat.S_ISDIR(os.lstat(directory).st_mode):
            return set()
        return set(os.listdir(directory))
    except OSError:
        return set()


def _join(directory: bytes, name: bytes) -> bytes:
    return os.path.join(directory, name)


def _show(path: bytes) -> str:
    return path.decode(errors="replace")
