"""RPCs from grpcio's own client, through a real instance, to handlers of each kind, and what goes wrong on the way."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from bench.instance import wait_for
from headrace import serve

PATIENCE_S = 60
Code = grpc.StatusCode
UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


class Library:
    """The instance of this module's tests: a client of its services, and what its replicas wrote down."""

    def __init__(self, port: int, diary: Path) -> None:
        from library_pb2_grpc import DeskStub, LibraryStub

        self.port = port
        self.diary = diary
        self.channel = grpc.insecure_channel(f"127.0.0.1:{port}", options=UNLIMITED)
        self.library = LibraryStub(self.channel)
        self.desk = DeskStub(self.channel)

    def lines(self) -> list[str]:
        return self.diary.read_text().splitlines() if self.diary.exists() else []

    def wait_for_line(self, line: str) -> None:
        wait_for(lambda: line in self.lines(), f"the diary says {line!r}")


@pytest.fixture(scope="module")
def library(home: Path) -> Iterator[Library]:
    import library_app

    functions = ["library_pb2_grpc.add_LibraryServicer_to_server", "library_pb2_grpc.add_DeskServicer_to_server"]
    serve.start(http_options={"port": 0}, grpc_options={"port": 0, "grpc_servicer_functions": functions})
    serve.run(library_app.app)
    library = Library(next(iter(serve.status().proxies.values())).grpc_port, home / "diary")
    yield library
    library.channel.close()
    serve.shutdown()


@pytest.fixture(scope="class")
def other(library: Library) -> Iterator[None]:
    """A second application, a function with two replicas."""
    import library_app

    serve.run(library_app.other.options(num_replicas=2).bind(), name="second", route_prefix=None)
    yield
    serve.delete("second")
    names = library.channel.unary_unary("/headrace.APIService/ListApplications")
    wait_for(lambda: b"second" not in names(b"", timeout=PATIENCE_S), "the ingress has heard of it")


def Book(*args: Any, **kwargs: Any) -> Any:
    from library_pb2 import Book

    return Book(*args, **kwargs)


def books(count: int, **fields: Any) -> Iterator[Any]:
    return (Book(title=str(number), number=number, **fields) for number in range(count))


def failure(call: Any, *args: Any, **kwargs: Any) -> Any:
    """The error that the RPC ends with."""

    def whole() -> Any:
        answer = call(*args, **{"timeout": PATIENCE_S} | kwargs)
        return list(answer) if hasattr(answer, "__next__") else answer

    with pytest.raises(grpc.RpcError) as caught:
        whole()
    return caught.value


class TestKinds:
    @pytest.mark.parametrize("method", ["Lend", "LendPlain"])
    def test_one_message_for_one(self, library: Library, method: str) -> None:
        answer = getattr(library.library, method)(Book(title="a", number=1, data=b"xy"), timeout=PATIENCE_S)
        assert answer == Book(title="A", number=2, data=b"yx")

    @pytest.mark.parametrize("method", ["List", "ListPlain"])
    @pytest.mark.parametrize("count", [0, 1, 300])
    def test_many_messages_for_one(self, library: Library, method: str, count: int) -> None:
        found = list(getattr(library.library, method)(Book(number=count), timeout=PATIENCE_S))
        assert [book.number for book in found] == list(range(count))

    @pytest.mark.parametrize("method", ["Store", "StorePlain"])
    @pytest.mark.parametrize("count", [0, 1, 300])
    def test_one_message_for_many(self, library: Library, method: str, count: int) -> None:
        answer = getattr(library.library, method)(books(count, data=b"xyz"), timeout=PATIENCE_S)
        assert answer.number == count
        assert answer.data == (str(3 * count).encode() if method == "Store" else b"True")

    @pytest.mark.parametrize("method", ["Talk", "TalkPlain"])
    def test_many_messages_for_many(self, library: Library, method: str) -> None:
        found = [book.title for book in getattr(library.library, method)(books(300), timeout=PATIENCE_S)]
        assert found == [*(f"re: {number}" for number in range(300)), "bye"]

    @pytest.mark.parametrize("method", ["Talk", "TalkPlain"])
    def test_a_conversation_goes_back_and_forth(self, library: Library, method: str) -> None:
        turn = threading.Semaphore(1)

        def requests() -> Iterator[Any]:
            for book in books(5):
                assert turn.acquire(timeout=PATIENCE_S)
                yield book

        heard = []
        for book in getattr(library.library, method)(requests(), timeout=PATIENCE_S):
            heard.append(book.title)  # the next request leaves only now
            turn.release()
        assert heard == ["re: 0", "re: 1", "re: 2", "re: 3", "re: 4", "bye"]

    def test_an_answer_before_the_last_request_ends_the_rpc(self, library: Library) -> None:
        left = threading.Event()

        def requests() -> Iterator[Any]:
            yield from books(3)
            yield Book(title="enough")
            left.wait(PATIENCE_S)

        answer = library.library.Store(requests(), timeout=PATIENCE_S)
        left.set()
        assert (answer.title, answer.number) == ("enough", 3)

    def test_a_method_called_call(self, library: Library) -> None:
        call = library.channel.unary_unary(
            "/library.Desk/__call__",
            request_serializer=lambda book: book.SerializeToString(),
            response_deserializer=Book().FromString,
        )
        assert call(Book(title="x"), timeout=PATIENCE_S).title == "called with x"

    @pytest.mark.parametrize("size", [63_000, 66_000, 1_000_000, 20_000_000])
    @pytest.mark.parametrize("method", ["Lend", "LendPlain"])
    def test_large_messages(self, library: Library, method: str, size: int) -> None:
        data = os.urandom(size)
        answer = getattr(library.library, method)(Book(data=data), timeout=PATIENCE_S)
        assert answer.data == data[::-1]

    def test_large_messages_in_streams(self, library: Library) -> None:
        data = os.urandom(3_000_000)
        found = list(library.library.List(Book(number=3, data=data), timeout=PATIENCE_S))
        assert [book.data == data for book in found] == [True] * 3
        assert library.library.Store(books(5, data=data), timeout=PATIENCE_S).data == b"15000000"


class TestMetadata:
    def test_a_request_id_is_made_and_told(self, library: Library) -> None:
        answer, call = library.desk.Ask.with_call(Book(), timeout=PATIENCE_S)
        told = dict(call.trailing_metadata())["request_id"]
        assert len(told) == 36
        assert answer.title.split()[0] == told
        assert answer.data == b"route ''"

    def test_what_the_metadata_says_reaches_the_request_context(self, library: Library) -> None:
        metadata = {
            "request_id": "mine",
            "multiplexed_model_id": "model-7",
            "session_id": "session-3",
            "priority": "2",
            "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        }
        answer, call = library.desk.Ask.with_call(Book(), metadata=tuple(metadata.items()), timeout=PATIENCE_S)
        assert answer.title == " ".join(metadata.values())
        assert dict(call.trailing_metadata())["request_id"] == "mine"

    def test_a_priority_that_is_none(self, library: Library) -> None:
        error = failure(library.desk.Ask, Book(), metadata=(("priority", "urgent"),))
        assert error.code() is Code.INVALID_ARGUMENT
        assert "urgent" in error.details()

    def test_an_id_that_is_too_long_is_not_taken(self, library: Library) -> None:
        _, call = library.desk.Ask.with_call(Book(), metadata=(("request_id", "x" * 200),), timeout=PATIENCE_S)
        assert len(dict(call.trailing_metadata())["request_id"]) == 36


class TestContext:
    @pytest.mark.parametrize("method", ["Context", "ContextPlain"])
    def test_what_it_knows_and_sets(self, library: Library, method: str) -> None:
        metadata = (("mood", "good"), ("raw-bin", b"\x00\xff"))
        answer, call = getattr(library.library, method).with_call(Book(), metadata=metadata, timeout=PATIENCE_S)
        assert answer.title == rf"/library.Library/{method} ipv4 good b'\x00\xff'"
        assert PATIENCE_S - 5 < answer.number <= PATIENCE_S
        assert ("early", "yes") in call.initial_metadata()
        assert ("seen", "") in call.trailing_metadata()

    def test_without_a_deadline(self, library: Library) -> None:
        assert library.library.Context(Book()).number == -1

    @pytest.mark.parametrize("method", ["Context", "ContextPlain"])
    @pytest.mark.parametrize(
        ("how", "code", "details"),
        [
            ("abort", Code.FAILED_PRECONDITION, "not today"),
            ("raise", Code.ALREADY_EXISTS, "there it is"),
            ("code", Code.PERMISSION_DENIED, "closed"),
        ],
    )
    def test_a_status_of_the_handler_wins(
        self, library: Library, method: str, how: str, code: Code, details: str
    ) -> None:
        error = failure(getattr(library.library, method), Book(title=how))
        assert (error.code(), error.details()) == (code, details)
        assert "request_id" in dict(error.trailing_metadata())
        assert (("why", "because") in error.trailing_metadata()) == (how == "abort")

    def test_a_compressed_answer(self, library: Library) -> None:
        assert library.library.Context(Book(title="gzip"), timeout=PATIENCE_S).title.startswith("/library")

    def test_details_that_are_no_text(self, library: Library) -> None:
        error = failure(library.library.Context, Book(title="surrogate"))
        assert (error.code(), error.details()) == (Code.ABORTED, "an emoji in halves: ?")

    def test_metadata_that_cannot_be_sent_is_an_error_of_the_handler(self, library: Library) -> None:
        assert failure(library.library.Context, Book(title="metadata")).code() is Code.INTERNAL

    def test_of_a_stream(self, library: Library) -> None:
        call = library.library.ContextStream(Book(), timeout=PATIENCE_S)
        assert [book.title for book in call] == ["one", "two"]
        initial = dict(call.initial_metadata())
        assert (initial["first"], initial["first-bin"]) == ("1", b"\x00\xff")
        assert dict(call.trailing_metadata())["last"] == "2"

    @pytest.mark.parametrize(("how", "code"), [("abort", Code.DATA_LOSS), ("code", Code.OUT_OF_RANGE)])
    def test_a_status_at_the_end_of_a_stream(self, library: Library, how: str, code: Code) -> None:
        call = library.library.ContextStream(Book(title=how), timeout=PATIENCE_S)
        assert next(call).title == "one"
        with pytest.raises(grpc.RpcError) as caught:
            list(call)
        assert caught.value.code() is code
        assert dict(caught.value.trailing_metadata())["last"] == "2"


class TestErrors:
    @pytest.mark.parametrize("how", ["", "below", "exit"])
    def test_of_user_code_say_no_more_than_the_request(self, library: Library, how: str) -> None:
        error = failure(library.library.Fail, Book(title=how), metadata=(("request_id", "mine"),))
        assert (error.code(), error.details()) == (Code.INTERNAL, "internal error (request mine)")

    def test_after_the_first_message(self, library: Library) -> None:
        call = library.library.FailStream(Book(), timeout=PATIENCE_S)
        assert next(call).title == "one"
        with pytest.raises(grpc.RpcError) as caught:
            next(call)
        assert caught.value.code() is Code.INTERNAL
        assert "secret" not in caught.value.details()

    def test_a_status_is_raised(self, library: Library) -> None:
        error = failure(library.library.Fail, Book(title="status"))
        assert (error.code(), error.details()) == (Code.NOT_FOUND, "no such book")

    def test_a_status_is_raised_in_another_deployment(self, library: Library) -> None:
        error = failure(library.library.Fail, Book(title="status below"))
        assert (error.code(), error.details()) == (Code.ABORTED, "so it was said below")

    def test_an_answer_that_is_no_message(self, library: Library) -> None:
        assert failure(library.library.Wrong, Book()).code() is Code.INTERNAL

    def test_a_method_without_a_handler(self, library: Library) -> None:
        error = failure(library.library.Missing, Book())
        assert error.code() is Code.UNIMPLEMENTED
        assert "has no method 'Missing'" in error.details()

    def test_a_method_of_no_service(self, library: Library) -> None:
        assert failure(library.channel.unary_unary("/library.Library/Nothing"), b"").code() is Code.UNIMPLEMENTED

    @pytest.mark.parametrize("method", ["Lend", "LendPlain"])
    def test_bytes_that_are_no_message(self, library: Library, method: str) -> None:
        error = failure(library.channel.unary_unary(f"/library.Library/{method}"), b"\xff\xff\xff")
        assert error.code() is Code.INTERNAL
        assert f"/library.Library/{method}" in error.details()

    @pytest.mark.parametrize("method", ["Store", "Talk"])
    def test_bytes_that_are_no_message_in_a_stream(self, library: Library, method: str) -> None:
        good = Book().SerializeToString()
        call = library.channel.stream_unary if method == "Store" else library.channel.stream_stream
        assert failure(call(f"/library.Library/{method}"), iter([good, b"\xff\xff\xff"])).code() is Code.INTERNAL
        assert library.library.Lend(Book(title="a"), timeout=PATIENCE_S).title == "A"

    def test_a_message_beyond_the_limit(self, library: Library) -> None:
        error = failure(library.library.Lend, Book(data=bytes(129 * 1024 * 1024)))
        assert error.code() is Code.RESOURCE_EXHAUSTED


class TestTime:
    def test_the_deadline_of_the_client_stops_the_work_below(self, library: Library) -> None:
        error = failure(library.library.Wait, Book(title="deadline"), timeout=0.3)
        assert error.code() is Code.DEADLINE_EXCEEDED
        library.wait_for_line("deadline ended below")

    def test_a_thread_learns_of_the_deadline(self, library: Library) -> None:
        error = failure(library.library.WaitPlain, Book(title="plain deadline"), timeout=0.3)
        assert error.code() is Code.DEADLINE_EXCEEDED
        library.wait_for_line("plain deadline ended")

    @pytest.mark.parametrize(("method", "ended"), [("Wait", "ended below"), ("WaitPlain", "ended")])
    def test_a_client_that_cancels_stops_the_work(self, library: Library, method: str, ended: str) -> None:
        call = getattr(library.library, method).future(Book(title=f"cancelled {method}"))
        library.wait_for_line(f"cancelled {method} {ended.replace('ended', 'began')}")
        call.cancel()
        library.wait_for_line(f"cancelled {method} {ended}")

    @pytest.mark.parametrize("method", ["List", "ListPlain"])
    def test_a_client_that_cancels_stops_a_stream(self, library: Library, method: str) -> None:
        call = getattr(library.library, method)(Book(title=f"cut {method}", number=10_000_000))
        next(call)
        call.cancel()
        library.wait_for_line(f"cut {method} ended")

    def test_a_stream_of_requests_that_is_cancelled_is_not_taken_for_whole(self, library: Library) -> None:
        before = len(library.lines())
        for _ in range(20):  # each by itself might be right by luck
            sent, left = threading.Event(), threading.Event()

            def requests(sent: threading.Event, left: threading.Event) -> Iterator[Any]:
                yield from books(7)
                sent.set()
                left.wait(PATIENCE_S)

            call = library.library.Store.future(requests(sent, left))
            assert sent.wait(PATIENCE_S)
            call.cancel()
            left.set()
        library.library.Store(books(3), timeout=PATIENCE_S)
        library.wait_for_line("stored 3, exhausted True")
        assert sum(line.endswith("exhausted True") for line in library.lines()[before:]) == 1

    def test_a_model_is_held_back_by_a_client_that_does_not_read(self, library: Library) -> None:
        data, count = bytes(1_000_000), 100
        call = library.library.List(Book(title="slow", number=count, data=data), timeout=PATIENCE_S)
        next(call)
        for _ in range(50):  # time in which it could go on
            library.library.Lend(Book(), timeout=PATIENCE_S)
        assert "slow ended" not in library.lines()
        assert sum(1 for _ in call) == count - 1
        library.wait_for_line("slow ended")

    def test_a_client_is_held_back_by_a_model_that_does_not_read(self, library: Library) -> None:
        sent = []

        def requests() -> Iterator[Any]:
            yield Book(title="hold")
            for book in books(100, data=bytes(1_000_000)):
                sent.append(book.number)
                yield book

        call = library.library.Store.future(requests(), timeout=PATIENCE_S)
        wait_for(lambda: sent, "the client has begun")
        for _ in range(50):
            library.library.Lend(Book(), timeout=PATIENCE_S)
        assert len(sent) < 100
        library.diary.with_name("go on").touch()
        assert call.result().number == 101


class TestApplications:
    def test_are_named_in_the_metadata(self, library: Library, other: None) -> None:
        first = library.library.Lend(Book(title="a"), metadata=(("application", "default"),), timeout=PATIENCE_S)
        second = library.library.Lend(Book(title="a"), metadata=(("application", "second"),), timeout=PATIENCE_S)
        assert (first.title, second.title) == ("A", "other a")  # a function serves every method

    @pytest.mark.parametrize("metadata", [(), (("application", "third"),)])
    def test_without_one_the_client_is_told_which_there_are(
        self, library: Library, other: None, metadata: tuple[tuple[str, str], ...]
    ) -> None:
        error = failure(library.library.Lend, Book(), metadata=metadata)
        assert error.code() is Code.NOT_FOUND
        assert "default, second" in error.details()

    def test_no_rpc_fails_when_a_replica_is_killed(self, library: Library, other: None) -> None:
        metadata, stop = (("application", "second"),), threading.Event()

        def call_on() -> set[int]:
            found = set()
            while not stop.is_set():
                data = os.urandom(random_sizes[threading.get_ident() % 3])
                found.add(library.library.Lend(Book(data=data), metadata=metadata, timeout=PATIENCE_S).number)
            return found

        random_sizes = [10, 70_000, 400_000]
        with ThreadPoolExecutor(8) as pool:
            calling = [pool.submit(call_on) for _ in range(8)]
            try:
                for _ in range(3):
                    pid = library.library.Lend(Book(), metadata=metadata, timeout=PATIENCE_S).number
                    os.kill(pid, signal.SIGKILL)
                    wait_for(lambda: len(running("second") - {pid}) == 2, "its successor runs")  # noqa: B023
            finally:
                stop.set()
            assert len(set().union(*(each.result(PATIENCE_S) for each in calling))) >= 3

    def test_are_listed(self, library: Library) -> None:
        for service in ("headrace.APIService", "ray.serve.RayServeAPIService"):
            call = library.channel.unary_unary(f"/{service}/ListApplications")
            assert b"\x0a\x07default" in call(b"", timeout=PATIENCE_S)
            assert library.channel.unary_unary(f"/{service}/Healthz")(b"", timeout=PATIENCE_S) == b"\x0a\x07success"


def running(app: str) -> set[int]:
    """The pids of its replicas."""
    (deployment,) = serve.status().applications[app].deployments.values()
    return {replica.pid for replica in deployment.replicas if replica.state == "RUNNING"}


def healthy_at(port: int) -> set[int]:
    """The pids of the ingress processes that serve gRPC at a port."""
    proxies = serve.status().proxies.values()
    return {proxy.pid for proxy in proxies if (proxy.grpc_port, proxy.status) == (port, "HEALTHY")}


class TestServices:
    @pytest.mark.parametrize("service", ["", "library.Library", "library.Desk"])
    def test_health(self, library: Library, service: str) -> None:
        stub = health_pb2_grpc.HealthStub(library.channel)
        answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=PATIENCE_S)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING

    def test_health_of_what_there_is_not(self, library: Library) -> None:
        stub = health_pb2_grpc.HealthStub(library.channel)
        assert failure(stub.Check, health_pb2.HealthCheckRequest(service="x.Y")).code() is Code.NOT_FOUND

    def test_reflection(self, library: Library) -> None:
        database = ProtoReflectionDescriptorDatabase(library.channel)
        services = set(database.get_services())
        assert {"library.Library", "library.Desk", "grpc.health.v1.Health", "headrace.APIService"} <= services
        file = database.FindFileContainingSymbol("library.Library")
        assert {method.name for method in file.service[1].method} == {"Ask", "__call__"}
        own = database.FindFileContainingSymbol("headrace.APIService")
        assert [method.name for method in own.service[0].method] == ["ListApplications", "Healthz"]

    def test_the_status_shows_the_port(self, library: Library) -> None:
        assert len(healthy_at(library.port)) == 1


def test_a_stream_whose_replica_dies_ends_as_unavailable(library: Library) -> None:
    call = library.library.List(Book(number=10_000_000, title="torn"), timeout=PATIENCE_S)
    next(call)
    os.kill(library.desk.Ask(Book(), timeout=PATIENCE_S).number, signal.SIGKILL)
    with pytest.raises(grpc.RpcError) as caught:
        list(call)
    assert caught.value.code() is Code.UNAVAILABLE
    assert library.library.Lend(Book(title="a"), timeout=PATIENCE_S).title == "A"  # by its successor


def test_an_ingress_that_was_killed_comes_back_with_grpc(library: Library) -> None:
    (before,) = healthy_at(library.port)
    os.kill(before, signal.SIGKILL)

    def answers() -> bool:
        try:
            return str(library.library.Lend(Book(title="a"), wait_for_ready=True, timeout=PATIENCE_S).title) == "A"
        except grpc.RpcError as error:  # of the connection that broke
            if error.code() is not Code.UNAVAILABLE:
                raise
            return False

    wait_for(answers, "another serves")
    wait_for(lambda: healthy_at(library.port) - {before}, "the ingress is back, at its port")
