"""Imports from a source pack: the modules of a revision as they were deployed, whatever lies on disk by now.

In: the bytes of a pack. Out: a finder for `sys.meta_path`. Its modules have the `__file__`, `__path__` and code
positions of the files that they were packed from, so that data beside these files is found; their source, in
tracebacks and for `inspect`, is the pack's. What is not in the pack is looked for by the finders that follow.
"""

from __future__ import annotations

import importlib.util
import linecache
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from headrace.spec.errors import InstanceError, ProtocolError
from headrace.wire.pack import PackedModule, name_of, unpack

log = logging.getLogger("headrace.replica")


def import_from_pack(name: str, data: bytes) -> PackFinder:
    """Have this process import the pack's modules from the pack, before it looks anywhere else.

    Once only: asked again for the pack that is there, it does nothing. Raises ProtocolError for bytes that are not the
    pack of this name, InstanceError when the process has another pack already.
    """
    present = next((finder for finder in sys.meta_path if isinstance(finder, PackFinder)), None)
    if present is not None:
        if present.name != name:
            raise InstanceError(f"this process imports from the source pack {present.name}, and cannot from {name} too")
        return present
    if name_of(data) != name:
        raise ProtocolError(f"the source pack {name} is broken: its bytes are those of {name_of(data)}")
    finder = PackFinder(name, unpack(data))
    for early in finder.imported_already():
        log.warning("module %s was imported before its revision's sources were there, and stays as it is", early)
    sys.meta_path.insert(0, finder)
    return finder


class PackFinder:
    """Finds the modules of one pack."""

    def __init__(self, name: str, modules: Mapping[str, PackedModule]) -> None:
        self.name = name
        self._modules = modules

    def __repr__(self) -> str:
        return f"<PackFinder of {len(self._modules)} modules in {self.name[:12]}>"

    def imported_already(self) -> list[str]:
        """The modules of the pack that this process has, and so will not import."""
        return sorted(self._modules.keys() & sys.modules.keys())

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """As of any finder: how the module is made, None when it is not of the pack."""
        module = self._modules.get(name)
        if module is None:
            return None
        if module.source is None:
            spec = ModuleSpec(name, None, is_package=True)
            spec.submodule_search_locations = _NamespacePath(module.paths or ())
            return spec
        locations = None if module.paths is None else list(module.paths)
        loader = PackLoader(name, module.file, module.source)
        return importlib.util.spec_from_file_location(
            name, module.file, loader=loader, submodule_search_locations=locations
        )


class PackLoader(SourceFileLoader):
    """Makes one module from the pack's source. All other files are those on disk: `importlib.resources` finds data."""

    def __init__(self, name: str, file: str, source: bytes) -> None:
        super().__init__(name, file)
        self._source = source

    def get_data(self, path: str) -> bytes:
        """The content of the file, as it was packed if it is the module's own."""
        return self._source if path == self.path else super().get_data(path)

    def path_stats(self, path: str) -> Mapping[str, float]:
        """Of the file on disk, by which bytecode that was compiled of it is known. Raises OSError where that may be of
        another source than the pack's.
        """
        found = Path(path).stat()
        compiled = Path(importlib.util.cache_from_source(path)).stat()
        # Bytecode tells sources apart by whole seconds: what came later in the same second would be taken for the same.
        if compiled.st_mtime < int(found.st_mtime) + 1 or super().get_data(path) != self._source:
            raise OSError(f"{path} is not known to be what was packed")
        return {"mtime": found.st_mtime, "size": found.st_size}

    def set_data(self, path: str, data: Any, *, _mode: int = 0o666) -> None:
        """Nothing: a bytecode cache belongs to the file on disk."""

    def get_code(self, fullname: str) -> CodeType | None:
        """The module's code. From now on its source is what tracebacks show, also of an error in its syntax."""
        linecache.cache[self.path] = _CachedLines(self.path, self._source)
        try:
            return super().get_code(fullname)
        except SyntaxError as error:
            if error.filename == self.path and error.lineno:
                error.text = linecache.getline(self.path, error.lineno)  # Python looks into the file on disk for it
            raise


class _NamespacePath(list[str]):
    """Where a namespace package has its parts; `importlib.resources` knows it by how it is written."""

    def __repr__(self) -> str:
        return f"_NamespacePath({super().__repr__()})"


class _CachedLines(tuple[Any, ...]):
    """What linecache keeps of a file, `(size, None, lines, path)`, with lines that are made when somebody looks.

    Without a time of change linecache takes it as it is, whatever the file is like now.
    """

    __slots__ = ()

    def __new__(cls, path: str, source: bytes) -> _CachedLines:
        return super().__new__(cls, (len(source), None, source, path))

    def __getitem__(self, index: Any) -> Any:
        found = super().__getitem__(index)
        return _lines(found) if isinstance(found, bytes) else found

    def __iter__(self) -> Iterator[Any]:
        return (self[index] for index in range(len(self)))


def _lines(source: bytes) -> list[str]:
    try:
        return importlib.util.decode_source(source).splitlines(keepends=True)
    except (SyntaxError, UnicodeDecodeError):  # of an encoding that is none: the import says so
        return []
