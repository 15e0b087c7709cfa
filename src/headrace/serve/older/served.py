"""What a replica of a backend is: the user's class or function, which gets requests as it did in its time.

In: requests of HTTP and calls of handles. Out: calls of the user's code, one at a time where it is plain, with lists of
requests where it accepts batches; its results.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from starlette.exceptions import HTTPException

from headrace.context import current_replica
from headrace.replica.request import HttpRequest
from headrace.serve.batching import batch
from headrace.serve.older.flask_names import PythonRequest
from headrace.serve.older.kinds import (
    ServedConfig,
    accepts_batches,
    batch_size,
    is_asynchronous,
    under_construction,
    web,
)
from headrace.serve.older.request import OlderHttpRequest, OlderPassedRequest
from headrace.spec.errors import OptionError

CALL_METHOD = "x-serve-call-method"

_Request = OlderHttpRequest | PythonRequest


class _Method:
    """A method of the user's with what has to be known to call it."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.asynchronous = is_asynchronous(function)
        self.accepts_batches = accepts_batches(function)
        self.takes = 0  # whether it takes the request
        self.named: set[str] = set()  # what it can be given besides
        self.all_named = False
        try:
            parameters = list(inspect.signature(function).parameters.values())
        except (TypeError, ValueError):  # of an extension module
            self.takes = 1
            return
        positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        self.takes = int(bool(positional) or any(p.kind is p.VAR_POSITIONAL for p in parameters))
        named = [*positional[1:], *(p for p in parameters if p.kind is p.KEYWORD_ONLY)]
        self.named = {p.name for p in named if p.kind is not p.POSITIONAL_ONLY}
        self.all_named = any(p.kind is p.VAR_KEYWORD for p in parameters)

    def by_name(self, request: _Request) -> dict[str, Any]:
        """The keyword arguments of a handle's call that the function has parameters for."""
        if not isinstance(request, PythonRequest) or not (self.named or self.all_named):
            return {}
        return {name: value for name, value in request.kwargs.items() if self.all_named or name in self.named}

    def call(self, request: _Request) -> Any:
        """What the user's code returns, to be awaited where it is asynchronous."""
        web.set(not isinstance(request, PythonRequest))
        if self.accepts_batches:
            batch_size.set(1)
            return self._first_of(self.call_batch([request]))
        args = (request,) if self.takes else ()
        return self.function(*args, **self.by_name(request))

    def call_batch(self, requests: Sequence[_Request]) -> Any:
        """As `call`, for a list of requests."""
        from_python = all(isinstance(request, PythonRequest) for request in requests)
        web.set(not from_python)
        batch_size.set(len(requests))
        named: dict[str, list[Any]] = {}
        if from_python:
            given = [self.by_name(request) for request in requests]
            named = {name: [each.get(name) for each in given] for name in {name for each in given for name in each}}
        return self.function(list(requests), **named)

    def _first_of(self, results: Any) -> Any:
        if not inspect.isawaitable(results):
            return results[0]

        async def first() -> Any:
            return (await results)[0]

        return first()


class Backend:
    """The servable of a backend's replicas: an instance of the user's class, or the function, in its time's clothes."""

    def __init__(self, tag: str, target: Callable[..., Any], init_args: tuple[Any, ...]) -> None:
        self._backend_tag = tag
        under_construction.set(tag)  # for a constructor that asks for it: this is no servable yet
        self._config = ServedConfig()
        self._servable = target(*init_args) if inspect.isclass(target) else target
        self._is_function = not inspect.isclass(target)
        self._methods: dict[str, _Method] = {}
        self._batched: list[Any] = []
        if self._is_function or callable(self._servable):
            # Of the instance, so that the replica sees what kind of function it is.
            self.__call__ = self._adapted("__call__")  # type: ignore[method-assign]

    def __repr__(self) -> str:
        return f"<Backend {self._backend_tag}>"

    def __call__(self, request: Any) -> Any:
        called = self.__dict__.get("__call__")
        if called is not None:
            return called(request)
        # A class of methods alone: HTTP requests name theirs.
        request = self._arrived(request, asynchronous=False)
        method = self._named(request)
        if method is None:
            raise AttributeError(f"backend {self._backend_tag!r} has no __call__: name the method that is meant")
        return method.call(request)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or self._is_function or not callable(getattr(self._servable, name, None)):
            raise AttributeError(f"backend {self.__dict__.get('_backend_tag')!r} has no method {name!r}")
        adapted = self.__dict__[name] = self._adapted(name)
        return adapted

    async def reconfigure(self, given: dict[str, Any]) -> None:
        """Take over what may change in place; the user's `reconfigure` is called when its own config has changed."""
        before, self._config = self._config, msgspec.convert(given, ServedConfig)
        for batched in self._batched:
            self._configure(batched)
        config = self._config.user_config
        if config is None or config == before.user_config:
            return
        method = getattr(self._servable, "reconfigure", None)
        if not callable(method):
            raise OptionError(
                f"backend {self._backend_tag!r} has a user_config, but no method reconfigure(user_config) to take it"
            )
        if inspect.iscoroutinefunction(method):
            await method(config)
        else:
            await asyncio.to_thread(method, config)

    # ---- how calls get to the user's methods

    def _method(self, name: str) -> _Method:
        method = self._methods.get(name)
        if method is None:
            servable = self._servable
            function: Any = servable if self._is_function else getattr(servable, name)
            method = self._methods[name] = _Method(function)
        return method

    def _adapted(self, name: str) -> Callable[..., Any]:
        """What the replica calls for the method: of the method's own kind, so that it runs where that should."""
        method = self._method(name)
        if method.accepts_batches:
            return self._in_batches(method)
        if method.asynchronous:

            async def call_asynchronous(request: Any) -> Any:
                request = await self._arrives(request, asynchronous=True)
                other = self._named(request) if name == "__call__" else None
                return await self._result(other or method, request)

            return call_asynchronous

        def call_plain(request: Any) -> Any:
            request = self._arrived(request, asynchronous=False)
            other = self._named(request) if name == "__call__" else None
            return (other or method).call(request)

        return call_plain

    def _in_batches(self, method: _Method) -> Callable[..., Any]:
        async def run_asynchronous(requests: list[Any]) -> list[Any]:
            results: list[Any] = [None] * len(requests)
            arrived: dict[int, _Request] = {}
            for i, request in enumerate(requests):
                try:
                    arrived[i] = await self._arrives(request, asynchronous=True)
                    other = self._named(arrived[i])
                    if other is not None:
                        results[i] = await self._result(other, arrived.pop(i))
                except Exception as error:  # of one request, which alone gets it
                    arrived.pop(i, None)
                    results[i] = error
            for group in _groups(arrived, method):
                answers = await method.call_batch([arrived[i] for i in group])
                _spread(results, group, answers, self._backend_tag)
            return results

        def run_plain(requests: list[Any]) -> list[Any]:
            results: list[Any] = [None] * len(requests)
            arrived: dict[int, _Request] = {}
            for i, request in enumerate(requests):
                try:
                    arrived[i] = self._arrived(request, asynchronous=False)
                    other = self._named(arrived[i])
                    if other is not None:
                        results[i] = other.call(arrived.pop(i))
                except Exception as error:  # as in run_asynchronous
                    arrived.pop(i, None)
                    results[i] = error
            for group in _groups(arrived, method):
                _spread(results, group, method.call_batch([arrived[i] for i in group]), self._backend_tag)
            return results

        batched = batch(run_asynchronous if method.asynchronous else run_plain)
        self._batched.append(batched)
        self._configure(batched)
        return batched  # type: ignore[no-any-return]

    def _configure(self, batched: Any) -> None:
        batched.set_max_batch_size(self._config.max_batch_size)
        batched.set_batch_wait_timeout_s(self._config.batch_wait_timeout_s)

    async def _result(self, method: _Method, request: _Request) -> Any:
        """The result on the loop: a plain method that an asynchronous class has besides runs in a thread."""
        if method.asynchronous:
            return await method.call(request)
        return await asyncio.to_thread(method.call, request)

    def _named(self, request: _Request) -> _Method | None:
        """The method that the request names, where it is another than `__call__`. Raises HTTPException (404)."""
        if isinstance(request, PythonRequest):
            return None
        name = request.headers.get(CALL_METHOD)
        if not name or name == "__call__":
            return None
        if self._is_function or name.startswith("_") or not callable(getattr(self._servable, name, None)):
            raise HTTPException(404, f"backend {self._backend_tag!r} has no method {name[:100]!r}")
        return self._method(name)

    # ---- how requests arrive

    async def _arrives(self, request: Any, asynchronous: bool) -> _Request:
        older = self._older(request, asynchronous)
        if isinstance(older, OlderHttpRequest) and not older.arrives_whole:
            await older.arrive()
        return older

    def _arrived(self, request: Any, asynchronous: bool) -> _Request:
        """As `_arrives`, in a thread."""
        older = self._older(request, asynchronous)
        if isinstance(older, OlderHttpRequest) and not older.arrives_whole:
            replica = current_replica()
            assert replica is not None
            asyncio.run_coroutine_threadsafe(older.arrive(), replica.loop).result()
        return older

    def _older(self, request: Any, asynchronous: bool) -> _Request:
        older: _Request
        if isinstance(request, OlderPassedRequest | PythonRequest):
            older = request
        elif isinstance(request, HttpRequest):
            older = OlderHttpRequest(request._incoming)
            allowed = self._config.methods
            if allowed and older.method not in allowed:
                told = f"Methods {older.method} not allowed. Available HTTP methods are {', '.join(allowed)}."
                raise HTTPException(405, told, headers={"allow": ", ".join(allowed)})
        else:  # called by a handle of the present names
            older = PythonRequest(request, {}, {}, "")
        older._asynchronous = asynchronous
        return older


def _groups(arrived: dict[int, _Request], method: _Method) -> list[list[int]]:
    """Which requests make a call together: those of handles apart where the function has parameters for what they give
    by name.
    """
    places = list(arrived)
    if not (method.named or method.all_named):
        return [places] if places else []
    python = [i for i in places if isinstance(arrived[i], PythonRequest)]
    return [group for group in (python, [i for i in places if i not in python]) if group]


def _spread(results: list[Any], places: Sequence[int], answers: Any, tag: str) -> None:
    """Put the answers of a batch where their requests were."""
    try:
        number = len(answers)
    except TypeError:
        number = -1
    if number != len(places):
        has = f"{number}" if number >= 0 else f"a {type(answers).__name__}, which has no length"
        raise ValueError(
            f"backend {tag!r} accepts batches, and was given {len(places)} requests: it must return a list with as "
            f"many results, and not {has}"
        )
    for place, answer in zip(places, answers, strict=True):
        results[place] = answer
