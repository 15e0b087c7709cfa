"""headrace.engine.output: lines whole and in order, files bounded, and nothing that blocks whoever feeds it."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.engine.directory import InstanceDirectory
from headrace.engine.output import LineFeed, LogFile, Logs, ProcessOutput


class Watcher:
    """Takes lines, when it is let."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []
        self.entered = threading.Event()
        self.may_go = threading.Event()
        self.may_go.set()

    def __call__(self, process_id: str, line: str) -> None:
        self.entered.set()
        assert self.may_go.wait(20)
        self.lines.append((process_id, line))


def fed(chunks: list[bytes], path: Path) -> tuple[list[str], tuple[str, ...], bytes]:
    """What the watcher saw, the tail, and the log, of these chunks."""
    watcher = Watcher()
    feed = LineFeed(watcher)
    feed.start()
    output = ProcessOutput("a", LogFile(str(path)), feed)
    for chunk in chunks:
        output.feed(chunk)
    tail = output.tail()
    output.finish()
    feed.close(20)
    return [line for _, line in watcher.lines], tail, path.read_bytes() if path.exists() else b""


@given(data=st.binary(max_size=200).map(lambda b: b.replace(b"\r", b".")), cuts=st.lists(st.integers(0, 200)))
def test_lines_do_not_depend_on_how_they_were_cut(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, cuts: list[int]
) -> None:
    path = tmp_path_factory.mktemp("log") / "a.log"
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    chunks = [data[a:b] for a, b in itertools.pairwise(edges)]
    lines, tail, log = fed(chunks, path)
    expected = data.decode(errors="replace").removesuffix("\n").split("\n") if data else []
    assert lines == expected
    assert tail == tuple(expected[-100:])
    assert log == data


def test_a_line_without_end_is_cut_and_not_kept_for_ever(tmp_path: Path) -> None:
    lines, tail, _ = fed([b"x" * 40_000] * 5, tmp_path / "a.log")
    assert "".join(lines) == "x" * 200_000
    assert max(map(len, lines)) <= 120_000
    assert len(tail) == 1
    assert len(tail[0]) <= 64 * 1024


def test_a_watcher_that_takes_nothing_blocks_nobody_and_learns_what_it_missed(tmp_path: Path) -> None:
    watcher = Watcher()
    watcher.may_go.clear()
    feed = LineFeed(watcher, limit_bytes=1000)
    feed.start()
    output = ProcessOutput("a", LogFile(str(tmp_path / "a.log")), feed)
    output.feed(b"first\n")
    assert watcher.entered.wait(20)
    for n in range(10_000):
        output.feed(b"line %d\n" % n)
    watcher.may_go.set()
    feed.close(20)
    seen = [line for _, line in watcher.lines]
    shown = [line for line in seen if line.startswith("line ")]
    assert seen[0] == "first"
    assert shown == [f"line {n}" for n in range(len(shown))]
    assert seen[-1] == f"[{10_000 - len(shown)} lines not shown: they came too fast to be; its log has them]"
    assert (tmp_path / "a.log").read_bytes().count(b"\n") == 10_001


def test_a_watcher_that_fails_is_left_out_and_the_log_goes_on(tmp_path: Path) -> None:
    called = threading.Event()

    def broken(process_id: str, line: str) -> None:
        called.set()
        raise BrokenPipeError

    feed = LineFeed(broken)
    feed.start()
    output = ProcessOutput("a", LogFile(str(tmp_path / "a.log")), feed)
    output.feed(b"one\n")
    assert called.wait(20)
    output.feed(b"two\n")
    output.finish()
    feed.close(20)
    assert (tmp_path / "a.log").read_bytes() == b"one\ntwo\n"


def test_closing_does_not_wait_for_a_watcher_that_is_stuck() -> None:
    watcher = Watcher()
    watcher.may_go.clear()
    feed = LineFeed(watcher)
    feed.start()
    feed.put("a", b"one\n")
    assert watcher.entered.wait(20)
    feed.close(0.01)
    assert watcher.lines == []
    watcher.may_go.set()
    feed.close(20)
    assert watcher.lines == [("a", "one")]


def test_a_log_moves_aside_when_it_is_full(tmp_path: Path) -> None:
    log = LogFile(str(tmp_path / "a.log"), limit_bytes=100)
    for n in range(100):
        log.write(b"%09d\n" % n)
    log.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.log", "a.log.1"]
    both = (tmp_path / "a.log.1").read_bytes() + (tmp_path / "a.log").read_bytes()
    assert both == b"".join(b"%09d\n" % n for n in range(80, 100))
    again = LogFile(str(tmp_path / "a.log"), limit_bytes=100)
    again.write(b"more\n")
    assert (tmp_path / "a.log").read_bytes() == b"more\n"


def test_a_log_that_cannot_be_written_loses_lines_and_nothing_else(tmp_path: Path) -> None:
    log = LogFile(str(tmp_path / "no" / "a.log"))
    log.write(b"12345")
    assert log.lost_bytes == 5
    (tmp_path / "no").mkdir()
    log.write(b"678")
    assert log.lost_bytes == 5
    log.close()
    assert (tmp_path / "no" / "a.log").read_bytes() == b"678"


def test_logs_of_the_ended_stay_until_there_are_too_many(tmp_path: Path) -> None:
    directory = InstanceDirectory(tmp_path)
    directory.logs.mkdir()
    logs = Logs(directory, keep=2)
    for id in ("a", "b", "c"):
        log = logs.open(id)
        log.write(b"hello\n")
        log.close()
    logs.retire("a")
    logs.retire("b")
    logs.open("a").close()  # it is started again: it is no longer one of the ended
    logs.retire("c")
    assert sorted(path.stem for path in directory.logs.iterdir()) == ["a", "b", "c"]
    logs.retire("a")
    assert sorted(path.stem for path in directory.logs.iterdir()) == ["a", "c"]
