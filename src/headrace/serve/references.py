"""Code and constructor arguments that stay as they are for replicas in this process: the same class, the same mock.

In: what `graph.py` finds in an application. Out: as of `wire/code.py` (see `graph.ByValue`), but pickles of keys, under
which the objects lie here until `release`. Where applications are bound among the arguments, handles take their places:
for that, and for nothing else, are containers and objects on the way there copied.
"""

from __future__ import annotations

import copy
import itertools
import pickle
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from headrace.handle import DeploymentHandle
from headrace.serve.digest import digest, unique
from headrace.spec.application import PickledCode
from headrace.spec.errors import PayloadError
from headrace.spec.options import DeploymentOptions

NameOf = Callable[[Any], str | None]

_objects: dict[int, Any] = {}
_keys = itertools.count(1)

# What never leads to an application, or leads to the whole of the process.
_LEAVES = (
    str,
    bytes,
    bytearray,
    int,
    float,
    complex,
    type(None),
    type,
    types.FunctionType,
    types.BuiltinFunctionType,
    types.ModuleType,
    DeploymentHandle,
)


def found(key: int) -> Any:
    """The object of this key. Raises PayloadError when it was let go, or lies in another process."""
    try:
        return _objects[key]
    except KeyError:
        raise PayloadError(
            "an object that was to stay in its process is not there (any more): the application that it belongs to was "
            "deleted or run again meanwhile"
        ) from None


class References:
    """How an application is packed whose replicas run in this process; it owns what it keeps for them.

    `handle_for(name)` makes what stands for a deployment. `shared` False: no replica of an earlier run serves on, for
    each deployment counts as changed.
    """

    def __init__(self, handle_for: Callable[[str], Any], *, shared: bool) -> None:
        self._handle_for = handle_for
        self._shared = shared
        self._kept: list[int] = []

    def __repr__(self) -> str:
        return f"<References to {len(self._kept)} objects>"

    def code(self, target: Callable[..., Any]) -> PickledCode:
        """The class or function itself."""
        return PickledCode(self._keep(target))

    def arguments(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], name_of: NameOf
    ) -> tuple[bytes, tuple[str, ...]]:
        """The arguments themselves, with a handle in the place of each bound application, and the names of those.

        Raises PayloadError where an application is bound in an object that cannot be copied.
        """
        search = _Search(name_of)
        given = (tuple(args), dict(kwargs))
        search.go_through(given)
        handles = {name: self._handle_for(name) for name in search.names.values()}
        filled = _Filling(search, handles).of(given) if handles else given
        return self._keep(filled), tuple(handles)

    def digest(
        self,
        target: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        options: DeploymentOptions,
        name_of: NameOf,
    ) -> tuple[str, dict[str, str]]:
        """As of other applications, or one that never was."""
        if self._shared:
            return digest(target, args, kwargs, options, name_of)
        return unique(), {}

    def reach(self, module: str) -> None:
        """Nothing: this process has the module."""

    def packs(self) -> dict[str, bytes]:
        """None: nothing is imported again."""
        return {}

    def release(self) -> None:
        """Let go of all: no replica will be started any more."""
        for key in self._kept:
            _objects.pop(key, None)
        self._kept.clear()

    def _keep(self, value: Any) -> bytes:
        key = next(_keys)
        _objects[key] = value
        self._kept.append(key)
        return pickle.dumps(_Reference(key), 5)


class _Reference:
    """Pickled, it is the object of the key."""

    def __init__(self, key: int) -> None:
        self.key = key

    def __reduce__(self) -> tuple[Any, ...]:
        return found, (self.key,)


class _Search:
    """Looks for applications in containers and in the attributes of objects.

    `names`: id of an application -> name of its deployment, in the order of appearance. `holders`: ids of all objects
    that lead to one.
    """

    def __init__(self, name_of: NameOf) -> None:
        self._name_of = name_of
        self.names: dict[int, str] = {}
        self.holders: set[int] = set()

    def go_through(self, value: Any) -> None:
        """Find all that `value` leads to. Not recursive: arguments may be deep, and lead back to themselves."""
        parents: dict[int, list[int]] = {id(value): []}
        alive: list[Any] = [value]  # temporary values too, so that no id comes twice
        waiting = [value]
        while waiting:
            at = waiting.pop()
            name = self._name_of(at)
            if name is not None:
                self.names[id(at)] = name
                continue
            parts = list(_parts(at))
            for part in reversed(parts):  # so that the first is the next
                known = parents.get(id(part))
                if known is None:
                    parents[id(part)] = [id(at)]
                    alive.append(part)
                    waiting.append(part)
                else:
                    known.append(id(at))
        leading = list(self.names)
        while leading:
            for parent in parents[leading.pop()]:
                if parent not in self.holders:
                    self.holders.add(parent)
                    leading.append(parent)


class _Filling:
    """Copies what leads to an application, with handles in; all else stays itself."""

    def __init__(self, search: _Search, handles: Mapping[str, Any]) -> None:
        self._search = search
        self._handles = handles
        self._made: dict[int, Any] = {}

    def of(self, value: Any) -> Any:
        key = id(value)
        if key in self._search.names:
            return self._handles[self._search.names[key]]
        if key not in self._search.holders:
            return value
        if key not in self._made:
            self._made[key] = value  # what leads back to itself finds itself as it was
            self._made[key] = self._filled(value)
        return self._made[key]

    def _filled(self, value: Any) -> Any:
        kind = type(value)
        if kind is list or kind is set or kind is frozenset:
            return kind(map(self.of, value))
        if kind is dict:
            return {self.of(key): self.of(part) for key, part in value.items()}
        if isinstance(value, tuple):
            return kind(map(self.of, value)) if kind is tuple else kind(*map(self.of, value))
        try:
            made = copy.copy(value)
            for name, part in _attributes(value):
                object.__setattr__(made, name, self.of(part))  # frozen dataclasses too
            if isinstance(value, list):
                made[:] = map(self.of, value)
            elif isinstance(value, dict):
                made.update({key: self.of(part) for key, part in value.items()})
        except Exception as error:  # a __copy__ of the user may raise anything
            raise PayloadError(
                f"an application is bound in a {kind.__name__}, which cannot be copied to put a handle in its place "
                f"({type(error).__name__}: {error}); pass the application as an argument of its own"
            ) from error
        return made


def _parts(value: Any) -> Iterator[Any]:
    """What the value leads to."""
    if isinstance(value, _LEAVES):
        return
    if isinstance(value, dict):
        for pair in value.items():
            yield from (part for part in pair if not isinstance(part, _LEAVES))
    elif isinstance(value, list | tuple | set | frozenset):
        yield from (part for part in value if not isinstance(part, _LEAVES))
    for _, part in _attributes(value):
        if not isinstance(part, _LEAVES):
            yield part


def _attributes(value: Any) -> Iterator[tuple[str, Any]]:
    """The attributes of the object itself, without any code of the user's being run."""
    try:
        own = object.__getattribute__(value, "__dict__")
    except AttributeError:
        own = {}
    yield from list(own.items())
    for kind in type(value).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__"):
                hidden = f"_{kind.__name__.lstrip('_')}{name}" if name.startswith("__") else name
                try:
                    yield hidden, object.__getattribute__(value, hidden)
                except AttributeError:
                    pass  # not set
