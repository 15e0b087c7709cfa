"""headrace.wire.payload: what goes in comes out, read-only where it is an array; broken bytes are errors; errors keep
their type and their traceback."""

from __future__ import annotations

import asyncio
import dataclasses
import pickle
import struct
import subprocess
import sys
import textwrap
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.spec import errors
from headrace.spec.errors import (
    BackPressureError,
    HeadraceError,
    OptionError,
    PayloadError,
    ProtocolError,
    RemoteTraceback,
    UserCodeError,
)
from headrace.wire.frames import ErrorInfo
from headrace.wire.payload import EXTERNAL_BYTES, Payload, decode, decode_error, encode, encode_error


def there_and_back(value: object) -> Any:
    payload = encode(value)
    return decode(payload.data, payload.buffers)


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.text(), inner)
        | st.tuples(inner, inner)
        | st.builds(bytearray, st.binary())
    ),
    max_leaves=12,
)


@given(plain)
def test_plain_values_come_back_equal(value: object) -> None:
    assert there_and_back(value) == value


def test_a_plain_value_is_its_pickle_and_nothing_more() -> None:
    payload = encode(((1, "a"), {"k": [2.5]}))

    assert payload.data == pickle.dumps(((1, "a"), {"k": [2.5]}), 5)
    assert not payload.buffers


@dataclasses.dataclass
class Sample:
    name: str
    pixels: np.ndarray[Any, Any]


ARRAYS = {
    "small": np.arange(3),
    "just inline": np.zeros(EXTERNAL_BYTES - 1, np.uint8),
    "just external": np.ones(EXTERNAL_BYTES, np.uint8),
    "large": np.random.default_rng(1).random((300, 500)),
    "fortran": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
    "with gaps": np.arange(20)[::2],
    "reversed": np.arange(20)[::-1],
    "large with gaps": np.zeros((1000, 1000))[:, ::2],
    "empty": np.zeros((0, 3)),
    "one number": np.array(2.5),
    "of objects": np.array([{"a": 1}, None, "x"], object),
    "of objects, two dimensions": np.array([[1, "a"], [None, 2.0]], object),
    "of texts": np.array(["ab", "c"]),
    "of dates": np.array(["2024-01-01"], "datetime64[D]"),
    "structured": np.array([(1, 2.0)], [("a", "i4"), ("b", "f8")]),
    "big endian": np.arange(4, dtype=">i4"),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_an_array_arrives_equal_and_read_only_wherever_it_stands(name: str) -> None:
    array = ARRAYS[name]
    alone, (in_list,), in_object = (there_and_back(v) for v in (array, [array], Sample("s", array)))

    for arrived in (alone, in_list, in_object.pixels):
        np.testing.assert_array_equal(arrived, array)
        assert arrived.dtype == array.dtype
        assert not arrived.flags.writeable
        with pytest.raises(ValueError, match="read-only"):
            arrived[...] = array


def test_large_buffers_stay_out_of_data_and_are_not_copied() -> None:
    small, large = np.arange(10), np.random.default_rng(1).random(100_000)
    payload = encode({"small": small, "large": large})

    assert len(payload.data) < 1000
    assert [buffer.nbytes for buffer in payload.buffers] == [large.nbytes]
    assert np.shares_memory(np.frombuffer(payload.buffers[0]), large)
    arrived = decode(payload.data, payload.buffers)
    assert np.shares_memory(arrived["large"], large)
    assert np.shares_memory(arrived["small"], np.frombuffer(payload.data, np.uint8))


@pytest.mark.parametrize("size", [EXTERNAL_BYTES - 1, EXTERNAL_BYTES, 3_000_000])
def test_large_bytes_at_the_top_stay_out_of_data(size: int) -> None:
    data = bytes(size)
    for value in (data, ((data, "x"), {}), ((1,), {"image": data}), ((data, data), {"image": data})):
        encoded = encode(value)
        assert bool(encoded.buffers) == (size >= EXTERNAL_BYTES)
        found = decode(encoded.data, encoded.buffers)
        assert found == value
        assert type(found if value is data else (*found[0], *found[1].values())[-1]) in (bytes, str)
        if encoded.buffers:
            assert len(encoded.data) < 1000
            assert all(buffer.obj is data for buffer in encoded.buffers)


def test_large_bytes_deeper_down_arrive_as_ever() -> None:
    value = {"images": [bytes(EXTERNAL_BYTES)], "array": bytearray(EXTERNAL_BYTES)}
    encoded = encode(value)
    assert decode(encoded.data, encoded.buffers) == value


def test_inline_buffers_are_aligned() -> None:
    arrays = [np.arange(n, dtype=np.uint8) for n in (1, 3, 17, 64)] + [np.arange(5.0)]

    for arrived in there_and_back(arrays):
        assert arrived.ctypes.data % 16 == 0


def test_one_array_twice_is_one_array_there() -> None:
    array = np.arange(10)
    a, b = there_and_back((array, array))

    assert a is b


def test_a_function_made_on_the_spot_comes_along() -> None:
    factor = 3

    assert there_and_back(lambda x: x * factor)(5) == 15


def test_objects_of_main_reach_a_process_that_has_another_main() -> None:
    script = """
        import dataclasses, sys
        import numpy as np
        from headrace.wire.payload import encode

        @dataclasses.dataclass
        class Point:
            x: int
            track: np.ndarray
            def double(self):
                return helper(self.x)

        def helper(x):
            return 2 * x

        payload = encode([Point(4, np.arange(10)[::2]), "__main__"])
        assert not payload.buffers
        sys.stdout.buffer.write(payload.data)
    """
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, check=True)
    point, text = decode(run.stdout)

    assert (point.x, point.double(), text) == (4, 8, "__main__")
    assert not point.track.flags.writeable


def test_the_text_main_in_plain_data_is_harmless() -> None:
    assert there_and_back(["__main__", Sample]) == ["__main__", Sample]


class Raises:
    def __reduce__(self) -> Any:
        raise RuntimeError("no pickle of me")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (threading.Lock(), ["_thread.lock"]),
        ({"model": [1, threading.Lock()]}, ["dict", "['model'][1]", "_thread.lock"]),
        (((), {"k": Sample("n", threading.Lock())}), ["[1]['k'].pixels", "_thread.lock"]),  # type: ignore[arg-type]
        ([Raises()], ["[0]", "Raises", "no pickle of me"]),
    ],
)
def test_what_cannot_be_pickled_is_named_with_the_way_to_it(value: object, words: list[str]) -> None:
    with pytest.raises(PayloadError) as caught:
        encode(value)

    for word in words:
        assert word in str(caught.value)


class RaisesWhenRestored:
    def __reduce__(self) -> Any:
        return int, ("not a number",)


def test_what_cannot_be_restored_is_a_payload_error() -> None:
    with pytest.raises(PayloadError, match="ValueError: invalid literal"):
        there_and_back([RaisesWhenRestored()])


@pytest.mark.parametrize("data", [b"", b"\x00", b"\x02abc", b"hello", b"\x01", b"\x01\0\0\0\xff\xff\xff\xff"])
def test_what_is_no_payload_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode(data)


@pytest.mark.parametrize("data", [b"\x80", b"\x80\x05", b"\x80\x05.", b"\x80\x05K", b"\x80\x05\x97."])
def test_a_broken_pickle_is_refused(data: bytes) -> None:
    with pytest.raises(PayloadError):
        decode(data)


def test_external_buffers_must_be_the_ones_that_were_named() -> None:
    array = np.zeros(EXTERNAL_BYTES, np.uint8)
    payload = encode(array)
    (buffer,) = payload.buffers

    for wrong in ([], [buffer, buffer], [buffer[:-1]]):
        with pytest.raises(ProtocolError):
            decode(payload.data, wrong)
    with pytest.raises(ProtocolError):
        decode(encode(1).data, [buffer])


@given(st.data())
def test_damaged_payloads_never_do_worse_than_an_error(data: st.DataObject) -> None:
    good = bytearray(encode([np.arange(6, dtype=np.uint8), np.arange(9, dtype=np.uint8), {"a": 1}]).data)
    head = 8 + 8 * 3
    for _ in range(data.draw(st.integers(1, 3))):
        good[data.draw(st.integers(0, head - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(good)))
    try:
        decode(bytes(good[:cut]))
    except HeadraceError:
        pass  # the only kind of error that may come out


def test_a_length_near_the_end_of_the_numbers_is_refused() -> None:
    stream = pickle.dumps(1, 5)
    for length in (2**63 - 1, 2**62, len(stream) + 1):
        data = struct.pack("<B3xIQQ", 1, 1, length, len(stream)) + stream
        with pytest.raises(ProtocolError):
            decode(data)


def test_a_payload_may_lie_in_a_memoryview() -> None:
    payload = encode({"a": np.arange(5)})
    for before in (b"", b"fra", b"frame..."):
        arrived = decode(memoryview(before + payload.data)[len(before) :])

        np.testing.assert_array_equal(arrived["a"], np.arange(5))
        assert arrived["a"].ctypes.data % 16 == 0
        assert not arrived["a"].flags.writeable


# Errors


def raised(exc: BaseException) -> BaseException:
    """The error with the traceback that it has when it comes out of user code."""
    try:
        raise exc
    except BaseException as caught:
        return caught


class ModelError(Exception):
    def __init__(self, model: str, code: int) -> None:
        super().__init__(f"model {model} failed with {code}")
        self.model = model
        self.code = code

    def __reduce__(self) -> Any:
        return ModelError, (self.model, self.code)


class Unrestorable(Exception):
    def __init__(self, a: int, b: int) -> None:
        super().__init__(f"{a} and {b}")


def test_a_users_error_keeps_type_attributes_notes_and_traceback() -> None:
    error = raised(ModelError("digits", 7))
    error.add_note("while warming up")
    info = encode_error(error)
    back = decode_error(info)

    assert info.status == 500
    assert type(back) is ModelError
    assert (back.model, back.code, str(back)) == ("digits", 7, "model digits failed with 7")
    assert "while warming up" in str(back.__cause__)
    assert isinstance(back.__cause__, RemoteTraceback)
    assert "in raised" in str(back.__cause__)
    assert "ModelError: model digits failed with 7" in str(back.__cause__)


def test_notes_travel_with_the_error() -> None:
    error = raised(ValueError("bad"))
    error.add_note("while warming up")

    assert decode_error(encode_error(error)).__notes__ == ["while warming up"]


def test_the_causes_of_an_error_are_in_its_traceback() -> None:
    error = ValueError("outer")
    error.__cause__ = raised(KeyError("inner"))
    text = encode_error(raised(error)).traceback_text

    assert text.index("KeyError: 'inner'") < text.index("direct cause") < text.index("ValueError: outer")


def test_an_error_that_does_not_survive_its_pickle_goes_by_name_and_text() -> None:
    back = decode_error(encode_error(raised(Unrestorable(1, 2))))

    assert isinstance(back, UserCodeError)
    assert str(back).endswith("Unrestorable: 1 and 2")
    assert "Unrestorable: 1 and 2" in back.traceback_text


def test_an_error_of_a_class_that_is_not_here_goes_by_name_and_text() -> None:
    script = """
        import sys, types
        import msgspec
        from headrace.wire.payload import encode_error
        module = types.ModuleType("only_there")
        exec("class Gone(Exception): pass", module.__dict__)
        sys.modules["only_there"] = module
        sys.stdout.buffer.write(msgspec.msgpack.encode(encode_error(module.Gone("bye"))))
    """
    import msgspec

    run = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, check=True)
    back = decode_error(msgspec.msgpack.decode(run.stdout, type=ErrorInfo))

    assert isinstance(back, Exception)
    assert str(back).endswith("bye")
    assert "Gone" in type(back).__name__ + str(back)


@pytest.mark.parametrize(
    "error", [SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError(), StopIteration(1), StopAsyncIteration()]
)
def test_what_means_something_to_the_loop_arrives_as_a_user_code_error(error: BaseException) -> None:
    back = decode_error(encode_error(raised(error)))

    assert isinstance(back, UserCodeError)
    assert type(error).__name__ in back.type_name


def test_a_forged_pickle_gives_no_system_exit() -> None:
    info = ErrorInfo("SystemExit", "bye", "", 500, pickle.dumps(SystemExit(0)))

    assert isinstance(decode_error(info), UserCodeError)


@pytest.mark.parametrize("pickled", [b"nonsense", pickle.dumps("a text"), b"\x80\x05."])
def test_a_broken_error_is_still_an_error(pickled: bytes) -> None:
    back = decode_error(ErrorInfo("some.Error", "it broke", "Traceback ...", 500, pickled))

    assert isinstance(back, UserCodeError)
    assert str(back) == "some.Error: it broke"


def test_our_frames_are_not_in_the_traceback() -> None:
    with pytest.raises(PayloadError) as caught:
        encode(threading.Lock())
    text = encode_error(caught.value).traceback_text

    assert "test_payload.py" in text
    assert "wire/payload.py" not in text


def test_back_pressure_keeps_its_status_and_when_to_come_back() -> None:
    info = encode_error(raised(BackPressureError("full", retry_after_s=2.5)))
    back = decode_error(info)

    assert (info.status, info.retry_after_s) == (503, 2.5)
    assert isinstance(back, BackPressureError)
    assert (back.retry_after_s, str(back)) == (2.5, "full")


def test_a_caller_error_in_user_code_is_not_the_clients_fault() -> None:
    assert encode_error(raised(OptionError("max_batch_size=0: must be at least 1"))).status == 500


@pytest.mark.parametrize("prefix", ["", "headrace.spec.errors."])
def test_an_error_of_ours_is_made_from_its_name(prefix: str) -> None:
    back = decode_error(ErrorInfo(prefix + "BackPressureError", "full", "", 503, b"", 4.0))

    assert isinstance(back, BackPressureError)
    assert back.retry_after_s == 4.0
    assert back.__cause__ is None


def all_errors() -> list[type[HeadraceError]]:
    found = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, HeadraceError)]
    return sorted(set(found), key=lambda c: c.__name__)


@pytest.mark.parametrize("kind", all_errors())
def test_every_error_of_ours_crosses_as_itself(kind: type[HeadraceError]) -> None:
    error = kind("what happened")
    back = decode_error(encode_error(raised(error)))

    assert type(back) is kind
    assert str(back) == str(error)
    assert {k: v for k, v in vars(back).items() if k != "__notes__"} == vars(error)


class BadStr(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


def test_an_error_without_a_text_still_crosses() -> None:
    info = encode_error(raised(BadStr()))

    assert "RuntimeError" in info.message
    assert isinstance(decode_error(info), Exception)


def test_payload_is_cheap_to_hold() -> None:
    payload = Payload(b"x")

    assert not hasattr(payload, "__dict__")
