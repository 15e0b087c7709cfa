"""Nothing is kept of an RPC that has ended, however it ended: by neither end of the connection between them."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator
from typing import Any

import grpc

from headrace import runtime
from headrace.ingress.grpc_server import GrpcServer
from headrace.replica.callee import CalleeLink
from headrace.replica.incoming import Incoming
from headrace.serve.testing import TestInstance
from headrace.spec.grpc import GrpcService, gRPCOptions

ROUNDS = 20


def test_ended_rpcs_are_gone() -> None:
    import library_app
    from library_pb2 import Book
    from library_pb2_grpc import LibraryStub

    async def enough() -> AsyncIterator[Any]:
        for number in range(3):
            yield Book(title=str(number), data=bytes(200_000))
        yield Book(title="enough")
        for number in range(10):  # nobody reads these
            yield Book(title=str(number), data=bytes(200_000))

    async def few() -> AsyncIterator[Any]:
        for number in range(3):
            yield Book(title=str(number))

    async def each_kind(library: Any) -> None:
        await library.Lend(Book(title="x", data=bytes(100_000)))
        await library.LendPlain(Book(title="x", data=bytes(100_000)))
        for call in (library.List(Book(number=5)), library.ListPlain(Book(number=5)), library.Talk(few())):
            assert len([book async for book in call]) in (4, 5)
        assert (await library.Store(enough())).number == 3
        with contextlib.suppress(grpc.aio.AioRpcError):
            await library.Fail(Book(title="x"))
        for call in (library.List(Book(number=10_000)), library.ListPlain(Book(number=10_000)), library.Talk(few())):
            await call.read()
            call.cancel()
        call = library.Wait(Book())
        await asyncio.sleep(0)
        call.cancel()

    async def run() -> None:
        # What earlier tests have left is theirs; held, so that nothing new takes the place of an old one.
        earlier = [each for each in gc.get_objects() if type(each) in (CalleeLink, Incoming)]
        known = {id(each) for each in earlier}

        def made(kind: type) -> list[Any]:
            return [each for each in gc.get_objects() if type(each) is kind and id(each) not in known]

        async with TestInstance() as instance:
            await instance.run(library_app.app)
            router = runtime.current().router
            functions = ("library_pb2_grpc.add_LibraryServicer_to_server",)
            server = GrpcServer(router, GrpcService(options=gRPCOptions(port=0, grpc_servicer_functions=functions)))
            server.update(router.snapshot)
            await server.open("127.0.0.1")
            async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
                for _ in range(ROUNDS):
                    await each_kind(LibraryStub(channel))
                callees = made(CalleeLink)
                while any(link.calls for link in (*router.links, *callees)):  # those that were cancelled end
                    await asyncio.sleep(0.001)
            await server.drain(1.0)
            for link in (*router.links, *callees):
                assert (len(link.outflows), len(link._owed)) == (0, 0)
            gc.collect()
            assert len(made(Incoming)) < ROUNDS

    asyncio.run(run())
