"""How commands speak: JSON for scripts, lines and sizes for people (tables: tables.py, which takes longer to import).
Answers go to stdout, all else to stderr.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sessfs.errors import SessfsError


def print_json(value: Any) -> None:
    """*value* as indented JSON on stdout; bytes that are no UTF-8 in a path come out as \\udcXX escapes."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=True) + "\n")


def print_line(text: str) -> None:
    """One line for a person on stdout."""
    sys.stdout.write(printable(text) + "\n")


def print_note(text: str) -> None:
    """One line on stderr, in the form of all messages that are not the answer."""
    sys.stderr.write(f"sessfs: {printable(text)}\n")


def print_error(error: SessfsError, *, as_json: bool) -> None:
    """*error* as one line on stderr, and, for scripts, as {"error": {...}} on stdout."""
    message = " ".join(str(error).split()) or type(error).__name__
    if as_json:
        print_json({"error": {"kind": type(error).__name__, "message": message, "exit_code": error.exit_code}})
    print_note(message)


def format_size(n_bytes: float) -> str:
    """*n_bytes* for a person: `1.5 GiB`, `12 B`."""
    size = float(n_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def format_duration(seconds: float) -> str:
    """*seconds* for a person: `2 d 3 h`, `5 min 10 s`, `0.4 s`; the two largest units."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    left, parts = int(seconds), []
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        count, left = divmod(left, length)
        if count:
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2])


def printable(text: str) -> str:
    """*text* with control characters and undecodable bytes as escapes, so that no file name can forge a line."""
    cleaned = "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode("ascii") for c in text
    )
    return cleaned.encode(sys.stdout.encoding or "utf-8", "backslashreplace").decode(sys.stdout.encoding or "utf-8")
