"""What running code knows of its request and its replica."""

import contextvars
import threading

import msgspec
import pytest

from headrace import context
from headrace.spec.errors import HeadraceError
from headrace.wire.frames import CallMeta, HttpHead

REPLICA = context.ReplicaContext(app_name="shop", deployment="Model", replica_id="Model#3")


def a_call(**fields: object) -> CallMeta:
    values = {"request_id": "r1", "app": "shop", "revision": 7, "snapshot": 1, "key": "shop/Model@0", "method": "run"}
    return CallMeta(**(values | fields))


def test_the_request_tells_what_its_call_carried() -> None:
    request = context.RequestContext(a_call(attempt=2, model_id="m", sticky="s", trace="t"), 12.5, REPLICA)
    assert (request.request_id, request.app, request.revision, request.deadline) == ("r1", "shop", 7, 12.5)
    assert (request.attempt, request.model_id, request.sticky, request.trace) == (2, "m", "s", "t")
    assert request.method == "run"
    assert request.route == ""


@pytest.mark.parametrize(("root_path", "route"), [("/shop", "/shop"), ("", "/")])
def test_the_route_of_an_http_request_is_its_prefix(root_path: str, route: str) -> None:
    head = HttpHead("GET", b"/shop/x", root_path, [], "1.1", "http", None, None)
    meta = a_call(http=msgspec.Raw(msgspec.msgpack.encode(head)))
    assert context.RequestContext(meta).route == route


def test_outside_of_any_call_there_is_no_request_and_no_replica() -> None:
    assert context.current_request() is None
    assert context.current_replica() is None
    with pytest.raises(HeadraceError, match="outside of a replica"):
        context.get_replica_context()


def test_the_request_s_replica_comes_before_that_of_the_surroundings() -> None:
    def inside() -> tuple[str, str]:
        context.replica_variable.set(context.ReplicaContext(app_name="a", deployment="D", replica_id="D#0"))
        outside_of_a_request = context.get_replica_context().replica_id
        context.request_variable.set(context.RequestContext(a_call(), None, REPLICA))
        return outside_of_a_request, context.get_replica_context().replica_tag

    assert contextvars.copy_context().run(inside) == ("D#0", "Model#3")
    assert context.current_replica() is None


def test_a_thread_of_the_user_finds_the_one_replica_of_its_process() -> None:
    seen: list[str] = []
    context.set_process_replica(REPLICA)
    try:
        thread = threading.Thread(target=lambda: seen.append(context.get_replica_context().deployment))
        thread.start()
        thread.join()
    finally:
        context.set_process_replica(None)
    assert seen == ["Model"]
