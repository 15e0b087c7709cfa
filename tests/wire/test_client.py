"""ControlClient against a controller's end that the test plays."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from control_peer import ControlPeer

from headrace.spec import errors
from headrace.spec.errors import HeadraceError, InstanceError, PeerVersionError, ProtocolError, RequestTimeoutError
from headrace.wire.client import ControlClient, named_error
from headrace.wire.control import Delete, Done, Failed, GetStatus, Message, Progress, Request, Response


def against(peer: ControlPeer, use: Callable[[], None]) -> None:
    """Run `use` in a thread while the peer serves."""

    async def body() -> None:
        await peer.start()
        try:
            await asyncio.wait_for(asyncio.to_thread(use), 20)
        finally:
            await peer.stop()

    asyncio.run(body())


def test_a_request_gets_its_progress_and_its_answer(tmp_path: Path) -> None:
    def answer(request: Request) -> list[Message]:
        return [Progress(request.id, "draining"), Progress(request.id + 9, "another's"), Response(request.id, Done())]

    peer = ControlPeer(tmp_path / "c.sock", answer=answer)
    client = ControlClient(str(peer.path), "cli")
    lines: list[str] = []

    def use() -> None:
        client.connect()
        assert client.request(Delete("a"), 10, lines.append) == Done()
        assert client.request(Delete("b"), None) == Done()
        client.close()
        assert client.request(GetStatus(), 10) == Done()  # a closed client connects anew
        client.close()

    against(peer, use)
    assert lines == ["draining"]
    assert [m.operation for m in peer.received if isinstance(m, Request)] == [Delete("a"), Delete("b"), GetStatus()]
    assert peer.received[0].role == "cli"


def test_a_failed_answer_raises_the_class_it_names_and_the_connection_goes_on(tmp_path: Path) -> None:
    names = iter(["ApplicationNotFound", "RequestTimeoutError", "NoSuchThing"])
    peer = ControlPeer(tmp_path / "c.sock", answer=lambda r: [Response(r.id, Failed(next(names), "no app 'x'"))])
    client = ControlClient(str(peer.path))

    def use() -> None:
        with pytest.raises(errors.ApplicationNotFound, match="no app 'x'"):
            client.request(Delete("x"), 10)
        with pytest.raises(RequestTimeoutError, match="no app 'x'"):
            client.request(Delete("x"), 10)
        with pytest.raises(HeadraceError, match="NoSuchThing: no app 'x'"):
            client.request(Delete("x"), 10)
        client.close()

    against(peer, use)
    assert len([m for m in peer.received if type(m).__name__ == "Hello"]) == 1


def test_no_controller_is_an_instance_error(tmp_path: Path) -> None:
    with pytest.raises(InstanceError, match=r"c\.sock"):
        ControlClient(str(tmp_path / "c.sock")).connect()


def test_a_controller_that_goes_away_is_an_instance_error(tmp_path: Path) -> None:
    def leave(request: Request) -> list[Message]:
        peer.channels[0].abort()
        return []

    peer = ControlPeer(tmp_path / "c.sock", answer=leave)
    client = ControlClient(str(peer.path))

    def use() -> None:
        for _ in range(2):  # each on a connection of its own: the broken one is not used again
            with pytest.raises(InstanceError, match="went away during Delete"):
                client.request(Delete("x"), 10)

    against(peer, use)


def test_no_answer_in_time_is_a_timeout(tmp_path: Path) -> None:
    peer = ControlPeer(tmp_path / "c.sock", answer=lambda r: [])
    client = ControlClient(str(peer.path))

    def use() -> None:
        with pytest.raises(TimeoutError, match=r"GetStatus within 0\.05 s"):
            client.request(GetStatus(), 0.05)

    against(peer, use)


def test_another_version_is_refused(tmp_path: Path) -> None:
    peer = ControlPeer(tmp_path / "c.sock", version=99)

    def use() -> None:
        with pytest.raises(PeerVersionError, match="version 99"):
            ControlClient(str(peer.path)).connect()

    against(peer, use)


def test_garbage_from_the_other_end_is_a_protocol_error(tmp_path: Path) -> None:
    path = tmp_path / "c.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        client = ControlClient(str(path))

        async def body() -> None:
            attempt = asyncio.create_task(asyncio.to_thread(client.connect))
            connection, _ = await asyncio.to_thread(server.accept)
            with connection:
                connection.sendall(b"\x03\0\0\0abc")
                with pytest.raises(ProtocolError):
                    await attempt

        asyncio.run(body())


def test_every_error_class_is_named_back() -> None:
    classes = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, HeadraceError)]
    assert len(classes) > 20
    for kind in classes:
        error = named_error(Failed(kind.__name__, "what and why"))
        assert type(error) is kind
        assert "what and why" in str(error)
