"""Frames that are right and wrong, as Autobahn's test suite sends them (its sections are named), against an echo."""

from __future__ import annotations

import asyncio
import random
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from door_harness import run
from websocket_stage import RawSocket, WebStage, close_frame, frame, raw_socket, web_stage
from websockets.asyncio.client import connect
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory

from headrace.replica.websocket import Limits

TEXT, BINARY, CLOSE, PING, PONG = 0x81, 0x82, 0x88, 0x89, 0x8A
MORE_TEXT, MORE_BINARY, MORE, LAST = 0x01, 0x02, 0x00, 0x80
DEFLATE = b"Sec-WebSocket-Extensions: permessage-deflate"


async def echo(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({**message, "type": "websocket.send"})


def exchange(directory: Path, *sent: bytes, expect: list[tuple[int, bytes]], code: int | None, piece: int = 0) -> None:
    """Send the bytes (in pieces of this size), and see these frames come back, then a Close with the code; None: ours
    is answered.
    """

    async def main() -> None:
        async with web_stage(directory, echo) as s:
            raw = await raw_socket(s.port)
            data = b"".join(sent)
            for at in range(0, len(data), piece or len(data) or 1):
                await raw.send(data[at : at + (piece or len(data))])
            for wanted in expect:
                assert await raw.frame() == wanted
            if code is None:
                await raw.send(close_frame(1000))
                assert await raw.closed_with() == 1000
            else:
                assert await raw.closed_with() == code
            await s.until(lambda: s.server.ongoing == 0)

    run(main())


# --- 1: framing


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 128, 65535, 65536, 70_000])
@pytest.mark.parametrize("kind", [TEXT, BINARY])
def test_1_messages_of_all_ways_to_write_their_length(kind: int, size: int, tmp_path: Path):
    data = (b"*" if kind == TEXT else b"\xfe") * size
    exchange(tmp_path, frame(kind, data), expect=[(kind, data)], code=None, piece=997 if size else 0)


def test_1_lengths_that_are_written_longer_than_needed_or_than_can_be(tmp_path: Path):
    exchange(tmp_path, b"\x82\xff" + struct.pack(">Q", 1 << 63), expect=[], code=1009)


# --- 2: pings and pongs


@pytest.mark.parametrize("data", [b"", b"hello", b"\x00\xff\xfe", b"\xfe" * 125])
def test_2_pings_are_answered_with_what_they_carry(data: bytes, tmp_path: Path):
    exchange(tmp_path, frame(PING, data), expect=[(PONG, data)], code=None, piece=1)


def test_2_a_ping_that_is_too_long_is_an_error(tmp_path: Path):
    exchange(tmp_path, frame(PING, b"\xfe" * 126), expect=[], code=1002)


def test_2_pongs_that_nobody_asked_for_are_passed_over(tmp_path: Path):
    exchange(tmp_path, frame(PONG), frame(PONG, b"x"), frame(PING, b"y"), expect=[(PONG, b"y")], code=None)


def test_2_ten_pings_at_once(tmp_path: Path):
    pings = [frame(PING, b"payload-%d" % i) for i in range(10)]
    exchange(tmp_path, *pings, expect=[(PONG, b"payload-%d" % i) for i in range(10)], code=None)


# --- 3 and 4: reserved bits and opcodes; masks


@pytest.mark.parametrize("first", [0xC1, 0xA1, 0x91, 0xD2, 0xF2, 0xD9, 0xE8])
def test_3_reserved_bits_are_an_error(first: int, tmp_path: Path):
    exchange(tmp_path, frame(first, b"*" * 5), expect=[], code=1002)


@pytest.mark.parametrize("opcode", [3, 4, 5, 6, 7, 11, 12, 13, 14, 15])
def test_4_reserved_opcodes_are_an_error(opcode: int, tmp_path: Path):
    exchange(tmp_path, frame(0x80 | opcode, b"x"), expect=[], code=1002)


def test_a_frame_that_is_not_masked_is_an_error(tmp_path: Path):
    exchange(tmp_path, frame(TEXT, b"hello", mask=None), expect=[], code=1002)


# --- 5: fragments


@pytest.mark.parametrize("piece", [0, 1])
def test_5_fragments_with_control_frames_between_them(piece: int, tmp_path: Path):
    sent = [
        frame(MORE_TEXT, b"frag"),
        frame(PING, b"one"),
        frame(MORE),
        frame(MORE, b"ment"),
        frame(PING, b"two"),
        frame(LAST, b"s"),
        frame(MORE_BINARY, b"\xff"),
        frame(LAST, b"\xfe"),
    ]
    answers = {(PONG, b"one"), (PONG, b"two")}

    async def main() -> None:
        async with web_stage(tmp_path, echo) as s:
            raw = await raw_socket(s.port)
            for data in sent:
                for at in range(0, len(data), piece or len(data)):
                    await raw.send(data[at : at + (piece or len(data))])
            got = [await raw.frame() for _ in range(4)]
            assert [one for one in got if one[0] != PONG] == [(TEXT, b"fragments"), (BINARY, b"\xff\xfe")]
            assert {one for one in got if one[0] == PONG} == answers
            raw.writer.close()

    run(main())


@pytest.mark.parametrize(
    "sent",
    [
        [frame(0x09, b"fragmented ping")],
        [frame(0x0A, b"fragmented pong")],
        [frame(0x08)],
        [frame(MORE, b"continues nothing")],
        [frame(LAST, b"ends nothing")],
        [frame(MORE_TEXT, b"a"), frame(TEXT, b"another begins")],
        [frame(MORE_TEXT, b"a"), frame(MORE_BINARY, b"another begins")],
    ],
)
def test_5_fragments_out_of_order_are_an_error(sent: list[bytes], tmp_path: Path):
    exchange(tmp_path, *sent, expect=[], code=1002)


def test_5_a_message_in_very_many_fragments(tmp_path: Path):
    sent = [frame(MORE_BINARY, b"")] + [frame(MORE, bytes([i % 256])) for i in range(5000)] + [frame(LAST)]
    exchange(tmp_path, *sent, expect=[(BINARY, bytes(i % 256 for i in range(5000)))], code=None)


# --- 6: UTF-8

GOOD = ["", "κόσμε", "\U00010000\U0010ffff", "\ufffe\uffff", "a\x00b", "߿ࠀ￿"]
BAD = [
    b"\xff",
    b"\xfe",
    b"\x80",
    b"a\xbfb",
    b"\xc0\xaf",  # too long for what it writes
    b"\xe0\x80\xaf",
    b"\xf0\x80\x80\xaf",
    b"\xed\xa0\x80",  # half of a surrogate pair
    b"\xed\xa0\x80\xed\xb0\x80",
    b"\xf4\x90\x80\x80",  # beyond the last
    b"\xf8\x88\x80\x80\x80",
    b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xed\xa0\x80edited",
    b"\xc3",  # its end is missing
    b"\xf0\x9f\x98",
]


@pytest.mark.parametrize("text", GOOD)
@pytest.mark.parametrize("fragment", [0, 1])
def test_6_text_in_all_its_ways(text: str, fragment: int, tmp_path: Path):
    data = text.encode()
    sent = [frame(TEXT, data)]
    if fragment:
        # Characters are cut in two.
        sent = [frame(MORE_TEXT), *(frame(MORE, data[i : i + 1]) for i in range(len(data))), frame(LAST)]
    exchange(tmp_path, *sent, expect=[(TEXT, data)], code=None)


@pytest.mark.parametrize("data", BAD)
@pytest.mark.parametrize("fragment", [0, 1])
def test_6_what_is_not_utf_8_is_an_error(data: bytes, fragment: int, tmp_path: Path):
    sent = [frame(TEXT, data)]
    if fragment:
        sent = [frame(MORE_TEXT, b"ok"), *(frame(MORE, data[i : i + 1]) for i in range(len(data))), frame(LAST)]
    exchange(tmp_path, *sent, expect=[], code=1007)


def test_6_a_fragment_that_is_not_utf_8_need_not_be_the_last(tmp_path: Path):
    exchange(tmp_path, frame(MORE_TEXT, b"\xce\xba\xed\xa0\x80"), expect=[], code=1007)


# --- 7: closing


def test_7_what_comes_after_a_close_is_not_read(tmp_path: Path):
    sent = [close_frame(1000), frame(TEXT, b"too late"), frame(PING), b"\xff" * 100]
    exchange(tmp_path, *sent, expect=[], code=1000)


def test_7_a_close_in_the_midst_of_a_message(tmp_path: Path):
    exchange(tmp_path, frame(MORE_TEXT, b"half"), close_frame(1000), frame(LAST, b"lost"), expect=[], code=1000)


@pytest.mark.parametrize("code", [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999])
def test_7_codes_that_may_be_sent_are_sent_back(code: int, tmp_path: Path):
    exchange(tmp_path, close_frame(code), expect=[], code=code)


@pytest.mark.parametrize("code", [0, 999, 1004, 1005, 1006, 1016, 1100, 2000, 2999, 5000, 65535])
def test_7_codes_that_may_not_are_an_error(code: int, tmp_path: Path):
    exchange(tmp_path, close_frame(code), expect=[], code=1002)


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (frame(CLOSE), 1005),
        (frame(CLOSE, b"\x03"), 1002),
        (close_frame(1000, b"*" * 123), 1000),
        (frame(CLOSE, struct.pack(">H", 1000) + b"*" * 124), 1002),
        (close_frame(1000, b"\xce\xba\xed\xa0\x80"), 1007),
    ],
)
def test_7_what_a_close_carries(sent: bytes, code: int, tmp_path: Path):
    exchange(tmp_path, sent, expect=[], code=code)


# --- 9 and 10: sizes


@pytest.mark.parametrize(("size", "fragment", "code"), [(5000, 0, None), (5001, 0, 1009), (5001, 100, 1009)])
def test_9_a_message_has_a_largest_size(size: int, fragment: int, code: int | None, tmp_path: Path):
    data = b"x" * size
    sent = [frame(BINARY, data)]
    if fragment:
        parts = [data[at : at + fragment] for at in range(0, size, fragment)]
        sent = [frame(MORE_BINARY), *(frame(MORE, part) for part in parts), frame(LAST)]

    async def main() -> None:
        async with web_stage(tmp_path, echo, limits=Limits(max_message_bytes=5000)) as s:
            raw = await raw_socket(s.port)
            await raw.send(b"".join(sent))
            if code is None:
                assert await raw.frame() == (BINARY, data)
                raw.writer.close()
            else:
                assert await raw.closed_with() == code

    run(main())


def test_9_a_length_alone_is_enough_to_be_refused(tmp_path: Path):
    exchange(tmp_path, frame(BINARY, b"", size=16 * 1024 * 1024 + 1), expect=[], code=1009)


def test_9_the_largest_message_by_default(tmp_path: Path):
    async def main() -> None:
        async with web_stage(tmp_path, echo) as s, connect(s.url, max_size=None, compression=None) as client:
            data = random.Random(1).randbytes(16 * 1024 * 1024)
            await client.send(data)
            assert await client.recv() == data

    run(main())


# --- 12 and 13: compression


def compressed(data: bytes, bits: int = -12) -> bytes:
    squeezed = zlib.compressobj(wbits=bits)
    return (squeezed.compress(data) + squeezed.flush(zlib.Z_SYNC_FLUSH))[:-4]


async def deflated(stage: WebStage) -> RawSocket:
    raw = await raw_socket(stage.port, "/", DEFLATE + b"; client_max_window_bits")
    assert b"sec-websocket-extensions: permessage-deflate" in raw.head
    return raw


@pytest.mark.parametrize("size", [0, 16, 1000, 128 * 1024])
@pytest.mark.parametrize("takeover", [False, True])
def test_12_messages_of_all_sizes_are_compressed_both_ways(size: int, takeover: bool, tmp_path: Path):
    async def main() -> None:
        words = [b"head", b"race", b"water", b"wheel", b"model"]
        data = b" ".join(random.Random(size).choices(words, k=size // 5 + 1))[:size]
        factory = ClientPerMessageDeflateFactory(
            server_no_context_takeover=not takeover,
            client_no_context_takeover=not takeover,
            client_max_window_bits=True,
        )
        async with web_stage(tmp_path, echo) as s, connect(s.url, extensions=[factory], compression=None) as client:
            assert len(client.protocol.extensions) == 1
            for message in (data.decode(), data) * 5:
                await client.send(message)
                assert await client.recv() == message

    run(main())


@pytest.mark.parametrize("offer", [b"; server_max_window_bits=9", b"; server_max_window_bits=15", b""])
def test_13_what_a_client_may_ask_of_compression(offer: bytes, tmp_path: Path):
    async def main() -> None:
        async with web_stage(tmp_path, echo) as s:
            raw = await raw_socket(s.port, "/", DEFLATE + offer)
            if b"sec-websocket-extensions" in raw.head:
                await raw.send(frame(0xC1, compressed(b"hello hello hello", -9)))
                first, data = await raw.frame()
                assert first == 0xC1
                assert zlib.decompressobj(wbits=-15).decompress(data + b"\x00\x00\xff\xff") == b"hello hello hello"
            else:
                await raw.send(frame(TEXT, b"hello"))
                assert await raw.frame() == (TEXT, b"hello")
            raw.writer.close()

    run(main())


@pytest.mark.parametrize(
    "offer", [b"; nonsense", b"; server_max_window_bits=99", b", x-webkit-deflate-frame", b'; a="']
)
def test_13_offers_that_nobody_understands_are_passed_over_or_refused(offer: bytes, tmp_path: Path):
    async def main() -> None:
        async with web_stage(tmp_path, echo) as s:
            reader, writer = await asyncio.open_connection("127.0.0.1", s.port)
            writer.write(
                b"GET / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
                + DEFLATE
                + offer
                + b"\r\n\r\n"
            )
            line = await reader.readline()
            assert line.startswith((b"HTTP/1.1 101", b"HTTP/1.1 400"))
            writer.close()
            await s.until(lambda: s.server.ongoing == 0)

    run(main())


def test_12_what_cannot_be_decompressed_is_an_error(tmp_path: Path):
    async def main() -> None:
        async with web_stage(tmp_path, echo) as s:
            raw = await deflated(s)
            await raw.send(frame(0xC1, b"\xff" * 20))
            assert await raw.closed_with() == 1002

    run(main())


def test_12_a_bomb_is_stopped_at_the_largest_size(tmp_path: Path):
    async def main() -> None:
        async with web_stage(tmp_path, echo) as s:
            raw = await deflated(s)
            await raw.send(frame(0xC2, compressed(b"\x00" * 40_000_000)))
            assert await raw.closed_with() == 1009

    run(main())


def test_noise_of_all_kinds_ends_the_connection_and_nothing_else(tmp_path: Path):
    async def main() -> None:
        noise = random.Random(7)
        async with web_stage(tmp_path, echo) as s:
            for _ in range(50):
                raw = await raw_socket(s.port)
                await raw.send(noise.randbytes(noise.randrange(1, 3000)))
                raw.writer.write_eof()
                await raw.reader.read()
                raw.writer.close()
            await s.until(lambda: s.server.ongoing == 0 and not s.door.connections)
            raw = await raw_socket(s.port)
            await raw.send(frame(TEXT, b"well"))
            assert await raw.frame() == (TEXT, b"well")
            raw.writer.close()

    run(main())
