"""A library whose methods are batched."""

from __future__ import annotations

from typing import Any

from library_pb2 import Book

from headrace import serve


@serve.deployment
class Batched:
    @serve.batch(max_batch_size=8)
    async def Lend(self, books: list[Any]) -> list[Any]:
        return [Book(title=book.title.upper(), number=len(books)) for book in books]

    @serve.batch(max_batch_size=8)
    def LendPlain(self, books: list[Any]) -> list[Any]:
        return [ValueError("not this one") if book.title == "bad" else Book(title=book.title * 2) for book in books]

    @serve.batch
    async def List(self, books: list[Any]) -> Any:
        for i in range(max(book.number for book in books)):
            yield [Book(title=book.title, number=i) if i < book.number else StopIteration for book in books]

    @serve.batch
    def ListPlain(self, books: list[Any]) -> Any:
        for i in range(max(book.number for book in books)):
            yield [Book(title=book.title, number=i) if i < book.number else StopIteration for book in books]


app = Batched.bind()
