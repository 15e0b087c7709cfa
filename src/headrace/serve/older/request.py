"""HTTP requests as code of 2020 and 2021 reads them: Starlette's, with Flask's names for the same things.

In: an HTTP request of a replica. Out: one object for both, whose body is there before the user's code is called. Code
that is deployed by the present names sees none of this.
"""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import parse_qsl

from starlette.requests import Request

from headrace.replica.request import HttpRequest
from headrace.serve.older.flask_names import Arguments, FlaskNames
from headrace.spec.errors import InputError

_FORM = "application/x-www-form-urlencoded"
_MULTIPART = "multipart/form-data"


class OlderHttpRequest(FlaskNames, HttpRequest):
    """An HTTP request whose body has come. Sent by a handle, it arrives as an OlderPassedRequest."""

    _fields_read: Any = None

    async def arrive(self) -> None:
        """Read what code that cannot wait may ask for. Raises InputError for a broken form of several parts."""
        await self.body()
        if self._type() == _MULTIPART:
            try:
                form = await HttpRequest.form(self)
            except AssertionError as error:  # Starlette's way to say that python-multipart is missing
                self._fields_read = error
            except Exception as error:  # whatever the parser makes of a client's bytes is the client's fault
                raise InputError(f"the form cannot be read: {error}") from error
            else:
                self._fields_read = Arguments(list(form.multi_items()))

    @property
    def arrives_whole(self) -> bool:
        """Whether there is nothing to wait for."""
        return not self._more and self._type() != _MULTIPART

    def _type(self) -> str:
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    @property
    def path(self) -> str:
        """The path, decoded, with the route."""
        return str(self.scope["path"])

    @property
    def args(self) -> Arguments:
        """The parameters of the query."""
        query = self.scope["query_string"].decode("latin-1")
        return Arguments(parse_qsl(query, keep_blank_values=True))

    def _raw(self) -> bytes:
        return bytes(self._body)

    def _parsed(self) -> Any:
        try:
            return json.loads(self._raw())
        except ValueError as error:  # UnicodeDecodeError too
            raise InputError(f"the body of the request is no JSON: {error}") from error
        except RecursionError:
            raise InputError("the body of the request is nested too deep to be read as JSON") from None

    def _fields(self) -> Arguments:
        if isinstance(self._fields_read, Exception):
            raise InputError(f"the form cannot be read: {self._fields_read}") from self._fields_read
        if self._fields_read is not None:
            return self._fields_read  # type: ignore[no-any-return]
        if self._type() != _FORM:
            return Arguments([])
        return Arguments(parse_qsl(self._raw().decode("utf-8", "replace"), keep_blank_values=True))

    def __reduce_ex__(self, protocol: Any) -> Any:
        scope = {name: value for name, value in self.scope.items() if name in _PASSED}
        return OlderPassedRequest, (scope, self._raw())


_PASSED = frozenset(("type", "asgi", "http_version", "method", "scheme", "path", "raw_path", "query_string")) | {
    "root_path",
    "headers",
    "client",
    "server",
}


class OlderPassedRequest(OlderHttpRequest):
    """An HTTP request that another backend passed on."""

    scope: Any = None

    def __init__(self, scope: dict[str, Any], body: bytes) -> None:
        Request.__init__(self, scope)
        self._body = body

    async def is_disconnected(self) -> bool:
        """Never: it is not known here."""
        return False
