"""Records what Chrome does to its profile, by strace, and makes a trace of it (bench/trace.py).

`python bench/run.py --record` makes bench/traces/chrome.xz anew: a first life, in which scripts are cached and records
written, and a restart, both with pauses in which a little arrives. Only calls on the profile are kept, and of what they
read and write only the sizes.
"""

from __future__ import annotations

import codecs
import errno
import os
import re
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from bench import trace
from bench.machine import output_of
from bench.targets import BenchError, temporary
from bench.trace import Op
from tests.e2e.chromelife import LifeFailed, User, find_chromium, open_page, run_life

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

TRACE: Final = Path(__file__).resolve().parent / "traces" / "chrome.xz"
TRICKLE: Final = ("pause=1500", "add=5") * 4
LIVES: Final[tuple[tuple[Literal["qr", "ready"], tuple[str, ...]], ...]] = (
    ("qr", ("pair", "worker", "caches", "add=1000", "local=50", "reload", *TRICKLE)),
    ("ready", ("verify", "add=100", *TRICKLE)),
)
LIFE_S: Final = 600.0
DROPPED_MAX: Final = 0.02

_LINE = re.compile(r"(\d+) +(\d+\.\d+) (.*)")
_UNFINISHED = " <unfinished ...>"
_RESUMED = re.compile(r"<\.\.\. (\w+) resumed>(.*)")
_CALL = re.compile(r"(\w+)\((.*)\) += (-?\d+)(?:<[^>]*>)?(?: (E\w+))?.*")
_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"')
_FD = re.compile(r"(\d+)<([^>]*)>")
_THREAD = re.compile(r"CLONE_THREAD")


class Call(NamedTuple):
    """One finished system call; *ends* are the arguments, *starts* what was logged when it began."""

    at_us: int
    pid: int
    name: str
    arguments: str
    result: int
    error: int


def parse_calls(lines: Iterable[str]) -> Iterator[Call]:
    """The calls in what `strace -f -y -ttt` wrote, in the order in which they ended; a close when it began, since from
    then on the number may be another file's.
    """
    begun: dict[int, str] = {}
    for line in lines:
        match = _LINE.fullmatch(line.rstrip("\n"))
        if match is None:
            continue
        pid, at_us, text = int(match[1]), round(float(match[2]) * 1e6), match[3]
        if text.endswith(_UNFINISHED):
            text = text.removesuffix(_UNFINISHED)
            if not text.startswith("close("):
                begun[pid] = text
                continue
            text += ") = 0"
        elif resumed := _RESUMED.fullmatch(text):
            if resumed[1] == "close":
                continue
            text = begun.pop(pid, "") + resumed[2]
        call = _CALL.fullmatch(text)
        if call is not None:
            error = getattr(errno, call[4], errno.EIO) if call[4] else 0
            yield Call(at_us, pid, call[1], call[2], int(call[3]), error)


def process_of(calls: Iterable[Call]) -> dict[int, int]:
    """Thread → process, for threads that were started in *calls*."""
    parents = {call.result: call.pid for call in calls if call.result > 0 and _THREAD.search(call.arguments)}
    found = {}
    for thread in parents:
        process = thread
        while process in parents:
            process = parents[process]
        found[thread] = process
    return found


def _paths(arguments: str) -> list[str]:
    """Paths among *arguments*, those relative to a directory's descriptor resolved."""
    found = []
    for match in _STRING.finditer(arguments):
        text = codecs.escape_decode(match[1].encode("latin-1", errors="replace"))[0].decode(errors="surrogateescape")
        before = arguments[: match.start()].rpartition("<")[2]
        if not text.startswith("/") and ">" in before:
            text = os.path.join(before.partition(">")[0], text)
        found.append(os.path.normpath(text))
    return found


def _number(arguments: str, position: int) -> int:
    """The argument at *position*, counted from the end when negative: a number as strace writes it."""
    return int(arguments.split(", ")[position], 0)


def _flags(arguments: str, prefix: str) -> int:
    names = re.findall(rf"\b{prefix}_[A-Z_]+", arguments)
    return sum(getattr(os, name, 0) for name in set(names))


@dataclass
class _Open:
    handle: int
    path: str
    position: int | None = 0
    appends: bool = False
    listed: bool = False


@dataclass
class Converter:
    """Calls of one strace to operations. *root* is the profile; times count from the first call, after *start_us*."""

    root: str
    processes: dict[int, int]
    start_us: int
    first_handle: int
    began_us: int | None = None
    sizes: dict[str, int] = field(default_factory=dict)
    _open: dict[tuple[int, int], _Open] = field(default_factory=dict)

    def convert(self, calls: Iterable[Call]) -> Iterator[Op]:
        """The operations on the profile; at the end everything is closed."""
        at_us = self.start_us
        for call in calls:
            if self.began_us is None:
                self.began_us = call.at_us
            at_us = max(at_us, self.start_us + call.at_us - self.began_us)
            handler = _HANDLERS.get(call.name)
            if handler is not None and self.root in call.arguments:
                for op in handler(self, call):
                    yield op._replace(at_us=at_us)
        for each in self._open.values():
            yield Op(at_us, "close", each.handle)

    @property
    def next_handle(self) -> int:
        """The first handle that was not used yet."""
        return self.first_handle

    def relative(self, path: str) -> str | None:
        """*path* as it is in the trace, or None when it is not of the profile."""
        path = path.removesuffix(" (deleted)")
        if path == self.root:
            return ""
        return path[len(self.root) + 1 :] if path.startswith(self.root + "/") else None

    def new_handle(self, key: tuple[int, int], path: str) -> _Open:
        """Remember an open file."""
        opened = self._open[key] = _Open(self.first_handle, path)
        self.first_handle += 1
        return opened

    def key(self, call: Call, fd: int) -> tuple[int, int]:
        """What *fd* is known by: descriptors belong to processes."""
        return self.processes.get(call.pid, call.pid), fd

    def opened(self, call: Call) -> tuple[_Open | None, list[Op]]:
        """The open file that the call's first descriptor is, and the operation that opens it when another process did:
        descriptors travel by sockets. None when it is not of the profile.
        """
        match = _FD.match(call.arguments) or _FD.search(call.arguments)
        path = self.relative(match[2]) if match is not None else None
        if match is None or path is None:
            return None, []
        key = self.key(call, int(match[1]))
        opened = self._open.get(key)
        if opened is not None and (opened.path == path or match[2].endswith(" (deleted)")):
            return opened, []
        ops = [Op(0, "close", opened.handle)] if opened is not None else []
        opened = self.new_handle(key, path)
        opened.position = None  # where the other process left it
        directory = os.O_DIRECTORY if call.name.startswith("getdents") else 0
        return opened, [*ops, Op(0, "open", opened.handle, path, x=directory or os.O_RDWR)]

    def forget(self, call: Call) -> _Open | None:
        """Take out the open file that is being closed."""
        match = _FD.match(call.arguments)
        return None if match is None else self._open.pop(self.key(call, int(match[1])), None)


def _on_open(state: Converter, call: Call) -> Iterator[Op]:
    path = state.relative(_paths(call.arguments)[0])
    if path is None:
        return
    flags = os.O_CREAT | os.O_WRONLY | os.O_TRUNC if call.name == "creat" else _flags(call.arguments, "O")
    flags &= ~(os.O_CLOEXEC | os.O_NONBLOCK)
    if call.error:
        yield Op(0, "open", -1, path, x=flags, errno=call.error)
        return
    key = state.key(call, call.result)
    opened = state.new_handle(key, path)
    opened.appends = bool(flags & os.O_APPEND)
    yield Op(0, "open", opened.handle, path, x=flags)


def _on_close(state: Converter, call: Call) -> Iterator[Op]:
    opened = state.forget(call)
    if opened is not None:
        yield Op(0, "close", opened.handle)


def _on_data(state: Converter, call: Call) -> Iterator[Op]:
    """read, write and their kin. Where the file is at is counted here, but for what is opened to append."""
    opened, ops = state.opened(call)
    if opened is None or call.error:
        return
    yield from ops
    is_write = "write" in call.name
    if is_write and opened.appends:
        offset = trace.AT_END  # Linux appends by pwrite, too
    elif call.name.startswith("p"):
        offset = _number(call.arguments, -1)
    elif opened.position is None:
        offset = trace.AT_END if is_write else 0
    else:
        offset, opened.position = opened.position, opened.position + call.result
    if is_write and call.result == 0:
        return
    asked = call.result
    if call.name in ("read", "pread64"):
        asked = _number(call.arguments, -1 if call.name == "read" else -2)
    yield Op(0, "write" if is_write else "read", opened.handle, x=offset, y=asked)


def _on_seek(state: Converter, call: Call) -> Iterator[Op]:
    opened, ops = state.opened(call)
    if opened is not None and not call.error:
        yield from ops
        opened.position = call.result


def _handle_op(kind: str, x: int | None = None, y: int | None = None) -> Callable[[Converter, Call], Iterator[Op]]:
    """An operation on an open file whose numbers are the arguments at *x* and *y*."""

    def convert(state: Converter, call: Call) -> Iterator[Op]:
        opened, ops = state.opened(call)
        if opened is None or call.error:
            return
        yield from ops
        yield Op(
            0,
            kind,
            opened.handle,
            x=0 if x is None else _number(call.arguments, x),
            y=0 if y is None else _number(call.arguments, y),
        )

    return convert


def _on_list(state: Converter, call: Call) -> Iterator[Op]:
    opened, ops = state.opened(call)
    if opened is None or opened.listed or call.error:
        return
    opened.listed = True
    yield from ops
    yield Op(0, "list", opened.handle)


def _on_stat(state: Converter, call: Call) -> Iterator[Op]:
    if '"",' in call.arguments:
        yield from _handle_op("fstat")(state, call)
        return
    yield from _path_op("lstat" if "AT_SYMLINK_NOFOLLOW" in call.arguments else "stat")(state, call)


def _path_op(kind: str) -> Callable[[Converter, Call], Iterator[Op]]:
    """An operation on a path: the last of those given that is of the profile (symlink has its target before it)."""

    def convert(state: Converter, call: Call) -> Iterator[Op]:
        found = [path for each in _paths(call.arguments) if (path := state.relative(each)) is not None]
        if found:
            what = "rmdir" if "AT_REMOVEDIR" in call.arguments else kind
            yield Op(0, what, path=found[0], errno=call.error)

    return convert


def _on_rename(state: Converter, call: Call) -> Iterator[Op]:
    paths = [state.relative(each) for each in _paths(call.arguments)]
    old, new = paths[0], paths[1]
    if old is not None and new is not None:
        yield Op(0, "rename", path=old, other=new, errno=call.error)


def _on_statfs(state: Converter, call: Call) -> Iterator[Op]:
    yield from _path_op("statfs")(state, call)


_HANDLERS: Final[dict[str, Callable[[Converter, Call], Iterator[Op]]]] = {
    **dict.fromkeys(("open", "openat", "creat"), _on_open),
    "close": _on_close,
    **dict.fromkeys(("read", "write", "pread64", "pwrite64", "readv", "writev"), _on_data),
    "lseek": _on_seek,
    "ftruncate": _handle_op("truncate", x=1),
    "fsync": _handle_op("fsync"),
    "fdatasync": _handle_op("fdatasync"),
    "fstat": _handle_op("fstat"),
    "fchown": _handle_op("chown"),
    "fallocate": _handle_op("allocate", x=2, y=3),
    "mmap": _handle_op("map", x=-1, y=1),
    "getdents64": _on_list,
    **dict.fromkeys(("newfstatat", "stat", "statx"), _on_stat),
    "lstat": _path_op("lstat"),
    **dict.fromkeys(("access", "faccessat", "faccessat2"), _path_op("access")),
    **dict.fromkeys(("mkdir", "mkdirat"), _path_op("mkdir")),
    "rmdir": _path_op("rmdir"),
    **dict.fromkeys(("unlink", "unlinkat"), _path_op("unlink")),
    **dict.fromkeys(("rename", "renameat", "renameat2"), _on_rename),
    **dict.fromkeys(("symlink", "symlinkat"), _path_op("symlink")),
    **dict.fromkeys(("readlink", "readlinkat"), _path_op("readlink")),
    "statfs": _on_statfs,
}


def convert_files(files: Iterable[Path], root: Path) -> tuple[list[Op], int]:
    """The trace of the straces in *files*, one after another, of which each began with everything closed; and how many
    operations were dropped since they do not fit: calls of several threads at once may be logged in another order.
    """
    raw: list[Op] = []
    handle = 0
    for file in files:
        with file.open(errors="replace") as lines:
            calls = list(parse_calls(lines))
        converter = Converter(str(root), process_of(calls), raw[-1].at_us if raw else 0, handle)
        raw += converter.convert(calls)
        handle = converter.next_handle
    ops = list(trace.fitting(raw))
    return ops, len(raw) - len(ops)


def _tracer(directory: Path) -> Path:
    """A program that is Chromium under strace; it leaves one file for each life in *directory*."""
    program = directory / "chromium"
    program.write_text(
        "#!/bin/sh\n"
        f"exec strace -f --seccomp-bpf -qq -y -s 0 -ttt -o '{directory}'/strace.$$"
        f" -e trace=%file,read,write,readv,writev,close,clone,clone3,{','.join(sorted(_HANDLERS))}"
        f" '{find_chromium()}' \"$@\"\n"
    )
    program.chmod(0o755)
    return program


def record(base: Path, destination: Path = TRACE) -> None:
    """Live the lives below *base* under strace, and write the trace to *destination*. Raises BenchError."""
    chromium = os.environ.get("CHROMIUM")
    with temporary(base) as directory:
        user = User("user", "trace", directory / "data")
        os.environ["CHROMIUM"] = str(_tracer(directory))
        try:
            with open_page("core") as page:
                for expect, steps in LIVES:
                    run_life(page, user, expect, steps, LIFE_S)
        except LifeFailed as exc:
            raise BenchError(f"Chrome failed under strace: {str(exc)[:300]}") from exc
        finally:
            os.environ.pop("CHROMIUM")
            if chromium is not None:
                os.environ["CHROMIUM"] = chromium
        straces = sorted(directory.glob("strace.*"), key=lambda path: path.stat().st_mtime)
        ops, dropped = convert_files(straces, user.profile)
        compare_with(ops, user.profile)
    if dropped > len(ops) * DROPPED_MAX:
        raise BenchError(f"{dropped} operations do not fit, of {len(ops) + dropped}: the trace would not be of Chrome")
    about: dict[str, Any] = {
        "chromium": output_of((find_chromium(), "--version")),
        "lives": [list(steps) for _, steps in LIVES],
        "dropped": dropped,
    }
    destination.parent.mkdir(exist_ok=True)
    trace.save(destination, ops, about)
    print(f"bench: {len(ops)} operations, {dropped} dropped, in {destination.stat().st_size} bytes", file=sys.stderr)


def compare_with(ops: list[Op], profile: Path) -> None:
    """Raise BenchError unless *ops* make the names and sizes that are in *profile* now."""
    made = {path: node.size for path, node in trace.tree_after(ops).items() if node.kind == "file"}
    there = {
        str(path.relative_to(profile)): path.stat().st_size
        for path in profile.rglob("*")
        if path.is_file() and not path.is_symlink()
    }
    wrong = sorted(path for path in made.keys() | there.keys() if made.get(path) != there.get(path))
    if wrong:
        shown = ", ".join(f"{path} ({made.get(path)} instead of {there.get(path)})" for path in wrong[:5])
        raise BenchError(f"the trace makes {len(wrong)} of {len(there)} files otherwise than Chrome did: {shown}")


def has_strace() -> bool:
    """Whether strace is installed."""
    return shutil.which("strace") is not None
