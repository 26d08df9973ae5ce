"""Take a mount down so that nothing is lost: kernel pages, a durable commit, the unmount, and the daemon's end."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import time
from typing import TYPE_CHECKING

import msgspec

from sessfs.errors import LocalStoreError, MountBusy, NoRights, NotMounted
from sessfs.local.state import read_unsent
from sessfs.mount import control, mountinfo, openers, preflight, syscalls

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

BUSY_PATIENCE_S = 1.0
"""How long a busy mount is tried again: processes that were just told to end need a moment."""
_NAMED_OPENERS = 10


class Unmounted(msgspec.Struct, frozen=True):
    """What unmount did."""

    mountpoint: str
    state_dir: str
    was_dead: bool
    """The daemon had gone before: the mount was detached, and the next mount recovers what it left."""
    trouble: str = ""
    """What had happened to the state directory while it was mounted; empty for nothing."""
    unsent: str = ""
    """Sessions of which the remote lacks something, and why; empty for none."""


def unmount(mountpoint: Path, *, timeout_s: float, commit: Callable[[Path, float], object]) -> Unmounted:
    """Unmount the sessfs at *mountpoint*, and return when everything is durable and the daemon has ended.

    *commit* is called with the state directory and the seconds left, and returns when all that the daemon
    acknowledged is durable. A dead mount is detached at once. Raises NotMounted; MountBusy, the mount being still up,
    when processes have files open (it names them) or *timeout_s* passed; MountBusy, the mount being down, when only
    the daemon's end was not reached; LocalStoreError, the mount being down, when the kernel had to give up writes;
    NoRights; and what *commit* raises.
    """
    deadline = time.monotonic() + timeout_s
    place = mountinfo.resolve(mountpoint)
    home = preflight.find_home(place)
    state_dir = home.state_dir
    try:
        alive = preflight.answers(place)
    except TimeoutError as exc:
        pid = preflight.daemon_pid(state_dir)
        raise MountBusy(
            f"{place} is still mounted: its daemon (pid {pid}) hangs. If it does not come back, end it with "
            f"`kill -9 {pid}`; then `sessfs umount {place}`, and the next mount recovers"
        ) from exc
    if not alive:
        preflight.detach_dead(place)
        return Unmounted(mountpoint=str(place), state_dir=str(state_dir), was_dead=True)
    lost = ""
    try:
        try:
            syscalls.within(_left(deadline), lambda: syscalls.syncfs(str(place)), "writing out the kernel's pages")
        except PermissionError:
            raise
        except OSError as exc:
            # The kernel has given those pages up already: staying mounted would not bring them back.
            lost = str(exc.strerror)
        syscalls.within(_left(deadline), lambda: commit(state_dir, _left(deadline)), "the durable commit")
    except NotMounted:
        if not _is_missing(state_dir / control.SOCKET_NAME):
            raise
        # Nobody can ask for the commit. The daemon makes it by itself once it is unmounted.
    except TimeoutError as exc:
        raise MountBusy(f"{place} is still mounted: {exc}; it goes on, so run `sessfs umount` again") from exc
    except PermissionError as exc:
        raise NoRights(f"{place} may not be read by uid {os.geteuid()}: unmount as the user who mounted it") from exc
    with _process_of(home) as pidfd:
        _detach_busy_named(place, min(deadline, time.monotonic() + BUSY_PATIENCE_S))
        _wait_ended(pidfd, home, deadline, timeout_s)
    if not home.is_there:
        raise LocalStoreError(
            f"{place} is unmounted, but its state directory {home.trouble} while it was mounted, and what was in it is "
            "lost; what a remote has can be mounted again, with another state directory"
        )
    if lost:
        raise LocalStoreError(
            f"{place} is unmounted, but writes to it had failed before ({lost}) and are lost; {state_dir}/sessfs.log "
            "names the files of those that the daemon refused"
        )
    trouble = f"the state directory {home.trouble} while it was mounted" if home.trouble else ""
    return Unmounted(str(place), str(state_dir), was_dead=False, trouble=trouble, unsent=read_unsent(state_dir))


def _is_missing(path: Path) -> bool:
    try:
        os.lstat(path)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return False


def _left(deadline: float) -> float:
    return max(deadline - time.monotonic(), 0.01)


@contextlib.contextmanager
def _process_of(home: preflight.Home) -> Iterator[int | None]:
    """A pidfd of the daemon; None if there is none any more."""
    pid = home.pid
    if pid is None and preflight.lock_held(home.state_dir):
        pid = preflight.daemon_pid(home.state_dir)
    pidfd = None
    if pid is not None:
        with contextlib.suppress(ProcessLookupError):
            pidfd = os.pidfd_open(pid)
    try:
        yield pidfd
    finally:
        if pidfd is not None:
            os.close(pidfd)


def _detach_busy_named(place: Path, deadline: float) -> None:
    """Unmount; while it is busy, again until *deadline*, then MountBusy with the names."""
    while True:
        mount = mountinfo.find_mount(place)
        if mount is None or mount.fs_type != mountinfo.FS_TYPE:
            raise NotMounted(f"somebody else unmounted {place} meanwhile")
        problem = _try_unmount(place)
        if problem is None:
            return
        busy = openers.find_openers(mount)
        if time.monotonic() >= deadline:
            raise MountBusy(_busy_message(place, busy, problem))
        time.sleep(0.1)


def _try_unmount(place: Path) -> str | None:
    """None when it is unmounted, else what the system said while it was busy. Raises NoRights."""
    if os.geteuid() == 0:
        try:
            syscalls.umount2(str(place), 0)
        except OSError as exc:
            if exc.errno != errno.EBUSY:
                raise NoRights(f"{place} can't be unmounted: {exc.strerror}") from exc
            return str(exc.strerror)
        return None
    problem = preflight.fusermount("-u", str(place))
    if problem is not None and "busy" not in problem.lower():
        raise NoRights(f"{place} can't be unmounted: {problem}; unmount as the user who mounted it, or as root")
    return problem


def _busy_message(place: Path, busy: list[openers.Opener], problem: str) -> str:
    if not busy:
        return (
            f"{place} is still mounted: {problem}, but by no process that uid {os.geteuid()} can see; "
            "look as root, and in containers that have it mounted"
        )
    names = ", ".join(str(opener) for opener in busy[:_NAMED_OPENERS])
    more = f", and {len(busy) - _NAMED_OPENERS} more" if len(busy) > _NAMED_OPENERS else ""
    return f"{place} is still mounted: in use by {names}{more}; end them and run `sessfs umount` again"


def _wait_ended(pidfd: int | None, home: preflight.Home, deadline: float, timeout_s: float) -> None:
    """Return when the daemon has ended and the lock of its state is free. Raises MountBusy at *deadline*."""
    state_dir = home.state_dir
    if pidfd is not None:
        readable, _, _ = select.select([pidfd], [], [], _left(deadline))
        if not readable:
            raise MountBusy(
                f"it is unmounted, but after {timeout_s:g} s the daemon (pid {preflight.daemon_pid(state_dir)}) is "
                f"still finishing its work on {state_dir}; {state_dir}/sessfs.log says what"
            )
    # Where a removed directory was, another daemon may have its state by now.
    while home.is_there and preflight.lock_held(state_dir):
        if time.monotonic() >= deadline:
            raise MountBusy(f"it is unmounted, but a process still holds {state_dir}/lock")
        time.sleep(0.02)
