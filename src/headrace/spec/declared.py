"""A declarative configuration: an instance and its applications as data, under Ray Serve's names (`serve.schema`).

In: keyword arguments, or plain data that a file or a request had (`model_validate`). Out: checked objects, or one
ConfigError that says all that is wrong. They answer to the methods of pydantic's models that code for Ray Serve calls.
What is not given is told apart from what is given as the default: only what is given overrides what code says.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, TypeVar

import msgspec

from headrace.spec.errors import CallerError, ConfigError
from headrace.spec.kinds import Field, Findings, Items, Keys, Kind, Path, check_keys

MOST_PROBLEMS = 20
UNSET: Any = msgspec.UNSET
Plain = dict[str, Any]
S = TypeVar("S", bound="Schema")


class Of(Kind):
    """A mapping that is this schema; or the schema itself, which was checked when it was made."""

    what = "a mapping"

    def __init__(self, schema: type[Schema]) -> None:
        self.model = schema

    def fits(self, value: object) -> bool:
        return isinstance(value, Mapping | self.model)

    def check(self, value: Any, path: Path, findings: Findings) -> None:
        super().check(value, path, findings)
        if isinstance(value, Mapping):
            self.model._find(value, path, findings)

    def made(self, value: Any) -> Any:
        """The schema that the mapping is."""
        return self.model(**value) if isinstance(value, Mapping) else value

    def effective(self, value: Any) -> Any:
        if isinstance(value, Schema):
            value = value.model_dump(exclude_unset=True)
        return Keys(self.model.FIELDS).effective(value)

    def schema(self, definitions: dict[str, Any]) -> dict[str, Any]:
        return Keys(self.model.FIELDS, self.model.__name__).schema(definitions)


class Schema(msgspec.Struct, kw_only=True, dict=True):
    """A part of a configuration. `FIELDS` says of each key what it may be, and what it is for."""

    FIELDS: ClassVar[Mapping[str, Field]] = {}

    def __post_init__(self) -> None:
        given = {name: getattr(self, name) for name in self.__struct_fields__ if getattr(self, name) is not UNSET}
        findings = Findings()
        self._find(given, (), findings)
        raise_found(findings)
        for name, field in self.FIELDS.items():
            value = given.get(name, field.default)
            setattr(self, name, _made(field.kind, value))
        self.__dict__["given"] = frozenset(given)

    @classmethod
    def _find(cls, given: Mapping[str, Any], path: Path, findings: Findings) -> None:
        """Find what is wrong with `given` as one of these. What concerns several keys is looked at last."""
        before = len(findings.problems)
        check_keys(cls.FIELDS, given, path, findings)
        if len(findings.problems) == before:
            cls._find_together(given, path, findings)

    @classmethod
    def _find_together(cls, given: Mapping[str, Any], path: Path, findings: Findings) -> None:
        """Find what is wrong with several keys together."""

    @property
    def model_fields_set(self) -> set[str]:
        """The keys that were given."""
        found: frozenset[str] = self.__dict__["given"]
        return set(found)

    @classmethod
    def model_validate(cls: type[S], obj: Any) -> S:
        """The schema that the plain data is. Raises ConfigError, which tells of all that is wrong."""
        if isinstance(obj, cls):
            return obj
        findings = Findings()
        Of(cls).check(obj, (), findings)
        raise_found(findings)
        return cls(**obj)

    @classmethod
    def model_validate_json(cls: type[S], text: str | bytes) -> S:
        """The schema that the JSON is. Raises ConfigError."""
        try:
            obj = json.loads(text)
        except ValueError as error:
            raise ConfigError(f"it is no JSON: {error}") from error
        return cls.model_validate(obj)

    parse_obj = model_validate
    parse_raw = model_validate_json

    def model_dump(
        self,
        *,
        mode: str = "python",
        include: Iterable[str] | None = None,
        exclude: Iterable[str] | None = None,
        exclude_unset: bool = False,
        exclude_defaults: bool = False,
        exclude_none: bool = False,
        by_alias: bool = False,
    ) -> Plain:
        """Plain data, also inside; with `exclude_unset` only what was given. Never what has no value."""
        found: Plain = {}
        options = {
            "exclude_unset": exclude_unset,
            "exclude_defaults": exclude_defaults,
            "exclude_none": exclude_none,
        }
        for name, field in self.FIELDS.items():
            value, default = getattr(self, name), _made(field.kind, field.default)
            if value is UNSET or (exclude_unset and name not in self.model_fields_set and value == default):
                continue
            if (include is not None and name not in include) or (exclude is not None and name in exclude):
                continue
            if (exclude_none and value is None) or (exclude_defaults and value == default):
                continue
            found[name] = _plain(value, options)
        return found

    def dict(self, **options: Any) -> Plain:
        """As `model_dump`."""
        return self.model_dump(**options)

    def model_dump_json(self, *, indent: int | None = None, **options: Any) -> str:
        """As `model_dump`, written as JSON."""
        return json.dumps(self.model_dump(**options), indent=indent)

    def json(self, **options: Any) -> str:
        """As `model_dump_json`."""
        return self.model_dump_json(**options)

    @classmethod
    def model_json_schema(cls) -> Plain:
        """The JSON Schema (draft 2020-12) of what `model_validate` takes."""
        definitions: Plain = {}
        top = Of(cls).schema(definitions)
        return {**definitions.pop(top["$ref"].rpartition("/")[2]), "$defs": dict(sorted(definitions.items()))}

    def model_copy(self: S, *, update: Mapping[str, Any] | None = None) -> S:
        """Another one, with these values in the places of its own."""
        return type(self).model_validate({**self.model_dump(exclude_unset=True), **(update or {})})


def _made(kind: Kind, value: Any) -> Any:
    if value is None or value is UNSET:
        return value
    if isinstance(kind, Of):
        return kind.made(value)
    if isinstance(kind, Items) and isinstance(kind.of, Of):
        return [kind.of.made(item) for item in value]
    # A copy: who changes a mapping of one changes none of another.
    return type(value)(value) if isinstance(value, dict | list) else value


def _plain(value: Any, options: Plain) -> Any:
    if isinstance(value, Schema):
        return value.model_dump(**options)
    if isinstance(value, list | tuple):
        return [_plain(item, options) for item in value]
    return msgspec.to_builtins(value)


def raise_found(findings: Findings, line_of: Callable[[Path, bool], str] | None = None) -> None:
    """Raise the ConfigError of the problems that were found, if any; `line_of` says where each is."""
    if not findings.problems:
        return
    lines = [f"{line_of(each.path, each.of_key) if line_of else ''}{each}" for each in findings.problems]
    more = len(lines) - MOST_PROBLEMS
    shown = lines[:MOST_PROBLEMS] + ([f"and {more} more like these"] if more > 0 else [])
    raise ConfigError("\n".join(shown), tuple(lines[:MOST_PROBLEMS]))


def check_with(make: Callable[..., object], name: str) -> Callable[[Any], object]:
    """What has `make(name=value)` check the value."""
    return lambda value: make(**{name: value})


def find_together(make: Callable[[], object], path: Path, findings: Findings) -> None:
    """Find what `make()` says of several keys together."""
    try:
        make()
    except CallerError as error:
        findings.problem((*path, ""), str(error))
