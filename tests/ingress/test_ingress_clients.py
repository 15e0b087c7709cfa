"""Clients of other make (httpx, aiohttp, http.client, curl), bodies in odd pieces: up, down, both ways at once."""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import itertools
import random
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import aiohttp
import httpx
import pytest
from door_harness import run
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from websocket_stage import WebStage, web_stage

DATA = random.Random(3).randbytes(700_001)
K64 = 64 * 1024
# How many bytes at a time, again and again; 0 is a part without any.
SIZES = {
    "single bytes": [1],
    "primes": [2, 3, 5, 7, 11, 13, 8191, 131071],
    "one less than a frame": [K64 - 1],
    "a frame": [K64],
    "one more than a frame": [K64 + 1],
    "less than a frame with its head": [K64 - 14],
    "with empty parts": [0, 1000, 0, 0, 60_000, 0],
    "all at once": [len(DATA)],
}
Ask = Callable[[str, list[bytes]], Awaitable[bytes]]


def body_of(name: str) -> bytes:
    return DATA[:1000] if name == "single bytes" else DATA


def pieces(body: bytes, sizes: list[int]) -> list[bytes]:
    found, at = [], 0
    for size in itertools.cycle(sizes):
        if at >= len(body):
            return found
        found.append(body[at : at + size])
        at += size
    return found


async def echo(request: Request) -> Response:
    return StreamingResponse(request.stream())


async def count(request: Request) -> Response:
    digest, size = hashlib.sha256(), 0
    async for part in request.stream():
        digest.update(part)
        size += len(part)
    return JSONResponse({"size": size, "digest": digest.hexdigest()})


async def download(request: Request) -> Response:
    name = request.query_params["name"]

    async def parts() -> AsyncIterator[bytes]:
        for piece in pieces(body_of(name), SIZES[name]):
            yield piece

    headers = {"content-length": str(len(body_of(name)))} if "length" in request.query_params else {}
    return StreamingResponse(parts(), headers=headers)


APP = Starlette(
    routes=[Route("/echo", echo, methods=["POST"]), Route("/count", count, methods=["POST"]), Route("/down", download)]
)


async def by_httpx(url: str, parts: list[bytes]) -> bytes:
    async def body() -> AsyncIterator[bytes]:
        for part in parts:
            yield part

    async with httpx.AsyncClient(timeout=15) as client:
        response = await (client.post(url, content=body()) if parts else client.get(url))
        assert response.status_code == 200
        return response.content


async def by_aiohttp(url: str, parts: list[bytes]) -> bytes:
    async def body() -> AsyncIterator[bytes]:
        for part in parts:
            yield part

    async with (
        aiohttp.ClientSession() as client,
        client.post(url, data=body()) if parts else client.get(url) as response,
    ):
        assert response.status == 200
        return await response.read()


async def by_http_client(url: str, parts: list[bytes]) -> bytes:
    def ask() -> bytes:
        target = httpx.URL(url)
        connection = http.client.HTTPConnection(target.host, target.port or 80, timeout=15)
        try:
            path = target.raw_path.decode()
            if parts:
                # It takes an empty part for the end, so it gets none.
                connection.request("POST", path, body=iter([p for p in parts if p]), encode_chunked=True, headers={})
            else:
                connection.request("GET", path)
            response = connection.getresponse()
            assert response.status == 200
            return response.read()
        finally:
            connection.close()

    return await asyncio.to_thread(ask)


async def by_curl(url: str, parts: list[bytes]) -> bytes:
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("curl is not installed")

    def ask() -> bytes:
        upload = ("-X", "POST", "-T", "-", "-H", "Expect:") if parts else ()
        command = [curl, "-sS", "--fail", "-N", "--max-time", "15", *upload, url]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            with process.stdin as pipe:
                if parts and "echo" not in url:
                    for part in parts:
                        pipe.write(part)
                elif parts:
                    # It may answer before all is written: a thread of its own writes.
                    return process.communicate(b"".join(parts))[0]
            answer = process.stdout.read()
        assert process.returncode == 0
        return answer

    return await asyncio.to_thread(ask)


CLIENTS: dict[str, Ask] = {
    "httpx": by_httpx,
    "aiohttp": by_aiohttp,
    "http.client": by_http_client,
    "curl": by_curl,
}


@pytest.mark.parametrize("client", CLIENTS)
def test_uploads_downloads_and_echoes_in_pieces_of_all_sizes(client: str, tmp_path: Path):
    ask = CLIENTS[client]

    async def main() -> None:
        async with web_stage(tmp_path, APP) as s:
            url = f"http://127.0.0.1:{s.port}"
            for name, sizes in SIZES.items():
                body = body_of(name)
                parts = pieces(body, sizes)
                digest = hashlib.sha256(body).hexdigest()
                assert await ask(f"{url}/count", parts) == b'{"size":%d,"digest":"%b"}' % (len(body), digest.encode())
                for length in ({}, {"length": "1"}):
                    query = httpx.QueryParams({"name": name} | length)
                    assert await ask(f"{url}/down?{query}", []) == body
                if client != "http.client":  # it sends all before it reads
                    assert await ask(f"{url}/echo", parts) == body
            await all_done(s)

    run(main())


async def all_done(stage: WebStage) -> None:
    await stage.until(lambda: stage.server.ongoing == 0 and not stage.door.connections)


@pytest.mark.parametrize("length", [False, True])
def test_both_directions_at_once_by_turns(length: bool, tmp_path: Path):
    """Each part is sent when the one before has come back: nothing on the way waits for more."""

    async def main() -> None:
        async with web_stage(tmp_path, APP) as s:
            parts = [DATA[:n] for n in (1, 2, 1000, 1, K64 + 1, 3)]
            came = asyncio.Queue[int]()

            async def body() -> AsyncIterator[bytes]:
                # Bodies up to 64 KiB are collected: what is longer streams.
                yield DATA[: K64 + 1]
                for part in parts:
                    await came.get()
                    yield part

            sent = DATA[: K64 + 1] + b"".join(parts)
            headers = {"content-length": str(len(sent))} if length else {}
            async with (
                aiohttp.ClientSession(headers=headers) as client,
                client.post(f"http://127.0.0.1:{s.port}/echo", data=body()) as response,
            ):
                got, due = b"", K64 + 1
                for part in [*parts, b""]:
                    while len(got) < due:
                        got += await response.content.readany()
                    due += len(part)
                    came.put_nowait(len(part))
                assert got + await response.read() == sent
            await all_done(s)

    run(main())


@pytest.mark.parametrize("seed", range(3))
def test_chunks_as_a_client_may_write_them_arrive_as_they_like(seed: int, tmp_path: Path):
    """By hand: extensions, leading zeros, trailers; cut anywhere, several requests on one connection."""
    choice = random.Random(seed)

    def chunked(body: bytes) -> Iterator[bytes]:
        at = 0
        while at < len(body):
            part = body[at : at + choice.choice([1, 2, 17, 1000, K64 - 1, K64, K64 + 1, 200_000])]
            at += len(part)
            size = b"%x" % len(part) if choice.random() < 0.5 else b"000%X" % len(part)
            yield size + choice.choice([b"", b";a=b", b';name="x y"']) + b"\r\n" + part + b"\r\n"
        yield choice.choice([b"0\r\n\r\n", b"0\r\nX-Sum: 7\r\nX-More: 8\r\n\r\n"])

    def talk(port: int) -> None:
        with socket.create_connection(("127.0.0.1", port), timeout=15) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            reader = sock.makefile("rb")
            for size in (0, 1, 70_000, 3, 400_000):
                head = b"POST /count HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
                data = head + b"".join(chunked(DATA[:size]))
                at = 0
                while at < len(data):
                    step = choice.choice([1, 5, 100, 4095, 4096, 4097, K64, K64 + 1])
                    sock.sendall(data[at : at + step])
                    at += step
                assert reader.readline() == b"HTTP/1.1 200 OK\r\n"
                headers = http.client.parse_headers(reader)
                digest = hashlib.sha256(DATA[:size]).hexdigest().encode()
                assert reader.read(int(headers["content-length"])) == b'{"size":%d,"digest":"%b"}' % (size, digest)

    async def main() -> None:
        async with web_stage(tmp_path, APP) as s:
            await asyncio.to_thread(talk, s.port)
            await all_done(s)

    run(main())
