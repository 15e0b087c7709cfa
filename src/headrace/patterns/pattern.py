"""What the patterns have in common: a small deployment that answers each call by calling others.

In: HTTP requests, and calls by handles. Out: for both, the arguments for the members, and an answer.
"""

from __future__ import annotations

import inspect
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from headrace import serve
from headrace.spec.errors import CallerError, InputError, OptionTypeError

if TYPE_CHECKING:
    from starlette.requests import Request

log = logging.getLogger("headrace.patterns")

# A call in a pattern only waits for its members, and those have limits of their own.
MAX_ONGOING_REQUESTS = 1000

Parse = Callable[["Request"], Any]


class Pattern(ABC):
    """The deployment of a pattern. A subclass says in `answer` how it comes to an answer."""

    def __init__(self, *, parse: Parse | None, details: bool = False) -> None:
        from starlette.exceptions import HTTPException  # not in the scripts that only declare patterns
        from starlette.requests import Request

        self._http_request = Request
        self._http_error = HTTPException
        self._parse = parse
        self._details = details
        self._name = serve.get_replica_context().deployment

    async def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The answer to these arguments, with which the members are called, or to an HTTP request."""
        if len(args) == 1 and isinstance(args[0], self._http_request):
            return await self._serve(args[0])
        return await self.answer(args, kwargs, None)

    @abstractmethod
    async def answer(self, args: tuple[Any, ...], kwargs: dict[str, Any], request: Request | None) -> Any:
        """The answer to the arguments, which came with the request if there is one."""

    async def _serve(self, request: Request) -> Any:
        try:
            value = await self._input(request) if self._parse is None else await value_of(self._parse(request))
            return await self.answer((value,), {}, request)
        except InputError as error:
            raise self._http_error(400, str(error)) from None

    async def _input(self, request: Request) -> Any:
        try:
            return await request.json()
        except (ValueError, RecursionError) as error:
            raise InputError(f"{self._name} takes a body of JSON: {error}") from None

    def _with_details(self, answer: Any, by: Any, failed: Mapping[str, Exception]) -> Any:
        """The answer, with who gave it and who failed where that was asked for."""
        if not self._details:
            return answer
        return {"answer": answer, "by": by, "failed": {name: type(error).__name__ for name, error in failed.items()}}

    def _is_final(self, error: Exception) -> bool:
        """Whether no other answer may take the place of the error: it is its caller's, or nobody waits any more."""
        if isinstance(error, self._http_error):
            final = 400 <= error.status_code < 500
        else:
            final = isinstance(error, CallerError)
        return final or serve.get_request_context().cancelled

    def _warn(self, message: str, *values: object) -> None:
        log.warning(f"request %s: %s: {message}", serve.get_request_context().request_id, self._name, *values)


async def value_of(result: Any) -> Any:
    """What a user's function gave, awaited where it is to be."""
    return await result if inspect.isawaitable(result) else result


def add_note(error: Exception, note: str) -> None:
    """Note where the error is from, once: it may be raised for several requests."""
    try:
        if note not in getattr(error, "__notes__", ()):
            error.add_note(note)
    except Exception:  # a user's error may take no attributes (a frozen dataclass): then it goes on without a note
        return


def said(error: Exception) -> str:
    """The error in a line of the log, where its traceback is already."""
    try:
        message = str(error)
    except Exception as another:  # a __str__ of a user's
        message = f"<its __str__ raised {type(another).__name__}>"
    return f"{type(error).__name__}: {message}".partition("\n")[0]


def bind(pattern: type[Pattern], options: Mapping[str, Any] | None, **arguments: Any) -> serve.Application:
    """The pattern with these options of a deployment, bound to the arguments of its constructor.

    Raises OptionTypeError for what is wrong with arguments that all patterns have.
    """
    function = f"{pattern.__name__.lower()}()"
    deployment = serve.deployment(max_ongoing_requests=MAX_ONGOING_REQUESTS)(pattern)
    if options is not None:
        if not isinstance(options, Mapping):
            raise OptionTypeError(
                f"options={options!r} of {function} must be a dict of options of its own deployment, "
                "such as {'num_replicas': 2}"
            )
        deployment = deployment.options(**options)
    parse = arguments.get("parse")
    if parse is not None:
        check_function(f"parse={parse!r} of {function}", parse, "of an HTTP request, or None")
    details = arguments.get("details", False)
    if not isinstance(details, bool):
        raise OptionTypeError(f"details={details!r} of {function} must be True or False")
    return deployment.bind(**arguments)


def is_function(value: object) -> bool:
    """Whether it is something to call: no class, and no deployment or handle, which only say how to be called."""
    if inspect.isclass(value) or isinstance(value, serve.Deployment) or not callable(value):
        return False
    return not is_handle(value)


def is_handle(value: object) -> bool:
    """Whether it is a handle to a deployment that runs."""
    if inspect.isroutine(value) or not callable(value):
        return False
    from headrace.serve.handle import DeploymentHandle  # loads what talks to an instance, so only where it may be one

    return isinstance(value, DeploymentHandle)


def check_function(what: str, value: object, of: str) -> None:
    """Raise OptionTypeError unless `value` is a function."""
    if not is_function(value):
        raise OptionTypeError(f"{what} must be a function {of}")
