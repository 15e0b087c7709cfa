"""TLS at the door: what clients get, what is wrong with files, and clients that do not speak it."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme
from cryptography.hazmat.primitives import serialization
from door_harness import run
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket
from websocket_stage import WebStage, raw_socket, web_stage
from websockets.asyncio.client import connect

from headrace.ingress.exchange import RESET
from headrace.ingress.tls import context_of
from headrace.spec.config import HTTPOptions
from headrace.spec.errors import OptionError

GET = b"GET /scope HTTP/1.1\r\nHost: h\r\n\r\n"


def hello() -> bytes:
    """What a client says first."""
    out = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), out, server_hostname="localhost").do_handshake()
    return out.read()


HELLO = hello()


class Files:
    """A certificate of this machine's, its key, and who signed it; another pair; a key that is encrypted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = trustme.CA()
        issued = self.authority.issue_cert("127.0.0.1", "localhost")
        self.cert = self._write("cert.pem", issued.cert_chain_pems[0].bytes())
        self.key = self._write("key.pem", issued.private_key_pem.bytes())
        self.both = self._write("both.pem", issued.private_key_and_cert_chain_pem.bytes())
        self.ca = self._write("ca.pem", self.authority.cert_pem.bytes())
        self.other_key = self._write("other.pem", trustme.CA().issue_cert("else").private_key_pem.bytes())
        key = serialization.load_pem_private_key(issued.private_key_pem.bytes(), None)
        closed = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"open sesame"),
        )
        self.closed_key = self._write("closed.pem", closed)
        self.nonsense = self._write("nonsense.pem", b"nonsense")
        self.missing = str(folder / "missing.pem")

    def _write(self, name: str, data: bytes) -> str:
        (self.folder / name).write_bytes(data)
        return str(self.folder / name)

    def options(self, **given: Any) -> HTTPOptions:
        return HTTPOptions(**({"ssl_certfile": self.cert, "ssl_keyfile": self.key} | given))

    def client(self, **versions: ssl.TLSVersion) -> ssl.SSLContext:
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        for name, version in versions.items():
            setattr(context, name, version)
        return context


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("tls"))


async def scope(request: Request) -> Response:
    return JSONResponse({"scheme": request.scope["scheme"], "path": request.url.path, "client": request.client[0]})


async def echo(request: Request) -> Response:
    return StreamingResponse(request.stream())


async def talk(socket: WebSocket) -> None:
    await socket.accept()
    await socket.send_text(socket.scope["scheme"])
    async for data in socket.iter_bytes():
        await socket.send_bytes(data)


APP = Starlette(routes=[Route("/scope", scope), Route("/echo", echo, methods=["POST"]), WebSocketRoute("/talk", talk)])


def quiet(stage: WebStage) -> bool:
    """Nothing is left of those who came."""
    return stage.door.empty and not [task for task in asyncio.all_tasks() if task.get_name() == "tls"]


def test_requests_and_bodies_of_all_sizes_over_tls(files: Files, tmp_path: Path):
    async def main():
        async with (
            web_stage(tmp_path, APP, options=files.options()) as s,
            httpx.AsyncClient(base_url=f"https://127.0.0.1:{s.port}", verify=files.client(), timeout=15) as client,
        ):
            answer = await client.get("/scope")
            assert answer.json() == {"scheme": "https", "path": "/scope", "client": "127.0.0.1"}
            assert (await client.get("/-/healthz")).text == "success"
            for size in (0, 1, 16 * 1024 + 1, 5_000_000):
                body = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
                assert (await client.post("/echo", content=body)).content == body
            assert len(s.door.connections) == 1
            await client.aclose()
            await s.until(lambda: quiet(s))

    run(main())


def test_websockets_over_tls(files: Files, tmp_path: Path):
    async def main():
        async with web_stage(tmp_path, APP, options=files.options()) as s:
            async with connect(f"wss://127.0.0.1:{s.port}/talk", ssl=files.client(), max_size=None) as client:
                assert await client.recv() == "wss"
                for size in (0, 1, 300_000, 5_000_000):
                    await client.send(b"x" * size)
                    assert len(await client.recv()) == size
            assert client.close_code == 1000
            raw = await raw_socket(s.port, "/talk", context=files.client())
            await raw.frame()
            raw.writer.close()
            await s.until(lambda: quiet(s) and s.server.ongoing == 0)

    run(main())


@pytest.mark.parametrize("piece", [1, 100, 65536])
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_request_that_comes_with_the_end_of_the_handshake_is_served(
    version: ssl.TLSVersion, piece: int, files: Files, tmp_path: Path
):
    def send(sock: socket.socket, data: bytes) -> None:
        for at in range(0, len(data), piece):
            sock.sendall(data[at : at + piece])

    def ask(port: int) -> bytes:
        """By hand, so that the last message of the handshake and the request leave together."""
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = files.client(minimum_version=version, maximum_version=version)
        tls = context.wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
        with socket.create_connection(("127.0.0.1", port)) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            shaken = False
            while not shaken:
                try:
                    tls.do_handshake()
                    shaken = True
                except ssl.SSLWantReadError:
                    send(sock, outgoing.read())
                    incoming.write(sock.recv(65536))
            tls.write(GET)
            send(sock, outgoing.read())
            answer = b""
            while not answer.endswith(b"}"):
                try:
                    answer += tls.read(65536)
                except ssl.SSLWantReadError:
                    data = sock.recv(65536)
                    assert data
                    incoming.write(data)
            return answer

    async def main():
        async with web_stage(tmp_path, APP, options=files.options()) as s:
            answers = await asyncio.gather(*(asyncio.to_thread(ask, s.port) for _ in range(10)))
            assert all(answer.startswith(b"HTTP/1.1 200") for answer in answers)
            await s.until(lambda: quiet(s))

    run(main())


def test_old_versions_are_refused(files: Files, tmp_path: Path):
    async def main():
        async with web_stage(tmp_path, APP, options=files.options()) as s:
            with pytest.warns(DeprecationWarning, match="TLSv1_1"):
                old = files.client(minimum_version=ssl.TLSVersion.TLSv1_1, maximum_version=ssl.TLSVersion.TLSv1_1)
            with pytest.raises(ssl.SSLError):
                await asyncio.open_connection("127.0.0.1", s.port, ssl=old)
            await s.until(lambda: quiet(s))

    run(main())


def test_clients_have_to_show_certificates_where_that_is_asked_for(files: Files, tmp_path: Path):
    async def main():
        async with web_stage(tmp_path, APP, options=files.options(ssl_ca_certs=files.ca)) as s:
            url = f"https://127.0.0.1:{s.port}/scope"
            stranger = files.client()
            trustme.CA().issue_cert("stranger").configure_cert(stranger)
            for context in (files.client(), stranger):
                async with httpx.AsyncClient(verify=context) as client:
                    with pytest.raises(httpx.TransportError):
                        await client.get(url)
            known = files.client()
            files.authority.issue_cert("friend").configure_cert(known)
            async with httpx.AsyncClient(verify=known) as client:
                assert (await client.get(url)).status_code == 200
            await s.until(lambda: quiet(s))

    run(main())


@pytest.mark.parametrize(
    ("data", "answered"),
    [
        (GET, False),
        (b"\x00" * 1000, False),
        (b"\x16\x03\x01\xff\xff" + b"x" * 70_000, False),
        (b"\x16\x03\x01\x00\x05hello", True),
        (b"", False),
    ],
)
def test_who_does_not_speak_tls_is_hung_up_on(data: bytes, answered: bool, files: Files, tmp_path: Path):
    async def main():
        async with web_stage(tmp_path, APP, options=files.options()) as s:
            reader, writer = await asyncio.open_connection("127.0.0.1", s.port)
            writer.write(data)
            if not data:
                writer.write_eof()
            try:
                said = await reader.read()
            except ConnectionResetError:
                said = b""
            assert b"HTTP" not in said  # at most an alert of TLS
            writer.close()
            await s.until(lambda: quiet(s))
            async with httpx.AsyncClient(verify=files.client()) as client:
                assert (await client.get(f"https://127.0.0.1:{s.port}/scope")).status_code == 200

    run(main())


@pytest.mark.parametrize("reply", [False, True])
@pytest.mark.parametrize(
    "data",
    [b"", b"\x16\x03\x01\x02\x00\x01\x00" + b"x" * 100, HELLO, HELLO[:50]],
    ids=["nothing", "nonsense", "hello", "half a hello"],
)
def test_who_resets_the_connection_is_forgotten_at_once(data: bytes, reply: bool, files: Files, tmp_path: Path):
    """Not when the time of its handshake is over, and without a traceback in the log."""

    def knock(port: int) -> None:
        sock = socket.create_connection(("127.0.0.1", port))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        sock.sendall(data)
        if reply and data == HELLO:
            sock.recv(1)
        sock.close()

    async def main():
        async with web_stage(tmp_path, APP, options=files.options(header_timeout_s=1000)) as s:
            complaints: list[dict[str, Any]] = []
            asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
            await asyncio.gather(*(asyncio.to_thread(knock, s.port) for _ in range(20)))
            if not reply:
                for _ in range(20):  # here all of it is there before the ingress looks
                    knock(s.port)
            await s.until(lambda: quiet(s))
            async with httpx.AsyncClient(verify=files.client()) as client:
                assert (await client.get(f"https://127.0.0.1:{s.port}/scope")).status_code == 200
            assert not complaints

    run(main())


def test_a_handshake_that_stalls_is_given_up(files: Files, tmp_path: Path):
    async def main():
        async with web_stage(tmp_path, APP, options=files.options(header_timeout_s=0.1)) as s:
            silent = await asyncio.open_connection("127.0.0.1", s.port)
            half = await asyncio.open_connection("127.0.0.1", s.port)
            half[1].write(b"\x16\x03\x01\x02\x00\x01")
            await s.until(lambda: len(s.door.handshakes) == 2)
            for reader, writer in (silent, half):
                assert await reader.read() == b""
                writer.close()
            await s.until(lambda: quiet(s))

    run(main())


def test_handshakes_count_as_connections(files: Files, tmp_path: Path):
    async def main():
        async with web_stage(tmp_path, APP, options=files.options(max_connections=2)) as s:
            silent = [await asyncio.open_connection("127.0.0.1", s.port) for _ in range(30)]
            await s.until(lambda: len(s.door.handshakes) > 2)
            assert len(s.door.handshakes) < 15
            for _, writer in silent:
                writer.close()
            await s.until(lambda: quiet(s))
            async with httpx.AsyncClient(verify=files.client()) as client:
                assert (await client.get(f"https://127.0.0.1:{s.port}/scope")).status_code == 200

    run(main())


def test_a_listener_that_leaves_loses_no_connection_and_no_handshake(files: Files, tmp_path: Path):
    def ask(sock: socket.socket) -> bytes:
        with files.client().wrap_socket(sock, server_hostname="127.0.0.1") as tls:
            tls.sendall(GET)
            return tls.recv(65536)

    async def main():
        async with web_stage(tmp_path, APP, options=files.options()) as s:
            begun = socket.create_connection(("127.0.0.1", s.port))
            await s.until(lambda: len(s.door.handshakes) == 1)
            # Blocking, so that the loop accepts none of them before it leaves.
            waiting = [socket.create_connection(("127.0.0.1", s.port)) for _ in range(10)]
            await s.listener.leave()
            draining = asyncio.ensure_future(s.door.drain(15))
            answers = await asyncio.gather(*(asyncio.to_thread(ask, sock) for sock in (begun, *waiting)))
            assert all(answer.startswith(b"HTTP/1.1 200") for answer in answers)
            await draining
            assert quiet(s)

    run(main())


def test_a_drain_does_not_wait_for_handshakes_for_ever(files: Files, tmp_path: Path):
    async def main():
        async with web_stage(tmp_path, APP, options=files.options()) as s:
            reader, writer = await asyncio.open_connection("127.0.0.1", s.port)
            await s.until(lambda: len(s.door.handshakes) == 1)
            await s.door.drain(0.05)
            assert quiet(s)
            assert await reader.read() == b""
            writer.close()

    run(main())


def test_the_key_may_be_encrypted_or_lie_with_the_certificate(files: Files):
    assert context_of(files.options(ssl_keyfile=files.closed_key, ssl_keyfile_password="open sesame")) is not None
    assert context_of(files.options(ssl_certfile=files.both, ssl_keyfile=None)) is not None
    assert context_of(HTTPOptions()) is None


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (lambda f: {"ssl_certfile": f.missing}, "ssl_certfile='{missing}' cannot be read: No such file"),
        (lambda f: {"ssl_keyfile": f.missing}, "ssl_keyfile='{missing}' cannot be read: No such file"),
        (lambda f: {"ssl_ca_certs": f.missing}, "ssl_ca_certs='{missing}' cannot be read: No such file"),
        (lambda f: {"ssl_certfile": str(f.folder)}, "ssl_certfile='{folder}' cannot be read: Is a directory"),
        (lambda f: {"ssl_certfile": f.nonsense}, "ssl_certfile='{nonsense}' must be a PEM file that begins with"),
        (lambda f: {"ssl_keyfile": f.nonsense}, "ssl_keyfile='{nonsense}' must be a PEM file with the key of ssl_cert"),
        (lambda f: {"ssl_ca_certs": f.nonsense}, "ssl_ca_certs='{nonsense}' must be a PEM file of certificates"),
        (lambda f: {"ssl_keyfile": f.other_key}, "the key in ssl_keyfile='{other_key}' does not belong to the cert"),
        (lambda f: {"ssl_keyfile": None}, "ssl_certfile='{cert}' holds no key: append it to the file, or give"),
        (lambda f: {"ssl_keyfile": f.closed_key}, "'{closed_key}' is encrypted: give its ssl_keyfile_password"),
        (
            lambda f: {"ssl_keyfile": f.closed_key, "ssl_keyfile_password": "sesame"},
            "ssl_keyfile_password does not open the key in ssl_keyfile='{closed_key}'",
        ),
    ],
)
def test_what_is_wrong_with_a_file_is_told_in_words_of_the_options(
    given: Callable[[Files], dict[str, Any]], told: str, files: Files
):
    with pytest.raises(OptionError) as caught:
        context_of(files.options(**given(files)))
    assert told.format(**vars(files)) in str(caught.value)
