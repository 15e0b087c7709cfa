"""What a call is about, for those who choose a replica by it: its arguments, its headers, its text.

In: a call that has not been sent. Out: what its bytes say, as far as they may be looked into: arguments of handles are
unpickled, for this process has pickled them itself; bodies of HTTP requests are read as JSON or text, never unpickled.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import msgspec

from headrace.wire import payload
from headrace.wire.frames import BROKEN, GRPC, HTTP, GrpcHead, HttpHead

if TYPE_CHECKING:
    from headrace.router.call import Call

LONGEST_JSON_BYTES = 1024 * 1024
PLAIN_BYTES = 4096  # of a body that is no JSON with a text in it

_decode_http = msgspec.msgpack.Decoder(HttpHead).decode
_decode_grpc = msgspec.msgpack.Decoder(GrpcHead).decode


class _Fields(msgspec.Struct):
    """The members of a JSON body, or of a dict, that hold text; in this order of preference."""

    prompt: Any = None
    messages: Any = None
    text: Any = None
    inputs: Any = None


_decode_fields = msgspec.json.Decoder(_Fields).decode


def arguments_of(call: Call) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call by handle; none where the call came from outside.

    Raises whatever unpickling a user's object raises.
    """
    data, buffers = (call.body, call.buffers) if call.about is None else (call.about.data, call.about.buffers)
    if call.kind & (HTTP | GRPC) or not data:
        return (), {}
    args, kwargs = payload.decode(data, buffers)  # type: ignore[arg-type]
    return args, kwargs


def headers_of(call: Call) -> dict[str, str]:
    """The headers of an HTTP request (names in lower case), or the metadata of an RPC; the last of one name counts."""
    try:
        if call.kind & HTTP:
            return {name.decode("latin-1"): value.decode("latin-1") for name, value in _decode_http(call.http).headers}
        if call.kind & GRPC:
            return {name: value for name, value in _decode_grpc(call.http).metadata if isinstance(value, str)}
    except BROKEN:
        pass  # a head that this process has made itself: there is none such
    return {}


def text_of(call: Call) -> str:
    """The text that the call is about: of a JSON body or a dict its `prompt`, `messages`, `text` or `inputs`, of other
    arguments the first string, of other bodies their beginning. "" where there is none.
    """
    if call.kind & GRPC:
        return ""
    if call.kind & HTTP:
        return _text_of_body(call.body)
    try:
        args, kwargs = arguments_of(call)
        return _text_of_arguments(args, kwargs)
    except Exception:  # whatever unpickling or reading a user's object raises: then there is no text to go by
        return ""


def _text_of_body(body: bytes) -> str:
    if body[:64].lstrip()[:1] == b"{" and len(body) <= LONGEST_JSON_BYTES:
        try:
            text = _text_of_fields(_decode_fields(body))
        except BROKEN:
            text = ""
        if text:
            return text
    return body[:PLAIN_BYTES].decode(errors="ignore")


def _text_of_arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    for argument in args:
        if isinstance(argument, str):
            return argument
        text = _text_of_value(argument)
        if text:
            return text
    return _text_of_value(kwargs)


def _text_of_value(value: Any) -> str:
    """Of a dict, or an object, with one of the members."""
    if isinstance(value, dict):
        named = {name: value[name] for name in _Fields.__struct_fields__ if name in value}
    elif isinstance(value, str | bytes | int | float | list | tuple | None):
        return ""
    else:
        named = {name: getattr(value, name, None) for name in _Fields.__struct_fields__}
    return _text_of_fields(_Fields(**named))


def _text_of_fields(fields: _Fields) -> str:
    for value in (fields.prompt, fields.messages, fields.text, fields.inputs):
        text = "\n".join(_texts(value, 4))
        if text:
            return text
    return ""


def _texts(value: Any, depth: int) -> Iterator[str]:
    """The strings in a text, a list of them, or messages with their roles and contents, in order."""
    if isinstance(value, str):
        yield value
    elif depth and isinstance(value, list | tuple):
        for each in value:
            yield from _texts(each, depth - 1)
    elif depth and isinstance(value, dict):
        for name in ("role", "content", "text"):
            yield from _texts(value.get(name), depth - 1)
