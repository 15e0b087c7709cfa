"""A configuration file: YAML or JSON into a ServeDeploySchema, or errors that name the line and the key.

In: the text of a file, which nobody needs to trust. Out: a ServeDeploySchema, and notes of what has no effect; or one
ConfigError with up to 20 problems, each as `FILE:LINE: PATH: what is wrong`. PyYAML reads it, and is loaded here alone.
Nothing is made of a file but mappings, lists, texts, numbers, truth values and null.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path as FilePath
from typing import Any

import msgspec

from headrace.spec.config_schema import ServeApplicationSchema, ServeDeploySchema
from headrace.spec.declared import Of, raise_found
from headrace.spec.errors import ConfigError
from headrace.spec.kinds import Findings, Path

MOST_BYTES = 2 * 1024 * 1024
DEEPEST = 60
MOST_VALUES = 100_000  # with what aliases repeat

_PLAIN = ("null", "bool", "int", "float", "str", "timestamp", "value", "merge", "binary")
_TAG = "tag:yaml.org,2002:"
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")
_ESCAPES = re.compile(r"\\\\|\\u([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2})")


class Node(msgspec.Struct):
    """A value, where it stands, and how many values it is with all that is in it."""

    value: Any  # of a mapping: name -> Node; of a list: Nodes
    line: int
    column: int
    size: int = 1
    keys: dict[str, tuple[int, int]] = {}  # where the keys stand
    merged: bool = False  # the mapping took keys of others by `<<`

    def plain(self) -> Any:
        """The data that it is."""
        if isinstance(self.value, dict):
            return {name: node.plain() for name, node in self.value.items()}
        return [node.plain() for node in self.value] if isinstance(self.value, list) else self.value

    def place(self, path: Path, of_key: bool) -> tuple[int, int]:
        """Line and column of what the path leads to, as far as it leads."""
        node, place = self, (self.line, self.column)
        for index, part in enumerate(path):
            if isinstance(node.value, dict) and isinstance(part, str) and part in node.value:
                last = index == len(path) - 1
                own = node.value[part]
                place = node.keys[part] if (of_key and last) else (own.line, own.column)
                node = own
            elif isinstance(node.value, list) and isinstance(part, int) and part < len(node.value):
                node = node.value[part]
                place = (node.line, node.column)
            else:
                break
        return place


class ConfigText(msgspec.Struct, frozen=True):
    """A configuration that was read: the schema, and what of it has no effect, a line each."""

    schema: ServeDeploySchema
    notes: tuple[str, ...] = ()


def load_config(path: str | FilePath) -> ServeDeploySchema:
    """The configuration in the file. Warns once of what has no effect. Raises ConfigError."""
    read = read_config(path)
    if read.notes:
        warnings.warn("\n".join(read.notes), stacklevel=2)
    return read.schema


def read_config(path: str | FilePath) -> ConfigText:
    """The configuration in the file, and notes of what of it has no effect. Raises ConfigError."""
    try:
        with FilePath(path).open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from error
    return parse_config(data, str(path))


def parse_config(text: str | bytes, name: str = "config") -> ConfigText:
    """The configuration that the text is, YAML or JSON; `name` is what messages call it. Raises ConfigError."""
    node = parse(text, name)
    data = node.plain()

    def line_of(path: Path, of_key: bool) -> str:
        return f"{name}:{node.place(path, of_key)[0]}: "

    findings = Findings()
    single = isinstance(data, dict) and "import_path" in data and "applications" not in data
    schema: type[ServeApplicationSchema | ServeDeploySchema] = ServeApplicationSchema if single else ServeDeploySchema
    Of(schema).check(data, (), findings)
    raise_found(findings, line_of)
    if single:
        listens = {key: data.pop(key) for key in ("host", "port") if key in data}
        data = {"http_options": listens, "applications": [data]} if listens else {"applications": [data]}
    notes = tuple(f"{line_of(note.path, note.of_key)}{note}" for note in findings.notes)
    return ConfigText(ServeDeploySchema(**data), notes)


def parse(text: str | bytes, name: str) -> Node:
    """The text's values and their places, within bounds. Raises ConfigError for what is no such text."""
    if len(text) > MOST_BYTES:
        raise ConfigError(f"{name}: a configuration has at most {MOST_BYTES} bytes")
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            where = f"{name}:{error.object.count(10, 0, error.start) + 1}"
            raise ConfigError(f"{where}: it is no text: {error.reason} (UTF-8) at byte {error.start}") from error
    import yaml

    if text.lstrip()[:1] in ("{", "["):
        # JSON: tabs may indent it, and characters beyond 16 bits are escaped as two.
        text = _ESCAPES.sub(_joined, text.replace("\t", " "))
    try:
        return _Composer(text, name).whole()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{name}:{mark.line + 1}" if mark else name
        lines = text.splitlines()
        tab = mark is not None and mark.line < len(lines) and re.match(r"\s*\t", lines[mark.line])
        context = f" {error.context}" if error.context else ""
        hint = " (YAML is indented by spaces, not tabs)" if tab else ""
        raise ConfigError(f"{where}: it is no YAML: {error.problem}{context}{hint}") from None
    except UnicodeEncodeError as error:
        where = f"{name}:{text.count(chr(10), 0, error.start) + 1}"
        raise ConfigError(f"{where}: it is no text: {error.reason}") from error
    except yaml.reader.ReaderError as error:
        position = error.position if isinstance(error.position, int) else 0
        where = f"{name}:{text.count(chr(10), 0, position) + 1}"
        raise ConfigError(f"{where}: it is no text: {error.reason} (character {error.character!r})") from None


def _joined(match: re.Match[str]) -> str:
    if match[1] is None:
        return match[0]
    return f"\\U{(int(match[1], 16) - 0xD800) * 0x400 + int(match[2], 16) - 0xDC00 + 0x10000:08x}"


class _Composer:
    """Takes a loader's events, and makes nodes of them. Not recursive beyond DEEPEST, whatever the text."""

    def __init__(self, text: str, name: str) -> None:
        import yaml

        self._yaml = yaml
        self._loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)(text)
        self._name = name
        self._anchors: dict[str, Node | None] = {}  # None: it is not closed yet
        self._values = 0

    def _fail(self, mark: Any, text: str) -> ConfigError:
        return ConfigError(f"{self._name}:{mark.line + 1}: {text}")

    def whole(self) -> Node:
        """The one document of the text."""
        yaml = self._yaml
        try:
            self._loader.get_event()
            if self._loader.check_event(yaml.StreamEndEvent):
                raise ConfigError(f"{self._name}: it is empty; a configuration has at least `applications: [...]`")
            self._loader.get_event()
            node = self._node(0)
            self._loader.get_event()
            if not self._loader.check_event(yaml.StreamEndEvent):
                mark = self._loader.peek_event().start_mark
                raise self._fail(mark, "a second document begins here: a configuration is one")
            return node
        finally:
            self._loader.dispose()

    def _node(self, depth: int) -> Node:
        yaml = self._yaml
        event = self._loader.get_event()
        mark = event.start_mark
        if depth > DEEPEST:
            raise self._fail(mark, f"it is nested more than {DEEPEST} deep")
        if isinstance(event, yaml.AliasEvent):
            known = self._anchors.get(event.anchor)
            if known is None:
                why = "refers to itself" if event.anchor in self._anchors else "stands for nothing before it"
                raise self._fail(mark, f"the alias *{event.anchor} {why}")
            self._count(known.size, mark)
            return known
        self._count(1, mark)
        if event.anchor is not None:
            self._anchors[event.anchor] = None
        if isinstance(event, yaml.ScalarEvent):
            node = Node(self._scalar(event), mark.line + 1, mark.column + 1)
        elif isinstance(event, yaml.SequenceStartEvent):
            node = self._sequence(event, depth)
        else:
            node = self._mapping(event, depth)
        if event.anchor is not None:
            self._anchors[event.anchor] = node
        return node

    def _count(self, values: int, mark: Any) -> None:
        self._values += values
        if self._values > MOST_VALUES:
            raise self._fail(mark, f"it has more than {MOST_VALUES} values, with what aliases repeat")

    def _scalar(self, event: Any) -> Any:
        """A text, number, truth value or null. A date is the text that it is written as."""
        yaml, mark = self._yaml, event.start_mark
        tag = event.tag
        if tag is None or tag == "!":
            tag = self._loader.resolve(yaml.ScalarNode, event.value, event.implicit)
        kind = tag.removeprefix(_TAG)
        if not tag.startswith(_TAG) or kind not in _PLAIN or kind == "binary":
            raise self._fail(mark, f"the tag {tag!r} is not allowed: a configuration is plain data")
        if kind in ("timestamp", "value", "merge"):
            return event.value
        if kind == "str":
            plain = event.implicit[0] and not event.style
            return float(event.value) if plain and _NUMBER.fullmatch(event.value) else event.value
        try:
            return self._loader.construct_object(yaml.ScalarNode(tag, event.value, mark, event.end_mark))
        except (ValueError, LookupError, yaml.constructor.ConstructorError) as error:
            raise self._fail(mark, f"{event.value[:40]!r} is no {kind}: {error}") from None

    def _check_tag(self, event: Any, kind: str) -> None:
        if event.tag not in (None, "!", _TAG + kind):
            raise self._fail(event.start_mark, f"the tag {event.tag!r} is not allowed: a configuration is plain data")

    def _sequence(self, event: Any, depth: int) -> Node:
        self._check_tag(event, "seq")
        items: list[Node] = []
        while not self._loader.check_event(self._yaml.SequenceEndEvent):
            items.append(self._node(depth + 1))
        self._loader.get_event()
        size = 1 + sum(item.size for item in items)
        return Node(items, event.start_mark.line + 1, event.start_mark.column + 1, size)

    def _mapping(self, event: Any, depth: int) -> Node:
        self._check_tag(event, "map")
        items: dict[str, Node] = {}
        keys: dict[str, tuple[int, int]] = {}
        merged: list[Node] = []
        while not self._loader.check_event(self._yaml.MappingEndEvent):
            key = self._loader.get_event()
            if not isinstance(key, self._yaml.ScalarEvent):
                raise self._fail(key.start_mark, "a key must be a text")
            if key.tag not in (None, "!", _TAG + "str"):
                raise self._fail(key.start_mark, f"the tag {key.tag!r} is not allowed: a configuration is plain data")
            self._count(1, key.start_mark)
            if key.anchor is not None:
                self._anchors[key.anchor] = Node(key.value, key.start_mark.line + 1, key.start_mark.column + 1)
            value = self._node(depth + 1)
            if key.value == "<<" and not key.style:
                merged += self._merged(value, key)
                continue
            if key.value in keys:
                first = keys[key.value][0]
                raise self._fail(key.start_mark, f"the key {key.value!r} is there twice: first in line {first}")
            items[key.value] = value
            keys[key.value] = (key.start_mark.line + 1, key.start_mark.column + 1)
        self._loader.get_event()
        for other in merged:
            self._count(other.size, event.start_mark)
            items = {**other.value, **items}
            keys = {**other.keys, **keys}
        size = 1 + sum(item.size for item in items.values()) + len(items)
        return Node(items, event.start_mark.line + 1, event.start_mark.column + 1, size, keys, bool(merged))

    def _merged(self, value: Node, key: Any) -> list[Node]:
        """The mappings whose keys are taken by `<<`, the weakest last."""
        found = value.value if isinstance(value.value, list) else [value]
        if not all(isinstance(each.value, dict) for each in found):
            raise self._fail(key.start_mark, "'<<' must be followed by a mapping, or a list of them")
        return list(found)
