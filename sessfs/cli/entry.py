"""The program `sessfs`: starts a mount's daemon before everything else, then is the command line."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Final

from sessfs.mount import spawn

LAST_STANDARD: Final = 2
_STANDARD: Final = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))
_NO_DAEMON: Final = frozenset({"-h", "--help", "-f", "--foreground"})


def main() -> None:
    """Entry point of the program: never returns."""
    _fill_standard_descriptors()
    arguments = sys.argv[1:]
    is_mount = arguments[:1] == ["mount"] and _NO_DAEMON.isdisjoint(arguments)
    early = _start_daemon() if is_mount else None
    try:
        importlib.import_module("sessfs.cli.main").main(early)
    finally:
        if early is not None:
            early.drop()


def _fill_standard_descriptors() -> None:
    """Nothing that is opened later may become standard input, output or error, should one of them be closed; and there
    is something to print to.
    """
    while (fd := os.open(os.devnull, os.O_RDWR)) <= LAST_STANDARD:
        os.set_inheritable(fd, True)
        name, mode = _STANDARD[fd]
        setattr(sys, name, os.fdopen(fd, mode, closefd=False))
    os.close(fd)


def _start_daemon() -> spawn.Started | None:
    try:
        return spawn.start(spawn.DAEMON_ARGV, None)
    except OSError:
        return None  # the mount itself will try again, and say what is wrong


if __name__ == "__main__":
    main()
