"""Clients that are slow: the server of the API on a thread, with little patience."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from api_clients import TOKEN, NotingDeployer
from api_process import Raw, said, until

from headrace.api.app import Api
from headrace.api.controller import Controller
from headrace.api.desk import Desk
from headrace.api.guard import Guard
from headrace.api.server import PatientProtocol, listening, server_of
from headrace.engine.directory import InstanceDirectory


class HastyProtocol(PatientProtocol):
    head_timeout_s = 0.2


@pytest.fixture
def port(directory: InstanceDirectory) -> Iterator[int]:
    directory.create()
    api = Api(Guard(TOKEN), Desk(Controller(directory), NotingDeployer()), body_timeout_s=0.2)
    listener = listening("127.0.0.1", 0)
    server = server_of(api, HastyProtocol)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    until(lambda: server.started, "it has started")
    yield int(listener.getsockname()[1])
    server.should_exit = True
    thread.join(20)
    assert not thread.is_alive()


def test_who_says_nothing_is_left(port: int) -> None:
    assert Raw(port).rest() == b""


def test_who_does_not_come_to_the_end_of_a_head_is_left(port: int) -> None:
    raw = Raw(port)
    raw.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n")
    assert raw.rest() == b""


def test_nor_does_a_byte_now_and_then_help(port: int) -> None:
    raw = Raw(port)
    ended = threading.Event()

    def drip() -> None:
        while not ended.wait(0.01):
            raw.send(b"a")

    raw.send(b"GET / HTTP/1.1\r\nX: ")
    dripping = threading.Thread(target=drip)
    dripping.start()
    assert raw.rest() == b""
    ended.set()
    dripping.join()


def test_a_second_head_has_no_more_time_than_the_first(port: int) -> None:
    raw = Raw(port)
    raw.send(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
    until(lambda: raw.socket.recv(65536).endswith(b"}"), "the first is answered")
    raw.send(b"GET /healthz HT")
    assert raw.rest() == b""


def test_a_body_that_does_not_come_is_told_of(port: int) -> None:
    head = (
        "PUT /api/serve/applications HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {TOKEN}\r\nContent-Length: 20\r\n\r\n"
    )
    assert said(port, head.encode() + b'{"appl') == (408, "BodyTimeout")
