"""What is recognised as what: trees of whatsapp-web.js, profiles, and what is in archives."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from sessfs.errors import UsageError
from sessfs.sessions.importing_layout import SessionSource, label_of, recognise, recognise_archive

if TYPE_CHECKING:
    from pathlib import Path

    from sessfs.sessions.importing_layout import Layout


def profile(path: Path) -> Path:
    (path / "Default").mkdir(parents=True)
    (path / "Local State").touch()
    return path


def reduced(path: Path) -> Path:
    """What is in a RemoteAuth zip."""
    for name in ("IndexedDB", "Local Storage"):
        (path / "Default" / name).mkdir(parents=True)
    return path


def of(root: Path, as_name: bytes | None = None) -> Layout:
    return recognise(os.fsencode(root), os.fsencode(root.name), as_name, parent_label=os.fsencode(root.parent.name))


def source(name: str, path: Path, *prefix: bytes) -> SessionSource:
    return SessionSource(name.encode(), os.fsencode(path), prefix)


def test_tree_of_users_keeps_their_names(tmp_path: Path) -> None:
    root = tmp_path / ".whatsapp-sessions"
    profile(root / "a/session")
    profile(root / "b/session-x")
    profile(root / "c")
    (root / "empty").mkdir()
    (root / "note").touch()
    found = of(root)
    assert found.sessions == [source(name, root / name) for name in "abc"]
    assert [os.path.basename(item.path) for item in found.left_out] == [b"empty", b"note"]
    assert found.data_path == "MOUNTPOINT/NAME"


def test_tree_of_clients_keeps_the_names_that_the_client_looks_for(tmp_path: Path) -> None:
    root = tmp_path / ".wwebjs_auth"
    for name in ("session", "session-one", "RemoteAuth-two"):
        profile(root / name)
    reduced(root / "RemoteAuth-three")
    (root / "session-broken").mkdir()
    found = of(root)
    names = ["RemoteAuth-three", "RemoteAuth-two", "session", "session-one"]
    assert found.sessions == [source(name, root / name) for name in names]
    assert [os.path.basename(item.path) for item in found.left_out] == [b"session-broken"]
    assert found.data_path == "MOUNTPOINT"


def test_tree_of_one_client_without_id_is_a_client_tree_by_its_name(tmp_path: Path) -> None:
    profile(tmp_path / ".wwebjs_auth/session")
    assert of(tmp_path / ".wwebjs_auth").sessions == [source("session", tmp_path / ".wwebjs_auth/session")]


def test_tree_of_clients_under_one_name_is_one_session(tmp_path: Path) -> None:
    root = tmp_path / ".wwebjs_auth"
    profile(root / "session-one")
    profile(root / "session-two")
    assert of(root, b"both").sessions == [source("both", root)]


def test_one_user_is_a_session_of_that_name(tmp_path: Path) -> None:
    profile(tmp_path / "alice/session")
    assert of(tmp_path / "alice").sessions == [source("alice", tmp_path / "alice")]
    assert of(tmp_path / "alice", b"bob").sessions == [source("bob", tmp_path / "alice")]


@pytest.mark.parametrize(
    ("path", "as_name", "name", "prefix"),
    [
        ("alice/session", None, "alice", (b"session",)),
        ("alice/session", b"bob", "bob", (b"session",)),
        ("alice", None, "alice", (b"session",)),
        (".wwebjs_auth/session", None, "session", ()),
        (".wwebjs_auth/session-one", None, "session-one", ()),
        (".wwebjs_auth/session-one", b"bob", "bob", (b"session",)),
        (".wwebjs_auth/RemoteAuth-two", None, "RemoteAuth-two", ()),
    ],
)
@pytest.mark.parametrize("make", [profile, reduced])
def test_one_profile_lies_where_its_client_looks(
    tmp_path: Path, path: str, as_name: bytes | None, name: str, prefix: tuple[bytes, ...], make: object
) -> None:
    assert callable(make)
    root = make(tmp_path / path)
    assert of(root, as_name).sessions == [source(name, root, *prefix)]


def test_one_name_for_several_users_is_refused(tmp_path: Path) -> None:
    profile(tmp_path / "a/session")
    profile(tmp_path / "b/session")
    with pytest.raises(UsageError, match="holds 2"):
        of(tmp_path, b"one")


def test_anything_else_is_refused_and_says_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "x/y").mkdir(parents=True)
    with pytest.raises(UsageError, match="neither a profile of Chrome"):
        of(tmp_path)


@pytest.mark.parametrize("name", [b"", b".sessfs-view-1", b".", b"..", b"a/b", b"x" * 256])
def test_names_that_no_session_may_have_are_refused(tmp_path: Path, name: bytes) -> None:
    with pytest.raises(UsageError, match="--as"):
        of(profile(tmp_path / "p"), name)


def test_archive_is_looked_through_to_what_it_holds(tmp_path: Path) -> None:
    profile(tmp_path / "srv/app/.whatsapp-sessions/a/session")
    profile(tmp_path / "srv/app/.whatsapp-sessions/b/session")
    found = recognise_archive(os.fsencode(tmp_path), b"backup", None)
    assert [session.name for session in found.sessions] == [b"a", b"b"]


def test_archive_of_a_client_tree_is_looked_through(tmp_path: Path) -> None:
    profile(tmp_path / "app/.wwebjs_auth/session")
    found = recognise_archive(os.fsencode(tmp_path), b"backup", None)
    assert found.sessions == [source("session", tmp_path / "app/.wwebjs_auth/session")]


def test_remote_auth_zip_is_a_profile_of_the_archive_name(tmp_path: Path) -> None:
    reduced(tmp_path)
    (only,) = recognise_archive(os.fsencode(tmp_path), label_of("/x/RemoteAuth-7.zip"), None).sessions
    assert only == source("RemoteAuth-7", tmp_path)
    (only,) = recognise_archive(os.fsencode(tmp_path), label_of("/x/RemoteAuth-7.zip"), b"u").sessions
    assert only == source("u", tmp_path, b"session")


@pytest.mark.parametrize(
    ("path", "label"),
    [("/a/b.tar.gz", b"b"), ("/a/b.TAR.ZST", b"b"), ("b.tgz", b"b"), ("/a/b.c", b"b.c"), ("/a/b.zip", b"b")],
)
def test_label_has_no_ending_of_an_archive(path: str, label: bytes) -> None:
    assert label_of(path) == label
