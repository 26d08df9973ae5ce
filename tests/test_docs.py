"""The documents say what the program does: options, settings, exit codes, make targets, links."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer.main

from sessfs import config, errors
from sessfs.cli import main

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text("utf-8")
OPERATE = (ROOT / "docs" / "operate.md").read_text("utf-8")
DOCUMENTS = sorted([ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("*.md")])
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")
COMMANDS = typer.main.get_group(main.build_app()).commands
TARGETS = set(re.findall(r"^([a-z][a-z-]*):", MAKEFILE, re.MULTILINE))

each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)


def _says(text: str, option: str) -> bool:
    """Whether *option* stands in *text* as a whole word."""
    return re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", text) is not None


@pytest.mark.parametrize("verb", sorted(COMMANDS))
def test_every_option_is_documented(verb: str) -> None:
    options = {option for parameter in COMMANDS[verb].params for option in parameter.opts if option.startswith("-")}
    missing = {option for option in options if not _says(README + OPERATE, option)}
    assert not missing


@pytest.mark.parametrize("verb", sorted(COMMANDS))
def test_every_verb_is_in_the_readme(verb: str) -> None:
    assert f"`sessfs {verb} " in README or f"`sessfs {verb}`" in README


@each_document
def test_documents_name_only_verbs_there_are(document: Path) -> None:
    text = document.read_text("utf-8")
    used = set(re.findall(r"(?:^ +|`)sessfs ([a-z]+)\b", text, re.MULTILINE))
    assert used <= set(COMMANDS), f"no such verb: {used - set(COMMANDS)}"


@each_document
def test_documents_name_only_options_there_are(document: Path) -> None:
    """Of lines that call sessfs; other programs have options of their own."""
    known = {option for command in COMMANDS.values() for parameter in command.params for option in parameter.opts}
    known |= {"--help", "-h", "--version"}
    used = set()
    for call in re.findall(r"(?:^ +|`|/bin/)sessfs ([a-z]+ [^`\n]*)", document.read_text("utf-8"), re.MULTILINE):
        used |= set(re.findall(r"(?<!\S)(--[a-z][a-z-]*)", call.split("&&")[0]))
    assert used <= known, f"no such option: {used - known}"


def _error_classes(root: type[errors.SessfsError]) -> list[type[errors.SessfsError]]:
    found = [root]
    for child in root.__subclasses__():
        if child.__module__ == errors.__name__:
            found += _error_classes(child)
    return found


def test_exit_code_table_equals_the_errors() -> None:
    rows = re.findall(r"^\| (\d+) \| ?([A-Za-z, ]*?) ?\|", OPERATE, re.MULTILINE)
    documented = {name: int(code) for code, names in rows for name in re.findall(r"\w+", names)}
    assert documented == {error.__name__: error.exit_code for error in _error_classes(errors.SessfsError)}
    assert {"0", "130"} <= {code for code, _ in rows}
    assert main.INTERRUPTED_EXIT_CODE == 130


def test_docstring_of_errors_equals_the_errors() -> None:
    tree = errors.__doc__ or ""
    for error in _error_classes(errors.SessfsError):
        row = re.search(rf"^[ │├└─]*{error.__name__} .*$", tree, re.MULTILINE)
        assert row, f"{error.__name__} is not in the tree"
        code = re.search(r" (\d+)(?: |$)", row[0])
        assert code is None or int(code[1]) == error.exit_code, row[0]


def test_settings_table_has_every_setting_with_its_flag() -> None:
    rows = dict(re.findall(r"^\| `([a-z_]+)` \| `(-[^`]*)`", OPERATE, re.MULTILINE))
    assert set(rows) == set(config.setting_keys())
    for key, flag in rows.items():
        expected = "-o" if key == "mount_options" else f"--{key.replace('_', '-')}"
        assert flag.split()[0] == expected


def test_mount_has_a_flag_for_every_setting() -> None:
    parameters = {parameter.name for parameter in COMMANDS["mount"].params}
    assert set(config.setting_keys()) <= parameters


def test_mount_options_are_all_documented() -> None:
    assert not [option for option in config.MOUNT_OPTIONS if f"`{option}`" not in OPERATE]


@pytest.mark.parametrize(
    ("key", "default"),
    [("commit_interval", "1s"), ("seal_idle", "10s"), ("interval", "60s"), ("risk_limit", "10min"), ("grace", "7d")],
)
def test_documented_default_is_the_default(key: str, default: str) -> None:
    assert re.search(rf"^\| `{key}` \| [^|]* \| `{default}` \|", OPERATE, re.MULTILINE)
    settings = config.load(Path("/m"), {}, file=Path("/dev/null"), env={}, uid=0)
    assert config.parse_duration(default) == getattr(settings, f"{key}_s")
    help_text = next(p for p in COMMANDS["mount"].params if p.name == key)
    assert f"[default: {default}]" in (getattr(help_text, "help", "") or "")


def test_documented_default_of_warn_total_is_the_default() -> None:
    assert re.search(r"^\| `warn_total` \| [^|]* \| `50GB` \|", OPERATE, re.MULTILINE)
    assert config.load(Path("/m"), {}, file=Path("/dev/null"), env={}, uid=0).warn_total_bytes == 50 * 10**9


@each_document
def test_make_targets_exist(document: Path) -> None:
    used = set(re.findall(r"(?:^ +|`)make ([a-z-]+)", document.read_text("utf-8"), re.MULTILINE))
    assert used <= TARGETS, f"no such target: {used - TARGETS}"


def test_readme_names_every_make_target_for_users() -> None:
    assert {"run", "test", "install", "stop"} <= set(re.findall(r"make ([a-z-]+)", README))


@each_document
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text("utf-8")):
        assert (document.parent / target).exists(), f"{document.name} links to {target}"


@each_document
def test_documents_cite_functions_not_lines(document: Path) -> None:
    assert not re.findall(r"\w+\.py:\d+", document.read_text("utf-8"))


def test_scripts_that_documents_name_exist() -> None:
    used = set(re.findall(r"\bscripts/[\w.]+", README + OPERATE + MAKEFILE))
    assert used
    assert not [name for name in used if not (ROOT / name).exists()]
