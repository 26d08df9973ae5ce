"""Export one session's tree: everything is written under a temporary name, flushed, and renamed at the end."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

from sessfs import chrome
from sessfs.errors import UsageError
from sessfs.sessions.exportformats import DirectoryWriter, TarWriter, Writer, ZipWriter
from sessfs.sessions.trees import WARM_BYTES, Tree, TreeNode, show

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    Pieces = Iterator[tuple[int, bytes]]

PIECE_BYTES = 4 << 20
PART_SUFFIX = ".part"


class ExportFormat(StrEnum):
    """What a session can be exported to."""

    DIR = "dir"
    TAR = "tar"
    TAR_ZST = "tar.zst"
    ZIP = "zip"
    REMOTEAUTH = "remoteauth"
    """A zip that whatsapp-web.js's RemoteAuth restores: of the profile, what it keeps itself."""


@dataclass(frozen=True, slots=True)
class ExportStep:
    """How far an export is: bytes of content written, of how many; the file it is at."""

    done_bytes: int
    total_bytes: int
    path: str


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What an export wrote: *files* are all names but directories', *content_bytes* that of regular files, each hard
    link's once. *notes* say what the format could not hold.
    """

    dest: str
    format: str
    files: int
    directories: int
    content_bytes: int
    notes: list[str]


def guess_format(dest: Path) -> ExportFormat:
    """By the suffix; a directory for anything else."""
    name = dest.name.lower()
    if name.endswith((".tar.zst", ".tzst")):
        return ExportFormat.TAR_ZST
    return {".tar": ExportFormat.TAR, ".zip": ExportFormat.ZIP}.get(dest.suffix.lower(), ExportFormat.DIR)


def check_dest(dest: Path, form: ExportFormat) -> None:
    """Raise UsageError when *dest* is taken: nothing is ever overwritten. An empty directory may become one."""
    if not dest.parent.is_dir():
        raise UsageError(f"{dest.parent} is no directory: make it before exporting to {dest}")
    if not os.path.lexists(dest):
        return
    if form is not ExportFormat.DIR:
        raise UsageError(f"{dest} exists, and an export overwrites nothing: give another name, or remove it")
    if dest.is_symlink() or not dest.is_dir() or any(dest.iterdir()):
        raise UsageError(f"{dest} exists, and is no empty directory: give another name, or remove it")
    if dest.is_mount():
        raise UsageError(f"{dest} is a mountpoint, which can't be replaced: give a name in it, as {dest / 'export'}")


def export_tree(
    tree: Tree,
    dest: Path,
    form: ExportFormat,
    *,
    syncfs: Callable[[str], None],
    progress: Callable[[ExportStep], None] | None = None,
) -> ExportReport:
    """Write all of *tree* to *dest*, which is there, whole and durable, once this returns; until then, and when it
    raises, it is not. *syncfs* flushes the filesystem that a directory lies in. Raises UsageError when *dest* is taken
    or the format can't hold the tree, SessfsError as *tree* does, OSError.
    """
    check_dest(dest, form)
    nodes = list(tree.walk())
    locks = {node.path for node in nodes if node.is_symlink and chrome.is_lock(os.path.basename(node.path))}
    entries = [_Entry(node, node.path) for node in nodes if node.path not in locks]
    if form is ExportFormat.REMOTEAUTH:
        entries = _remote_auth(entries)
    part = dest.parent / f".{os.fsdecode(os.fsencode(dest.name)[:200])}.{secrets.token_hex(4)}{PART_SUFFIX}"
    try:
        with _writing(part, form, syncfs) as writer:
            report = _export(tree, entries, writer, dest, form, progress)
        check_dest(dest, form)
        part.rename(dest)
    except BaseException:
        _remove(part)
        raise
    _flush_directory(dest.parent)
    return report


@contextlib.contextmanager
def _writing(part: Path, form: ExportFormat, syncfs: Callable[[str], None]) -> Iterator[Writer]:
    """A writer of the new *part*, which is on the disk when this is left without an error."""
    if form is ExportFormat.DIR:
        part.mkdir(0o700)
        yield DirectoryWriter(os.fsencode(part))
        syncfs(str(part))
        return
    with open(part, "xb", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
        if form in (ExportFormat.ZIP, ExportFormat.REMOTEAUTH):
            yield ZipWriter(file)
        else:
            yield TarWriter(file, compress=form is ExportFormat.TAR_ZST)
        file.flush()
        os.fsync(file.fileno())


def _remove(part: Path) -> None:
    with contextlib.suppress(OSError):
        if part.is_dir():
            shutil.rmtree(part, ignore_errors=True)
        else:
            part.unlink()


def _flush_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class _Entry(NamedTuple):
    """A node, and the path that it gets in the export."""

    node: TreeNode
    path: bytes


def _export(
    tree: Tree,
    entries: Sequence[_Entry],
    writer: Writer,
    dest: Path,
    form: ExportFormat,
    progress: Callable[[ExportStep], None] | None,
) -> ExportReport:
    sizes = {node.ino: node.size for node, _ in entries if node.is_file}
    copier = _Copier(tree, writer, sum(sizes.values()), progress)
    try:
        for node, path in entries:
            writer.require(node._replace(path=path))
        for group in _groups(entries):
            tree.warm([node for node, _ in group if node.is_file])
            for entry in group:
                copier.copy(entry)
        writer.finish()
    finally:
        writer.abandon()
    directories = sum(node.is_dir for node, _ in entries)
    notes = [note if count == 1 else f"{note} ({count} times)" for note, count in writer.notes.items()]
    return ExportReport(str(dest), form.value, len(entries) - directories, directories, sum(sizes.values()), notes)


def _groups(entries: Sequence[_Entry]) -> Iterator[list[_Entry]]:
    """Neighbours, as many as are worth bringing near at once."""
    group: list[_Entry] = []
    room = WARM_BYTES
    for entry in entries:
        if group and entry.node.allocated > room:
            yield group
            group, room = [], WARM_BYTES
        group.append(entry)
        room -= entry.node.allocated
    if group:
        yield group


class _Copier:
    """Copies node by node, and says how far it is."""

    def __init__(
        self, tree: Tree, writer: Writer, total_bytes: int, progress: Callable[[ExportStep], None] | None
    ) -> None:
        self._tree = tree
        self._writer = writer
        self._total_bytes = total_bytes
        self._progress = progress
        self._done_bytes = 0
        self._first: dict[int, TreeNode] = {}

    def copy(self, entry: _Entry) -> None:
        """Write one node."""
        node, written = entry.node, entry.node._replace(path=entry.path)
        first = self._first.get(node.ino) if not node.is_dir else None
        if first is not None and self._writer.link(written, first):
            return
        self._first.setdefault(node.ino, written)
        # A second copy of the same content is not counted in the total.
        done = self._done_bytes + (node.size if first is None and node.is_file else 0)
        self._writer.add(written, self._pieces(node, counts=first is None))
        self._done_bytes = done
        self._say(node)

    def _pieces(self, node: TreeNode, *, counts: bool) -> Pieces:
        if not node.is_file:
            return
        for start, end in self._tree.spans(node):
            for at in range(start, end, PIECE_BYTES):
                piece = self._tree.read(node, at, min(PIECE_BYTES, end - at))
                yield at, piece
                self._done_bytes += len(piece) if counts else 0
                self._say(node)

    def _say(self, node: TreeNode) -> None:
        if self._progress is not None:
            self._progress(ExportStep(self._done_bytes, self._total_bytes, os.fsdecode(node.path)))


def _remote_auth(entries: Sequence[_Entry]) -> list[_Entry]:
    """What RemoteAuth keeps, by paths as in its zip. Raises UsageError when there is nothing of that kind, or more than
    one profile.
    """
    directories = [path for node, path in entries if node.is_dir]
    profiles = sorted(os.path.dirname(path) for path in directories if os.path.basename(path) == chrome.PROFILE)
    profiles = [b""] if b"" in profiles else [path for path in profiles if b"/" not in path]
    if not profiles:
        raise UsageError("the session has no Chrome profile, so RemoteAuth could not use it: export to another format")
    if len(profiles) > 1:
        found = ", ".join(show(path) for path in profiles)
        raise UsageError(f"the session has several profiles ({found}), and RemoteAuth's zip holds one: export to a tar")
    prefix = profiles[0] + b"/" if profiles[0] else b""
    inside = [_Entry(node, path.removeprefix(prefix)) for node, path in entries if path.startswith(prefix)]
    kept = [e for e in inside if chrome.in_remote_auth(e.path) and (e.node.is_dir or e.node.is_file)]
    if len(kept) < 2:
        raise UsageError("the session's profile has nothing that RemoteAuth keeps: let WhatsApp Web log in first")
    return kept
