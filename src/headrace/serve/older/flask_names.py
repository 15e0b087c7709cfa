"""What code of 2020 and 2021 reads of a request besides Starlette's names: Flask's names for the same things.

In: a body, names and values. Out: values, and in `async def` code values that can be awaited as well. Needs no library,
for scripts have it too: to them a request is what they give to a handle.

Flask's `.json` and `.form` are values, Starlette's are methods to await. In plain code, which cannot await, they are
Flask's: the very dict, list, str, number or None. In `async def` code they are both: a dict (list, str, number) that
can also be called, `await request.json()`. There `true`, `false`, `null` and no JSON at all can be no such thing: they
are objects that compare, test as true or false, and can be called as well; `is None` is never true of them.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any

from headrace.spec.errors import InputError


class Arguments(Mapping[str, Any]):
    """Names and values, several of a name maybe: the first is what `[name]` and `get` give, as in Flask."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        self._pairs = pairs
        self._first: dict[str, Any] = {}
        for name, value in pairs:
            self._first.setdefault(name, value)

    def __getitem__(self, name: str) -> Any:
        return self._first[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._first)

    def __len__(self) -> int:
        return len(self._first)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._pairs!r})"

    def get(self, key: str, default: Any = None, type: Callable[[Any], Any] | None = None) -> Any:
        """The first value, made a `type`; `default` where there is none, or it cannot be made one."""
        if key not in self._first:
            return default
        value = self._first[key]
        if type is None:
            return value
        try:
            return type(value)
        except (ValueError, TypeError):
            return default

    def getlist(self, key: str) -> list[Any]:
        """All values of the name."""
        return [value for name, value in self._pairs if name == key]

    def multi_items(self) -> list[tuple[str, Any]]:
        """All pairs."""
        return list(self._pairs)

    def to_dict(self, flat: bool = True) -> dict[str, Any]:
        """First values by name; all of each name with `flat` False."""
        return dict(self._first) if flat else {name: self.getlist(name) for name in self._first}


class _Given:
    """What `await` gives at once; also `async with`, as of Starlette's forms."""

    def __init__(self, value: Any, error: Exception | None = None) -> None:
        self._value = value
        self._error = error

    def __await__(self) -> Generator[Any, None, Any]:
        if self._error is not None:
            raise self._error
        return self._value
        yield  # a generator, which ends without having waited

    async def __aenter__(self) -> Any:
        return await self

    async def __aexit__(self, *raised: object) -> None:
        pass


class _Called:
    """A value that can also be called, for the same value to await."""

    def __call__(self) -> _Given:
        return _Given(self._plain())

    def _plain(self) -> Any:
        raise NotImplementedError

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _itself, (self._plain(),)


def _itself(value: Any) -> Any:
    return value


class CalledDict(_Called, dict[str, Any]):
    def _plain(self) -> Any:
        return dict(self)


class CalledList(_Called, list[Any]):
    def _plain(self) -> Any:
        return list(self)


class CalledStr(_Called, str):
    def _plain(self) -> Any:
        return str(self)


class CalledInt(_Called, int):
    def _plain(self) -> Any:
        return int(self)


class CalledFloat(_Called, float):
    def _plain(self) -> Any:
        return float(self)


class CalledArguments(_Called, Arguments):
    def _plain(self) -> Any:
        return Arguments(self._pairs)


class CalledObject(_Called):
    """Any other value: equal to it, true as it is, with its attributes and items."""

    def __init__(self, value: Any, error: Exception | None = None) -> None:
        self._value = value
        self._error = error

    def __call__(self) -> _Given:
        return _Given(self._value, self._error)

    def _plain(self) -> Any:
        return self._value

    def __bool__(self) -> bool:
        return bool(self._value)

    def __eq__(self, other: object) -> bool:
        return bool(self._value == (other._value if isinstance(other, CalledObject) else other))

    def __hash__(self) -> int:
        return hash(self._value)

    def __repr__(self) -> str:
        return repr(self._value)

    def __getitem__(self, key: Any) -> Any:
        if self._error is not None:
            raise self._error
        return self._value[key]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if self._error is not None:
            raise self._error
        return getattr(self._value, name)


_CALLED: dict[type, Callable[[Any], Any]] = {
    dict: CalledDict,
    list: CalledList,
    str: CalledStr,
    int: CalledInt,
    float: CalledFloat,
    Arguments: CalledArguments,
}


def called(value: Any) -> Any:
    """The value as one that can also be called."""
    make = _CALLED.get(type(value))
    return CalledObject(value) if make is None else make(value)


class FlaskNames:
    """What Flask's requests have besides, over `_raw()` (the body), `_parsed()` and `_fields()`."""

    _asynchronous = False  # whether the code that gets it can await

    def _raw(self) -> Any:
        raise NotImplementedError

    def _parsed(self) -> Any:
        """The body as JSON. Raises InputError where it is none."""
        raise NotImplementedError

    def _fields(self) -> Any:
        """The form; raises InputError where it cannot be read."""
        raise NotImplementedError

    @property
    def data(self) -> Any:
        """The body: bytes of an HTTP request, the object that a handle's call was given."""
        return self._raw()

    def get_data(self, cache: bool = True, as_text: bool = False, parse_form_data: bool = False) -> Any:
        """The body, as text if asked for."""
        raw = self._raw()
        return raw.decode("utf-8", "replace") if as_text and isinstance(raw, bytes) else raw

    @property
    def json(self) -> Any:
        """The body as JSON, whatever its content type says; None in plain code where it is none."""
        try:
            value = self._parsed()
        except InputError as error:
            return CalledObject(None, error) if self._asynchronous else None
        return called(value) if self._asynchronous else value

    def get_json(self, force: bool = False, silent: bool = False, cache: bool = True) -> Any:
        """The body as JSON; None where it is none and `silent`. Raises InputError (400)."""
        try:
            return self._parsed()
        except InputError:
            if silent:
                return None
            raise

    @property
    def form(self) -> Any:
        """The fields of the form that was sent; none where none was."""
        fields = self._fields()
        return called(fields) if self._asynchronous else fields


class PythonRequest(FlaskNames):
    """What a handle's call was given, under the names of an HTTP request: `data` and, by name, `kwargs`."""

    def __init__(self, data: Any, kwargs: dict[str, Any], headers: dict[str, str], method: str) -> None:
        self._data = data
        self.kwargs = kwargs
        self.headers = headers
        self.method = method
        self.path = ""

    def __repr__(self) -> str:
        return f"<PythonRequest {self._data!r:.80} {self.kwargs!r:.80}>"

    @property
    def args(self) -> Arguments:
        """The keyword arguments of the call."""
        return Arguments(list(self.kwargs.items()))

    @property
    def query_params(self) -> Arguments:
        """The keyword arguments of the call."""
        return self.args

    async def body(self) -> Any:
        """The object that was given."""
        return self._data

    def _raw(self) -> Any:
        return self._data

    def _parsed(self) -> Any:
        return self._data

    def _fields(self) -> Any:
        return self._data
