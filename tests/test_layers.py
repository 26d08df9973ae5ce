"""The architecture, checked in the source: who imports whom, what stays synchronous, and how large things get."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent / "sessfs"

LEVELS = {
    "errors": 0,
    "types": 0,
    "config": 0,
    "chrome": 0,
    "version": 0,
    "format": 1,
    "local": 2,
    "remote": 2,
    "vfs": 3,
    "sync": 3,
    "sessions": 4,
    "mount": 5,
    "api": 6,
    "cli": 7,
}
"""Folders and modules directly in sessfs/, as in docs/design.md. Imports go to a lower level, or stay in the folder."""

SAME_LEVEL_ALLOWED = {
    ("config", "errors"),
    ("config", "chrome"),
    ("types", "errors"),
    ("chrome", "errors"),
    ("chrome", "types"),
}

OWNERS = {
    "lmdb": ("local/db.py",),
    "boto3": (),
    "botocore": ("remote/s3.py", "remote/s3errors.py"),
    "pyfuse3": ("mount/",),
    "typer": ("cli/",),
    "rich": ("cli/",),
    "cryptography": ("format/",),
    "zstandard": ("format/",),
    "pyfastcdc": ("format/",),
    "google_crc32c": ("sessions/leveldb_format.py",),
    "sqlite3": ("sessions/checking_sqlite.py",),
}
"""Third parties that only one module, or one folder, may know."""

SYNC_ONLY = ("format/", "local/", "vfs/namespace.py", "errors.py", "types.py", "config.py", "chrome.py")

MAY_END_THE_MOUNT = {
    ("mount/daemon.py", "self._volume.run"),
    ("mount/daemon.py", "self._policies.run"),
    ("mount/daemon.py", "self._remote.run"),
    ("vfs/volume.py", "self.committer.run"),
    ("api/state.py", "volume.run"),
}
"""What runs for ever and is started without `keep_going`: it starts others by it, or sees to all errors itself."""

MAX_FILE_LINES = 500
MAX_CLASS_LINES = 350
MAX_FUNCTION_LINES = 65

CHROME_NAMES = re.compile(
    r"Singleton(Lock|Cookie|Socket)|Crashpad|Code Cache|GPUCache|ShaderCache|CacheStorage|Service Worker|IndexedDB"
    r"|Local State|leveldb|DevToolsActivePort|BrowserMetrics"
)
"""Names in Chrome's profile that only chrome.py may have in its code; prose (docstrings, comments) may name them."""


@dataclass(frozen=True)
class Module:
    """A source file of the package."""

    name: str
    """Relative to sessfs/, as `mount/launch.py`."""
    lines: int
    tree: ast.Module

    @property
    def part(self) -> str:
        """The folder, or the module itself if it lies directly in sessfs/."""
        return self.name.split("/", 1)[0].removesuffix(".py")


def _load(path: Path) -> Module:
    text = path.read_text("utf-8")
    return Module(path.relative_to(ROOT).as_posix(), len(text.splitlines()), ast.parse(text, str(path)))


MODULES = [_load(path) for path in sorted(ROOT.rglob("*.py"))]
each_module = pytest.mark.parametrize("module", MODULES, ids=lambda module: module.name)

Function = ast.FunctionDef | ast.AsyncFunctionDef


def _imports(tree: ast.AST) -> list[str]:
    """Dotted names of everything imported in *tree*, `from a import b` as `a.b`."""
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def _layer_faults(module: Module) -> list[str]:
    faults = []
    for name in _imports(module.tree):
        if not name.startswith("sessfs."):
            continue
        part = name.split(".")[1]
        if part not in LEVELS:
            continue
        own, other = LEVELS[module.part], LEVELS[part]
        if part == module.part or other < own or (module.part, part) in SAME_LEVEL_ALLOWED:
            continue
        faults.append(f"{module.name} (level {own}) imports {name} (level {other})")
    return faults


@each_module
def test_imports_go_down_or_stay_in_the_folder(module: Module) -> None:
    if module.name != "__init__.py":
        assert module.part in LEVELS, f"{module.name}: give it a level in LEVELS and in docs/design.md"
        assert not _layer_faults(module)


@pytest.mark.parametrize(
    ("name", "source", "is_fault"),
    [
        ("local/db.py", "from sessfs.mount import launch", True),
        ("local/db.py", "import sessfs.remote.s3", True),
        ("local/db.py", "from sessfs.local.inodes import X", False),
        ("vfs/fileio.py", "from sessfs.sync import fetch", True),
        ("mount/launch.py", "from sessfs.config import Settings", False),
        ("errors.py", "from sessfs.types import Ino", True),
    ],
)
def test_layer_rule_on_a_made_up_module(name: str, source: str, is_fault: bool) -> None:
    assert bool(_layer_faults(Module(name, 1, ast.parse(source)))) is is_fault


@each_module
def test_third_parties_stay_with_their_owner(module: Module) -> None:
    for name in _imports(module.tree):
        owners = OWNERS.get(name.split(".")[0])
        assert owners is None or module.name.startswith(owners), f"only {owners} may import {name}"


@each_module
def test_synchronous_modules_have_no_async(module: Module) -> None:
    if module.name.startswith(SYNC_ONLY):
        found = [
            node.lineno
            for node in ast.walk(module.tree)
            if isinstance(node, ast.AsyncFunctionDef | ast.Await | ast.AsyncWith)
        ]
        assert not found, f"{module.name} is synchronous: async at lines {found}"


@each_module
def test_sizes_stay_readable(module: Module) -> None:
    too_long = []
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ClassDef | Function):
            limit = MAX_CLASS_LINES if isinstance(node, ast.ClassDef) else MAX_FUNCTION_LINES
            length = (node.end_lineno or 0) - node.lineno + 1
            if length > limit:
                too_long.append(f"{node.name}: {length} lines, at most {limit}")
    assert not too_long
    assert module.lines <= MAX_FILE_LINES, f"{module.lines} lines, at most {MAX_FILE_LINES}"


def _started_bare(tree: ast.Module) -> list[str]:
    """Work that runs for ever, by its name, and that a nursery is given as it is."""
    return [
        ast.unparse(node.args[0])
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "start_soon"
        and isinstance(node.args[0], ast.Attribute)
        and node.args[0].attr == "run"
    ]


@each_module
def test_background_work_outlives_its_errors(module: Module) -> None:
    """A bug in it must not end the mount."""
    assert not [name for name in _started_bare(module.tree) if (module.name, name) not in MAY_END_THE_MOUNT]


def test_background_rule_on_made_up_modules() -> None:
    assert _started_bare(ast.parse("nursery.start_soon(self.writeback.run)")) == ["self.writeback.run"]
    assert _started_bare(ast.parse("nursery.start_soon(keep_going, self.writeback.run)")) == []


def _undocumented(body: list[ast.stmt], prefix: str = "") -> list[str]:
    """Public functions, classes and methods without a docstring; one-word error classes say it by their name."""
    found = []
    for node in body:
        if not isinstance(node, ast.ClassDef | Function) or node.name.startswith("_"):
            continue
        if ast.get_docstring(node) is None:
            found.append(prefix + node.name)
        if isinstance(node, ast.ClassDef):
            found += _undocumented(node.body, f"{prefix}{node.name}.")
    return found


@each_module
def test_everything_public_has_a_docstring(module: Module) -> None:
    if not module.name.endswith("__init__.py") or module.tree.body:
        assert ast.get_docstring(module.tree), "the module has none"
    missing = _undocumented(module.tree.body)
    if module.name == "errors.py":
        # The tree in its module docstring describes each class.
        missing = [name for name in missing if f" {name} " not in (ast.get_docstring(module.tree) or "")]
    assert not missing


@each_module
def test_no_module_level_state_no_hidden_imports(module: Module) -> None:
    faults = []
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Global):
            faults.append(f"line {node.lineno}: global")
        if isinstance(node, Function):
            inner = [n.lineno for n in ast.walk(node) if isinstance(n, ast.Import | ast.ImportFrom)]
            faults += [f"line {line}: import inside {node.name}" for line in inner]
            if node.name == "__del__":
                faults.append(f"line {node.lineno}: __del__")
        if isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names):
            faults.append(f"line {node.lineno}: import *")
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            faults.append(f"line {node.lineno}: bare except")
    for node in module.tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.List | ast.Dict | ast.Set):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            # An upper-case name is a table that nobody changes.
            faults += [
                f"line {node.lineno}: {ast.unparse(target)} is module-level state"
                for target in targets
                if not ast.unparse(target).isupper()
            ]
    assert not faults


def _code_strings(tree: ast.AST) -> list[tuple[int, str]]:
    """String and bytes constants that are not docstrings."""
    prose = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and id(node) not in prose:
            if isinstance(node.value, bytes):
                found.append((node.lineno, node.value.decode("latin-1")))
            elif isinstance(node.value, str):
                found.append((node.lineno, node.value))
    return found


@each_module
def test_only_chrome_knows_chromes_file_names(module: Module) -> None:
    if module.name != "chrome.py":
        faults = [f"line {line}: {text!r}" for line, text in _code_strings(module.tree) if CHROME_NAMES.search(text)]
        assert not faults


def test_chrome_name_rule_sees_code_but_not_prose() -> None:
    tree = ast.parse('"""SingletonLock"""\ndef f(name):\n    """GPUCache"""\n    return name == b"SingletonLock"\n')
    assert [text for _, text in _code_strings(tree) if CHROME_NAMES.search(text)] == ["SingletonLock"]
