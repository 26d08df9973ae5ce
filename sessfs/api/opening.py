"""From a target to a store: which kind of place it is, and with which settings it is opened."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from sessfs import config
from sessfs.api.mounted import MountedStore
from sessfs.api.remote import RemoteStore
from sessfs.api.state import StateStore
from sessfs.errors import UsageError
from sessfs.mount import mountinfo, places

if TYPE_CHECKING:
    from sessfs.api.store import Store
    from sessfs.config import Settings

STATE_PART = "meta"
"""Whatever state directory was ever mounted has it."""


def open_store(
    target: str | os.PathLike[str],
    *,
    key_file: str | os.PathLike[str] | None = None,
    endpoint_url: str | None = None,
    region: str | None = None,
    path_style: bool | None = None,
) -> Store:
    """Open the store that *target* is: the mountpoint of a running mount, a state directory that is not mounted, or
    the URL of a remote (`s3://BUCKET/PREFIX`, `file:///DIRECTORY`), which is only read.

    The other arguments are for a remote; what is not given comes from the variables SESSFS_* and /etc/sessfs.toml.
    Raises UsageError for a target that is none of these, NotMounted for a dead mount, StateInUse (with the pid) for a
    state directory that somebody has, KeyWrong, RemoteError, LocalStoreError.
    """
    given = {"key_file": key_file, "endpoint_url": endpoint_url, "region": region, "path_style": path_style}
    text = os.fspath(target)
    if "://" in text:
        return RemoteStore(remote_only_settings({"remote": text, **given}))
    if any(value is not None for value in given.values()):
        raise UsageError(f"{text} is no URL of a remote, and only a remote is opened with a key file or an endpoint")
    place = mountinfo.resolve(Path(text))
    mount = mountinfo.find_mount(place)
    if mount is not None and mount.fs_type == mountinfo.FS_TYPE:
        return MountedStore(place)
    places.require_outside("the state directory", place)
    if not (place / STATE_PART).is_dir():
        raise UsageError(
            f"{text} is neither the mountpoint of a running sessfs (`sessfs status` lists them), nor a state "
            "directory, nor a URL as s3://BUCKET/PREFIX"
        )
    return StateStore(config.load(Path("/"), {"state": str(place)}, file=None, env=os.environ, uid=os.geteuid()))


def remote_only_settings(given: dict[str, object]) -> Settings:
    """The settings for work on a remote without a mount: *given* by TOML key (None: not given), then variables and
    /etc/sessfs.toml. Raises UsageError, also when there is no remote among them.
    """
    places.require_configuration_outside(None)
    flags = {key: os.fspath(v) if isinstance(v, os.PathLike) else v for key, v in given.items() if v is not None}
    settings = config.load(Path("/"), flags, file=None, env=os.environ, uid=os.geteuid())
    if settings.remote is None:
        raise UsageError("which remote? Give --remote URL")
    places.require_remote_outside(settings)
    return settings
