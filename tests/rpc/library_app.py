"""What the tests of gRPC serve: a handler of each kind, and such that go wrong."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
from library_pb2 import Book

from headrace import serve
from headrace.serve.grpc_util import RayServegRPCContext, gRPCInputStream, gRPCStatusError

DIARY = Path(os.environ.get("LIBRARY_DIARY", "/dev/null")).resolve()


def note(line: str) -> None:
    with DIARY.open("a") as file:
        file.write(line + "\n")


@serve.deployment(max_ongoing_requests=32)
class Deep:
    """Further down: what is done for an RPC, and has to end with it."""

    async def wait(self, name: str) -> None:
        note(f"{name} began below")
        try:
            await asyncio.Event().wait()
        finally:
            note(f"{name} ended below")

    def fail(self, how: str) -> None:
        if how == "status":
            raise gRPCStatusError(ValueError("below"), grpc.StatusCode.ABORTED, "so it was said below")
        raise KeyError("below")


@serve.deployment(max_ongoing_requests=32)
class Shelves:
    def __init__(self, deep: Any) -> None:
        self.deep = deep

    async def Lend(self, book: Book) -> Book:
        return Book(title=book.title.upper(), number=book.number + 1, data=book.data[::-1])

    def LendPlain(self, book: Book) -> Book:
        return Book(title=book.title.upper(), number=book.number + 1, data=book.data[::-1])

    async def List(self, book: Book) -> AsyncIterator[Book]:
        try:
            for number in range(book.number):
                yield Book(title=book.title, number=number, data=book.data)
                note(f"{book.title} made {number}")
        finally:
            note(f"{book.title} ended")

    def ListPlain(self, book: Book) -> Iterator[Book]:
        try:
            for number in range(book.number):
                yield Book(title=book.title, number=number, data=book.data)
                note(f"{book.title} made {number}")
        finally:
            note(f"{book.title} ended")

    async def Store(self, books: gRPCInputStream[Book]) -> Book:
        count = size = 0
        try:
            async for book in books:
                if book.title == "enough":
                    return Book(title="enough", number=count)
                while book.title == "hold" and not DIARY.with_name("go on").exists():
                    await asyncio.sleep(0.005)
                count, size = count + 1, size + len(book.data)
            return Book(title="stored", number=count, data=str(size).encode())
        finally:
            note(f"stored {count}, exhausted {books.is_exhausted}")

    def StorePlain(self, books: gRPCInputStream[Book]) -> Book:
        found = [book.number for book in books]
        return Book(title="stored", number=len(found), data=repr(found == sorted(found)).encode())

    async def Talk(self, books: gRPCInputStream[Book]) -> AsyncIterator[Book]:
        async for book in books:
            yield Book(title=f"re: {book.title}", number=book.number)
        yield Book(title="bye")

    def TalkPlain(self, books: gRPCInputStream[Book]) -> Iterator[Book]:
        for book in books:
            yield Book(title=f"re: {book.title}", number=book.number)
        yield Book(title="bye")

    async def Context(self, book: Book, grpc_context: RayServegRPCContext) -> Book:
        return _with_context(book, grpc_context)

    def ContextPlain(self, book: Book, context: RayServegRPCContext) -> Book:
        return _with_context(book, context)

    async def ContextStream(self, book: Book, grpc_context: Any) -> AsyncIterator[Book]:
        grpc_context.set_initial_metadata([("first", "1"), ("first-bin", b"\x00\xff")])
        grpc_context.set_compression(grpc.Compression.Gzip)
        yield Book(title="one")
        grpc_context.set_trailing_metadata([("last", "2")])
        if book.title == "abort":
            grpc_context.abort(grpc.StatusCode.DATA_LOSS, "lost")
        if book.title == "code":
            grpc_context.set_code(grpc.StatusCode.OUT_OF_RANGE)
        yield Book(title="two")

    async def Fail(self, book: Book) -> Book:
        match book.title:
            case "status":
                raise gRPCStatusError("no such book", grpc.StatusCode.NOT_FOUND)
            case "below" | "status below":
                await self.deep.fail.remote(book.title.partition(" ")[0])
            case "exit":
                raise SystemExit(3)
        raise ValueError("a secret of the server")

    async def FailStream(self, book: Book) -> AsyncIterator[Book]:
        yield Book(title="one")
        raise ValueError("a secret of the server")

    async def Wait(self, book: Book) -> Book:
        await self.deep.wait.remote(book.title)
        return book

    def WaitPlain(self, book: Book) -> Book:
        request = serve.get_request_context()
        note(f"{book.title} began")
        try:
            while True:
                request.check()
                time.sleep(0.005)
        finally:
            note(f"{book.title} ended")

    async def Finish(self, book: Book) -> Book:
        note(f"{book.title} began")
        while not DIARY.with_name(book.title).exists():
            await asyncio.sleep(0.005)
        return book

    def Block(self, book: Book) -> Book:
        note(f"{book.title} began")
        while not DIARY.with_name(book.title).exists():
            time.sleep(0.005)
        note(f"{book.title} ended")
        return book

    async def Wrong(self, book: Book) -> Any:
        return {"title": "no message"}

    async def Ask(self, book: Book) -> Book:
        request = serve.get_request_context()
        known = (request.request_id, request.model_id, request.sticky, request.priority, request.trace)
        return Book(title=" ".join(map(str, known)), number=os.getpid(), data=f"route {request.route!r}".encode())

    async def __call__(self, book: Book) -> Book:
        return Book(title=f"called with {book.title}")


def _with_context(book: Book, context: RayServegRPCContext) -> Book:
    match book.title:
        case "abort":
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not today", (("why", "because"),))
        case "raise":
            context.set_code(grpc.StatusCode.ALREADY_EXISTS)
            context.set_details("there it is")
            raise ValueError("a secret of the server")
        case "gzip":
            context.set_compression(grpc.Compression.Gzip)
        case "surrogate":
            context.abort(grpc.StatusCode.ABORTED, "an emoji in halves: \ud83d")
        case "metadata":
            context.set_trailing_metadata([("Key", "value")])
        case "code":
            context.set_code(grpc.StatusCode.PERMISSION_DENIED)
            context.set_details("closed")
    context.set_trailing_metadata([("seen", book.title)])
    context.set_initial_metadata([("early", "yes")])
    remaining = context.time_remaining()
    metadata = dict(context.invocation_metadata())
    told = (context.method(), context.peer().partition(":")[0], metadata.get("mood"), metadata.get("raw-bin"))
    return Book(
        title=" ".join(map(str, told)),
        number=-1 if remaining is None else round(remaining),
        data=b"".join(context.peer_identities() or ()),
    )


@serve.deployment
async def other(book: Book) -> Book:
    return Book(title=f"other {book.title}", number=os.getpid())


app = Shelves.bind(Deep.bind())
