"""Bar charts as SVG, written by hand: three charts are not worth a plotting library among the dependencies."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any, Final

from bench.rows import TARGET_TITLES, TARGETS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

COLOURS: Final = {"ext4": "#888888", "sessfs": "#1f77b4", "pt-s": "#ff9f40", "pt": "#ffd199"}
LABEL_PX: Final = 330
BARS_PX: Final = 420
BAR_PX: Final = 13
GAP_PX: Final = 12
CHARTS: Final = {
    "names": (
        "Names and attributes, relative to passthrough_ll -s (more is better)",
        "pt-s",
        ("create", "stat", "open", "listdir", "rename", "unlink"),
    ),
    "content": (
        "Content, relative to ext4 (more is better)",
        "ext4",
        ("fsync1", "fsync8", "seq_write", "cached_read", "mmap_read", "cold_read"),
    ),
    "chrome": (
        "Chrome, relative to ext4 (less is better)",
        "ext4",
        ("chrome_first", "chrome_restart", "chrome_six"),
    ),
}
"""By file name: title, the target that is 1, rows."""


def render_all(results: Mapping[str, Any]) -> dict[str, str]:
    """Every chart by its file's name."""
    rows = {row["key"]: row for row in results["rows"]}
    return {
        f"{name}.svg": _render(title, base, [rows[key] for key in keys if base in rows.get(key, {}).get("medians", {})])
        for name, (title, base, keys) in CHARTS.items()
    }


def _render(title: str, base: str, rows: Sequence[Mapping[str, Any]]) -> str:
    relative = [{t: m / row["medians"][base] for t, m in row["medians"].items()} for row in rows]
    most = max((ratio for each in relative for ratio in each.values()), default=1.0)
    # One target many times faster than the base would leave nothing to be seen of the others.
    scale = BARS_PX / min(most, 3.0)
    parts: list[str] = []
    y = 58
    for row, ratios in zip(rows, relative, strict=True):
        parts.append(_text(LABEL_PX - 10, y + BAR_PX * len(ratios) / 2 + 4, row["title"], "end"))
        for target in [each for each in TARGETS if each in ratios]:
            width = min(ratios[target] * scale, BARS_PX)
            parts.append(
                f'<rect x="{LABEL_PX}" y="{y}" width="{width:.1f}" height="{BAR_PX - 2}" fill="{COLOURS[target]}"/>'
            )
            parts.append(_text(LABEL_PX + width + 5, y + BAR_PX - 3, f"{ratios[target]:.2f}", "start"))
            y += BAR_PX
        y += GAP_PX
    x = LABEL_PX + scale
    parts.append(
        f'<line x1="{x:.1f}" y1="50" x2="{x:.1f}" y2="{y - GAP_PX / 2:.1f}" stroke="#000" stroke-width="0.5"/>'
    )
    body = "\n".join([_text(10, 20, title, "start"), *_legend(), *parts])
    size = f'width="{LABEL_PX + BARS_PX + 60}" height="{y + 6}"'
    font = 'font-family="sans-serif" font-size="11"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {font}>\n{body}\n</svg>\n'


def _legend() -> list[str]:
    parts = []
    for number, target in enumerate(TARGETS):
        x = 10 + 160 * number
        parts.append(f'<rect x="{x}" y="31" width="10" height="10" fill="{COLOURS[target]}"/>')
        parts.append(_text(x + 15, 40, TARGET_TITLES[target], "start"))
    return parts


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
