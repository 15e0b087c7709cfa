"""What handlers of RPCs are given and raise, without a server around."""

from __future__ import annotations

import contextlib
import pickle
from typing import Any

import grpc
import pytest

from headrace.replica.grpc_context import Aborted, GrpcContext, gRPCStatusError
from headrace.spec.errors import OptionTypeError
from headrace.wire.frames import GrpcHead

HEAD = GrpcHead("/a.B/C", "unary_unary", [("k", "v"), ("k-bin", b"\x00")], "ipv4:1.2.3.4:5")


def test_what_is_set_can_be_read() -> None:
    context = GrpcContext(HEAD, "id")
    assert (context.code(), context.details(), context.trailing_metadata()) == (None, "", [])
    context.set_code(grpc.StatusCode.NOT_FOUND)
    context.set_details("gone")
    context.set_trailing_metadata((("a", "b"),))
    assert (context.code(), context.details()) == (grpc.StatusCode.NOT_FOUND, "gone")
    assert context.trailing_metadata() == [("a", "b")]
    assert context.time_remaining() is None
    assert context.invocation_metadata() == [("k", "v"), ("k-bin", b"\x00")]
    assert (context.peer_identity_key(), context.peer_identities()) == (None, None)


def test_abort_is_caught_by_no_except_exception() -> None:
    context = GrpcContext(HEAD, "id")

    def as_user_code_has_it() -> None:
        with contextlib.suppress(Exception):
            context.abort(5, "gone")

    with pytest.raises(Aborted):
        as_user_code_has_it()
    assert context.status.code == 5


@pytest.mark.parametrize(
    "metadata",
    [
        [("Upper", "x")],
        [("a b", "x")],
        [("grpc-status", "0")],
        [("a", b"x")],
        [("a", "\u00e9")],
        [("a", "x\n")],
        [("a-bin", "x")],
        [(1, "x")],
    ],
)
def test_metadata_that_cannot_be_sent(metadata: Any) -> None:
    context = GrpcContext(HEAD, "id")
    for set_metadata in (context.set_trailing_metadata, context.set_initial_metadata):
        with pytest.raises(OptionTypeError, match="metadata"):
            set_metadata(metadata)


@pytest.mark.parametrize("code", ["NOT_FOUND", 17, -1, True, None])
def test_a_code_that_is_none(code: Any) -> None:
    with pytest.raises(OptionTypeError, match=r"grpc\.StatusCode"):
        GrpcContext(HEAD, "id").set_code(code)


def test_a_compression_that_is_none() -> None:
    with pytest.raises(OptionTypeError, match=r"grpc\.Compression"):
        GrpcContext(HEAD, "id").set_compression(7)


def test_they_survive_pickling() -> None:
    context = pickle.loads(pickle.dumps(GrpcContext(HEAD, "id", 5.0)))
    assert (context.peer(), context.request_id) == ("ipv4:1.2.3.4:5", "id")
    error = pickle.loads(pickle.dumps(gRPCStatusError(ValueError("x"), grpc.StatusCode.ABORTED, "told")))
    assert (error.grpc_code, error.grpc_details, str(error)) == (grpc.StatusCode.ABORTED, "told", "x")
    assert isinstance(error.original_exception, ValueError)


def test_a_status_without_a_code_or_details() -> None:
    error = gRPCStatusError("so it is")
    assert error.grpc_code is None
    assert (error.as_status().code, error.as_status().details) == (2, "so it is")
