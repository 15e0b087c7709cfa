"""What a route of the API is: its place, what it takes, what it gives, and who answers it.

In: requests that the guard let pass. Out: a Call for the handler, everything in it checked; a Reply from it. The same
table of routes makes the server and the OpenAPI document.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

import msgspec

from headrace.spec.declared import Schema
from headrace.spec.errors import HeadraceError, OptionError, OptionTypeError
from headrace.spec.names import hint

if TYPE_CHECKING:
    from headrace.api.desk import Desk

LONGEST_BY = 200
_TAG = re.compile(r'\s*"([^"]*)"\s*(?:,|$)')


@dataclass(frozen=True)
class Parameter:
    """One of the query: `kind` is "text", "flag" or "count"."""

    name: str
    kind: str
    text: str


BY = Parameter("by", "text", "Who asks, for the history (default: `api`).")
WAIT = Parameter("wait", "flag", "Answer when it is done, not once it is taken (default: `false`).")


@dataclass(frozen=True)
class Call:
    """One request to a handler. `body` is of the route's type, None where it takes none."""

    name: str
    query: Mapping[str, Any]
    headers: Mapping[str, str]
    body: Any
    desk: Desk
    is_gone: Callable[[], Awaitable[bool]]

    @property
    def by(self) -> str:
        """Who asks."""
        return str(self.query.get("by") or "api")

    @property
    def wait(self) -> bool:
        """Whether the answer is to come when it is done."""
        return bool(self.query.get("wait"))


@dataclass(frozen=True)
class Reply:
    """What a handler answers with. `body` is encoded as JSON unless `media_type` says that it is something else."""

    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    media_type: str = "application/json"


Handler = Callable[[Call], Awaitable[Reply]]


@dataclass(frozen=True)
class Route:
    """`body` and `answer` are types that msgspec knows. `is_open`: it tells nothing of the instance, needs no token.

    `errors` are those that its handler may answer with, beside those that any route may. `conditional` says how it goes
    by If-Match ("" for not at all).
    """

    method: str
    path: str
    handler: Handler
    summary: str
    description: str = ""
    body: Any = None
    body_optional: bool = False
    answer: Any = None
    status: int = 200
    media_type: str = "application/json"
    query: tuple[Parameter, ...] = ()
    errors: tuple[type[HeadraceError], ...] = ()
    conditional: str = ""
    tagged: bool = False
    is_open: bool = False

    @property
    def operation_id(self) -> str:
        """A name for the route, as generated clients have it."""
        return self.handler.__name__


def decoded(route: Route, raw: bytes) -> Any:
    """The body of the request, valid. Raises OptionError, OptionTypeError, ConfigError, which name the place."""
    if route.body is None:
        return None
    if not raw.strip():
        if not route.body_optional:
            raise OptionError("the body is empty: it must be a JSON document")
        raw = b"{}"
    declared = isinstance(route.body, type) and issubclass(route.body, Schema)
    try:
        body = msgspec.json.decode(raw, type=dict[str, Any] if declared else route.body)
        msgspec.msgpack.encode(body)  # what the controller could not be told is refused here
        return route.body.model_validate(body) if declared else body
    except OverflowError:
        raise OptionError("the body is not right: a whole number in it has more than 64 bits") from None
    except msgspec.ValidationError as error:
        raise OptionTypeError(f"the body is not right: {error}{_near(route.body, str(error))}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise OptionError(f"the body is not JSON: {error}") from None
    except RecursionError:
        raise OptionError("the body is not right: it is nested too deeply") from None


def _near(kind: Any, message: str) -> str:
    wrong = re.search(r"Invalid enum value '(.*)' - at `\$\.(\w+)`$", message)
    if wrong:
        types = {each.name: each.type for each in msgspec.structs.fields(kind)}
        return f": {hint(wrong[1], _values(types.get(wrong[2])))}"
    unknown = re.search(r"unknown field `([^`]*)`$", message)
    known = getattr(kind, "__struct_fields__", ())
    return f": {hint(unknown[1], known)}" if unknown and known else ""


def query_of(route: Route, pairs: list[tuple[str, str]]) -> dict[str, Any]:
    """The parameters of the query, valid. Raises OptionError."""
    known = {parameter.name: parameter for parameter in route.query}
    found: dict[str, Any] = {}
    for name, text in pairs:
        if name not in known:
            says = f": {hint(name, known)}" if known else ": this route takes none"
            raise OptionError(f"the query has no parameter {name[:100]!r}{says}")
        if name in found:
            raise OptionError(f"the query has {name!r} twice")
        found[name] = _value(known[name], text)
    return found


def _value(parameter: Parameter, text: str) -> Any:
    if parameter.kind == "flag":
        if text.lower() not in ("true", "false", "1", "0"):
            raise OptionError(f"{parameter.name}={text[:100]!r} must be true or false")
        return text.lower() in ("true", "1")
    if not 0 < len(text) <= LONGEST_BY or not text.isprintable():
        raise OptionError(f"{parameter.name}={text[:100]!r} must be 1 to {LONGEST_BY} printable characters")
    return text


@dataclass(frozen=True)
class Condition:
    """What the request says must be so. `revisions` None: it does not say; `exists` None: likewise."""

    revisions: frozenset[int] | None = None
    exists: bool | None = None

    def holds(self, newest: int) -> bool:
        """Whether it is so when this is the application's newest revision (0: there is no such application)."""
        if self.exists is not None and self.exists != (newest > 0):
            return False
        return self.revisions is None or newest in self.revisions


def condition_of(headers: Mapping[str, str]) -> Condition:
    """The condition in If-Match and If-None-Match. Raises OptionError for one that cannot be gone by."""
    match, none_match = headers.get("if-match"), headers.get("if-none-match")
    if match is not None and none_match is not None:
        raise OptionError("If-Match and If-None-Match do not go together: give one of them")
    if none_match is not None:
        if none_match.strip() != "*":
            raise OptionError(f"If-None-Match: {none_match[:100]!r} must be *: the application must not be there yet")
        return Condition(exists=False)
    if match is None:
        return Condition()
    if match.strip() == "*":
        return Condition(exists=True)
    tags, at = [], 0
    while at < len(match):
        found = _TAG.match(match, at)
        if found is None or not found[1].isascii() or not found[1].isdigit() or len(found[1]) > 15:
            raise OptionError(f'If-Match: {match[:100]!r} must be a revision as ETag gives it, such as "3", or *')
        tags.append(int(found[1]))
        at = found.end()
    if not tags or 0 in tags:
        raise OptionError(f'If-Match: {match[:100]!r} must be a revision as ETag gives it, such as "3", or *')
    return Condition(revisions=frozenset(tags))


def _values(kind: Any) -> list[str]:
    """The texts that an enum or a Literal has, or the parts of a union have."""
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return [each.value for each in kind]
    if get_origin(kind) is Literal:
        return list(get_args(kind))
    return [value for part in get_args(kind) for value in _values(part)]
