"""The recorder keeps what Chrome did, the replayer does that, and both notice what is wrong."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench import memory, recorder, replay, trace
from bench.replay import Counts, Player, Position, Task
from bench.trace import Content, Model, Node, Op

ROOT = Path(__file__).resolve().parent.parent
PROFILE = "/p/session"
POOL = bytes(range(256)) * 4096
STRACE = f"""\
10 100.000000 openat(AT_FDCWD</>, "{PROFILE}/log", O_WRONLY|O_CREAT|O_APPEND|O_CLOEXEC, 0600 <unfinished ...>
11 100.000100 clone3({{flags=CLONE_VM|CLONE_FS|CLONE_FILES|CLONE_THREAD, exit_signal=0}}, 88) = 12
10 100.001000 <... openat resumed>) = 5<{PROFILE}/log>
10 100.001500 clone3({{flags=CLONE_VM|CLONE_FS|CLONE_FILES|CLONE_THREAD, exit_signal=0}}, 88) = 11
11 100.002000 write(5<{PROFILE}/log>, ""..., 7) = 7
12 100.003000 write(5<{PROFILE}/log>, ""..., 3 <unfinished ...>
10 100.003500 access("{PROFILE}/nothing", F_OK) = -1 ENOENT (No such file or directory)
10 100.003600 access("/elsewhere", F_OK) = 0
12 100.004000 <... write resumed>) = 3
12 100.005000 newfstatat(AT_FDCWD</>, "{PROFILE}/log", {{st_mode=S_IFREG|0600, st_size=10, ...}}, 0) = 0
12 100.006000 pwrite64(5<{PROFILE}/log>, ""..., 2, 4) = 2
12 100.007000 close(5<{PROFILE}/log> <unfinished ...>
10 100.007100 openat(AT_FDCWD</>, "{PROFILE}", O_RDONLY|O_DIRECTORY) = 5<{PROFILE}>
12 100.007200 <... close resumed>) = 0
10 100.008000 getdents64(5<{PROFILE}>, 0x1 /* 3 entries */, 32768) = 72
10 100.008100 getdents64(5<{PROFILE}>, 0x1 /* 0 entries */, 32768) = 0
10 100.009000 rename("{PROFILE}/log", "{PROFILE}/a \\"name\\"") = 0
20 100.010000 pread64(7<{PROFILE}/a "name">, ""..., 100, 8) = 4
10 100.011000 symlink("host-10", "{PROFILE}/Lock") = 0
"""


def converted(tmp_path: Path, text: str) -> tuple[list[Op], int]:
    file = tmp_path / "strace.1"
    file.write_text(text)
    return recorder.convert_files([file], Path(PROFILE))


def test_strace_becomes_operations(tmp_path: Path) -> None:
    """Threads share descriptors, closing counts when it begins, and a descriptor from elsewhere is opened first."""
    ops, dropped = converted(tmp_path, STRACE)
    assert dropped == 0
    assert [(op.kind, op.path) for op in ops] == [
        ("open", "log"),
        ("write", ""),
        ("access", "nothing"),
        ("write", ""),
        ("stat", "log"),
        ("write", ""),
        ("close", ""),
        ("open", ""),
        ("list", ""),
        ("rename", "log"),
        ("open", 'a "name"'),
        ("read", ""),
        ("symlink", "Lock"),
        ("close", ""),
        ("close", ""),
    ]
    writes = [(op.x, op.y) for op in ops if op.kind == "write"]
    assert writes == [(0, 7), (7, 3), (10, 2)]
    read = next(op for op in ops if op.kind == "read")
    assert (read.x, read.y, read.z) == (8, 100, 4)
    assert next(op for op in ops if op.kind == "access").errno == errno.ENOENT
    assert next(op for op in ops if op.kind == "list").z == 1
    assert [op.at_us for op in ops] == sorted(op.at_us for op in ops)


def test_operations_that_do_not_fit_are_dropped(tmp_path: Path) -> None:
    ops, dropped = converted(
        tmp_path, f'10 1.0 unlink("{PROFILE}/never made") = 0\n10 1.1 mkdir("{PROFILE}/d", 0700) = 0\n'
    )
    assert dropped == 1
    assert [op.kind for op in ops] == ["mkdir"]


def test_trace_file_gives_back_what_was_saved(tmp_path: Path) -> None:
    ops, _ = converted(tmp_path, STRACE)
    trace.save(tmp_path / "t.xz", ops, {"of": "a test"})
    assert trace.load(tmp_path / "t.xz") == (ops, {"of": "a test"})


def test_model_knows_what_is_in_a_file() -> None:
    node = Node("file")
    content = Content(POOL, "user")
    expected = bytearray()
    for index, (offset, length) in enumerate([(0, 100), (50, 20), (300, 10), (40, 200), (0, 5), (60, 1)]):
        node.write(index, offset, length)
        expected.extend(bytes(max(offset + length - len(expected), 0)))
        expected[offset : offset + length] = content.piece(index, 0, length, shared=False)
    node.resize(290)
    node.resize(320)
    expected[290:] = bytes(30)
    assert node.content(content) == bytes(expected)


def test_contents_are_shared_where_they_should_be() -> None:
    one, other = Content(POOL, "one"), Content(POOL, "other")
    assert one.piece(7, 3, 50, shared=True) == other.piece(7, 3, 50, shared=True)
    assert one.piece(7, 3, 50, shared=False) != other.piece(7, 3, 50, shared=False)
    assert one.piece(7, 0, 60, shared=False)[3:53] == one.piece(7, 3, 50, shared=False)
    assert one.piece(7, 0, 60, shared=False) != one.piece(8, 0, 60, shared=False)


def test_committed_trace_is_a_whole_life() -> None:
    """Every operation fits, and what a life leaves is what the README says of it."""
    ops, about = trace.load(recorder.TRACE)
    tree = trace.tree_after(ops)
    assert about["dropped"] <= recorder.DROPPED_MAX * len(ops)
    assert recorder.TRACE.stat().st_size < 300_000
    assert {"open", "write", "read", "fdatasync", "rename", "unlink", "mkdir", "list", "truncate"} <= {
        op.kind for op in ops
    }
    assert any("IndexedDB" in path for path in tree)
    assert sum(node.size for node in tree.values()) > 40_000_000


def test_pauses_are_stretched_and_bursts_are_not() -> None:
    times = (0, 10_000, 20_000, 1_020_000, 1_030_000)
    ops = [Op(at, "stat") for at in times]
    due = replay.schedule(ops, 10.0)
    assert due[:3] == pytest.approx([0, 0.01, 0.02])
    assert due[3:] == pytest.approx([9.99, 10.0])
    assert replay.schedule(ops, 0.5)[-1] == pytest.approx(1.03)


def test_percentiles_are_right_to_five_percent() -> None:
    counts, more = Counts(), Counts()
    for number in range(1, 1001):
        (counts if number % 2 else more).add("stat" if number % 3 else "open", number / 1000)
    counts.merge(Counts.from_json(json.loads(json.dumps(more.to_json()))))
    assert counts.total() == 1000
    assert counts.percentile_ms(50) == pytest.approx(500, rel=0.06)
    assert counts.percentile_ms(99) == pytest.approx(990, rel=0.06)
    assert max(counts.longest_ms.values()) == 1000


def played(tmp_path: Path, **changes: float) -> Player:
    task = Task(str(recorder.TRACE), str(tmp_path), 0, 2, 2, 2.0, 4.0, time.monotonic())
    player = Player(task._replace(**changes))
    player.run()
    return player


def test_a_plain_directory_answers_as_it_did_to_chrome(tmp_path: Path) -> None:
    """And has every byte where it was stopped; a changed one, a missing and an extra file are found."""
    player = played(tmp_path)
    assert player.errors == []
    assert player.counts.total() > 1000
    positions = sorted(player.positions)
    assert all(position.done for position in positions)
    assert replay.verify(recorder.TRACE, str(tmp_path), positions) == []
    files = [path for path in (tmp_path / "user001").rglob("*") if path.is_file() and path.stat().st_size]
    with files[0].open("r+b") as file:
        first = file.read(1)
        file.seek(0)
        file.write(bytes([first[0] ^ 1]))
    files[1].unlink()
    (tmp_path / "user001" / "session" / "extra").touch()
    assert len(replay.verify(recorder.TRACE, str(tmp_path), positions)) == 3


def test_a_call_that_answers_otherwise_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fdatasync
    calls = iter(range(1000))

    def refused(fd: int) -> None:
        if next(calls) == 5:
            raise OSError(errno.EIO, "refused")
        real(fd)

    monkeypatch.setattr(os, "fdatasync", refused)
    player = played(tmp_path, last=1, total=1)
    assert len(player.errors) == 1
    assert "fdatasync" in player.errors[0]
    assert str(errno.EIO) in player.errors[0]


def test_a_worker_reads_its_task_and_prints_what_it_found(tmp_path: Path) -> None:
    task = Task(str(recorder.TRACE), str(tmp_path), 0, 1, 1, 1.0, 1.0, time.monotonic() + 2)
    command = [sys.executable, "-m", "bench.replay"]
    done = subprocess.run(
        command, input=json.dumps(task._asdict()), cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["errors"] == []
    assert Position(*found["positions"][0]).session == 0
    assert Counts.from_json(found["counts"]).total() > 0


def test_model_refuses_what_a_kernel_would() -> None:
    model = Model()
    assert model.apply(0, Op(0, "mkdir", path="d")) is not None
    assert model.apply(1, Op(0, "open", 1, "d/f", x=os.O_CREAT | os.O_RDWR)) is not None
    assert model.apply(2, Op(0, "rmdir", path="d")) is None
    assert model.apply(2, Op(0, "rmdir", path="d", errno=errno.ENOTEMPTY)) is not None
    assert model.apply(3, Op(0, "open", 2, "e/f", x=os.O_CREAT)) is None
    assert model.apply(3, Op(0, "open", -1, "e/f", x=os.O_CREAT, errno=errno.ENOENT)) is not None
    assert model.apply(4, Op(0, "rename", path="d", other="g")) is not None
    assert sorted(model.tree) == ["", "g", "g/f"]


def test_memory_of_a_process_and_its_children_is_seen() -> None:
    script = "import subprocess, sys; b = bytearray(50_000_000); subprocess.run([sys.executable, '-c', sys.argv[1]])"
    child = "b = bytearray(30_000_000); print('ready', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", script, child], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        with memory.Watch(process.pid, 0.05) as watch:
            time.sleep(0.5)
        process.communicate("\n", timeout=30)
    assert 80 < watch.peak.anonymous < 150
    assert watch.peak.resident >= watch.peak.anonymous
    assert watch.growth() == pytest.approx(1.0, rel=0.05)
    assert len(watch.curve(3)) <= 6
