"""Other machines on this one: processes started inside `machine` see another hostname, and maybe another network.

Needs root. Only the calling thread, and what it starts, changes its namespaces.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

CLONE_NEWUTS = 0x04000000
CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *arguments: int) -> None:
    if getattr(_libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


@contextlib.contextmanager
def machine(hostname: str, network: Network | None = None) -> Iterator[None]:
    """Inside, be on a machine called *hostname*, in *network* if one is given."""
    own = [(os.open(f"/proc/thread-self/ns/{name}", os.O_RDONLY), kind) for name, kind in _kinds(network)]
    try:
        _call("unshare", CLONE_NEWUTS)
        socket.sethostname(hostname)
        if network is not None:
            fd = os.open(network.path, os.O_RDONLY)
            try:
                _call("setns", fd, CLONE_NEWNET)
            finally:
                os.close(fd)
        yield
    finally:
        for fd, kind in own:
            _call("setns", fd, kind)
            os.close(fd)


def _kinds(network: Network | None) -> list[tuple[str, int]]:
    return [("uts", CLONE_NEWUTS)] + ([("net", CLONE_NEWNET)] if network is not None else [])


@dataclass(frozen=True)
class Network:
    """A network namespace: its file, and the address by which this machine is reached from there."""

    path: Path
    host_address: str


@contextlib.contextmanager
def other_network() -> Iterator[Network]:
    """A network namespace joined to this one by a veth pair."""
    tag = secrets.token_bytes(2)
    name, link, subnet = f"sessfs-{tag.hex()}", f"sfs{tag.hex()}", f"10.{tag[0]}.{tag[1]}"

    def ip(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True, stdin=subprocess.DEVNULL)

    ip("netns", "add", name)
    try:
        ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", name)
        ip("addr", "add", f"{subnet}.1/24", "dev", link)
        ip("link", "set", link, "up")
        ip("-n", name, "addr", "add", f"{subnet}.2/24", "dev", "eth0")
        ip("-n", name, "link", "set", "eth0", "up")
        ip("-n", name, "link", "set", "lo", "up")
        yield Network(Path("/run/netns") / name, f"{subnet}.1")
    finally:
        with contextlib.suppress(subprocess.CalledProcessError):
            ip("link", "del", link)
        ip("netns", "del", name)
