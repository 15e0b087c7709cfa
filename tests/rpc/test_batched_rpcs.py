"""RPCs to methods that are batched."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from headrace import serve

PATIENCE_S = 60


@pytest.fixture(scope="module")
def library(home: Path) -> Iterator[Any]:
    import batched_app
    from library_pb2_grpc import LibraryStub

    functions = ["library_pb2_grpc.add_LibraryServicer_to_server"]
    serve.start(http_options={"port": 0}, grpc_options={"port": 0, "grpc_servicer_functions": functions})
    serve.run(batched_app.app)
    port = next(iter(serve.status().proxies.values())).grpc_port
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield LibraryStub(channel)
    serve.shutdown()


def test_messages_share_batches_and_each_gets_its_own(library: Any) -> None:
    from library_pb2 import Book

    calls = [library.Lend.future(Book(title=f"b{i}"), timeout=PATIENCE_S) for i in range(40)]
    answers = [call.result() for call in calls]
    assert [answer.title for answer in answers] == [f"B{i}" for i in range(40)]
    assert 1 < max(answer.number for answer in answers) <= 8

    calls = [library.LendPlain.future(Book(title=title), timeout=PATIENCE_S) for title in ("a", "bad", "c")]
    assert [calls[0].result().title, calls[2].result().title] == ["aa", "cc"]
    assert calls[1].code() is grpc.StatusCode.INTERNAL


@pytest.mark.parametrize("method", ["List", "ListPlain"])
def test_streams_of_messages(library: Any, method: str) -> None:
    from library_pb2 import Book

    streams = [getattr(library, method)(Book(title=f"b{n}", number=n), timeout=PATIENCE_S) for n in range(4)]
    assert [[(book.title, book.number) for book in stream] for stream in streams] == [
        [(f"b{n}", i) for i in range(n)] for n in range(4)
    ]
