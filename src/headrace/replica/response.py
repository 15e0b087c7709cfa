"""What a handler returned, as an HTTP response: JSON, text, bytes, or the Starlette Response that it is.

In: the result of a handler. Out: a body and the msgpack of its ResponseHead, to the server.

JSON is written by msgspec: dicts, lists, tuples, sets, dataclasses, msgspec structs, attrs classes, datetimes, UUIDs,
Decimals (as strings), enums (by value), bytes inside of them (base64); a float that is NaN or infinite becomes null.
To these come numpy's and pydantic's objects, other mappings, sequences and subclasses of str and numbers.
"""

from __future__ import annotations

import collections
import datetime
import decimal
import enum
import os
import sys
import uuid
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.responses import Response

from headrace.spec.errors import InputError, NotServableError
from headrace.wire.frames import FAULT, HTTP, ResponseHead

if TYPE_CHECKING:
    from starlette.types import Message

    from headrace.replica.incoming import Incoming

_encode_head = msgspec.msgpack.Encoder().encode

# What user code raises as an answer to an HTTP request: it says the status, and is no failure.
ANSWERS = (HTTPException, InputError)

_KNOWN = frozenset((dict, list, tuple, set, frozenset, bytes, bytearray, memoryview, bool, type(None)))
JSON_HEAD = b""  # what the wire takes for 200 application/json
TEXT_HEAD = _encode_head(ResponseHead(200, [(b"content-type", b"text/plain; charset=utf-8")]))
BYTES_HEAD = _encode_head(ResponseHead(200, [(b"content-type", b"application/octet-stream")]))


def render(result: object) -> tuple[bytes, bytes]:
    """The body and the encoded head for a result that is no Starlette Response. Raises NotServableError."""
    if isinstance(result, str):
        return _utf8(result), TEXT_HEAD
    if isinstance(result, bytes | bytearray | memoryview):
        return bytes(result), BYTES_HEAD
    return json_body(result), JSON_HEAD


def json_body(value: object) -> bytes:
    """`value` as JSON. Raises NotServableError naming the type that has no place in JSON."""
    try:
        return _encode_json(value)
    except TypeError:
        pass  # maybe for a key that json.dumps takes, or a numpy one; to find out copies the value, so it is done last
    except (ValueError, RecursionError) as error:
        raise _not_servable(value, error) from error
    try:
        return _encode_json(_with_plain_keys(value, 0))
    except NotServableError:
        raise
    except (TypeError, ValueError, RecursionError) as error:
        raise _not_servable(value, error) from error


def _plain(value: Any) -> Any:
    """What msgspec does not know, as something that it does."""
    if type(value) in _KNOWN:  # msgspec asks for these only as keys
        raise _no_key(value)
    numpy = sys.modules.get("numpy")  # a value of it exists only where the user has imported it
    if numpy is not None:
        if isinstance(value, numpy.ndarray):
            return value.tolist()
        if isinstance(value, numpy.generic) and not isinstance(value, numpy.void):
            return value.item()
    pydantic = sys.modules.get("pydantic")
    if pydantic is not None and isinstance(value, pydantic.BaseModel):
        dump = getattr(value, "model_dump_json", None) or value.json  # pydantic 1 has only the latter
        return msgspec.Raw(dump().encode())
    for kind in (str, int, float):
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Sequence | AbstractSet | collections.deque):
        return list(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return _plain_frame(value)


def _plain_frame(value: Any) -> Any:
    pandas = sys.modules.get("pandas")
    if pandas is not None:
        if isinstance(value, pandas.DataFrame):
            return value.to_dict(orient="records")
        if isinstance(value, pandas.Series | pandas.Index):
            return value.tolist()
    raise NotServableError(f"a value of type {_name(value)} is not JSON-like{_hint(value)}")


_encode_json = msgspec.json.Encoder(enc_hook=_plain).encode


def _hint(value: object) -> str:
    if hasattr(value, "__next__") or hasattr(value, "__anext__"):
        return ": to stream, return starlette.responses.StreamingResponse(generator)"
    if hasattr(value, "__await__"):
        return ": it is to be awaited, and its result to be returned"
    return ": return a dict, list, str, bytes, dataclass, array or a starlette.responses.Response"


def _with_plain_keys(value: Any, depth: int) -> Any:
    if depth > 200:
        raise NotServableError("a result is nested more than 200 deep")
    if isinstance(value, dict):
        return {_plain_key(key): _with_plain_keys(item, depth + 1) for key, item in value.items()}
    if type(value) in (list, tuple):
        return [_with_plain_keys(item, depth + 1) for item in value]
    return value


def _plain_key(key: Any) -> Any:
    """A key as json.dumps writes it; numpy's as the number or string that they are."""
    if key is None:
        return "null"
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(key, numpy.generic):
        key = key.item()
    if isinstance(key, bool):
        return "true" if key else "false"
    for kind in (str, int, float):
        if isinstance(key, kind):
            return kind(key)
    if isinstance(key, enum.Enum | uuid.UUID | datetime.date | datetime.time | decimal.Decimal):
        return key
    raise _no_key(key)


def _no_key(key: object) -> NotServableError:
    return NotServableError(f"a value of type {_name(key)} cannot be a key in JSON: keys are strings and numbers")


def _not_servable(value: object, error: BaseException) -> NotServableError:
    why = f"{type(error).__name__}: {error}"
    return NotServableError(f"a value of type {_name(value)} cannot be written as JSON: {why}")


def _name(value: object) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise NotServableError(f"a str cannot be sent as text: {error}") from error


def is_whole(response: Response) -> bool:
    """Whether the response is only a status, headers and a body, so that it need not be run."""
    return type(response).__call__ is Response.__call__ and response.background is None


def send_whole(incoming: Incoming, response: Response) -> None:
    """Send a response that `is_whole`."""
    body = bytes(response.body)
    status = response.status_code
    incoming.reply(body, head_of_whole(status, response.raw_headers, body), flags_of(status))


def flags_of(status: int) -> int:
    """The flags of a reply with this HTTP status."""
    return HTTP | FAULT if status >= 500 else HTTP


def head_of_whole(status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> bytes:
    """The encoded head of a response whose body is known. Its length is the ingress's to tell, unless there is none of
    it (the answer to HEAD): so the heads of one handler are alike, and the ingress knows them again.
    """
    if body:
        headers = [header for header in headers if header[0].lower() != b"content-length"]
    return _encode_head(ResponseHead(status, headers))


class AsgiReply:
    """The ASGI send channel of one call. A response in one part goes as one frame; in more, as a stream that waits for
    its reader.
    """

    __slots__ = ("_head", "_incoming", "_streams", "finished")

    def __init__(self, incoming: Incoming) -> None:
        self._incoming = incoming
        self._head: tuple[int, list[tuple[bytes, bytes]]] | None = None
        self._streams = False
        self.finished = False  # the client has all of the response, and the slot is free

    async def send(self, message: Message) -> None:
        """Take the next ASGI message. Raises OSError when the client has left, RuntimeError for one out of turn."""
        kind = message["type"]
        if self.finished:
            raise RuntimeError(f"ASGI message {kind!r} after the end of the response")
        if self._incoming.cancelled:
            raise OSError("the client has left")
        if kind == "http.response.body" and self._head is not None:
            await self._send_body(self._head, message.get("body", b""), message.get("more_body", False))
        elif kind == "http.response.start" and self._head is None:
            headers = [(bytes(name), bytes(value)) for name, value in message.get("headers", ())]
            self._head = message["status"], headers
        else:
            raise RuntimeError(f"ASGI message {kind!r} out of turn")

    async def _send_body(
        self, head: tuple[int, list[tuple[bytes, bytes]]], body: bytes | bytearray | memoryview, more: bool
    ) -> None:
        incoming = self._incoming
        data = body if type(body) is bytes else bytes(body)
        if not self._streams:
            if not more:
                self.finished = True
                incoming.reply(data, head_of_whole(*head, data), flags_of(head[0]))
                return
            self._streams = True
            incoming.start_reply(data, _encode_head(ResponseHead(*head)), flags_of(head[0]))
            return
        if data and not incoming.write(data):
            await incoming.drained()
        if not more:
            self.finished = True
            incoming.end()

    def check_finished(self) -> None:
        """Raises NotServableError when the response was not sent to its end."""
        if not self.finished:
            raise NotServableError("the response ended without its last part (an ASGI body with more_body False)")
