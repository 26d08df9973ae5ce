"""fsck of a remote, and the commands fsck, gc and key on one: every damage is found, and named."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING

import msgspec
import pytest
import trio

from sessfs.cli import main
from sessfs.errors import KeyWrong, RemoteCorrupt, RemoteError, RemoteMissing
from sessfs.format.manifest import SegmentRef
from sessfs.format.repository import (
    FORMAT_KEY,
    decode_format,
    decode_state,
    encode_format,
    encode_state,
    new_format,
    open_format,
)
from sessfs.format.roster import ROSTER_KEY
from sessfs.format.segment import footer_of, segment_key, session_key, state_key
from sessfs.remote.directory import DirectoryStore
from sessfs.sync.fsck_remote import Sampling, check_remote
from tests.support.bucket import HASH_KEY, Writer
from tests.support.faultystore import FaultyStore, error_500
from tests.support.formats import ENVELOPE_IDS, ENVELOPES, PLAIN
from tests.support.memorystore import MemoryStore

if TYPE_CHECKING:
    from pathlib import Path

    from sessfs.format.envelope import Envelope
    from sessfs.remote.objectstore import ObjectStore
    from sessfs.sync.fsck import Report

ALL = Sampling(1.0, b"seed")
NONE = Sampling(0.0, b"seed")


async def _fill(store: ObjectStore, envelope: Envelope = PLAIN, *, release: bool = True) -> Writer:
    """Sessions `anna` (two files, one changed by a delta) and `ben`, in segments 1 and 2 of node n."""
    writer = Writer(store, "n", lambda: 1e9, envelope)
    await writer.start()
    writer.write(b"anna", b"first", [b"a" * 50, b"b" * 60])
    writer.write(b"anna", b"second", [b"c" * 70])
    await writer.publish()
    writer.write(b"anna", b"second", [b"d" * 80])
    writer.write(b"ben", b"only", [b"b" * 60])
    await writer.publish()
    if release:
        await writer.release()
    return writer


async def _check(store: ObjectStore, sampling: Sampling = ALL, envelope: Envelope = PLAIN) -> Report:
    return await check_remote(store, envelope, HASH_KEY, sampling)


def _flip(store: MemoryStore, key: str, offset: int) -> None:
    body = bytearray(store.objects[key])
    body[offset] ^= 0x40
    store.objects[key] = bytes(body)


def _where(report: Report) -> set[tuple[str, str, str]]:
    return {(problem.kind, problem.session, problem.path) for problem in report.problems}


@pytest.mark.parametrize("release", [True, False])
@pytest.mark.parametrize("envelope", ENVELOPES, ids=ENVELOPE_IDS)
async def test_check_whole_remote_is_clean(envelope: Envelope, release: bool) -> None:
    store = MemoryStore()
    await _fill(store, envelope, release=release)
    report = await _check(store, ALL, envelope)
    assert report.problems == []
    # Before the release it is not known that nobody keeps the first of anna.
    assert (report.counts["snapshots"], report.counts["manifests"]) == ((2, 3) if release else (3, 4))
    # Of "c" nothing is left in the latest.
    assert report.counts["frames"] == report.counts["frames_read"] == (3 if release else 4)
    assert any("has the remote mounted" in note for note in report.notes) is not release


async def test_check_flipped_data_names_every_session_and_file_that_has_it() -> None:
    store = MemoryStore()
    await _fill(store)
    key = segment_key("n", 1)
    footer = footer_of(store.objects[key], "n", 1, PLAIN)
    sizes = dict(footer.frames)
    hit = []
    for offset in sizes:
        good = dict(store.objects)
        _flip(store, key, offset + 30)
        report = await _check(store)
        assert (await _check(store, NONE)).clean
        assert {problem.kind for problem in report.problems} <= {"data"}
        hit.append(sorted((problem.session, problem.path) for problem in report.problems))
        store.objects = good
    # Frames of "a", of "b", and of "c", which nothing refers to any more.
    assert sorted(hit) == [[], [("anna", "first")], [("anna", "first"), ("ben", "only")]]
    _flip(store, key, next(offset for offset, _ in footer.frames) + 30)
    assert not all([(await _check(store, Sampling(0.5, bytes([seed])))).clean for seed in range(16)])


async def test_check_missing_segment_names_what_needs_it() -> None:
    store = MemoryStore()
    await _fill(store)
    del store.objects[segment_key("n", 1)]
    report = await _check(store)
    # The delta of anna is in segment 2, its base was in segment 1; ben's manifest is whole, its chunk is not there.
    assert ("manifest", "anna", "") in _where(report)
    assert ("data", "ben", "only") in _where(report)


async def test_check_every_flipped_byte_of_a_segment_is_found() -> None:
    store = MemoryStore()
    await _fill(store)
    used = SegmentRef("n", 2)
    body = store.objects[segment_key(*used)]
    for offset in random.Random(1).sample(range(8, len(body)), 120):
        _flip(store, segment_key(*used), offset)
        assert not (await _check(store)).clean, f"byte {offset} of {len(body)}"
        store.objects[segment_key(*used)] = body


@pytest.mark.parametrize("key", ["nodes/n/state", session_key(PLAIN, b"ben")])
async def test_check_damaged_object_is_named_and_the_rest_is_checked(key: str) -> None:
    store = MemoryStore()
    await _fill(store)
    store.objects[key] = b"{}"
    report = await _check(store)
    assert _where(report) == {("object", "", key)}
    assert report.counts["snapshots"] >= 1


@pytest.mark.parametrize("damaged", ["state", "checkpoint", "session", "manifest"])
async def test_check_what_is_not_referred_to_is_not_told_from_damaged_objects(damaged: str) -> None:
    store = MemoryStore()
    writer = await _fill(store, release=False)
    if damaged in ("session", "manifest"):
        await writer.release()
    elif writer.node is not None:
        await writer.node.checkpoint()
    for number in (3, 4):
        await store.put(segment_key("n", number), b"?" * 10)
    assert any(note.startswith("2 segments") and "not referred to" in note for note in (await _check(store)).notes)
    if damaged == "manifest":
        footer = footer_of(store.objects[segment_key("n", 2)], "n", 2, PLAIN)
        for entry in footer.manifests:
            _flip(store, segment_key("n", 2), entry.offset + 5)
    else:
        store.objects[next(key for key in store.objects if f"/{damaged}" in f"/{key}")] = b"{}"
    report = await _check(store)
    assert report.problems
    assert not any("not referred to" in note for note in report.notes)
    assert any("can't be told" in note for note in report.notes)


async def test_check_frame_at_another_place_than_the_manifest_says_is_found() -> None:
    """The segment was written again with other content, as a bug of numbering would do."""
    store = MemoryStore()
    await _fill(store)
    other = MemoryStore()
    writer = Writer(other, "n", lambda: 1e9)
    await writer.start()
    writer.write(b"anna", b"first", [b"x" * 500])
    await writer.publish()
    store.objects[segment_key("n", 1)] = other.objects[segment_key("n", 1)]
    report = await _check(store, NONE)
    assert ("data", "ben", "only") in _where(report)


async def test_check_a_remote_that_fails_is_an_error_not_a_finding() -> None:
    store = MemoryStore()
    await _fill(store)
    calls = FaultyStore(store)
    await _check(calls)
    for method in ("get", "list_page"):
        for nth in range(calls.count(method)):
            faulty = FaultyStore(store)
            faulty.plan(method, *[None] * nth, error_500())
            with pytest.raises(RemoteError):
                await _check(faulty)


def test_sampling_takes_its_share_and_another_with_another_seed() -> None:
    frames = [(SegmentRef("n", n), offset) for n in range(100) for offset in range(0, 5000, 100)]
    first = {frame for frame in frames if Sampling(0.1, b"1").takes(*frame)}
    second = {frame for frame in frames if Sampling(0.1, b"2").takes(*frame)}
    assert 400 < len(first) < 600
    assert len(first & second) < 100
    assert all(ALL.takes(*frame) for frame in frames)
    assert not any(NONE.takes(*frame) for frame in frames)


# -- the commands


def _make(directory: Path, secret: bytes | None = None) -> str:
    """A repository in *directory*, and its URL."""

    async def fill() -> None:
        store = DirectoryStore(str(directory))
        form = new_format(HASH_KEY, secret)
        await store.put(FORMAT_KEY, encode_format(form))
        await _fill(store, open_format(form, secret)[1])

    directory.mkdir()
    trio.run(fill)
    return f"file://{directory}"


def test_fsck_command_on_a_remote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = _make(tmp_path / "r")
    assert main.run(["fsck", "--remote", url, "--read-data", "100", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["counts"]["frames_read"] == 3
    segment = tmp_path / "r" / segment_key("n", 2)
    body = bytearray(segment.read_bytes())
    body[40] ^= 1
    segment.write_bytes(body)
    assert main.run(["fsck", "--remote", url]) == 0
    assert main.run(["fsck", "--remote", url, "--read-data", "100"]) == RemoteCorrupt.exit_code
    assert "data: session anna, second: " in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ["fsck"],
        ["fsck", "--state", "/x", "--remote", "file:///x"],
        ["fsck", "--state", "/x", "--read-data", "5"],
        ["fsck", "--remote", "http://x"],
        ["gc"],
        ["gc", "/x", "--remote", "file:///x"],
        ["gc", "--remote", "file:///x", "--grace", "soon"],
        ["key", "turn", "--remote", "file:///x"],
        ["key", "rotate", "--remote", "file:///x"],
    ],
)
def test_commands_used_wrongly_say_so(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(arguments) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("arguments", [["fsck"], ["gc"], ["gc", "--dry-run"]])
def test_commands_make_no_repository_where_there_is_none(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    assert main.run([*arguments, "--remote", f"file://{tmp_path}/empty"]) == RemoteMissing.exit_code
    assert "holds no sessfs repository" in capsys.readouterr().err
    assert not (tmp_path / "empty" / FORMAT_KEY).exists()
    assert not (tmp_path / "empty" / "gc").exists()


def test_gc_command_condemns_then_deletes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = _make(tmp_path / "r")
    for key in (session_key(PLAIN, b"anna"), session_key(PLAIN, b"ben"), ROSTER_KEY):
        (tmp_path / "r" / key).unlink()
    # As before the roster: nothing says that those sessions were not removed.
    state = tmp_path / "r" / state_key("n")
    state.write_bytes(encode_state(msgspec.structs.replace(decode_state(state.read_bytes()), has_roster=False)))
    assert main.run(["gc", "--remote", url, "--grace", "0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["deleted"] == 0
    assert main.run(["gc", "--remote", url, "--grace", "0", "--dry-run"]) == 0
    assert "would delete 2 objects" in capsys.readouterr().out
    assert main.run(["gc", "--remote", url, "--grace", "0", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["deleted"], [item["fate"] for item in answer["items"]]) == (2, ["delete", "delete"])
    assert not list((tmp_path / "r" / "nodes" / "n" / "segments").glob("*"))


def test_key_rotate_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = _make(tmp_path / "r", b"old secret")
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_bytes(b"old secret\n")
    new.write_bytes(b"new secret\n")
    rotate = ["key", "rotate", "--remote", url, "--new-key-file", str(new)]
    assert main.run(rotate) == KeyWrong.exit_code
    assert main.run([*rotate, "--key-file", str(new)]) == KeyWrong.exit_code
    assert main.run([*rotate, "--key-file", str(old)]) == 0
    assert main.run(["fsck", "--remote", url, "--key-file", str(old)]) == KeyWrong.exit_code
    assert main.run(["fsck", "--remote", url, "--key-file", str(new), "--read-data", "100"]) == 0
    monkeypatch.setenv("SESSFS_KEY", "new secret")
    monkeypatch.setenv("SESSFS_NEW_KEY", "third secret")
    assert main.run(rotate[:4]) == 0
    capsys.readouterr()
    form = decode_format((tmp_path / "r" / FORMAT_KEY).read_bytes())
    assert open_format(form, b"third secret")[0] == HASH_KEY


def test_key_rotate_of_an_unencrypted_remote_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SESSFS_NEW_KEY", "secret")
    assert main.run(["key", "rotate", "--remote", _make(tmp_path / "r")]) == KeyWrong.exit_code
    assert "not encrypted" in capsys.readouterr().err
