"""The command line of the bench: installs, measures in turn, reports."""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from bench import (
    background,
    chromes,
    cost,
    crowd,
    disk,
    empty,
    fiojobs,
    imports,
    install,
    machine,
    many,
    memory,
    plots,
    recorder,
    report,
    workloads,
)
from bench.rows import ROWS, TARGETS, Target
from bench.targets import BenchError, Targets, temporary
from tests.e2e.chromelife import open_page

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.e2e.chromelife import Page

HERE: Final = Path(__file__).resolve().parent
GROUPS: Final = (
    "files", "fsyncs", "streams", "cold", "memory", "chrome", "sent", "background", "empty", "replay", "upload", "many",
    "import", "six", "fio",
)  # fmt: skip
FULL_ONLY: Final = ("six", "fio")
PAGE_GROUPS: Final = ("chrome", "sent", "background", "empty", "import", "six")
SHORT_SIZES: Final = workloads.Sizes(
    files=600,
    fsyncs=300,
    stream_mib=64,
    cold_mib=64,
    replay_sessions=6,
    replay_s=40,
    many_sessions=1000,
    upload_mib=128,
    probe_s=5,
)
FULL_SIZES: Final = workloads.Sizes(
    files=3000,
    fsyncs=1000,
    stream_mib=256,
    cold_mib=256,
    replay_sessions=100,
    replay_s=600,
    many_sessions=100_000,
    upload_mib=1000,
    probe_s=30,
)


class Recorder:
    """Samples by row, target and round. A failure is a missing sample and a line of its own."""

    def __init__(self) -> None:
        self.samples: dict[str, report.Samples] = {}
        self.details: dict[str, Any] = {}
        self.failures: list[str] = []

    def measure(self, name: str, target: Target, number: int, action: Callable[[], dict[str, Any]]) -> None:
        """Run *action*, and take what it returns as the samples of round *number*; what is no number is a detail."""
        start = time.monotonic()
        try:
            found = action()
        except (BenchError, OSError, subprocess.SubprocessError) as exc:
            self.failures.append(f"{name} on {target}, round {number + 1}: {exc}")
            print(f"bench: failed: {self.failures[-1]}", file=sys.stderr)
            found = {}
        for key, value in found.items():
            if not isinstance(value, float | int):
                self.details.setdefault(key, {}).setdefault(target, []).append(value)
                continue
            values = self.samples.setdefault(key, {}).setdefault(target, [])
            values.extend([None] * (number - len(values)))
            values.append(float(value))
        shown = {key: round(value, 1) for key, value in found.items() if isinstance(value, float | int)}
        print(f"{name:8} {number + 1} {target:7} {time.monotonic() - start:5.1f} s  {shown}", file=sys.stderr)


def _fio(job: fiojobs.Job, directory: Path, _sizes: workloads.Sizes) -> dict[str, float]:
    return fiojobs.run(directory, job)


class Bench:
    """One run."""

    def __init__(self, args: argparse.Namespace, targets: Targets, page: Page | None) -> None:
        self._args = args
        self._targets = targets
        self._page = page
        self.recorder = Recorder()
        self._sizes = FULL_SIZES if args.full else SHORT_SIZES
        if args.scale != 1:
            self._sizes = workloads.Sizes(*(max(int(size * args.scale), 8) for size in self._sizes))

    def _in_turn(
        self, name: str, rounds: int, targets: Sequence[Target], action: Callable[[Target], dict[str, Any]]
    ) -> None:
        """A B C, A B C: every target once a round, so that what disturbs a round disturbs all of it alike."""
        for number in range(rounds):
            for target in targets:
                self.recorder.measure(name, target, number, functools.partial(action, target))

    def _on(self, workload: Callable[[Path, workloads.Sizes], dict[str, float]]) -> Callable[[Target], dict[str, Any]]:
        def run(target: Target) -> dict[str, Any]:
            with self._targets.open(target) as directory:
                return workload(directory, self._sizes)

        return run

    def run(self, group: str) -> None:
        """Measure one group of rows."""
        rounds = self._args.rounds
        workload = {"files": workloads.files, "fsyncs": workloads.fsyncs, "streams": workloads.streams}.get(group)
        if workload is not None:
            self._in_turn(group, rounds, TARGETS, self._on(workload))
        elif group == "cold":
            self._cold(min(rounds, 3))
        elif group == "fio":
            for job in fiojobs.matrix():
                self._in_turn(group, min(rounds, 3), TARGETS, self._on(functools.partial(_fio, job)))
        elif group in PAGE_GROUPS:
            self._chrome(group)
        else:
            self._alone(group)

    def _alone(self, group: str) -> None:
        """Groups that are measured once, on sessfs alone, or on ext4 and sessfs."""
        base, sizes = self._targets.base, self._sizes
        load = crowd.Load(sizes.replay_sessions, float(sizes.replay_s))
        actions: dict[str, Callable[[Target], dict[str, Any]]] = {
            "memory": lambda _: {"memory_idle": workloads.idle_memory(base)},
            "replay": lambda target: crowd.replay(base, target, load),
            "upload": lambda _: memory.upload_and_restore(base, sizes.upload_mib),
            "many": lambda _: many.many(base, sizes.many_sessions),
        }
        self._in_turn(group, 1, ("ext4", "sessfs") if group == "replay" else ("sessfs",), actions[group])

    def _cold(self, rounds: int) -> None:
        text = workloads.make_text(self._sizes.cold_mib << 20)

        def read(target: Target) -> dict[str, Any]:
            if target == "sessfs":
                return {"cold_read": workloads.cold_sealed(self._targets.base, text)}
            with self._targets.open(target) as directory:
                return {"cold_read": workloads.cold_plain(directory, text)}

        self._in_turn("cold", rounds, TARGETS, read)

    def _chrome(self, group: str) -> None:
        page, base, rounds = self._page, self._targets.base, self._args.chrome_rounds
        if page is None:
            raise SystemExit(f"bench: the group {group} needs the stand-in page")
        targets: Sequence[Target] = TARGETS if self._args.full else ("ext4", "sessfs", "pt-s")
        if group == "chrome":
            chromes.warm_up(self._targets, page)
            self._in_turn(group, rounds, targets, lambda target: chromes.lives(self._targets, target, page))
        elif group == "six":
            self._in_turn(
                group,
                min(rounds, 2),
                ("ext4", "sessfs", "pt-s"),
                lambda target: chromes.six(self._targets, target, page, compare=target == "ext4"),
            )
        else:
            probe_s = float(self._sizes.probe_s)
            actions: dict[str, Callable[[Target], dict[str, Any]]] = {
                "sent": lambda _: chromes.sent(base, page),
                "background": lambda _: background.background(base, page, rounds, probe_s),
                "empty": lambda _: empty.empty_machine(base, page, self._args.rounds),
                "import": lambda _: imports.imports(base, page, rounds, full=self._args.full),
            }
            self._in_turn(group, 1, ["sessfs"], actions[group])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench/run.py", description=__doc__)
    parser.add_argument("--full", action="store_true", help="also fio and six Chromes, larger sizes; an hour or two")
    parser.add_argument("--rounds", type=int, help="rounds of each row (short 3, full 7)")
    parser.add_argument("--chrome-rounds", type=int, help="rounds of Chrome's lives (short 2, full 5)")
    parser.add_argument("--scale", type=float, default=1.0, help="multiply all sizes, to try the bench itself")
    parser.add_argument("--only", action="append", choices=GROUPS, help="these groups of rows alone")
    parser.add_argument("--update", action="store_true", help="replace these rows in results.json, and say so there")
    parser.add_argument("--record", action="store_true", help="record the trace of `replay` anew by strace, and end")
    parser.add_argument("--base", type=Path, default=Path("/var/tmp"), help="where to measure: a directory on ext4")
    parser.add_argument("--output", type=Path, default=HERE, help="where results.json, README.md and plots/ are")
    parser.add_argument("--shared-machine", action="store_true", help="note that other work ran at the same time")
    args = parser.parse_args()
    args.rounds = args.rounds or (7 if args.full else 3)
    args.chrome_rounds = args.chrome_rounds or (5 if args.full else 2)
    args.only = args.only or [group for group in GROUPS if args.full or group not in FULL_ONLY]
    return args


def _prepare(args: argparse.Namespace) -> None:
    if os.geteuid() != 0:
        raise SystemExit("bench: needs root: it mounts, and drops the page cache")
    if machine.filesystem_of(args.base) == "tmpfs":
        raise SystemExit(f"bench: {args.base} is in memory; give a directory on a disk with --base")
    wanted = {"gcc": "gcc", "pkg-config": "pkg-config", "mkfs.ext4": "e2fsprogs"}
    if "fio" in args.only:
        wanted["fio"] = "fio"
    if args.record or ("replay" in args.only and not recorder.TRACE.exists()):
        wanted["strace"] = "strace"
    if "six" in args.only:
        wanted |= {"restic": "restic", "borg": "borgbackup"}
    if "import" in args.only:
        wanted |= {"restic": "restic", "zstd": "zstd"}
    install.packages(wanted)


def _merge(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """*old* with the rows of *new*, each of which says when and of which commit it is."""
    fresh = {row["key"]: {**row, "run": {"when": new["when"], "commit": new["commit"]}} for row in new["rows"]}
    rows = {row["key"]: row for row in old["rows"]} | fresh
    order = [row.key for row in ROWS]
    keys = sorted(rows, key=lambda key: (order.index(key) if key in order else len(order), key))
    return {
        **old,
        "rows": [rows[key] for key in keys],
        "details": {**old["details"], **new["details"]},
        "failures": old["failures"] + new["failures"],
    }


def _save(args: argparse.Namespace, recorder: Recorder, began: dict[str, Any]) -> None:
    order = {row.key: number for number, row in enumerate(ROWS)}
    keys = sorted(recorder.samples, key=lambda key: (order.get(key, len(order)), key))
    results = {
        **began,
        "rows": [report.summarise(key, recorder.samples[key]) for key in keys],
        "details": recorder.details,
        "failures": recorder.failures,
    }
    if args.update:
        results = _merge(json.loads((args.output / "results.json").read_text()), results)
    (args.output / "results.json").write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    readme = args.output / "README.md"
    text = report.table(results)
    readme.write_text(report.put_table(readme.read_text() if readme.exists() else "# Benchmark\n\n", text))
    (args.output / "plots").mkdir(exist_ok=True)
    for name, chart in plots.render_all(results).items():
        (args.output / "plots" / name).write_text(chart)
    if args.output == HERE:
        cost.write()
        above = HERE.parent / "README.md"
        above.write_text(report.put_table(above.read_text(), report.headlines(results)))
    print(text)


def _terminate(number: int, _frame: object) -> None:
    raise SystemExit(f"bench: ended by {signal.Signals(number).name}; nothing was written")


def main() -> None:
    """Measure what is asked for, and write results.json, the table and the plots."""
    # SIGTERM unmounts and removes what was made, as Ctrl-C does.
    signal.signal(signal.SIGTERM, _terminate)
    args = _arguments()
    _prepare(args)
    if args.record:
        recorder.record(args.base)
        return
    args.output.mkdir(parents=True, exist_ok=True)
    install.compile_sessfs()
    started = time.monotonic()
    began = {
        "when": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "commit": machine.commit(),
        "machine": {
            **machine.describe(args.base),
            "ext4": "a directory" if disk.has_journal(args.base) else "a fresh one in a file, by a loop device",
        },
        "versions": machine.versions(),
        "settings": {
            "mode": "full" if args.full else "short",
            "rounds": args.rounds,
            "chrome_rounds": args.chrome_rounds,
            "scale": args.scale,
            "groups": args.only,
            "sizes": (FULL_SIZES if args.full else SHORT_SIZES)._asdict(),
            "shared_machine": args.shared_machine,
        },
    }
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(temporary(args.base))
        base = stack.enter_context(disk.open_ext4(args.base, directory))
        targets = Targets(base, install.compile_passthrough(directory))
        needs_page = bool(set(PAGE_GROUPS) & set(args.only))
        page = stack.enter_context(open_page("large")) if needs_page else None
        bench = Bench(args, targets, page)
        for group in args.only:
            bench.run(group)
    _save(args, bench.recorder, began)
    print(f"bench: took {time.monotonic() - started:.0f} s", file=sys.stderr)
    if bench.recorder.failures:
        raise SystemExit(f"bench: {len(bench.recorder.failures)} measurements failed; see above")


if __name__ == "__main__":
    main()
