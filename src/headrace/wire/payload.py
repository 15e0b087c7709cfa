"""Objects to bytes and back: pickle protocol 5, large buffers apart from the rest, errors with the traceback they had.

In: arguments and results, from the handle and the replica. Out: a Payload, whose `data` goes in frames and whose
`buffers` (those over `EXTERNAL_BYTES`) the connection places in an arena or streams. What comes in from another process
is unpickled here, so nothing reaches this file before the connection has established whom it is from.

The layout of `data` is told by its first byte:

    0x80   the pickle itself, and nothing else (every pickle of protocol 2 and up starts with it)
    0x01   u8 0x01 | 3 zero bytes | u32 n | n x u64 length | u64 length of the pickle | pickle | buffers,
           little endian, each buffer at the next multiple of 16 from the start of `data`. A length whose top bit is
           set is that of an external buffer: its bytes are not in `data` but the next of `buffers`.

Arrays arrive read-only at every size: inline ones are views of the immutable `data`, external ones of what holds them.
Those that numpy would copy into the pickle (not contiguous, or of objects) are sent so that they arrive read-only too.
"""

from __future__ import annotations

import copyreg
import io
import pickle
import struct
import sys
import traceback
from collections import ChainMap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import cloudpickle
import msgspec

from headrace.spec import errors
from headrace.spec.errors import CallerError, HeadraceError, PayloadError, ProtocolError, RemoteTraceback, UserCodeError
from headrace.wire.frames import ErrorInfo

EXTERNAL_BYTES = 256 * 1024  # a buffer of at least so many bytes is not copied into `data`
ALIGN = 16  # what the data of a bytes object is aligned to, so aligning to more would be in vain

_PLAIN = 0x80
_WITH_BUFFERS = 1
_HEAD = struct.Struct("<B3xI")
_EXTERNAL = 1 << 63
_MAX_BUFFERS = 1 << 24
_REFERS = 0x93  # STACK_GLOBAL: a stream without it names no class and no function
_MAIN = b"__main__"
_COPIED_ARRAY = b"_reconstruct"  # what an array becomes that was copied into the stream

_dumps = pickle.dumps
_loads = pickle.loads


class Payload(msgspec.Struct, gc=False):
    """A value as bytes: `data`, and the external `buffers` in order, each a contiguous memoryview of bytes."""

    data: bytes
    buffers: Sequence[memoryview] = ()


def encode(value: object) -> Payload:
    """`value` as a Payload. Raises PayloadError naming what in it cannot be pickled.

    The buffers of the payload are those of `value`: it must not change until they are sent.
    """
    buffers: list[pickle.PickleBuffer] = []
    try:
        data = _dumps(value, 5, buffer_callback=buffers.append)
    except Exception:  # whatever a __reduce__ of the user raises: cloudpickle may do better
        return _encode_by_value(value)
    if _REFERS in data:
        if _MAIN in data:
            return _encode_by_value(value)
        if _COPIED_ARRAY in data:
            buffers = []
            data = _dump_with(_PlainPickler, value, buffers)
    if len(data) >= EXTERNAL_BYTES:
        lifted = _lift(value)
        if lifted is not value:
            return encode(lifted)
    if not buffers:
        return Payload(data)
    return _pack(data, buffers)


def _lift(value: object) -> object:
    """The value with large `bytes` at its top as buffers beside the pickle, which copies `bytes` into itself.

    The top is the value itself, and arguments as handles send them: `(args, kwargs)`.
    """
    if type(value) is bytes:
        return _Bytes(value) if len(value) >= EXTERNAL_BYTES else value
    if type(value) is tuple and len(value) == 2 and type(value[0]) is tuple and type(value[1]) is dict:
        args = tuple([_lift(each) if type(each) is bytes else each for each in value[0]])
        kwargs = {name: _lift(each) if type(each) is bytes else each for name, each in value[1].items()}
        if any(type(each) is _Bytes for each in (*args, *kwargs.values())):
            return args, kwargs
    return value


class _Bytes:
    """Stands for `bytes` in the stream, which arrive as such."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data

    def __reduce_ex__(self, protocol: Any) -> Any:
        return bytes, (pickle.PickleBuffer(self.data),)


def decode(data: bytes | memoryview, buffers: Sequence[memoryview] = ()) -> Any:
    """The value of a payload; arrays in it are read-only views of `data` and `buffers`, which must not change any more.

    Inline buffers of a memoryview are copied once: a part of a frame is not aligned as they need it.
    Raises ProtocolError when `data` is no payload or does not fit `buffers`, PayloadError when it is one that cannot be
    made into an object here (a module that this process cannot import, an error in a `__setstate__`).
    """
    first = data[0] if data else -1
    if first == _PLAIN:
        if buffers:
            raise ProtocolError(f"a payload without external buffers came with {len(buffers)}")
        return _load(data, ())
    if first == _WITH_BUFFERS:
        stream, found = _unpack(memoryview(bytes(data)), buffers)
        return _load(stream, found)
    raise ProtocolError(f"not a payload: its first byte is {first:#x}" if data else "not a payload: it is empty")


def _load(stream: bytes | memoryview, buffers: Sequence[memoryview]) -> Any:
    try:
        return _loads(stream, buffers=buffers)
    except Exception as error:  # a class of the user may raise anything while it is restored, broken bytes nearly so
        raise PayloadError(f"a value could not be restored from its pickle: {type(error).__name__}: {error}") from error


def _encode_by_value(value: object) -> Payload:
    """The payload of a value that refers to what only this process has (`__main__`, closures), which comes along."""
    buffers: list[pickle.PickleBuffer] = []
    try:
        data = _dump_with(_ValuePickler, value, buffers)
    except Exception as error:  # as in encode
        raise PayloadError(_what_fails(value, error)) from error
    return _pack(data, buffers) if buffers else Payload(data)


def _dump_with(
    pickler_class: type[_PlainPickler | _ValuePickler], value: object, into: list[pickle.PickleBuffer]
) -> bytes:
    file = io.BytesIO()
    pickler_class(file, into).dump(value)
    return file.getvalue()


class _PlainPickler(pickle.Pickler):
    """By reference, as pickle does it; arrays that pickle would copy into the stream arrive read-only as well."""

    def __init__(self, file: IO[bytes], buffers: list[pickle.PickleBuffer]) -> None:
        # the C pickler takes its table from the attribute while it is initialised
        table: ChainMap[Any, Any] = ChainMap(_array_reducers(), copyreg.dispatch_table)
        self.dispatch_table = table
        super().__init__(file, protocol=5, buffer_callback=buffers.append)


class _ValuePickler(cloudpickle.Pickler):  # type: ignore[misc]
    """By value where it must be, as cloudpickle does it; arrays as with _PlainPickler."""

    def __init__(self, file: IO[bytes], buffers: list[pickle.PickleBuffer]) -> None:
        self.dispatch_table = ChainMap(_array_reducers(), cloudpickle.Pickler.dispatch_table)
        super().__init__(file, protocol=5, buffer_callback=buffers.append)


def _array_reducers() -> dict[Any, Callable[[Any], Any]]:
    numpy = sys.modules.get("numpy")  # where nobody has imported it, there is no array
    return {} if numpy is None else {numpy.ndarray: _reduce_array}


def _reduce_array(array: Any) -> Any:
    if not array.flags.forc:
        array = array.copy(order="C")
    if array.dtype.kind in "mM":  # dates have no buffer of their own
        return _view_as, (array.view("i8"), array.dtype)
    reduced = array.__reduce_ex__(5)
    if reduced[0].__name__ != "_reconstruct":
        return reduced
    # An array of objects: whether it may be written does not travel, so it is set there.
    return _read_only, (_CopiedArray(reduced),)


class _CopiedArray:
    """Stands for an array in the stream, so that the pickler does not come back to `_reduce_array` with it."""

    def __init__(self, reduced: Any) -> None:
        self.reduced = reduced

    def __reduce__(self) -> Any:
        return self.reduced


def _view_as(array: Any, dtype: Any) -> Any:
    return array.view(dtype)


def _read_only(array: Any) -> Any:
    array.setflags(write=False)
    return array


def _pack(stream: bytes, buffers: list[pickle.PickleBuffer]) -> Payload:
    lengths: list[int] = []
    inline: list[memoryview] = []
    external: list[memoryview] = []
    for buffer in buffers:
        try:
            raw = buffer.raw()
        except BufferError as error:
            raise PayloadError(f"a buffer of the value is not contiguous: {error}") from error
        if raw.nbytes >= EXTERNAL_BYTES:
            lengths.append(raw.nbytes | _EXTERNAL)
            external.append(raw)
        else:
            lengths.append(raw.nbytes)
            inline.append(raw)
    count = len(lengths)
    parts: list[bytes | memoryview] = [
        _HEAD.pack(_WITH_BUFFERS, count),
        struct.pack(f"<{count + 1}Q", *lengths, len(stream)),
        stream,
    ]
    at = _HEAD.size + 8 * (count + 1) + len(stream)
    for raw in inline:
        pad = -at % ALIGN
        parts.append(bytes(pad))
        parts.append(raw)
        at += pad + raw.nbytes
    return Payload(b"".join(parts), external)


def _unpack(data: memoryview, external: Sequence[memoryview]) -> tuple[memoryview, list[memoryview]]:
    """The pickle stream and all buffers in order; every length is checked against what is there."""
    size = data.nbytes
    if size < _HEAD.size:
        raise ProtocolError(f"a payload of {size} bytes is shorter than its head of {_HEAD.size}")
    count = _HEAD.unpack_from(data)[1]
    at = _HEAD.size + 8 * (count + 1)
    if count > _MAX_BUFFERS or size < at:
        raise ProtocolError(f"a payload of {size} bytes cannot have {count} buffers")
    *lengths, stream_length = struct.unpack_from(f"<{count + 1}Q", data, _HEAD.size)
    if stream_length > size - at:
        raise ProtocolError(f"a pickle of {stream_length} bytes does not fit in a payload of {size}")
    stream = data[at : at + stream_length]
    at += stream_length
    found: list[memoryview] = []
    given = iter(external)
    for length in lengths:
        if length & _EXTERNAL:
            found.append(_next_external(given, length ^ _EXTERNAL))
            continue
        at += -at % ALIGN
        if length > size - at:
            raise ProtocolError(f"a buffer of {length} bytes at {at} is outside of a payload of {size}")
        found.append(data[at : at + length])
        at += length
    if at != size or next(given, None) is not None:
        raise ProtocolError(f"a payload of {size} bytes with {len(external)} external buffers has more than it names")
    return stream, found


def _next_external(given: Iterator[memoryview], length: int) -> memoryview:
    buffer = next(given, None)
    if buffer is None or buffer.nbytes != length:
        there = "none" if buffer is None else f"one of {buffer.nbytes}"
        raise ProtocolError(f"a payload names an external buffer of {length} bytes, and {there} came with it")
    return buffer.toreadonly()


def _what_fails(value: object, error: BaseException) -> str:
    """A sentence that names the innermost part of `value` that cannot be pickled, and the way to it."""
    path, part = "", value
    for _ in range(8):
        for step, child in _parts(part):
            if not _picklable(child):
                path, part = path + step, child
                break
        else:
            break
    where = f" at {path}" if path else ""
    return (
        f"a {type(value).__name__} cannot be sent: its part{where} of type {_full_name(type(part))} cannot be pickled "
        f"({type(error).__name__}: {error})"
    )


def _parts(value: object) -> Iterator[tuple[str, object]]:
    if isinstance(value, dict):
        for key, child in value.items():
            yield f"[{_short(key)}]", key
            yield f"[{_short(key)}]", child
    elif isinstance(value, list | tuple | set | frozenset):
        for index, child in enumerate(value):
            yield f"[{index}]", child
    else:
        try:
            attributes = vars(value)
        except TypeError:  # no __dict__
            return
        if not isinstance(value, type):
            for name, child in attributes.items():
                yield f".{name}", child


def _picklable(value: object) -> bool:
    try:
        cloudpickle.dumps(value, protocol=5, buffer_callback=_drop)
    except Exception:  # that it raises is the answer
        return False
    return True


def _drop(_buffer: pickle.PickleBuffer) -> None:
    """Leaves the buffer out of the stream."""


def _short(key: object) -> str:
    text = repr(key)
    return text if len(text) <= 40 else text[:37] + "..."


def _full_name(kind: type) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


# Errors

_PACKAGE = str(Path(errors.__file__).parents[1]) + "/"
_NOT_OF_THE_USER = ("/concurrent/futures/thread.py", "/asyncio/tasks.py", "/asyncio/events.py", "/asyncio/runners.py")


def encode_error(exc: BaseException) -> ErrorInfo:
    """An error that ended a call in user code, on its way to the caller; costs as much as pickling it twice.

    It travels as itself where it comes back from its pickle as the same type, else by name and text. By text go also
    those that mean something to the loop or the interpreter (SystemExit, CancelledError, StopIteration...). `status` is
    what an HTTP client gets: a HeadraceError that blames its caller blames the user code here, hence 500.
    """
    status, retry_after_s = 500, 0.0
    if isinstance(exc, HeadraceError):
        status = 500 if isinstance(exc, CallerError) else exc.status
        retry_after_s = float(getattr(exc, "retry_after_s", 0.0))
    return ErrorInfo(
        type_name=_full_name(type(exc)),
        message=_message(exc),
        traceback_text="" if _says_all(exc) else traceback_text(exc),
        status=status,
        pickled=_pickled_error(exc),
        retry_after_s=retry_after_s,
    )


def decode_error(info: ErrorInfo) -> BaseException:
    """The error as it was raised, with the traceback of its process as its `__cause__`. Never raises.

    It is a UserCodeError where the error could not travel. An ErrorInfo without `pickled` whose `type_name` is that of
    a class in `headrace.spec.errors` gives one of that class.
    """
    error = _unpickled_error(info.pickled) if info.pickled else None
    if error is None:
        error = _named_error(info)
    if info.traceback_text:
        error.__cause__ = RemoteTraceback(info.traceback_text)
    return error


def traceback_text(exc: BaseException) -> str:
    """The traceback as Python prints it, with causes and notes, without the frames of Headrace around user code."""
    report = traceback.TracebackException.from_exception(exc, compact=True)
    _trim(report, 0)
    return "".join(report.format())


def _says_all(exc: BaseException) -> bool:
    """Whether it is a mistake of the caller's that no code but Headrace's took part in: the message tells it."""
    related = exc.__cause__ or (None if exc.__suppress_context__ else exc.__context__)
    if related is not None or not isinstance(exc, CallerError):
        return False
    return all(_is_ours(frame.f_code.co_filename) for frame, _ in traceback.walk_tb(exc.__traceback__))


def _trim(report: traceback.TracebackException, depth: int) -> None:
    kept = [frame for frame in report.stack if not _is_ours(frame.filename)]
    if kept or depth:  # an error that is ours from end to end keeps its frames, unless it is only the cause of another
        report.stack = traceback.StackSummary.from_list(kept)
    related = [report.__cause__, report.__context__, *(getattr(report, "exceptions", None) or ())]
    for other in related:
        if other is not None and depth < 50:
            _trim(other, depth + 1)


def _is_ours(filename: str) -> bool:
    return filename.startswith(_PACKAGE) or filename.endswith(_NOT_OF_THE_USER)


def _pickled_error(exc: BaseException) -> bytes:
    if not _may_be_raised_again(exc):
        return b""
    try:
        pickled = bytes(cloudpickle.dumps(exc, protocol=5))
        same = type(_loads(pickled)) is type(exc)
    except Exception:  # constructors and attributes of users' errors raise what they like; it then goes by text
        return b""
    return pickled if same else b""


def _unpickled_error(pickled: bytes) -> Exception | None:
    try:
        error = _loads(pickled)
    except Exception:  # a class that only the replica can import; the text says what it was
        return None
    return error if isinstance(error, Exception) and _may_be_raised_again(error) else None


def _may_be_raised_again(exc: BaseException) -> bool:
    # CancelledError and the like are not Exceptions; these two end loops and break futures that they are put into
    return isinstance(exc, Exception) and not isinstance(exc, StopIteration | StopAsyncIteration)


def _named_error(info: ErrorInfo) -> Exception:
    kind = getattr(errors, info.type_name.removeprefix(errors.__name__ + "."), None)
    if isinstance(kind, type) and issubclass(kind, HeadraceError):
        error = kind(info.message)
        if hasattr(error, "retry_after_s"):
            error.retry_after_s = info.retry_after_s
        return error
    return UserCodeError(info.message, info.type_name, info.traceback_text)


def _message(exc: BaseException) -> str:
    try:
        return str(exc)
    except Exception as error:  # a __str__ of the user
        return f"<its __str__ raised {type(error).__name__}>"
