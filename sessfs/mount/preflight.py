"""Before a mount: what would stop it, each as an error that says how to mend it; and dead mountpoints, taken away.

Nothing here opens LMDB or takes the state's lock: the daemon does, and has the last word.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import subprocess
import time
from pathlib import Path
from shutil import which
from typing import TYPE_CHECKING

import msgspec

from sessfs.config import STATE_VERSION
from sessfs.errors import (
    FuseMissing,
    FusermountMissing,
    LocalStoreError,
    MountpointUnusable,
    NoRights,
    NotMounted,
    StateInUse,
    StateTooNew,
    StoreCorrupt,
    UsageError,
)
from sessfs.mount import mountinfo, places, syscalls

if TYPE_CHECKING:
    from sessfs.config import Settings

FUSE_DEVICE = Path("/dev/fuse")
FUSE_CONF = Path("/etc/fuse.conf")
PROBE_TIMEOUT_S = 10.0
"""How long a mount may take to answer statfs before it counts as hanging."""
_DEAD_ERRNOS = (errno.ENOTCONN, errno.ECONNABORTED)


IDENTITY_XATTR = "user.sessfs.daemon"


class _Format(msgspec.Struct):
    version: int


class _Identity(msgspec.Struct):
    """What a daemon says of itself, see `adapter`."""

    pid: int
    state_dir: str | None


class Home(msgspec.Struct, frozen=True):
    """Where the daemon of a mount has its state."""

    state_dir: Path
    pid: int | None = None
    """The daemon's, where it had to be asked for it."""
    trouble: str = ""
    """What happened to the directory that it was mounted with, as what is to be said of it; else empty."""
    is_there: bool = True


def check(settings: Settings) -> None:
    """Return if a daemon with *settings* may be started; then the mountpoint and the state directory exist.

    Takes dead sessfs mounts off the mountpoint. Raises FuseMissing, FusermountMissing, NoRights, StateTooNew,
    StateInUse, MountpointUnusable, StoreCorrupt or UsageError.
    """
    check_host()
    check_allow_other(settings.mount_options)
    check_apart(settings)
    check_places(settings)
    check_state(settings.state_dir)
    detach_dead(settings.mountpoint)
    check_mountpoint(settings.mountpoint)
    prepare_state(settings.state_dir)


def check_host() -> None:
    """Return if this machine and user can mount at all. Raises FuseMissing, FusermountMissing or NoRights."""
    if not FUSE_DEVICE.exists() or not stat.S_ISCHR(FUSE_DEVICE.stat().st_mode):
        raise FuseMissing(
            f"{FUSE_DEVICE} is missing: run `modprobe fuse`, or start the container with --device /dev/fuse"
        )
    try:
        os.close(os.open(FUSE_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except PermissionError as exc:
        raise NoRights(
            f"{FUSE_DEVICE} may not be opened: `chmod 666` it, or start the container with --device {FUSE_DEVICE}"
        ) from exc
    except OSError as exc:
        raise FuseMissing(f"{FUSE_DEVICE} can't be opened ({exc.strerror}): run `modprobe fuse`") from exc
    if os.geteuid() != 0 and which("fusermount3") is None:
        raise FusermountMissing("fusermount3 is missing: install the package fuse3, or mount as root")
    if os.geteuid() == 0 and not syscalls.may_mount():
        raise NoRights(
            "this root has no CAP_SYS_ADMIN: start the container with --cap-add SYS_ADMIN --device /dev/fuse"
        )


def check_allow_other(mount_options: tuple[str, ...]) -> None:
    """Raise NoRights if *mount_options* have allow_other and fusermount3 would refuse it to this user."""
    if "allow_other" in mount_options and os.geteuid() != 0 and not user_allow_other():
        raise NoRights(f"-o allow_other needs the line `user_allow_other` in {FUSE_CONF}; add it, or mount as root")


def user_allow_other() -> bool:
    """Whether fuse.conf lets users other than root mount with allow_other."""
    try:
        lines = FUSE_CONF.read_text("utf-8", "replace").splitlines()
    except OSError:
        return False
    return any(line.strip() == "user_allow_other" for line in lines)


def check_apart(settings: Settings) -> None:
    """Raise UsageError if the state directory or the mountpoint lies in the other."""
    state, mountpoint = Path(os.path.realpath(settings.state_dir.parent)) / settings.state_dir.name, settings.mountpoint
    if state == mountpoint or state.is_relative_to(mountpoint) or mountpoint.is_relative_to(state):
        raise UsageError(
            f"the state directory {state} and the mountpoint {mountpoint} lie in each other: give --state another place"
        )


def check_places(settings: Settings) -> None:
    """Raise UsageError if anything that the daemon itself reads or writes lies in a sessfs mount, or will once this one
    is there.
    """
    places.require_settings_outside(settings, settings.mountpoint)
    places.require_temporary_outside(settings.mountpoint)
    if settings.foreground:
        places.require_output_outside()


def check_state(state_dir: Path) -> None:
    """Return if *state_dir* is absent, or can be used by this sessfs and is not in use.

    Raises NoRights, UsageError, StateTooNew, StoreCorrupt or StateInUse.
    """
    try:
        found = os.stat(state_dir)
    except FileNotFoundError:
        return
    except PermissionError as exc:
        raise NoRights(
            f"the state directory {state_dir} can't be reached: mount as its owner, or give --state"
        ) from exc
    except OSError as exc:
        raise UsageError(f"the state directory {state_dir} can't be used: {exc.strerror}") from exc
    if not stat.S_ISDIR(found.st_mode):
        raise UsageError(f"{state_dir} is not a directory: give --state another place")
    if not os.access(state_dir, os.R_OK | os.W_OK | os.X_OK):
        raise NoRights(f"the state directory {state_dir} belongs to uid {found.st_uid}: mount as it, or give --state")
    check_version(state_dir)
    if lock_held(state_dir):
        raise StateInUse(_in_use(state_dir))


def _in_use(state_dir: Path) -> str:
    where = [mount.mountpoint for mount in mountinfo.sessfs_mounts() if mount.source == str(state_dir)]
    place = f", mounted at {where[0]}" if where else ""
    return f"the state {state_dir} is in use by pid {daemon_pid(state_dir) or 'unknown'}{place}: unmount that first"


def check_version(state_dir: Path) -> None:
    """Raise StateTooNew if a newer sessfs wrote *state_dir*, StoreCorrupt if its `format` does not decode."""
    path = state_dir / "format"
    try:
        version = msgspec.json.decode(path.read_bytes(), type=_Format).version
    except FileNotFoundError:
        return
    except (msgspec.DecodeError, msgspec.ValidationError) as exc:
        raise StoreCorrupt(f'{path} is damaged ({exc}); it should read {{"version": {STATE_VERSION}}}') from exc
    except OSError as exc:
        raise NoRights(f"{path} can't be read: {exc.strerror}") from exc
    if version > STATE_VERSION:
        raise StateTooNew(
            f"the state {state_dir} has version {version}, this sessfs knows {STATE_VERSION}: update sessfs, "
            "or give --state another place"
        )


def lock_held(state_dir: Path) -> bool:
    """Whether a process holds STATE/lock. A daemon that starts at this very instant may find it taken for a moment."""
    try:
        fd = os.open(state_dir / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def daemon_pid(state_dir: Path) -> int | None:
    """The pid that STATE/lock names, whether or not it lives; None if it names none."""
    try:
        return int((state_dir / "lock").read_text("ascii").strip())
    except (OSError, ValueError):
        return None


def prepare_state(state_dir: Path) -> None:
    """Make *state_dir* with mode 0700, and its parents. Raises NoRights or UsageError."""
    try:
        state_dir.parent.mkdir(parents=True, exist_ok=True)
        state_dir.mkdir(mode=0o700, exist_ok=True)
    except PermissionError as exc:
        raise NoRights(f"the state directory {state_dir} can't be made: {exc.strerror}; give --state") from exc
    except OSError as exc:
        raise UsageError(f"the state directory {state_dir} can't be made: {exc.strerror}") from exc


def check_mountpoint(mountpoint: Path) -> None:
    """Return if *mountpoint* is an empty directory, made if it was missing. Raises MountpointUnusable or NoRights."""
    mounted = mountinfo.find_mount(mountpoint)
    if mounted is not None and mounted.fs_type == mountinfo.FS_TYPE:
        pid = daemon_pid(Path(mounted.source))
        raise MountpointUnusable(
            f"{mountpoint} is already a sessfs mount, of the state {mounted.source} (pid {pid}): "
            f"run `sessfs umount {mountpoint}` first"
        )
    try:
        mountpoint.mkdir(parents=True, exist_ok=True)
        with os.scandir(mountpoint) as entries:
            first = next(entries, None)
    except PermissionError as exc:
        raise NoRights(f"the mountpoint {mountpoint} can't be used: {exc.strerror}") from exc
    except (FileExistsError, NotADirectoryError) as exc:
        raise MountpointUnusable(f"the mountpoint {mountpoint} is not a directory") from exc
    except OSError as exc:
        raise MountpointUnusable(f"the mountpoint {mountpoint} can't be used: {exc.strerror}") from exc
    if first is not None:
        raise MountpointUnusable(
            f"the mountpoint {mountpoint} is not empty (it has {first.name!r}): move its contents away, mount, "
            "and copy them in"
        )
    if not os.access(mountpoint, os.W_OK):
        raise NoRights(f"the mountpoint {mountpoint} may not be written to by uid {os.geteuid()}: chown it")


def answers(mountpoint: Path) -> bool:
    """Whether the mount at *mountpoint* is served: False when its daemon is gone.

    Asks with statfs, since the kernel may answer stat of a dead mount from its cache. Raises TimeoutError when there
    is no answer within PROBE_TIMEOUT_S: the daemon lives but hangs.
    """
    try:
        syscalls.within(PROBE_TIMEOUT_S, lambda: os.statvfs(mountpoint), f"statfs of {mountpoint}")
    except TimeoutError:
        raise
    except OSError as exc:
        return exc.errno not in _DEAD_ERRNOS
    return True


def is_dead(mount: mountinfo.Mount) -> bool:
    """Whether *mount*, a visible sessfs mount, has lost its daemon."""
    try:
        return not answers(Path(mount.mountpoint))
    except TimeoutError:
        return False


def detach_dead(mountpoint: Path) -> int:
    """Take dead sessfs mounts off *mountpoint*, and return how many there were.

    A mount of another kind, even a dead one, and one that is served are left alone. Raises NoRights, or
    FusermountMissing.
    """
    detached = 0
    while True:
        mount = mountinfo.find_mount(mountpoint)
        if mount is None or mount.fs_type != mountinfo.FS_TYPE or not is_dead(mount):
            return detached
        detach(mountpoint)
        _wait_gone(mount)
        detached += 1


def detach(mountpoint: Path) -> None:
    """Lazily unmount what is on *mountpoint*. Raises NoRights or FusermountMissing."""
    if os.geteuid() == 0:
        try:
            syscalls.umount2(str(mountpoint), syscalls.MNT_DETACH)
        except OSError as exc:
            raise NoRights(f"the dead mount at {mountpoint} can't be taken away: {exc.strerror}") from exc
        return
    problem = fusermount("-u", "-z", str(mountpoint))
    if problem is not None:
        raise NoRights(
            f"the dead mount at {mountpoint} can't be taken away: {problem}; as root: `umount -l {mountpoint}`"
        )


def fusermount(*arguments: str) -> str | None:
    """Run fusermount3; None if it worked, else what it said. Raises FusermountMissing."""
    program = which("fusermount3")
    if program is None:
        raise FusermountMissing("fusermount3 is missing: install the package fuse3")
    ran = subprocess.run([program, *arguments], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    return None if ran.returncode == 0 else (ran.stderr.strip() or f"fusermount3 ended with {ran.returncode}")


def _wait_gone(mount: mountinfo.Mount) -> None:
    deadline = time.monotonic() + PROBE_TIMEOUT_S
    while any(other.mount_id == mount.mount_id for other in mountinfo.read_mounts()):
        if time.monotonic() >= deadline:
            raise NoRights(f"the dead mount at {mount.mountpoint} stays in {mountinfo.MOUNTINFO} after it was detached")
        time.sleep(0.01)


def find_state(mountpoint: Path) -> Path:
    """The state directory of the sessfs mounted at *mountpoint*, dead or alive. Raises NotMounted, or LocalStoreError
    if it was removed or renamed since.
    """
    home = find_home(mountpoint)
    if home.trouble:
        mend = "rename it back, or run" if home.is_there else "what was in it is lost. Run"
        raise LocalStoreError(
            f"the state directory of {mountpoint} {home.trouble} while it was mounted: {mend} "
            f"`sessfs umount {mountpoint}`"
        )
    return home.state_dir


def find_home(mountpoint: Path) -> Home:
    """As `find_state`, for a directory that was removed or renamed, too. Raises NotMounted."""
    place = mountinfo.resolve(mountpoint)
    mount = mountinfo.find_mount(place)
    if mount is None or mount.fs_type != mountinfo.FS_TYPE:
        raise NotMounted(f"no sessfs is mounted at {mountpoint}: `sessfs status` lists the mounts")
    source = Path(mount.source)
    namesakes = [m for m in mountinfo.sessfs_mounts() if m.source == mount.source and m.device != mount.device]
    if lock_held(source) and not namesakes:
        return Home(source)
    identity = _ask(place)
    if identity is None:
        return Home(source)
    if identity.state_dir is None:
        return Home(source, identity.pid, f"({source}) was removed", is_there=False)
    now = Path(identity.state_dir)
    if now in (source, Path(os.path.realpath(source))):
        return Home(source, identity.pid)
    return Home(now, identity.pid, f"was renamed from {source} to {now}")


def _ask(place: Path) -> _Identity | None:
    """Which daemon serves the mount; None if none answers, or one that can't say."""
    try:
        answer = syscalls.within(PROBE_TIMEOUT_S, lambda: os.getxattr(place, IDENTITY_XATTR), f"asking {place}")
        return msgspec.json.decode(answer, type=_Identity)
    except (OSError, TimeoutError, msgspec.DecodeError, msgspec.ValidationError):
        return None
