"""Charts as SVG, written by hand: a handful of them is not worth a plotting library among the dependencies."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any, Final

from bench.rows import TARGET_TITLES, TARGETS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bench.rows import Target

COLOURS: Final = {"ext4": "#888888", "sessfs": "#1f77b4", "pt-s": "#ff9f40", "pt": "#ffd199"}
LABEL_PX: Final = 440
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
GOAL: Final = "goal"
LOADS: Final = (
    "background_ratio",
    "background_probe",
    "replay_p99",
    "replay_p99_kind",
    "replay_memory",
    "replay_resident",
    "replay_growth",
    "empty_ratio",
    "many_mount",
    "many_first",
    "many_resident",
    "many_list_resident",
)
"""Rows of which only sessfs has a figure, shown as a share of the most that it may be."""
CURVES: Final = {
    "memory-replay": ("Memory while recorded sessions are replayed, MB by seconds", "replay_curve"),
    "memory-upload": ("Memory while new data is written, sealed and uploaded, MB by seconds", "upload_curve"),
    "memory-restore": ("Memory while it is restored, MB by seconds", "restore_curve"),
}
CURVE_TITLES: Final = (("anonymous", "#1f77b4"), ("resident", "#ff9f40"), ("resident, the daemon alone", "#888888"))
CURVE_PX: Final = (620, 220)


def render_all(results: Mapping[str, Any]) -> dict[str, str]:
    """Every chart by its file's name."""
    rows = {row["key"]: row for row in results["rows"]}
    charts = {
        f"{name}.svg": _render(title, base, [rows[key] for key in keys if base in rows.get(key, {}).get("medians", {})])
        for name, (title, base, keys) in CHARTS.items()
    }
    loads = [_with_goal(rows[key]) for key in LOADS if rows.get(key, {}).get("medians", {}).get("sessfs") is not None]
    charts["loads.svg"] = _render("Under load, relative to the goal (at most 1 is met)", GOAL, loads)
    for name, (title, key) in CURVES.items():
        charts[f"{name}.svg"] = _curve(title, results["details"].get(key, {}).get("sessfs", [[]])[0])
    return charts


def _with_goal(row: Mapping[str, Any]) -> dict[str, Any]:
    """*row* with its goal as one more target, which is no bar of its own."""
    (goal,) = row["goals"]
    return {**row, "medians": {"sessfs": row["medians"]["sessfs"], GOAL: goal["limit"]}}


def _curve(title: str, points: Sequence[Sequence[float]]) -> str:
    """Lines over time: each point is a time and one value for each of CURVE_TITLES."""
    width, height = CURVE_PX
    left, top = 50, 50
    end = max((point[0] for point in points), default=1.0) or 1.0
    most = max((value for point in points for value in point[1:]), default=1.0) or 1.0
    parts = [_text(10, 20, title, "start")]
    for number, (name, colour) in enumerate(CURVE_TITLES):
        line = " ".join(
            f"{left + point[0] / end * width:.1f},{top + height - point[1 + number] / most * height:.1f}"
            for point in points
        )
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        parts.append(f'<rect x="{left + 120 * number}" y="31" width="10" height="10" fill="{colour}"/>')
        parts.append(_text(left + 120 * number + 15, 40, name, "start"))
    for share in (0.0, 0.5, 1.0):
        y = top + height * (1 - share)
        parts.append(f'<line x1="{left}" y1="{y}" x2="{left + width}" y2="{y}" stroke="#ccc" stroke-width="0.5"/>')
        parts.append(_text(left - 5, y + 4, f"{most * share:.0f}", "end"))
        parts.append(_text(left + width * share, top + height + 15, f"{end * share:.0f}", "middle"))
    return _svg(left + width + 30, top + height + 25, parts)


def _render(title: str, base: str, rows: Sequence[Mapping[str, Any]]) -> str:
    relative = [{t: m / row["medians"][base] for t, m in row["medians"].items()} for row in rows]
    shown = [target for target in TARGETS if any(target in each for each in relative)]
    most = max((ratio for each in relative for ratio in each.values()), default=1.0)
    # One target many times faster than the base would leave nothing to be seen of the others.
    scale = BARS_PX / min(most, 3.0)
    parts: list[str] = []
    y = 58
    for row, ratios in zip(rows, relative, strict=True):
        bars = [each for each in TARGETS if each in ratios]
        parts.append(_text(LABEL_PX - 10, y + BAR_PX * len(bars) / 2 + 4, row["title"], "end"))
        for target in bars:
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
    return _svg(LABEL_PX + BARS_PX + 60, y + 6, [_text(10, 20, title, "start"), *_legend(shown), *parts])


def _svg(width: int, height: int, parts: Sequence[str]) -> str:
    body = "\n".join(parts)
    font = 'font-family="sans-serif" font-size="11"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" {font}>\n{body}\n</svg>\n'


def _legend(shown: Sequence[Target]) -> list[str]:
    parts = []
    for number, target in enumerate(shown):
        x = 10 + 160 * number
        parts.append(f'<rect x="{x}" y="31" width="10" height="10" fill="{COLOURS[target]}"/>')
        parts.append(_text(x + 15, 40, TARGET_TITLES[target], "start"))
    return parts


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
