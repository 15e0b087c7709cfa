"""Callers that leave: what runs for them is cancelled where it can be, and keeps its slot until it has really ended."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from fake_incoming import FakeIncoming, handle_call, head, http_call, invoker_of, meta_of, run
from starlette.background import BackgroundTask
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, StreamingResponse

from headrace.wire.frames import HTTP, MORE

GONE = "headrace.spec.errors.RequestCancelledError"


async def turns(n: int = 20) -> None:
    for _ in range(n):
        await asyncio.sleep(0)


class Waits:
    """Waits until it is let go, and tells what became of it."""

    def __init__(self) -> None:
        self.began = asyncio.Event()
        self.go = asyncio.Event()
        self.seen: list[str] = []

    async def __call__(self, request: Any) -> str:
        return await self.wait()

    async def wait(self) -> str:
        self.began.set()
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.seen.append("cancelled")
            raise
        return "done"

    async def cleans_up(self) -> str:
        try:
            return await self.wait()
        except asyncio.CancelledError:
            await self.go.wait()
            self.seen.append("cleaned up")
            raise

    async def does_not_care(self) -> str:
        try:
            return await self.wait()
        except asyncio.CancelledError:
            return "a result nonetheless"

    async def fails_at_it(self) -> str:
        try:
            return await self.wait()
        finally:
            raise ValueError("while cleaning up")


@pytest.mark.parametrize("call", [lambda: handle_call("wait"), http_call], ids=["handle", "http"])
def test_a_coroutine_is_cancelled_with_its_call(call: Any, caplog: pytest.LogCaptureFixture) -> None:
    async def check() -> None:
        waits, incoming = Waits(), call()
        invoker_of(waits).start(incoming)
        await waits.began.wait()
        incoming.cancel()
        await incoming.ended.wait()
        assert waits.seen == ["cancelled"]
        assert incoming.error.type_name == GONE
        assert not caplog.records

    run(check())


@pytest.mark.parametrize("call", [lambda: handle_call("wait"), http_call], ids=["handle", "http"])
def test_a_call_cancelled_before_its_first_step_never_runs(call: Any) -> None:
    async def check() -> None:
        waits, incoming = Waits(), call()
        invoker_of(waits).start(incoming)
        incoming.cancel()
        await incoming.ended.wait()
        assert not waits.began.is_set()

    run(check())


def test_a_call_whose_time_is_over_before_its_first_step_never_runs() -> None:
    """Its timer has not rung: those that came with it held up the loop."""

    async def check() -> None:
        waits, incoming = Waits(), handle_call("wait", remaining_s=0.001)
        invoker_of(waits).start(incoming)
        assert incoming.deadline is not None
        while time.monotonic() < incoming.deadline:
            pass
        await incoming.ended.wait()
        assert not waits.began.is_set()
        assert incoming.error.type_name == "headrace.spec.errors.RequestTimeoutError"

    run(check())


def test_the_slot_is_taken_until_the_cleaning_up_has_ended() -> None:
    async def check() -> None:
        waits, incoming = Waits(), handle_call("cleans_up")
        invoker_of(waits).start(incoming)
        await waits.began.wait()
        incoming.cancel()
        await turns()
        assert not incoming.ended.is_set()
        waits.go.set()
        await incoming.ended.wait()
        assert waits.seen == ["cancelled", "cleaned up"]

    run(check())


def test_code_that_survives_its_cancellation_ends_its_call() -> None:
    async def check() -> None:
        waits, incoming = Waits(), handle_call("does_not_care")
        invoker_of(waits).start(incoming)
        await waits.began.wait()
        incoming.cancel()
        await incoming.ended.wait()
        assert incoming.result == "a result nonetheless"  # the server sends nothing of it

    run(check())


def test_an_error_while_cleaning_up_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async def check() -> None:
        waits, incoming = Waits(), handle_call("fails_at_it")
        invoker_of(waits).start(incoming)
        await waits.began.wait()
        incoming.cancel()
        await incoming.ended.wait()
        assert "while cleaning up" in caplog.text

    run(check())


def test_one_call_s_cancellation_is_no_other_s() -> None:
    async def check() -> None:
        waits, one, other = Waits(), handle_call("wait"), handle_call("wait")
        invoker = invoker_of(waits)
        invoker.start(one)
        invoker.start(other)
        await turns()
        one.cancel()
        await one.ended.wait()
        waits.go.set()
        await other.ended.wait()
        assert other.result == "done"

    run(check())


class Blocks:
    """Blocks a thread until it is let go."""

    def __init__(self) -> None:
        self.began = threading.Event()
        self.go = threading.Event()
        self.ran: list[str] = []

    def block(self) -> str:
        self.began.set()
        assert self.go.wait(30)
        self.ran.append("block")
        return "done"

    def __call__(self, request: Any) -> str:
        return self.block()

    def block_and_hand_back(self) -> Any:
        self.block()
        return self.rest()

    async def rest(self) -> None:
        self.ran.append("rest")


def test_a_thread_keeps_its_slot_until_it_has_returned() -> None:
    async def check() -> None:
        blocks, incoming = Blocks(), handle_call("block")
        invoker_of(blocks).start(incoming)
        await asyncio.to_thread(blocks.began.wait, 30)
        incoming.cancel()
        await turns()
        assert not incoming.ended.is_set()
        blocks.go.set()
        await incoming.ended.wait()
        assert blocks.ran == ["block"]

    run(check())


def test_a_call_cancelled_before_a_thread_took_it_never_runs() -> None:
    async def check() -> None:
        blocks, one, other = Blocks(), handle_call("block"), handle_call("block")
        invoker = invoker_of(blocks, limit=1)
        invoker.start(one)
        invoker.start(other)
        other.cancel()
        blocks.go.set()
        await one.ended.wait()
        await other.ended.wait()
        assert blocks.ran == ["block"]
        assert other.error is not None
        assert other.error.type_name == GONE

    run(check())


def test_what_a_thread_hands_back_is_cancelled_where_the_thread_was_not() -> None:
    async def check() -> None:
        blocks, incoming = Blocks(), handle_call("block_and_hand_back")
        invoker_of(blocks).start(incoming)
        await asyncio.to_thread(blocks.began.wait, 30)
        incoming.cancel()
        blocks.go.set()
        await incoming.ended.wait()
        assert blocks.ran == ["block"]
        assert incoming.error is not None
        assert incoming.error.type_name == GONE

    run(check())


class Streams:
    """Streams without end, slowly or as fast as it may."""

    def __init__(self) -> None:
        self.closed = asyncio.Event()
        self.after: list[str] = []

    async def parts(self) -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"part"
                await asyncio.sleep(0)
        finally:
            self.closed.set()

    async def __call__(self, request: Any) -> Any:
        return StreamingResponse(self.parts(), background=BackgroundTask(self.after.append, "background"))


@pytest.mark.parametrize("window", [1 << 30, 10], ids=["while it writes", "while it waits for its reader"])
def test_a_client_that_leaves_ends_the_stream(window: int, caplog: pytest.LogCaptureFixture) -> None:
    async def check() -> None:
        streams, incoming = Streams(), http_call()
        incoming.window = window
        invoker = invoker_of(streams)
        invoker.start(incoming)
        await incoming.started.wait()
        await turns()
        incoming.cancel()
        await incoming.ended.wait()
        await invoker.rested()
        await streams.closed.wait()
        assert not streams.after
        assert not incoming.stream_is_whole
        assert not caplog.records

    run(check())


def test_a_client_that_leaves_during_its_upload_cancels_who_reads_it(caplog: pytest.LogCaptureFixture) -> None:
    class Reads:
        def __init__(self) -> None:
            self.seen: list[type] = []

        async def __call__(self, request: Any) -> Any:
            try:
                return len(await request.body())
            except (asyncio.CancelledError, ClientDisconnect) as error:
                self.seen.append(type(error))
                raise

    async def check() -> None:
        reads, incoming = Reads(), FakeIncoming(meta_of(http=head()), HTTP | MORE, b"begun")
        invoker_of(reads).start(incoming)
        await turns()
        incoming.cancel()
        await incoming.ended.wait()
        assert len(reads.seen) == 1
        assert incoming.error is not None
        assert incoming.error.type_name == GONE
        assert not caplog.records

    run(check())


def test_a_handler_may_watch_for_its_client_to_leave() -> None:
    class Watches:
        def __init__(self) -> None:
            self.seen: list[Any] = []
            self.began = asyncio.Event()

        async def __call__(self, request: Any) -> Any:
            watch = asyncio.ensure_future(self.watch(request))
            self.began.set()
            await asyncio.shield(watch)

        async def watch(self, request: Any) -> None:
            assert (await request.receive())["type"] == "http.request"
            self.seen.append(await request.receive())

    async def check() -> None:
        watches, incoming = Watches(), http_call(b"body")
        invoker_of(watches).start(incoming)
        await watches.began.wait()
        await turns()
        incoming.cancel()
        await incoming.ended.wait()
        await turns()
        assert watches.seen == [{"type": "http.disconnect"}]

    run(check())


def test_a_client_that_leaves_after_its_answer_does_not_stop_the_background_task() -> None:
    async def check() -> None:
        release, done = asyncio.Event(), asyncio.Event()

        async def later() -> None:
            await release.wait()
            done.set()

        class Answers:
            async def __call__(self, request: Any) -> Any:
                return JSONResponse(1, background=BackgroundTask(later))

        incoming = http_call()
        invoker = invoker_of(Answers())
        invoker.start(incoming)
        await incoming.ended.wait()
        release.set()
        await invoker.rested()
        assert done.is_set()

    run(check())


def test_background_tasks_are_cancelled_when_the_replica_must_go() -> None:
    async def check() -> None:
        class Answers:
            async def __call__(self, request: Any) -> Any:
                return JSONResponse(1, background=BackgroundTask(asyncio.Event().wait))

        incoming = http_call()
        invoker = invoker_of(Answers())
        invoker.start(incoming)
        await incoming.ended.wait()
        invoker.cancel_background()
        await invoker.rested()

    run(check())
