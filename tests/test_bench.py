"""The bench stays outside of the product, and what is written of its results is what it measured."""

from __future__ import annotations

import ast
import dataclasses
import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from bench import cost, fiojobs, plots, report
from bench.rows import HEADLINES, NOT_THERE_YET, ROWS

BENCH = Path(__file__).resolve().parent.parent / "bench"
MODULES = sorted(BENCH.glob("*.py"))
MAX_FILE_LINES = 500


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    """The committed results."""
    found: dict[str, Any] = json.loads((BENCH / "results.json").read_text())
    return found


def imported(path: Path) -> set[str]:
    """First parts of all names of modules that *path* imports, and whole names of those in tests/."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    return names


def test_modules_are_found() -> None:
    assert {"run.py", "main.py", "cost.py", "workloads.py"} <= {path.name for path in MODULES}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_bench_knows_sessfs_by_its_commands_only(path: Path) -> None:
    """But for the maker of very many sessions, which writes objects by the product's own encoders."""
    names = imported(path)
    ours = {name for name in names if name.split(".")[0] == "sessfs"}
    assert not {name for name in ours if path.name != "manifests.py" or not name.startswith("sessfs.format.")}
    assert {name for name in names if name.split(".")[0] == "tests"} <= {"tests.e2e.chromelife"}
    assert len(path.read_text().splitlines()) <= MAX_FILE_LINES


def test_table_is_that_of_the_results(results: dict[str, Any]) -> None:
    readme = (BENCH / "README.md").read_text()
    assert readme == report.put_table(readme, report.table(results))


def test_readme_of_the_whole_has_the_figures_of_the_results(results: dict[str, Any]) -> None:
    readme = (BENCH.parent / "README.md").read_text()
    assert readme == report.put_table(readme, report.headlines(results))
    known = {row["key"]: row for row in results["rows"]}
    for key, base in HEADLINES:
        assert base is None or base in {*known[key]["ratios"], *known[key]["medians"]}
        assert known[key]["title"] in readme


def test_every_goal_that_is_missed_is_explained(results: dict[str, Any]) -> None:
    section = (BENCH / "README.md").read_text().partition("## Goals that are not met, and why")[2]
    explained = set(re.findall(r"^\| (.+?) \| .{3,} \|$", section.partition("\n## ")[0], re.MULTILINE))
    missed = {row["title"] for row in results["rows"] if any(goal["met"] is False for goal in row["goals"])}
    assert missed
    assert missed <= explained


def test_figures_follow_from_the_samples(results: dict[str, Any]) -> None:
    """Samples are stored rounded, so what follows from them may differ in the last digits."""
    for row in results["rows"]:
        again = report.summarise(row["key"], row["samples"])
        assert again["medians"] == pytest.approx(row["medians"], rel=2e-3)
        assert set(again["ratios"]) == set(row["ratios"])
        for base, spread in row["ratios"].items():
            assert again["ratios"][base] == pytest.approx(spread, rel=5e-3, abs=2e-3)


def test_plots_are_those_of_the_results(results: dict[str, Any]) -> None:
    for name, chart in plots.render_all(results).items():
        assert (BENCH / "plots" / name).read_text() == chart
        assert ElementTree.fromstring(chart).tag.endswith("svg")
        assert f"plots/{name}" in (BENCH / "README.md").read_text()


def test_a_row_that_is_not_there_has_no_figure(results: dict[str, Any]) -> None:
    lines = report.table(results).splitlines()
    for title, _ in NOT_THERE_YET:
        (line,) = [line for line in lines if line.startswith(f"| {title} |")]
        assert "not there yet" in line
        assert not re.search(r"\d", line.removeprefix(f"| {title} |"))
        assert title not in [row.title for row in ROWS]


def test_goals_are_judged_by_the_median_of_pairs() -> None:
    samples: report.Samples = {"ext4": [100.0, 200.0, 100.0], "sessfs": [50.0, 160.0, 90.0], "pt-s": [10.0, None, 10.0]}
    row = report.summarise("fsync1", samples)
    assert row["ratios"]["ext4"] == {"median": 0.8, "low": 0.5, "high": 0.9}
    assert row["ratios"]["pt-s"] == {"median": 7.0, "low": 5.0, "high": 9.0}
    assert [goal["met"] for goal in row["goals"]] == [True]
    assert [goal["met"] for goal in report.summarise("fsync8", samples)["goals"]] == [False]
    assert [goal["met"] for goal in report.summarise("fsync8", {"ext4": [1.0]})["goals"]] == [None]


def test_fio_covers_what_it_should() -> None:
    jobs = list(fiojobs.matrix())
    assert len({job.key for job in jobs}) == len(jobs)
    assert {job.jobs for job in jobs} == {1, 8}
    assert {job.bs for job in jobs} == {"4k", "64k", "1m"}
    for file in ("buffered", "mmap"):
        assert {job.rw for job in jobs if job.file == file} == {"write", "read", "randwrite", "randread"}
        assert {job.bs for job in jobs if job.file == file} == {"4k", "64k", "1m"}
    for file in ("buffered", "mmap", "fsync", "verify"):
        assert {job.jobs for job in jobs if job.file == file} == {1, 8}
        assert (BENCH / "fio" / f"{file}.fio").is_file()


def test_cost_page_is_what_is_computed() -> None:
    assert cost.render(cost.load()) == cost.PAGE.read_text()


def test_requests_of_a_node_cost_less_than_a_dollar() -> None:
    measured = cost.load()
    assert cost.node_puts(measured, busy=True) * cost.PUT_DOLLARS < 1.0
    assert cost.node_puts(measured, busy=False) == 129_600
    assert "which holds" in cost.render(measured)


def test_cost_follows_from_measured_requests_and_bytes() -> None:
    """A month has 43,200 intervals of a minute, and 129,600 heartbeats of which publishing takes the place of one."""
    measured = cost.Measured(first_mb=20, further_mb=10, burst_mb=4, puts_an_interval=2, gets_a_move=50)
    assert cost.node_puts(measured, busy=True) == 129_600 + 43_200
    assert cost.node_puts(dataclasses.replace(measured, puts_an_interval=3), busy=True) == 129_600 + 2 * 43_200
    # 5,000 MB a burst of each of 100 users, 24 times a day, are 8.3 GB an interval: 249 segments of 32 MiB.
    assert cost.node_puts(dataclasses.replace(measured, burst_mb=5000), busy=True) == 129_600 + 249 * 43_200
    fleet = cost.sessfs(1000, measured)
    assert fleet.gets == 1000 * cost.MOVES_A_MONTH * 50
    assert fleet.puts == 10 * (129_600 + 43_200) + 1000 * cost.MOVES_A_MONTH
    assert "**which does not hold**" in cost.render(dataclasses.replace(measured, puts_an_interval=10))
