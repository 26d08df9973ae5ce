"""What must not lie in a sessfs mount: whatever a daemon, or a command that speaks to one, reads and writes itself.

A daemon that waits for its own mount waits for ever, and so does the `sync` of the whole machine. Two mounts that wait
for each other are no better, and what lies below the mountpoint of a mount is out of reach once that hangs. So all
sessfs mounts count, not only one's own, and so does what is mounted below one, by whatever path it is named.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from sessfs.config import DEFAULT_FILE
from sessfs.errors import UsageError
from sessfs.mount import mountinfo, syscalls
from sessfs.remote.urls import DirectoryLocation, parse_remote

if TYPE_CHECKING:
    from sessfs.config import Settings

ANSWER_S = 10.0
"""How long a path may take to be looked at: a mount on the way to it may hang."""


def require_outside(
    what: str, path: str | os.PathLike[str], planned: Path | None = None, mend: str = "choose a place outside of it"
) -> None:
    """Raise UsageError, naming both and how to *mend* it, if *path* lies in a sessfs mount, or in *planned*, the
    mountpoint of one to be. Neither *path* nor *planned* needs to exist.
    """
    mountpoint = mountpoint_around(Path(path), planned)
    if mountpoint is not None:
        kind = "mountpoint" if mountpoint == planned else "sessfs mount"
        raise UsageError(
            f"{what} {os.fspath(path)} lies in the {kind} {mountpoint}, and a mount that waits for itself hangs: {mend}"
        )


def require_settings_outside(settings: Settings, planned: Path | None = None) -> None:
    """`require_outside` for the state directory, the remote, and the key file. Raises UsageError."""
    require_outside("the state directory", settings.state_dir, planned)
    require_remote_outside(settings, planned)


def require_remote_outside(settings: Settings, planned: Path | None = None) -> None:
    """`require_outside` for the remote and the key file. Raises UsageError."""
    if settings.remote is not None:
        location = parse_remote(settings.remote)
        if isinstance(location, DirectoryLocation):
            require_outside("the remote", location.path, planned)
    if settings.key_file is not None:
        require_outside("the key file", settings.key_file, planned)


def require_temporary_outside(planned: Path | None = None) -> None:
    """`require_outside` for the directory of temporary files, which TMPDIR names. Raises UsageError."""
    named = next((name for name in ("TMPDIR", "TEMP", "TMP") if os.environ.get(name)), None)
    if named is not None:
        require_outside(f"the directory for temporary files ({named})", os.environ[named], planned)
    else:
        require_outside("the directory for temporary files", tempfile.gettempdir(), planned)


def require_output_outside() -> None:
    """Raise UsageError if standard output, or standard error, goes to a file in a sessfs mount: a daemon in the
    foreground logs there.
    """
    mounts = {mount.device: mount.mountpoint for mount in mountinfo.sessfs_mounts()}
    for number, what in ((1, "standard output"), (2, "standard error")):
        try:
            found = _device(os.fstat(number))
        except OSError:
            continue
        if found in mounts:
            raise UsageError(
                f"{what} goes to a file in the sessfs mount {mounts[found]}, and a daemon that logs to a mount can "
                "hang with it: choose a place outside of it"
            )


def require_configuration_outside(file: Path | None, planned: Path | None = None) -> None:
    """`require_outside` for the TOML file: *file*, or else the one that is read without. Raises UsageError."""
    require_outside("the configuration file", file or os.environ.get("SESSFS_CONFIG") or DEFAULT_FILE, planned)


def mountpoint_around(path: Path, planned: Path | None = None) -> Path | None:
    """The mountpoint of the sessfs mount that *path* lies in, or *planned* if it lies there, by whatever symlinks and
    bind mounts it is reached; None if it lies in none. A dead or hanging mount is found, too.
    """
    mounts = mountinfo.sessfs_mounts()
    if not mounts and planned is None:
        return None
    devices = {mount.device: Path(mount.mountpoint) for mount in mounts}
    places = [*devices.values(), *(Path(mount.mountpoint) for mount in mounts)]
    if planned is not None:
        places.append(planned)
    try:
        return syscalls.within(ANSWER_S, lambda: _find(path, places, devices, planned), f"looking for {path}")
    except TimeoutError:
        # Something on the way to it hangs: its name alone must do.
        return _deepest(Path(os.path.abspath(path)), places)


def _find(path: Path, places: list[Path], devices: dict[str, Path], planned: Path | None) -> Path | None:
    real = Path(os.path.realpath(path))
    return _deepest(real, places) or _same_directory(real, devices, planned)


def _deepest(path: Path, places: list[Path]) -> Path | None:
    return max((p for p in places if path.is_relative_to(p)), key=lambda place: len(place.parts), default=None)


def _same_directory(real: Path, devices: dict[str, Path], planned: Path | None) -> Path | None:
    """Whether the path, or a directory above it, is of a sessfs mount, or the planned mountpoint by another name."""
    there = _stat(planned) if planned is not None else None
    for directory in (real, *real.parents):
        found = _stat(directory)
        if found is None:
            continue
        if _device(found) in devices:
            return devices[_device(found)]
        if there is not None and os.path.samestat(found, there):
            return planned
    return None


def _stat(path: Path) -> os.stat_result | None:
    try:
        return os.stat(path)
    except OSError:
        return None


def _device(found: os.stat_result) -> str:
    return f"{os.major(found.st_dev)}:{os.minor(found.st_dev)}"
