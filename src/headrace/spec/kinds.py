"""Kinds of values in a configuration, declared once: how they are checked, and what a JSON Schema says of them.

In: plain data (mappings, lists, texts, numbers), as a file or a request had it. Out: what is wrong with it, all of it
and each with its path; the same data without what has no effect; JSON Schemas.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from headrace.spec.errors import CallerError
from headrace.spec.names import hint

Path = tuple[str | int, ...]

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 60


class Problem(msgspec.Struct, frozen=True):
    """Something about the value at `path`, or with `of_key` about its key."""

    path: Path
    text: str
    of_key: bool = False

    def __str__(self) -> str:
        where = written(self.path[:-1])
        return f"{where}: {self.text}" if where else self.text


class Findings:
    """What was found in a configuration: `problems` make it invalid, `notes` tell of what has no effect."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.notes: list[Problem] = []

    def __repr__(self) -> str:
        return f"<Findings {len(self.problems)} problems, {len(self.notes)} notes>"

    def problem(self, path: Path, text: str, *, of_key: bool = False) -> None:
        """This is wrong."""
        self.problems.append(Problem(path, text, of_key))

    def note(self, path: Path, text: str) -> None:
        """This has no effect."""
        self.notes.append(Problem(path, text, True))


def written(path: Path) -> str:
    """`applications[0].deployments[1]`; "" for the whole."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f"{'.' if text else ''}{part}"
    return text


def _named(path: Path, value: object) -> str:
    """`num_replicas='two'`, as messages name a value."""
    last = path[-1] if path else "the configuration"
    if "password" in str(last):
        return f"{last}=..."
    if isinstance(last, int):
        return f"item {last} ({_short.repr(value)})"
    return f"{last}={_short.repr(value)}" if path else last


class Kind:
    """A kind of values. `what` ends the sentence 'it must be ...'."""

    what = "anything"

    def fits(self, value: object) -> bool:
        """Whether it is one, as far as can be told without a look inside."""
        return True

    def check(self, value: Any, path: Path, findings: Findings) -> None:
        """Find what is wrong with the value."""
        if not self.fits(value):
            findings.problem(path, f"{_named(path, value)} must be {self.what}")

    def effective(self, value: Any) -> Any:
        """The value without what has no effect."""
        return value

    def schema(self, definitions: dict[str, Any]) -> dict[str, Any]:
        """Its JSON Schema; what it refers to is put into `definitions`."""
        return {}


class Text(Kind):
    """A text, or one of `choices`."""

    def __init__(self, *choices: str) -> None:
        self._choices = choices
        self.what = f"one of {', '.join(choices)}" if choices else "a text"

    def fits(self, value: object) -> bool:
        return isinstance(value, str)

    def check(self, value: Any, path: Path, findings: Findings) -> None:
        if not isinstance(value, str):
            super().check(value, path, findings)
        elif self._choices and value not in self._choices:
            near = hint(value, self._choices)
            more = f"; {near}" if near.startswith("did you mean") else ""  # all of them are told already
            findings.problem(path, f"{_named(path, value)} must be {self.what}{more}")

    def schema(self, definitions: dict[str, Any]) -> dict[str, Any]:
        return {"type": "string", "enum": list(self._choices)} if self._choices else {"type": "string"}


class Flag(Kind):
    """True or false."""

    what = "true or false"

    def fits(self, value: object) -> bool:
        return isinstance(value, bool)

    def schema(self, definitions: dict[str, Any]) -> dict[str, Any]:
        return {"type": "boolean"}


class Number(Kind):
    """A number within bounds; with `whole`, an integer."""

    def __init__(self, least: float | None = None, most: float | None = None, *, whole: bool = False) -> None:
        self._least, self._most, self._whole = least, most, whole
        bounds = f" of at least {least:g}" if least is not None else ""
        if most is not None:
            bounds = f" from {least or 0:g} to {most:g}"
        self.what = ("an integer" if whole else "a number") + bounds

    def fits(self, value: object) -> bool:
        return isinstance(value, int if self._whole else int | float) and not isinstance(value, bool)

    def check(self, value: Any, path: Path, findings: Findings) -> None:
        # Comparisons alone, and of the contrary: nan is within no bounds.
        if not self.fits(value) or not (
            (self._least is None or value >= self._least) and (self._most is None or value <= self._most)
        ):
            findings.problem(path, f"{_named(path, value)} must be {self.what}")

    def schema(self, definitions: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {"type": "integer" if self._whole else "number"}
        if self._least is not None:
            found["minimum"] = self._least
        if self._most is not None:
            found["maximum"] = self._most
        return found


class Items(Kind):
    """A list of values of one kind."""

    def __init__(self, of: Kind) -> None:
        self.of = of
        self.what = "a list"

    def fits(self, value: object) -> bool:
        return isinstance(value, Sequence) and not isinstance(value, str | bytes)

    def check(self, value: Any, path: Path, findings: Findings) -> None:
        super().check(value, path, findings)
        if self.fits(value):
            for index, item in enumerate(value):
                self.of.check(item, (*path, index), findings)

    def effective(self, value: Any) -> Any:
        return [self.of.effective(item) for item in value]

    def schema(self, definitions: dict[str, Any]) -> dict[str, Any]:
        return {"type": "array", "items": self.of.schema(definitions)}


class Table(Kind):
    """A mapping of names of the user's own to values of one kind."""

    what = "a mapping"

    def __init__(self, of: Kind) -> None:
        self._of = of

    def fits(self, value: object) -> bool:
        return isinstance(value, Mapping)

    def check(self, value: Any, path: Path, findings: Findings) -> None:
        super().check(value, path, findings)
        if self.fits(value):
            for name, item in value.items():
                if not isinstance(name, str):
                    findings.problem((*path, str(name)), f"the key {name!r} must be a text", of_key=True)
                self._of.check(item, (*path, str(name)), findings)

    def schema(self, definitions: dict[str, Any]) -> dict[str, Any]:
        return {"type": "object", "additionalProperties": self._of.schema(definitions)}


class Either(Kind):
    """A value of one of these kinds: the first that fits says what is wrong."""

    def __init__(self, *kinds: Kind) -> None:
        self._kinds = kinds
        self.what = ", or ".join(kind.what for kind in kinds)

    def fits(self, value: object) -> bool:
        return any(kind.fits(value) for kind in self._kinds)

    def check(self, value: Any, path: Path, findings: Findings) -> None:
        for kind in self._kinds:
            if kind.fits(value):
                kind.check(value, path, findings)
                return
        super().check(value, path, findings)

    def effective(self, value: Any) -> Any:
        return next((kind.effective(value) for kind in self._kinds if kind.fits(value)), value)

    def schema(self, definitions: dict[str, Any]) -> dict[str, Any]:
        return {"anyOf": [kind.schema(definitions) for kind in self._kinds]}


class Field(msgspec.Struct, frozen=True):
    """A key of a mapping: its kind, its default, what it is for.

    `check` is what the option itself says, and raises: what it finds wrong is found here. `no_effect` says why the key
    has none (for a value that is not None); `refused` why it must not be given, and what to do instead.
    """

    kind: Kind
    text: str
    default: Any = msgspec.UNSET
    required: bool = False
    nullable: bool = False
    check: Callable[[Any], object] | None = None
    no_effect: str = ""
    refused: str = ""

    def find(self, value: Any, path: Path, findings: Findings) -> None:
        """Find what is wrong with the key's value, and tell of one without effect."""
        if self.refused:
            if value not in (None, [], {}, False):
                findings.problem(path, f"{path[-1]!r} does not work yet: {self.refused}", of_key=True)
            return
        if value is None and self.nullable:
            return
        before = len(findings.problems)
        self.kind.check(value, path, findings)
        if self.check is not None and len(findings.problems) == before:
            try:
                self.check(self.kind.effective(value))
            except (CallerError, TypeError) as error:
                text, name = str(error), str(path[-1])
                findings.problem(path, text if name in text else f"{name}: {text}")
        if self.no_effect and value not in (None, False, self.default):
            findings.note(path, f"{path[-1]!r} has no effect in Headrace: {self.no_effect}")

    def schema(self, definitions: dict[str, Any]) -> dict[str, Any]:
        """The JSON Schema of the value."""
        found = self.kind.schema(definitions)
        if self.nullable and "type" in found and "enum" not in found:
            found = {**found, "type": [found["type"], "null"]}
        elif self.nullable:
            found = {"anyOf": [*found.get("anyOf", [found]), {"type": "null"}]}
        text = self.text
        if self.no_effect:
            text += f" No effect in Headrace: {self.no_effect}."
        if self.refused:
            text += f" Does not work yet: {self.refused}."
        if self.default is not msgspec.UNSET:
            found = {**found, "default": msgspec.to_builtins(self.default)}
        return {**found, "description": text}


class Keys(Kind):
    """A mapping with these keys and no other. Also a struct of the package's, which was checked when it was made."""

    what = "a mapping"

    def __init__(self, fields: Mapping[str, Field], title: str = "") -> None:
        self.fields = fields
        self._title = title

    def fits(self, value: object) -> bool:
        return isinstance(value, Mapping | msgspec.Struct)

    def check(self, value: Any, path: Path, findings: Findings) -> None:
        super().check(value, path, findings)
        if isinstance(value, Mapping):
            check_keys(self.fields, value, path, findings)

    def effective(self, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        return {
            name: self.fields[name].kind.effective(item) if item is not None else None
            for name, item in value.items()
            if name in self.fields and not self.fields[name].no_effect
        }

    def schema(self, definitions: dict[str, Any]) -> dict[str, Any]:
        if not self._title:
            return object_schema(self.fields, definitions)
        if self._title not in definitions:
            definitions[self._title] = {}  # first, for one that refers to itself
            definitions[self._title] = object_schema(self.fields, definitions)
        return {"$ref": f"#/$defs/{self._title}"}


class Tagged(Kind):
    """A mapping that says in one of its keys of which kind it is, which says what others it may have."""

    def __init__(self, tag: str, kinds: Mapping[str, Mapping[str, Field]], title: str = "") -> None:
        self._tag, self._kinds, self._title = tag, kinds, title
        self.what = f"a mapping with {tag!r}"

    def fits(self, value: object) -> bool:
        return isinstance(value, Mapping | msgspec.Struct)

    def check(self, value: Any, path: Path, findings: Findings) -> None:
        super().check(value, path, findings)
        if not isinstance(value, Mapping):
            return
        found = value.get(self._tag)
        if self._tag not in value:
            findings.problem((*path, self._tag), f"{self._tag!r} is missing: one of {', '.join(self._kinds)}")
        elif not isinstance(found, str) or found not in self._kinds:
            Text(*self._kinds).check(found, (*path, self._tag), findings)
        else:
            tag = {self._tag: Field(Text(found), "")}
            check_keys({**tag, **self._kinds[found]}, value, path, findings)

    def schema(self, definitions: dict[str, Any]) -> dict[str, Any]:
        if not self._title:
            return self._schema(definitions)
        definitions.setdefault(self._title, self._schema(definitions))
        return {"$ref": f"#/$defs/{self._title}"}

    def _schema(self, definitions: dict[str, Any]) -> dict[str, Any]:
        choices = []
        for name, fields in self._kinds.items():
            found = object_schema(fields, definitions)
            found["properties"] = {self._tag: {"const": name}, **found["properties"]}
            found["required"] = [self._tag, *found.get("required", [])]
            choices.append(found)
        return {"oneOf": choices}


def check_keys(fields: Mapping[str, Field], given: Mapping[Any, Any], path: Path, findings: Findings) -> None:
    """Find keys that are none, those that are missing, and what is wrong with the values of the others."""
    meant = set()
    for name, value in given.items():
        field = fields.get(name) if isinstance(name, str) else None
        if field is None:
            near = hint(name, known(fields))
            meant.add(near)
            findings.problem((*path, str(name)), f"unknown key {str(name)!r}; {near}", of_key=True)
        else:
            field.find(value, (*path, name), findings)
    for name, field in fields.items():
        if field.required and name not in given and f"did you mean {name!r}?" not in meant:
            findings.problem((*path, name), f"{name!r} is missing: {field.text[:1].lower()}{field.text[1:]}")


def known(fields: Mapping[str, Field]) -> Iterable[str]:
    """The keys that one may have meant."""
    return [name for name, field in fields.items() if not field.refused]


def object_schema(fields: Mapping[str, Field], definitions: dict[str, Any]) -> dict[str, Any]:
    """The JSON Schema of a mapping with these keys and no other; those that do not work yet are left out."""
    found: dict[str, Any] = {
        "type": "object",
        "additionalProperties": False,
        "properties": {name: fields[name].schema(definitions) for name in known(fields)},
    }
    required = [name for name, field in fields.items() if field.required]
    return {**found, "required": required} if required else found
