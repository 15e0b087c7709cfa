"""The digest of a deployment: sixteen hex digits that are equal when a replica would be, in this process or another.

In: a class or function, its constructor's arguments, its options. Out: the digest. Revisions with equal digests of a
deployment share its replicas, so what is told apart here is replaced, and what is not lives on.

What it covers:
- Code that replicas import: the sources of its module and of the first-party modules that it imports, transitively, as
  they lie on disk now. First-party is what lies neither in the standard library nor among installed packages.
- Code that travels by value (`__main__`, notebooks, closures): its bytecode, the values that it captures or refers to
  as globals, and so on from there. Not the bytes of its pickle, which differ from run to run, and not its source text,
  which is not always to be had and tells nothing that the bytecode does not.
- Arguments: by value, as their own `__reduce_ex__` takes them apart. Of a text or path that names a file, also the size
  and time of change of the file: a model that was trained anew is not the same model.
- Resources, environment variables, and where replicas may run; no other option makes another replica.

In doubt the digest is one that never was and never comes again. Not seen are modules that are imported by a computed
name, and data files that no argument or captured value names.
"""

from __future__ import annotations

import copyreg
import dis
import functools
import hashlib
import logging
import secrets
import stat
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import msgspec

from headrace.serve.sources import Sources, absolute_name
from headrace.spec.ingress import Ingress
from headrace.spec.options import DeploymentOptions
from headrace.spec.placement import Placement
from headrace.wire.code import found_by_import
from headrace.wire.webapps import comes_with_its_module, import_path_of, parts_of

log = logging.getLogger("headrace.serve")

HEX_DIGITS = 16
_ATOMS = (type(None), bool, int, float, complex, type(...), type(NotImplemented))
_CONTAINERS = (tuple, list)
_NOT_OF_THE_CLASS = frozenset(
    ("__dict__", "__weakref__", "__module__", "_abc_impl", "__firstlineno__", "__static_attributes__")
)
_DESCRIPTORS_OF_SLOTS = (types.MemberDescriptorType, types.GetSetDescriptorType)


def digest(
    target: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    options: DeploymentOptions,
    name_of: Callable[[Any], str | None],
    sources: Sources | None = None,
) -> tuple[str, dict[str, str]]:
    """The digest of the deployment of `target`, and those of its code, arguments and resources. Never raises: what
    cannot be taken apart counts as changed, and has no parts.

    `name_of` is asked of each object in the arguments and gives the name of the deployment that it stands for, or None.
    `sources` reads the modules, and knows afterwards which were reached.
    """
    sources = sources or Sources()
    walk = _Walk(name_of, sources)
    try:
        parts = [
            walk.value(target),
            walk.argument(tuple(args)),
            walk.argument(dict(sorted(kwargs.items()))),
            walk.value(_resources(options)),
        ]
    except Exception as error:  # any code of the user may run in a __reduce__; in doubt it counts as changed
        name = getattr(target, "__qualname__", repr(target))
        log.info("%s counts as changed with each deploy: %s: %s", name, type(error).__name__, error)
        sources.of(str(getattr(target, "__module__", "")))  # for the pack
        return unique(), {}
    code, args_part, kwargs_part, resources = parts
    named = {"code": code, "arguments": _mix("arguments", [args_part, kwargs_part]), "resources": resources}
    return _mix("deployment", parts).hex()[:HEX_DIGITS], {name: part.hex()[:HEX_DIGITS] for name, part in named.items()}


def _resources(options: DeploymentOptions) -> tuple[Any, ...]:
    """What a replica's process is started with; of where it may run, what is not as by default."""
    place, default = options.placement_of(""), Placement()
    fields = ((name, getattr(place, name)) for name in place.__struct_fields__)
    chosen = {name: value for name, value in fields if value != getattr(default, name)}
    placed = [msgspec.json.encode(chosen, order="deterministic")] if chosen else []
    return (options.num_cpus, options.num_gpus, sorted(options.environment.items()), *placed)


def unique() -> str:
    """A digest that never was and never comes again."""
    return secrets.token_hex(HEX_DIGITS // 2)


class _Walk:
    """One walk over the values: each has a digest, made of its type and the digests of its parts."""

    def __init__(self, name_of: Callable[[Any], str | None], sources: Sources) -> None:
        self._name_of = name_of
        self._sources = sources
        self._done: dict[int, bytes] = {}
        self._alive: list[Any] = []  # temporary values too, so that no id comes twice
        self._open: dict[int, int] = {}  # id -> depth, of the values that are being walked
        self._in_arguments = False

    def argument(self, value: Any) -> bytes:
        """The digest of a value in which bound deployments stand for themselves."""
        self._in_arguments = True
        try:
            return self.value(value)
        finally:
            self._in_arguments = False

    def value(self, value: Any) -> bytes:
        if type(value) in _ATOMS:
            return _mix(type(value).__name__, [repr(value).encode()])
        key = id(value)
        known = self._done.get(key)
        if known is not None:
            return known
        depth = self._open.get(key)
        if depth is not None:
            return _mix("again", [str(len(self._open) - depth).encode()])
        self._open[key] = len(self._open)
        self._alive.append(value)
        try:
            made = self._made_of(value)
        finally:
            del self._open[key]
        self._done[key] = made
        return made

    def _made_of(self, value: Any) -> bytes:
        kind = type(value)
        if self._in_arguments:
            name = self._name_of(value)
            if name is not None:
                return _mix("bound", [name.encode()])
        if kind is str or isinstance(value, PurePath):
            return _mix(kind.__name__, [str(value).encode("utf-8", "surrogatepass"), _stamp_of_file(value)])
        if kind is bytes or kind is bytearray:
            return _mix(kind.__name__, [value])
        if kind in _CONTAINERS:
            return _mix(kind.__name__, map(self.value, value))
        if kind is dict or kind is types.MappingProxyType:
            return _mix("dict", (self.value(part) for pair in value.items() for part in pair))
        if kind is set or kind is frozenset:
            return _mix(kind.__name__, sorted(map(self.value, value)))
        if kind is types.CodeType:
            return self._code(value)
        if kind is types.FunctionType:
            return self._function(value)
        if isinstance(value, type):
            return self._class(value)
        if kind is types.ModuleType:
            return _mix("module", [value.__name__.encode(), self._sources.of(value.__name__)])
        if kind is Ingress:
            return self._ingress(value)
        array = _array_parts(value)
        return self._object(value) if array is None else _mix("array", array)

    def _ingress(self, ingress: Ingress) -> bytes:
        """A web application by the sources of its module where those make all of it, else by what its routes call."""
        kind = f"ingress {ingress.interface.value}"
        path = import_path_of(ingress.app) if comes_with_its_module(ingress.app) else None
        if path is not None:
            return _mix(kind, [*(part.encode() for part in path), self._sources.of(path[0])])
        return _mix(kind, map(self.value, parts_of(ingress.app)))

    def _function(self, function: types.FunctionType) -> bytes:
        if found_by_import(function):
            return self._imported(function)
        code = function.__code__
        parts = [
            self._code(code),
            self.value(function.__defaults__),
            self.value(function.__kwdefaults__),
            *(self.value(_content(cell)) for cell in function.__closure__ or ()),
        ]
        names = sorted(_names(code))
        for name in names:
            if name in function.__globals__:
                found = function.__globals__[name]
                parts += [name.encode(), self.value(found), *self._submodules(found, names)]
        package = function.__globals__.get("__package__") or ""
        parts += [self._sources.of(name) for name in sorted(set(_imports(code, package)))]
        return _mix("function", parts)

    def _submodules(self, found: Any, names: Iterable[str]) -> list[bytes]:
        """Of a package that code refers to, the modules in it that the same code names: `package.module.function`."""
        if type(found) is not types.ModuleType:
            return []
        inner = (f"{found.__name__}.{name}" for name in names)
        return [self._sources.of(name) for name in inner if name in sys.modules]

    def _code(self, code: types.CodeType) -> bytes:
        shape = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
        return _mix(
            f"bytecode {sys.implementation.cache_tag}",
            [
                repr(shape).encode(),
                code.co_code,
                getattr(code, "co_exceptiontable", b""),
                repr((code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)).encode(),
                *map(self._constant, code.co_consts),
            ],
        )

    def _constant(self, constant: Any) -> bytes:
        """Of bytecode: a text in it is no captured value, so it names no file."""
        if isinstance(constant, types.CodeType):
            return self.value(constant)
        if isinstance(constant, frozenset):
            return _mix("frozenset", sorted(repr(part).encode() for part in constant))
        return repr(constant).encode("utf-8", "surrogatepass")

    def _class(self, cls: type) -> bytes:
        if found_by_import(cls):
            return self._imported(cls)
        parts = [cls.__qualname__.encode(), self.value(type(cls)), *map(self.value, cls.__bases__)]
        for name, member in sorted(vars(cls).items()):
            if name.startswith("__pydantic_") and name != "__pydantic_fields__":
                continue  # made from the fields and the methods, with addresses in it
            if name not in _NOT_OF_THE_CLASS and not isinstance(member, _DESCRIPTORS_OF_SLOTS):
                parts += [name.encode(), self.value(member)]
        return _mix("class", parts)

    def _imported(self, found: Any) -> bytes:
        module, qualname = found.__module__, found.__qualname__
        return _mix("import", [module.encode(), qualname.encode(), self._sources.of(module)])

    def _object(self, value: Any) -> bytes:
        """By what pickle would be told; members of classes that pickle does not know by what they wrap."""
        kind = type(value)
        if isinstance(value, property):
            return _mix("property", map(self.value, (value.fget, value.fset, value.fdel)))
        if isinstance(value, staticmethod | classmethod):
            return _mix(kind.__name__, [self.value(value.__func__)])
        if isinstance(value, functools.cached_property):
            return _mix("cached_property", [self.value(value.func)])
        if isinstance(value, functools._lru_cache_wrapper):
            return _mix("lru_cache", [self.value(value.__wrapped__)])
        reducer = copyreg.dispatch_table.get(kind)
        reduced = reducer(value) if reducer is not None else value.__reduce_ex__(4)
        if isinstance(reduced, str):
            module = str(getattr(value, "__module__", ""))
            return _mix("global", [module.encode(), reduced.encode(), self._sources.of(module)])
        make, args, *rest = reduced
        state, items, pairs = (*rest, None, None, None)[:3]
        parts = [make, args, state, list(items or ()), list(pairs or ())]
        return _mix("object", map(self.value, parts))


def _mix(kind: str, parts: Iterable[bytes | bytearray | memoryview]) -> bytes:
    mixed = hashlib.blake2b(kind.encode(), digest_size=16)
    for part in parts:
        mixed.update(len(part).to_bytes(8, "little"))
        mixed.update(part)
    return mixed.digest()


def _stamp_of_file(path: str | PurePath) -> bytes:
    text = str(path)
    if len(text) > 4096 or not text.isprintable():
        return b""
    try:
        found = Path(text).expanduser().stat()
    except (OSError, RuntimeError):
        return b""
    return repr((found.st_size, found.st_mtime_ns)).encode() if stat.S_ISREG(found.st_mode) else b""


def _array_parts(value: Any) -> list[bytes | memoryview] | None:
    numpy = sys.modules.get("numpy")
    if numpy is None or type(value) is not numpy.ndarray or value.dtype.hasobject:
        return None
    try:
        content = memoryview(value).cast("B")
    except (TypeError, ValueError, BufferError):  # not contiguous, empty, or of dates
        content = value.tobytes()
    return [str(value.dtype.descr).encode(), repr(value.shape).encode(), content]


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not set yet
        return None


def _codes(code: types.CodeType) -> Iterable[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def _names(code: types.CodeType) -> set[str]:
    """All names that the code may mean a global or an attribute by, those of the functions in it too."""
    return {name for part in _codes(code) for name in part.co_names}


def _imports(code: types.CodeType, package: str) -> Iterator[str]:
    """The modules that the code may import while it runs. `package` is what '.' means in it."""
    for part in _codes(code):
        level: Any = 0
        names: Any = None  # what is imported from the module; these two are loaded right before an import
        for instruction in dis.get_instructions(part):
            if instruction.opname == "IMPORT_NAME":
                base = absolute_name(str(instruction.argval), level, package)
                if base:
                    yield base
                    yield from (f"{base}.{name}" for name in names or () if name != "*")
            elif instruction.opname != "EXTENDED_ARG":
                level, names = names, instruction.argval
