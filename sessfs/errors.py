"""Every error sessfs raises on purpose: what happened, the errno a system call gets, the exit code a command gets.

SessfsError                     EIO        1
├── UsageError                  EINVAL     2    the command line or a setting is wrong
├── PosixError                  (its own)  1    a rule of the filesystem says no
├── HostError                                  this machine can't mount
│   ├── MountpointUnusable      ENOTDIR    10   missing, not a directory, not empty
│   ├── FuseMissing             ENODEV     11   no /dev/fuse
│   ├── FusermountMissing       ENOENT     12   no fusermount3, and not root
│   ├── NoRights                EACCES     13   may not open /dev/fuse, the state or the mountpoint
│   ├── StateTooNew             EPROTO     14   written by a newer sessfs
│   ├── StateInUse              EBUSY      15   another live daemon has the state; names its pid
│   ├── NotMounted              ENOTCONN   16   no sessfs is mounted there
│   ├── MountBusy               EBUSY      17   files are still open; names the processes
│   └── StartFailed             EIO        18   the daemon ended before the mount answered
├── LocalStoreError             EIO        20
│   ├── StoreCorrupt            EIO        21   bytes do not match their hash or can't be read, a record does not decode
│   └── StoreFull               ENOSPC     22   the disk or --cache-size is full
└── RemoteError                 EIO        30
    ├── RemoteUnavailable       EIO        31   unknown whether it happened: retry
    ├── RemoteDenied            EACCES     32   credentials, bucket or permission: a person must act
    ├── RemoteMissing           EIO        33   the store answered that the key is not there
    ├── RemoteConflict          EAGAIN     34   a conditional write found another's value
    ├── RemoteCorrupt           EIO        35   what came back is not what was stored
    ├── RemoteUnsuitable        EINVAL     36   the endpoint lacks what was asked of it
    ├── RemoteHeld              EBUSY      37   another live node holds the prefix
    ├── Fenced                  EROFS      38   another node took over; this one is read-only
    ├── KeyWrong                EACCES     39   encrypted with another key, or no key given
    └── Unsynced                EIO        40   some changes are not in the remote; names the sessions
"""

from __future__ import annotations

import errno as _errno


class SessfsError(Exception):
    """Root of all: str(error) is one sentence for a person, saying what happened to what, and what to do."""

    errno: int = _errno.EIO
    exit_code: int = 1


class UsageError(SessfsError):
    """A flag, setting or argument can't be used as given."""

    errno = _errno.EINVAL
    exit_code = 2


class PosixError(SessfsError):
    """A filesystem rule says no; carries the errno the caller of the system call gets."""

    def __init__(self, errno: int, message: str = "") -> None:
        super().__init__(message or _errno.errorcode.get(errno, str(errno)))
        self.errno = errno


class HostError(SessfsError):
    """This machine, as it is, can't mount or unmount."""

    exit_code = 18


class MountpointUnusable(HostError):
    errno = _errno.ENOTDIR
    exit_code = 10


class FuseMissing(HostError):
    errno = _errno.ENODEV
    exit_code = 11


class FusermountMissing(HostError):
    errno = _errno.ENOENT
    exit_code = 12


class NoRights(HostError):
    errno = _errno.EACCES
    exit_code = 13


class StateTooNew(HostError):
    errno = _errno.EPROTO
    exit_code = 14


class StateInUse(HostError):
    errno = _errno.EBUSY
    exit_code = 15


class NotMounted(HostError):
    errno = _errno.ENOTCONN
    exit_code = 16


class MountBusy(HostError):
    errno = _errno.EBUSY
    exit_code = 17


class StartFailed(HostError):
    exit_code = 18


class LocalStoreError(SessfsError):
    exit_code = 20


class StoreCorrupt(LocalStoreError):
    exit_code = 21


class StoreFull(LocalStoreError):
    errno = _errno.ENOSPC
    exit_code = 22


class RemoteError(SessfsError):
    exit_code = 30


class RemoteUnavailable(RemoteError):
    """It is unknown whether the request took effect; the same request may be made again."""

    exit_code = 31


class RemoteDenied(RemoteError):
    errno = _errno.EACCES
    exit_code = 32


class RemoteMissing(RemoteError):
    """The store answered, and its answer is that there is no such object."""

    exit_code = 33


class RemoteConflict(RemoteError):
    """A conditional write was refused because the object is not as the condition says."""

    errno = _errno.EAGAIN
    exit_code = 34


class RemoteCorrupt(RemoteError):
    exit_code = 35


class RemoteUnsuitable(RemoteError):
    errno = _errno.EINVAL
    exit_code = 36


class RemoteHeld(RemoteError):
    errno = _errno.EBUSY
    exit_code = 37


class Fenced(RemoteError):
    errno = _errno.EROFS
    exit_code = 38


class KeyWrong(RemoteError):
    errno = _errno.EACCES
    exit_code = 39


class Unsynced(RemoteError):
    exit_code = 40
