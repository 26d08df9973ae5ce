"""The program `sessfs`: starts a mount's daemon before everything else, then is the command line."""

from __future__ import annotations

import importlib
import sys
from typing import Final

from sessfs.mount import spawn

_NO_DAEMON: Final = frozenset({"-h", "--help", "-f", "--foreground"})


def main() -> None:
    """Entry point of the program: never returns."""
    arguments = sys.argv[1:]
    is_mount = arguments[:1] == ["mount"] and _NO_DAEMON.isdisjoint(arguments)
    early = spawn.start(spawn.DAEMON_ARGV, None) if is_mount else None
    try:
        importlib.import_module("sessfs.cli.main").main(early)
    finally:
        if early is not None:
            early.drop()


if __name__ == "__main__":
    main()
