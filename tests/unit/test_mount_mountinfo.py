"""Reading /proc/self/mountinfo."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from sessfs.errors import NotMounted
from sessfs.mount import mountinfo, preflight

if TYPE_CHECKING:
    from pathlib import Path

LINES = rb"""22 27 0:21 / /proc rw,relatime - proc proc rw
40 27 0:45 / /srv/with\040space\134and\011tab rw,nosuid shared:1 master:2 - fuse.sessfs /var/lib/a\040b rw
41 27 0:46 / /srv/stacked rw - fuse.sessfs /state/old rw
42 41 0:47 / /srv/stacked rw - fuse.sessfs /state/new rw
43 27 0:48 / /srv/covered rw - fuse.sessfs /state/x rw
44 43 0:49 / /srv/covered rw - tmpfs tmpfs rw
"""


@pytest.fixture
def mounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A mountinfo of our own; what it lists is not on this machine."""
    file = tmp_path / "mountinfo"
    file.write_bytes(LINES)
    monkeypatch.setattr(mountinfo, "MOUNTINFO", file)
    return tmp_path


def test_parse_undoes_escapes_and_skips_optional_fields() -> None:
    mount = mountinfo.parse(LINES)[1]
    assert mount.mountpoint == "/srv/with space\\and\ttab"
    assert (mount.source, mount.fs_type, mount.device, mount.mount_id) == ("/var/lib/a b", "fuse.sessfs", "0:45", 40)


def test_parse_takes_line_feeds_alone_for_ends_of_lines() -> None:
    """Others are not escaped, and anybody may mount on a directory with such a name."""
    odd = b"45 27 0:50 / /home/x/a\rb\x0bc\x0cd\x1ce\x85f rw - fuse.other other rw\n"
    mounts = mountinfo.parse(odd + LINES)
    assert len(mounts) == 1 + len(mountinfo.parse(LINES))
    assert os.fsencode(mounts[0].mountpoint) == b"/home/x/a\rb\x0bc\x0cd\x1ce\x85f"
    assert mountinfo.parse(b"") == []


@pytest.mark.usefixtures("mounts")
def test_sessfs_mounts_lists_the_visible_ones_once() -> None:
    assert [mount.mountpoint for mount in mountinfo.sessfs_mounts()] == ["/srv/stacked", "/srv/with space\\and\ttab"]
    assert mountinfo.sessfs_mounts()[0].source == "/state/new"


def test_find_state_gives_the_source_of_the_topmost_mount(mounts: Path) -> None:
    place = mounts / "m"
    line = f"50 27 0:50 / {place} rw - fuse.sessfs /state/one\\040two rw\n"
    (mounts / "mountinfo").write_bytes(LINES + line.encode())
    assert str(preflight.find_state(place)) == "/state/one two"


def test_find_state_under_another_filesystem_is_not_mounted(mounts: Path) -> None:
    place = mounts / "m"
    lines = f"50 27 0:50 / {place} rw - fuse.sessfs /state rw\n51 50 0:51 / {place} rw - tmpfs tmpfs rw\n"
    (mounts / "mountinfo").write_bytes(LINES + lines.encode())
    with pytest.raises(NotMounted, match=str(place)):
        preflight.find_state(place)


def test_resolve_follows_symlinks_to_the_mountpoint(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert mountinfo.resolve(tmp_path / "link") == tmp_path / "real"
    assert mountinfo.resolve(tmp_path / "link" / "new") == tmp_path / "real" / "new"
    assert mountinfo.resolve(tmp_path / "real" / ".." / "real") == tmp_path / "real"
