"""Every place where sessfs waits is in docs/waits.md, with what ends the wait, and a test that shows it."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent
SOURCES = ROOT / "sessfs"
LIST = ROOT / "docs" / "waits.md"
MAKERS = {
    "trio.Event",
    "trio.Lock",
    "trio.StrictFIFOLock",
    "trio.Semaphore",
    "trio.Condition",
    "trio.CapacityLimiter",
    "trio.open_memory_channel",
    "threading.Event",
    "threading.Lock",
    "threading.RLock",
    "threading.Condition",
    "threading.Semaphore",
    "threading.Barrier",
    "ThreadPoolExecutor",
    "SimpleQueue",
}
WAITERS = {"wait", "join", "result", "communicate", "flock", "wait_readable", "wait_writable", "waitpid", "acquire"}
WAITERS |= {"receive_some", "send_all", "run_process"}
STRING_JOINS = re.compile(r"""^(b?["'].*|os\.path|shlex|[A-Z_]+)$""")
CELL = r"[^|]{20,}"
ROW = re.compile(rf"^\| `(?P<module>[a-z0-9_/]+\.py)` \| (?P<names>[^|]+) \| {CELL} \| {CELL} \| (?P<test>[^|]+) \|$")


def _calls(tree: ast.Module) -> Iterator[tuple[ast.Call, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            function = node.func.value if isinstance(node.func, ast.Subscript) else node.func
            yield node, ast.unparse(function)
        elif isinstance(node, ast.keyword) and node.arg == "default_factory":
            yield ast.Call(node.value, [], []), ast.unparse(node.value)


def find_waits(source: str) -> set[str]:
    """What is waited for in that module: what makes something to wait on, and what waits."""
    found = set()
    for call, name in _calls(ast.parse(source)):
        base, _, last = name.rpartition(".")
        if name in MAKERS or (last in MAKERS and base == "queue"):
            found.add(last)
        elif last in WAITERS and base and not (last == "join" and (STRING_JOINS.match(base) or len(call.args) > 1)):
            found.add(f"{base.split('.')[-1]}.{last}")
    return found


def in_source() -> set[tuple[str, str]]:
    return {
        (str(path.relative_to(SOURCES)), wait)
        for path in sorted(SOURCES.rglob("*.py"))
        for wait in find_waits(path.read_text())
    }


def rows() -> list[re.Match[str]]:
    lines = [line for line in LIST.read_text().splitlines() if line.startswith("| `")]
    matches = [ROW.match(line) for line in lines]
    assert all(matches), [line for line, match in zip(lines, matches, strict=True) if match is None]
    return [match for match in matches if match is not None]


def in_list() -> set[tuple[str, str]]:
    return {(row["module"], name) for row in rows() for name in re.findall("`([^`]+)`", row["names"])}


def test_every_wait_is_in_the_list_with_what_ends_it() -> None:
    missing = in_source() - in_list()
    assert not missing, f"docs/waits.md lacks {sorted(missing)}: say there what ends each, and show it by a test"


def test_list_names_no_wait_that_is_gone() -> None:
    assert not in_list() - in_source()


@pytest.mark.parametrize("row", [pytest.param(row, id=row["module"]) for row in rows()])
def test_test_that_a_row_names_is_there(row: re.Match[str]) -> None:
    for file, name in re.findall(r"`(tests/[a-z0-9_/]+\.py)::(\w+)`", row["test"]):
        assert re.search(rf"^(async )?def {name}\b", (ROOT / file).read_text(), re.MULTILINE), f"no {name} in {file}"
    assert "`tests/" in row["test"]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("x = trio.Event()\nawait x.wait()", {"Event", "x.wait"}),
        ("a, b = trio.open_memory_channel[int](3)", {"open_memory_channel"}),
        ("known: trio.Event = field(default_factory=trio.Event)", {"Event"}),
        ("', '.join(names); b''.join(x); os.path.join(a, b); sep.join(names)", {"sep.join"}),
        ("self._thread.join(); fcntl.flock(fd, 1)", {"_thread.join", "fcntl.flock"}),
        ("threading.Lock(); queue.SimpleQueue(); done.result()", {"Lock", "SimpleQueue", "done.result"}),
    ],
)
def test_waits_are_found(source: str, expected: set[str]) -> None:
    assert find_waits(source) == expected
