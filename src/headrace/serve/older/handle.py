"""Handles of 2020 and 2021: to an endpoint, whose backends get requests; and of a kind whose calls are awaited twice.

In: what callers give by position and by name. Out: calls by a handle of the present names, and their responses.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import Any, NoReturn

from headrace.handle import DeploymentHandle, DeploymentResponse
from headrace.handle.options import check_sendable
from headrace.serve.older.flask_names import FlaskNames, PythonRequest
from headrace.spec.errors import OptionTypeError
from headrace.spec.names import hint

_OPTIONS = ("method_name", "shard_key", "http_method", "http_headers")


class Sent:
    """A call that is on its way: awaiting it gives its response, which is awaited for the result."""

    def __init__(self, response: Any) -> None:
        self._response = response

    def __await__(self) -> Generator[Any, None, Any]:
        return self._response
        yield  # a generator, which ends without having waited

    def result(self, timeout_s: float | None = None) -> NoReturn:
        """An error that says what to do."""
        raise OptionTypeError(
            "this handle was made with sync=False: `response = await handle.remote(...)`, and then `await response`; "
            "with sync=True there is handle.remote(...).result()"
        )


class EndpointHandle:
    """A way to call an endpoint: `handle.remote(data, name=value)`, `handle.method.remote(...)`.

    The code of the backend gets a request, whose `.data` (and `.json`, `await .body()`) is `data`, and whose `.args`
    (and `.query_params`) are the keyword arguments; those that it has parameters for, it also gets by name.
    """

    def __init__(
        self, endpoint: str, handle: DeploymentHandle, sync: bool = True, options: dict[str, Any] | None = None
    ) -> None:
        self.endpoint_name = endpoint
        self._handle = handle
        self._sync = sync
        self._options = options or {}

    def __repr__(self) -> str:
        return f"{type(self).__name__}(endpoint={self.endpoint_name!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, EndpointHandle) and self.endpoint_name == other.endpoint_name

    def __hash__(self) -> int:
        return hash(self.endpoint_name)

    def __reduce__(self) -> Any:
        return EndpointHandle, (self.endpoint_name, self._handle, self._sync, self._options)

    def __getattr__(self, name: str) -> EndpointHandle:
        if name.startswith("_"):
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        return self.options(name)

    def options(self, method_name: str | None = None, **changes: Any) -> EndpointHandle:
        """This handle with other options: `method_name`, `shard_key` (calls with the same one go to the same backend),
        `http_method` and `http_headers` (what the request says of itself). Raises OptionTypeError.
        """
        if method_name is not None:
            changes["method_name"] = method_name
        for name, value in changes.items():
            if name not in _OPTIONS:
                raise OptionTypeError(f"a handle of an endpoint has no option {name!r}: {hint(name, _OPTIONS)}")
            if name == "http_headers":
                if value is not None and not isinstance(value, dict):
                    raise OptionTypeError(f"http_headers={value!r} of a handle must be a dict of texts")
            elif value is not None and not isinstance(value, str):
                raise OptionTypeError(f"{name}={value!r} of a handle must be a string, not {type(value).__name__}")
            elif isinstance(value, str):
                check_sendable(name, value)
        handle = self._handle
        if changes.get("method_name"):
            handle = handle.options(method_name=changes["method_name"])
        if "shard_key" in changes:
            handle = handle.options(session_id=changes["shard_key"] or "")
        return EndpointHandle(self.endpoint_name, handle, self._sync, {**self._options, **changes})

    def remote(self, request_data: Any = None, /, **kwargs: Any) -> Any:
        """Call the endpoint; the call is on its way when this returns.

        Returns a response to ask for its `.result()`, or to await; of a handle made with `sync=False`, what is awaited
        for the response. An HTTP request that was passed on arrives as it is.
        """
        if isinstance(request_data, FlaskNames) and not kwargs:
            request: Any = request_data
        else:
            headers = self._options.get("http_headers") or {}
            request = PythonRequest(request_data, kwargs, headers, self._options.get("http_method") or "GET")
        response = self._handle.remote(request)
        return response if self._sync else Sent(response)


class AsyncHandle(DeploymentHandle):
    """A handle to a deployment, made with `sync=False`: `response = await handle.remote(...)`, `await response`."""

    def remote(self, *args: Any, **kwargs: Any) -> Sent:
        """Call the deployment; the call is on its way when this returns."""
        return Sent(super().remote(*args, **kwargs))

    def _with(self, **changes: Any) -> AsyncHandle:
        plain = super()._with(**changes)
        return AsyncHandle(plain.deployment_name, plain.app_name, plain._options, plain._runtime)

    def __reduce__(self) -> Any:
        return AsyncHandle, (self.deployment_name, self.app_name, self._options)


def get(response: Any, *, timeout: float | None = None) -> Any:
    """The result of a response, or the results of a list of them, blocking: what `ray.get` was for.

    Raises TimeoutError, RuntimeError on an event loop, the user's own error, or a HeadraceError.
    """
    if isinstance(response, Iterable) and not isinstance(response, DeploymentResponse):
        return [get(each, timeout=timeout) for each in response]
    ask = getattr(response, "result", None)
    if not callable(ask):
        raise OptionTypeError(f"serve.get({response!r:.100}) takes a response of handle.remote(...), or a list of them")
    return ask(timeout_s=timeout)
