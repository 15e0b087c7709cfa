"""Streams that nobody reads: what counts as flat, and a client of chunks that reads when it is told to."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from bench.server import PeerFailed
from bench.slow_reader import ALLOWED_MB, HttpReader, Sample, course, judge


def samples(memory_mb: list[float], made: list[int] | None = None) -> list[Sample]:
    counts = made or [10] * len(memory_mb)
    return [
        Sample(float(second), {"ingress#0": total / 2, "Web#1": total / 2}, {"small": count, "large": 8})
        for second, (total, count) in enumerate(zip(memory_mb, counts, strict=True))
    ]


def test_memory_that_stays_is_flat() -> None:
    verdict = judge(samples([100.0, 100.4, 99.8, 101.0, 100.1] * 10))
    assert verdict.kept
    assert str(verdict).startswith("kept: ")


def test_memory_that_grows_a_little_each_second_is_not() -> None:
    verdict = judge(samples([100 + 0.2 * second for second in range(60)]))
    assert verdict.growth_mb > ALLOWED_MB
    assert str(verdict).startswith("NOT KEPT: memory grew by ")


def test_a_peak_counts_though_it_goes_away() -> None:
    assert not judge(samples([100.0] * 20 + [120.0] + [100.0] * 20)).kept


def test_memory_that_is_given_back_is_no_growth() -> None:
    assert judge(samples([100.0] * 5 + [80.0] * 30)).kept


def test_one_item_made_while_nobody_reads_is_one_too_many() -> None:
    verdict = judge(samples([100.0] * 4, [10, 10, 10, 11]))
    assert not verdict.kept
    assert verdict.made == {"small": 1, "large": 0}
    assert "(small: 1)" in str(verdict)


def test_the_course_is_short_and_has_the_first_and_the_last_sample() -> None:
    lines = course(samples([100.0 + second for second in range(600)])).splitlines()
    assert len(lines) <= 22
    assert lines[1].split() == ["0", "100.0", "50.0", "50.0"]
    assert lines[-1].split()[:2] == ["599", "699.0"]


def test_a_process_that_comes_later_has_a_column() -> None:
    early, late = Sample(0.0, {"a": 1.0}, {}), Sample(1.0, {"a": 1.0, "b": 2.0}, {})
    lines = course([early, late]).splitlines()
    assert lines[0].split()[-2:] == ["a", "b"]
    assert lines[1].split()[-2:] == ["1.0", "0.0"]


@contextmanager
def server(reply: bytes) -> Iterator[int]:
    """One that sends these bytes to its first client and closes the connection."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(1 << 16)
                connection.sendall(reply)

        thread = threading.Thread(target=serve)
        thread.start()
        yield listening.getsockname()[1]
        thread.join()


HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


def chunked(body: bytes, size: int) -> bytes:
    parts = [body[start : start + size] for start in range(0, len(body), size)]
    return HEAD + b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)


@pytest.mark.parametrize("size", [1, 5, 13, 14, 1000])
def test_chunks_are_read_however_the_server_cuts_them(size: int) -> None:
    body = b"".join(b"%012d\n" % number for number in range(50))
    with server(chunked(body, size)) as port:
        reader = HttpReader(port, "/small", 13)
        reader.take(3)
        reader.take(47)
        with pytest.raises(PeerFailed, match="after chunk 50"):
            reader.take(1)
        reader.close()


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (chunked(b"000000000000\n000000000002\n", 13), "chunk 1 arrived as b'000000000002'"),
        (chunked(b"000000000000\n", 13) + b"0\r\n\r\n", "ended after 0 chunks"),
        (b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n", "503"),
        (b"", "closed"),
    ],
)
def test_a_stream_that_does_not_go_on_is_told(reply: bytes, reason: str) -> None:
    with server(reply) as port:
        reader = HttpReader(port, "/small", 13)
        with pytest.raises(PeerFailed, match=reason):
            reader.take(2)
        reader.close()
