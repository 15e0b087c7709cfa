"""headrace.serve.references: applications packed so that their replicas in this process get the very objects."""

from __future__ import annotations

import threading
from collections import namedtuple
from dataclasses import dataclass
from typing import Any
from unittest.mock import MagicMock, Mock

import pytest

from headrace import serve
from headrace.serve.graph import build
from headrace.serve.references import References
from headrace.spec.application import ApplicationSpec
from headrace.spec.errors import GraphError, PayloadError
from headrace.wire.code import load_code, unpack_arguments


@serve.deployment
class Holder:
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass


@serve.deployment
class Leaf:
    pass


@serve.deployment
def function() -> None:
    pass


Pair = namedtuple("Pair", "left right")


@dataclass(frozen=True)
class Frozen:
    inner: Any
    other: Any = None


@dataclass(slots=True)
class Slotted:
    inner: Any


class Table(dict):  # type: ignore[type-arg]
    pass


def packed(app: serve.Application, *, shared: bool = False) -> tuple[ApplicationSpec, References]:
    references = References(lambda name: f"handle of {name}", shared=shared)
    return build(app, packing=references), references


def arguments(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What the constructor of a replica gets for these arguments of bind."""
    spec, _ = packed(Holder.bind(*args, **kwargs))
    return unpack_arguments(spec.deployments[-1].arguments, lambda _: pytest.fail("no handle is made at the replica"))


def test_code_is_the_class_itself_also_where_no_module_has_it() -> None:
    @serve.deployment
    class Local:
        pass

    for deployment in (Local, Leaf, function):
        spec, _ = packed(deployment.bind())
        assert load_code(spec.deployments[0].code) is deployment.func_or_class


@pytest.mark.parametrize(
    "value", [Mock(), MagicMock(), threading.Lock(), lambda: 1, [1, 2], {"a": [1]}, Frozen(1), (1, 2), open]
)
def test_arguments_are_the_objects_themselves(value: Any) -> None:
    (got,), kwargs = arguments(value, named=value)
    assert got is value
    assert kwargs["named"] is value


def test_bound_applications_become_handles_wherever_they_are_and_all_else_stays() -> None:
    leaf, mock = Leaf.bind(), Mock()
    other = [mock]
    deep: list[Any] = []
    for _ in range(5000):  # deeper than Python's own recursion goes
        deep = [deep]

    spec, _ = packed(
        Holder.bind(
            leaf,
            [leaf, other],
            (leaf, mock),
            {"a": leaf, leaf: 1},
            Pair(leaf, 2),
            Frozen(leaf, mock),
            Slotted(leaf),
            deep,
        )
    )
    assert [each.name for each in spec.deployments] == ["Leaf", "Holder"]
    assert spec.deployments[1].uses == ("Leaf",)
    args, _ = unpack_arguments(spec.deployments[1].arguments, str)
    handle = "handle of Leaf"
    assert args[0] == handle
    assert args[1] == [handle, other]
    assert args[1][1] is other
    assert args[2] == (handle, mock)
    assert args[3] == {"a": handle, handle: 1}
    assert args[4] == Pair(handle, 2)
    assert args[5] == Frozen(handle, mock)
    assert args[6] == Slotted(handle)
    assert args[7] is deep


def test_subclasses_of_containers_are_copied_with_what_they_are() -> None:
    table = Table(a=Leaf.bind())
    table.note = "kept"
    (got,), _ = arguments(table)
    assert type(got) is Table
    assert got == {"a": "handle of Leaf"}
    assert got.note == "kept"
    assert isinstance(table["a"], serve.Application)  # the user's own is as it was


def test_what_leads_back_to_itself_is_gone_through_once() -> None:
    ring: list[Any] = [Mock()]
    ring.append(ring)
    (got,), _ = arguments(ring)
    assert got is ring
    ring.append(Leaf.bind())
    (got,), _ = arguments(ring)
    assert got[2] == "handle of Leaf"


def test_names_are_given_in_the_order_of_appearance() -> None:
    first, second = Leaf.bind(), Leaf.bind()
    spec, _ = packed(Holder.bind({"x": [first]}, second))
    args, _ = unpack_arguments(spec.deployments[-1].arguments, str)
    assert args == ({"x": ["handle of Leaf"]}, "handle of Leaf_1")


def test_an_object_that_cannot_be_copied_is_told() -> None:
    class Single:
        def __init__(self) -> None:
            self.inner = Leaf.bind()

        def __copy__(self) -> None:
            raise TypeError("there is one")

    with pytest.raises(PayloadError, match=r"Holder.bind.*Single, which cannot be copied.*there is one"):
        arguments(Single())


def test_errors_of_a_graph_are_as_ever() -> None:
    box: list[Any] = []
    app = Holder.bind(box)
    box.append(app)
    with pytest.raises(GraphError, match="lead back to itself"):
        packed(app)
    with pytest.raises(GraphError, match="unbound deployment"):
        packed(Holder.bind(Leaf))


def test_a_run_counts_as_changed_unless_replicas_are_shared() -> None:
    def digest(shared: bool) -> str:
        return packed(Leaf.bind(), shared=shared)[0].deployments[0].digest

    assert digest(shared=False) != digest(shared=False)
    assert digest(shared=True) == digest(shared=True)


def test_what_was_let_go_is_not_found_any_more() -> None:
    spec, references = packed(Holder.bind(Mock()))
    references.release()
    with pytest.raises(PayloadError, match="not there"):
        unpack_arguments(spec.deployments[0].arguments, str)
