"""The server around the RPCs: TLS, several processes on one port, limits, load, and an end that loses nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc

from bench.instance import wait_for
from headrace import serve

PATIENCE_S = 60
Code = grpc.StatusCode
MOST_RPCS = 30
FUNCTION = "library_pb2_grpc.add_LibraryServicer_to_server"


class Served:
    """An instance that asks clients for certificates."""

    def __init__(self, port: int, home: Path, authority: trustme.CA, clients: trustme.CA) -> None:
        self.port = port
        self.home = home
        self.authority = authority.cert_pem.bytes()
        self.client = clients.issue_cert("reader@example.org", common_name="a reader")

    def channel(self, certificate: trustme.LeafCert | None = None) -> grpc.Channel:
        key = None if certificate is None else certificate.private_key_pem.bytes()
        chain = None if certificate is None else certificate.cert_chain_pems[0].bytes()
        credentials = grpc.ssl_channel_credentials(self.authority, key, chain)
        # Of its own: channels of one process share their connections otherwise.
        return grpc.secure_channel(f"127.0.0.1:{self.port}", credentials, [("grpc.use_local_subchannel_pool", 1)])

    def stub(self, channel: grpc.Channel) -> Any:
        from library_pb2_grpc import LibraryStub

        return LibraryStub(channel)

    def wait_for_line(self, line: str) -> None:
        diary = self.home / "diary"
        wait_for(lambda: diary.exists() and line in diary.read_text().splitlines(), f"the diary says {line!r}")


def Book(**kwargs: Any) -> Any:
    from library_pb2 import Book

    return Book(**kwargs)


@pytest.fixture(scope="module")
def served(home: Path) -> Iterator[Served]:
    import library_app

    authority, clients = trustme.CA(), trustme.CA()
    server = authority.issue_cert("127.0.0.1")
    server.private_key_pem.write_to_path(home / "server.key")
    server.cert_chain_pems[0].write_to_path(home / "server.pem")
    clients.cert_pem.write_to_path(home / "clients.pem")
    serve.start(
        http_options={"port": 0, "ingress_workers": 2},
        grpc_options=serve.config.gRPCOptions(
            port=0,
            grpc_servicer_functions=(FUNCTION,),
            max_message_bytes=100_000,
            max_concurrent_rpcs=MOST_RPCS,
            ssl_certfile=str(home / "server.pem"),
            ssl_keyfile=str(home / "server.key"),
            ssl_ca_certs=str(home / "clients.pem"),
        ),
    )
    try:
        serve.run(library_app.app)
        yield Served(next(iter(serve.status().proxies.values())).grpc_port, home, authority, clients)
    finally:
        serve.shutdown()


@pytest.fixture
def library(served: Served) -> Iterator[Any]:
    with served.channel(served.client) as channel:
        yield served.stub(channel)


def failure(call: Any, book: Any, **kwargs: Any) -> Any:
    with pytest.raises(grpc.RpcError) as caught:
        call(book, **{"timeout": PATIENCE_S} | kwargs)
    return caught.value


def test_a_client_with_a_certificate_is_known_by_it(library: Any) -> None:
    answer = library.Context(Book(), timeout=PATIENCE_S)
    assert answer.data == b"reader@example.org"


def test_a_client_without_a_certificate_is_refused(served: Served) -> None:
    with served.channel() as channel:
        assert failure(served.stub(channel).Lend, Book()).code() is Code.UNAVAILABLE


def test_a_client_of_another_authority_is_refused(served: Served) -> None:
    with served.channel(trustme.CA().issue_cert("x@example.org")) as channel:
        assert failure(served.stub(channel).Lend, Book()).code() is Code.UNAVAILABLE


def test_several_processes_share_the_port(served: Served) -> None:
    peers = {proxy.pid for proxy in serve.status().proxies.values() if proxy.grpc_port == served.port}
    assert len(peers) == 2
    for _ in range(10):  # each over a connection of its own
        with served.channel(served.client) as channel:
            assert served.stub(channel).Lend(Book(title="a"), timeout=PATIENCE_S).title == "A"


def test_a_message_beyond_the_limit(library: Any) -> None:
    assert library.Lend(Book(data=bytes(99_000)), timeout=PATIENCE_S).data == bytes(99_000)
    assert failure(library.Lend, Book(data=bytes(101_000))).code() is Code.RESOURCE_EXHAUSTED


def test_rpcs_beyond_the_limit_of_a_process_are_refused(served: Served) -> None:
    with served.channel(served.client) as channel:
        library, health = served.stub(channel), health_pb2_grpc.HealthStub(channel)
        watches = [health.Watch(health_pb2.HealthCheckRequest(), timeout=PATIENCE_S) for _ in range(MOST_RPCS)]
        assert {next(watch).status for watch in watches} == {health_pb2.HealthCheckResponse.SERVING}
        assert failure(library.Lend, Book()).code() is Code.RESOURCE_EXHAUSTED
        watches[0].cancel()
        wait_for(lambda: not isinstance(library.Lend.future(Book()).exception(), grpc.RpcError), "there is room again")


def test_the_time_of_an_application_ends_its_rpcs(served: Served, library: Any) -> None:
    import library_app

    serve.run(library_app.app, name="hasty", route_prefix=None, request_timeout_s=0.2)
    hasty = {"metadata": (("application", "hasty"),)}
    assert failure(library.Wait, Book(title="hasty"), **hasty).code() is Code.DEADLINE_EXCEEDED
    served.wait_for_line("hasty ended below")
    # A thread cannot be stopped: the client is answered all the same.
    assert failure(library.Block, Book(title="blocked"), **hasty).code() is Code.DEADLINE_EXCEEDED
    (served.home / "blocked").touch()
    served.wait_for_line("blocked ended")
    serve.delete("hasty")


def test_too_many_rpcs_are_refused(served: Served, library: Any) -> None:
    import library_app

    one = library_app.Shelves.options(max_ongoing_requests=1, max_queued_requests=1)
    serve.run(one.bind(library_app.Deep.bind()), name="busy", route_prefix=None)
    busy = {"metadata": (("application", "busy"),), "timeout": PATIENCE_S}
    working = library.Finish.future(Book(title="full"), **busy)
    served.wait_for_line("full began")
    errors: list[Any] = []
    waiting = [library.Lend.future(Book(title="a"), **busy) for _ in range(3)]

    def refused() -> list[Any]:
        errors[:] = [call.exception() for call in waiting if call.done() and call.exception() is not None]
        return errors if len(errors) == 2 else []

    wait_for(refused, "those beyond the one that may wait are refused")
    assert {error.code() for error in errors} == {Code.RESOURCE_EXHAUSTED}
    (served.home / "full").touch()
    assert working.result().title == "full"
    assert [call.result().title for call in waiting if not isinstance(call.exception(), grpc.RpcError)] == ["A"]
    serve.delete("busy")


def test_starting_again_with_other_options_warns(served: Served) -> None:
    with pytest.warns(UserWarning, match="serves gRPC with other options"):
        serve.start(grpc_options={"port": 0, "grpc_servicer_functions": [FUNCTION]})


def test_an_instance_that_ends_finishes_what_is_in_work_and_refuses_the_rest(served: Served, library: Any) -> None:
    named = (("application", "default"),)  # this ingress may not have heard yet that it is the only one again
    working = library.Finish.future(Book(title="last"), timeout=PATIENCE_S, metadata=named)
    served.wait_for_line("last began")
    with served.channel(served.client) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        watching = health.Watch(health_pb2.HealthCheckRequest(), timeout=PATIENCE_S)
        assert next(watching).status == health_pb2.HealthCheckResponse.SERVING
        ending = threading.Thread(target=serve.shutdown)
        ending.start()
        assert next(watching).status == health_pb2.HealthCheckResponse.NOT_SERVING
        watching.cancel()
    with served.channel(served.client) as channel:
        wait_for(lambda: _is_refused(served.stub(channel)), "new RPCs are refused")
    assert not working.done()
    (served.home / "last").touch()
    assert working.result().title == "last"
    ending.join(PATIENCE_S)
    assert not ending.is_alive()


def _is_refused(library: Any) -> bool:
    try:
        library.Lend(Book(), timeout=PATIENCE_S)
    except grpc.RpcError as error:
        return bool(error.code() is Code.UNAVAILABLE)
    return False
