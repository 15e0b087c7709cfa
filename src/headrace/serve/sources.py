"""Sources of first-party modules and of all that they import, found on disk without importing anything.

In: names of modules. Out: a digest over the sources of the module and of the first-party modules that it reaches; and
all modules that were reached, with what was read of them.
"""

from __future__ import annotations

import ast
import hashlib
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path

import msgspec

from headrace.wire.pack import PackedModule, may_be_packed

_INSTALLED = ("site-packages", "dist-packages")
_PACKAGE = Path(__file__).resolve().parents[1]


class _Module(msgspec.Struct):
    """One first-party module: the digest of its file, and the names that it imports or that may be modules.

    `packed` is None where its file cannot make the module anew: it is compiled, or loaded under another name.
    """

    content: bytes
    imports: frozenset[str]
    packed: PackedModule | None = None


class Sources:
    """What was read of each module, once."""

    def __init__(self) -> None:
        self._modules: dict[str, _Module | None] = {}
        self._specs: dict[str, ModuleSpec | None] = {}
        self._standard = tuple(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib"))

    def of(self, name: str) -> bytes:
        """The digest of the first-party modules that `name` reaches, its own included."""
        reached: dict[str, bytes] = {}
        waiting = list(_with_parents(name))
        seen = set(waiting)
        while waiting:
            current = waiting.pop()
            module = self._module(current)
            if module is None:
                continue
            reached[current] = module.content
            new = {part for found in module.imports for part in _with_parents(found)} - seen
            seen |= new
            waiting += new
        mixed = hashlib.blake2b(digest_size=16)
        for current in sorted(reached):
            mixed.update(current.encode() + b"\0" + reached[current])
        return mixed.digest()

    def reached(self) -> Iterator[PackedModule]:
        """The modules so far that a pack can hold, as they were read, and the namespace packages around them."""
        packed = {name: module.packed for name, module in self._modules.items() if module is not None and module.packed}
        yield from packed.values()
        outer = {parent for name in packed for parent in _with_parents(name)} - packed.keys()
        for name in outer:
            spec = self._spec(name)
            if spec is not None and spec.origin is None and spec.submodule_search_locations is not None:
                yield PackedModule(name, "", None, tuple(spec.submodule_search_locations))

    def _module(self, name: str) -> _Module | None:
        if name not in self._modules:
            self._modules[name] = self._read(name)
        return self._modules[name]

    def _read(self, name: str) -> _Module | None:
        spec = self._spec(name)
        if spec is None or not spec.origin or not spec.has_location:
            return None
        path = Path(spec.origin).resolve()
        if not self._is_first_party(path):
            return None
        try:
            source = _content(spec, path)
        except OSError:
            return None
        content = hashlib.blake2b(source, digest_size=16).digest()
        if path.suffix != ".py":
            return _Module(content, frozenset())
        inside = spec.submodule_search_locations
        package = name if inside is not None else name.rpartition(".")[0]
        packed = None
        if spec.name == name and may_be_packed(name):
            packed = PackedModule(name, spec.origin, source, None if inside is None else tuple(inside))
        return _Module(content, frozenset(_imports(source, package)), packed)

    def _is_first_party(self, path: Path) -> bool:
        if any(part in _INSTALLED for part in path.parts) or path.is_relative_to(_PACKAGE):
            return False
        return not any(path.is_relative_to(standard) for standard in self._standard)

    def _spec(self, name: str) -> ModuleSpec | None:
        """Where the module lies, without importing its parents, as `importlib.util.find_spec` would."""
        if name in self._specs:
            return self._specs[name]
        self._specs[name] = found = self._find_spec(name)
        return found

    def _find_spec(self, name: str) -> ModuleSpec | None:
        loaded = getattr(sys.modules.get(name), "__spec__", None)
        if loaded is not None or name == "__main__":
            return loaded if isinstance(loaded, ModuleSpec) else None
        parent = name.rpartition(".")[0]
        path: Sequence[str] | None = None
        if parent:
            outer = self._spec(parent)
            if outer is None or outer.submodule_search_locations is None:
                return None
            path = outer.submodule_search_locations
        for finder in sys.meta_path:
            find_spec = getattr(finder, "find_spec", None)
            try:
                spec = find_spec(name, path) if find_spec is not None else None
            except KeyError:  # a namespace package: its path asks for the module around it, which is not imported
                spec = _namespace(name, path or ())
            if isinstance(spec, ModuleSpec):
                return spec
        return None


def own_files() -> tuple[str, ...]:
    """The files that first-party modules of this process were read from."""
    sources = Sources()
    found = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
    paths = (Path(file).resolve() for file in found if isinstance(file, str) and file)
    return tuple(sorted(str(path) for path in paths if sources._is_first_party(path)))


def _content(spec: ModuleSpec, path: Path) -> bytes:
    """What the module's file holds: in a replica, which may build an application too, what its pack says it does."""
    if isinstance(spec.loader, SourceFileLoader) and spec.origin:
        return spec.loader.get_data(spec.origin)
    return path.read_bytes()


def _namespace(name: str, path: Sequence[str]) -> ModuleSpec:
    spec = ModuleSpec(name, None, is_package=True)
    inside = (Path(entry) / name.rpartition(".")[2] for entry in path)
    spec.submodule_search_locations = [str(place) for place in inside if place.is_dir()]
    return spec


def _with_parents(name: str) -> Iterator[str]:
    """`a.b.c`: a, a.b and a.b.c."""
    parts = name.split(".")
    for count in range(1, len(parts) + 1):
        yield ".".join(parts[:count])


def _imports(source: bytes, package: str) -> Iterator[str]:
    """The modules that the source may import, at its top or inside of functions. `package` is what '.' means in it."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return  # the replica will say so
    for node in _statements(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = absolute_name(node.module or "", node.level, package)
            if base:
                yield base
                yield from (f"{base}.{alias.name}" for alias in node.names if alias.name != "*")


def _statements(tree: ast.Module) -> Iterator[ast.AST]:
    """All statements, at any depth. Expressions, which are most of a tree, hold none."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        for name in ("body", "orelse", "finalbody", "handlers", "cases"):
            inner = getattr(node, name, None)
            if isinstance(inner, list):
                waiting += inner


def absolute_name(module: str, level: int, package: str) -> str:
    """What `from ..module import` (level 2) names in this package; "" when it leads out of it."""
    if not level:
        return module
    parts = package.split(".")
    if level > len(parts):
        return ""
    outer = ".".join(parts[: len(parts) - level + 1])
    return f"{outer}.{module}".strip(".") if module else outer
