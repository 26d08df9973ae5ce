"""From samples to figures: medians, ratios of interleaved pairs, the tables in README.md here and above."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from bench.rows import HEADLINES, NOT_THERE_YET, TARGET_TITLES, TARGETS, find_row

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bench.rows import Goal, Target

HERE: Final = Path(__file__).resolve().parent
BEGIN: Final = "<!-- table: written by bench/run.py -->"
END: Final = "<!-- end of table -->"
BASES: Final[tuple[Target, ...]] = ("ext4", "pt-s")

Samples = dict[str, list[float | None]]
"""By target, one value a round; None where the round failed."""


def summarise(key: str, samples: Samples) -> dict[str, Any]:
    """One row of results.json: samples, medians, and sessfs ÷ each base, as median, least and most of the rounds."""
    row = find_row(key)
    known = {target: [value for value in values if value is not None] for target, values in samples.items()}
    ratios = {base: spread for base in BASES if (spread := _ratios(samples, base)) is not None}
    summary = {
        "key": key,
        "title": row.title,
        "unit": row.unit,
        "samples": {target: [_round(value) for value in values] for target, values in samples.items()},
        "medians": {target: _round(statistics.median(values)) for target, values in known.items() if values},
        "ratios": ratios,
    }
    return summary | {"goals": [_judge(goal, summary) for goal in row.goals]}


def _ratios(samples: Samples, base: Target) -> dict[str, float] | None:
    pairs = zip(samples.get("sessfs", []), samples.get(base, []), strict=False)
    found = [ours / theirs for ours, theirs in pairs if ours is not None and theirs]
    if not found:
        return None
    return {"median": round(statistics.median(found), 3), "low": round(min(found), 3), "high": round(max(found), 3)}


def _round(value: float | None) -> float | None:
    """Four significant digits are more than a noisy machine gives."""
    return None if value is None else float(f"{value:.4g}")


def _judge(goal: Goal, summary: Mapping[str, Any]) -> dict[str, Any]:
    if goal.against is None:
        figure = summary["medians"].get("sessfs")
    else:
        figure = summary["ratios"].get(goal.against, {}).get("median")
    return {
        "against": goal.against,
        "relation": goal.relation,
        "limit": goal.limit,
        "met": None if figure is None else goal.is_met(figure),
    }


def _figure(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:,.3g}"


def _ratio(spread: Mapping[str, float] | None) -> str:
    return "" if spread is None else f"{spread['median']:.2f} ({spread['low']:.2f} to {spread['high']:.2f})"


def _goal(goals: Sequence[Mapping[str, Any]]) -> str:
    texts = []
    for goal in goals:
        limit = _figure(goal["limit"])
        if goal["against"]:
            limit = f"{goal['limit']:,.2f} of {TARGET_TITLES[goal['against']]}"
        verdict = {True: "met", False: "**not met**", None: "not measured"}[goal["met"]]
        texts.append(f"{goal['relation']} {limit}: {verdict}")
    return "; ".join(texts)


def table(results: Mapping[str, Any]) -> str:
    """The table of all rows, and what was measured where, as Markdown."""
    machine, settings = results["machine"], results["settings"]
    shared = " The machine was shared with other work." if settings["shared_machine"] else ""
    lines = [
        f"Measured {results['when']}, commit {results['commit']}, {settings['mode']} run, {settings['rounds']} rounds"
        f" ({settings['chrome_rounds']} of Chrome), on {machine['cores']} cores ({machine['cpu']}),"
        f" {machine['memory_gib']} GiB, Linux {machine['kernel']}, {machine['distribution']},"
        f" {machine['filesystem']} ({machine['ext4']}); load {machine['load_at_start']} at the start.{shared}",
        "",
        ", ".join(f"{name} {text}" for name, text in results["versions"].items()) + ".",
        "",
        "| row | unit | "
        + " | ".join(TARGET_TITLES[target] for target in TARGETS)
        + " | sessfs ÷ ext4 | sessfs ÷ passthrough_ll -s | figure to show |",
        "| --- | --- | " + " | ".join("---:" for _ in TARGETS) + " | --- | --- | --- |",
    ]
    for row in results["rows"]:
        medians = [_figure(row["medians"].get(target)) for target in TARGETS]
        ratios = [_ratio(row["ratios"].get(base)) for base in BASES]
        run = row.get("run")
        title = row["title"] + (f" (commit {run['commit']}, {run['when']})" if run else "")
        lines.append("| " + " | ".join([title, row["unit"], *medians, *ratios, _goal(row["goals"])]) + " |")
    lines += [f"| {title} | not there yet: needs {needs} | | | | | | | |" for title, needs in NOT_THERE_YET]
    lines += [f"\nFailed: {failure}" for failure in results["failures"]]
    return "\n".join(lines)


def headlines(results: Mapping[str, Any]) -> str:
    """A short table for the README of the whole, as Markdown."""
    rows = {row["key"]: row for row in results["rows"]}
    lines = ["| of the benchmark | figure |", "| --- | --- |"]
    for key, base in HEADLINES:
        row = rows.get(key)
        if row is None:
            continue
        if base in row["ratios"]:
            figure = f"{row['ratios'][base]['median']:.2f} of {TARGET_TITLES[base]}"
        else:
            unit = "" if row["unit"] == "ratio" else f" {row['unit']}"
            figure = f"{_figure(row['medians'].get(base or 'sessfs'))}{unit}"
        lines.append(f"| {row['title']} | {figure} |")
    return "\n".join(lines)


def put_table(readme: str, text: str) -> str:
    """*readme* with *text* between the markers."""
    before, _, rest = readme.partition(BEGIN)
    after = rest.partition(END)[2]
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{after}"
