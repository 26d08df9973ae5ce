"""The ext4 that everything is measured on: the one below a given directory, or a fresh one in an image file.

Debian's ext4 has a journal. One without (found in some virtual machines) is another filesystem for this purpose: its
fsync is cheaper, and making a file there costs up to a millisecond while many were deleted in the last minutes
(`recently_deleted` in fs/ext4/ialloc.c).
"""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench.machine import output_of

if TYPE_CHECKING:
    from collections.abc import Iterator

IMAGE_BYTES: Final = 24 << 30


def has_journal(base: Path) -> bool:
    """Whether *base* lies on an ext4 with a journal."""
    device = Path(output_of(("findmnt", "--noheadings", "--output", "SOURCE", "--target", str(base)))).name
    journals = Path("/proc/fs/jbd2")
    return journals.is_dir() and any(each.name.startswith(f"{device}-") for each in journals.iterdir())


@contextlib.contextmanager
def open_ext4(base: Path, directory: Path) -> Iterator[Path]:
    """A directory on an ext4 with a journal: *directory*, which lies below *base*, or where that has none, the root of
    a fresh filesystem in a sparse file there, mounted by way of a loop device with direct I/O.
    """
    if has_journal(base):
        yield directory
        return
    image, mountpoint = directory / "ext4.img", directory / "ext4"
    with image.open("wb") as file:
        file.truncate(IMAGE_BYTES)
    mountpoint.mkdir()
    _run("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", str(image))
    device = _run("losetup", "--find", "--show", "--direct-io=on", str(image)).strip()
    try:
        _run("mount", "-t", "ext4", device, str(mountpoint))
        try:
            yield mountpoint
        finally:
            _run("umount", str(mountpoint))
    finally:
        _run("losetup", "--detach", device)


def _run(*command: str) -> str:
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL).stdout
    except (FileNotFoundError, subprocess.CalledProcessError) as exc:
        detail = getattr(exc, "stderr", "")
        raise SystemExit(
            f"bench: `{' '.join(command)}` failed: {detail or exc}. Without loop devices, give a directory on an ext4"
            " with a journal by --base"
        ) from exc
