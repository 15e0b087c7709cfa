"""headrace.replica.pack_finder: modules are made from the pack, as if they came from where they were packed."""

from __future__ import annotations

import importlib
import importlib.resources
import importlib.util
import inspect
import linecache
import logging
import marshal
import os
import pkgutil
import shutil
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from headrace.replica.pack_finder import PackFinder, import_from_pack
from headrace.serve.pack import packs_of
from headrace.serve.sources import Sources
from headrace.spec.errors import InstanceError, ProtocolError
from headrace.wire.pack import MAGIC, PackedModule, name_of, pack

Packed = Callable[..., str]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A place for modules, whose imports leave nothing in this process."""
    before = (list(sys.meta_path), list(sys.path), set(sys.modules), dict(linecache.cache))
    sys.path.insert(0, str(tmp_path))
    importlib.invalidate_caches()
    yield tmp_path
    sys.meta_path[:], sys.path[:] = before[0], before[1]
    for name in sys.modules.keys() - before[2]:
        del sys.modules[name]
    linecache.cache.clear()
    linecache.cache.update(before[3])


@pytest.fixture
def packed(folder: Path) -> Packed:
    """Write the files, import from their pack as a driver and its worker do, then edit them all."""

    def do(*names: str, **files: str) -> str:
        for path, text in files.items():
            file = folder / (path.replace("__", "/").replace("/init/", "__init__") + ".py")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(textwrap.dedent(text))
        importlib.invalidate_caches()
        sources = Sources()
        for name in names:
            sources.of(name)
        ((name, data),) = packs_of(sources).items()
        import_from_pack(name, data)
        for file in folder.rglob("*.py"):
            file.write_text("raise RuntimeError('today')\n")
        return name

    return do


def load(name: str) -> object:
    return importlib.import_module(name)


def test_a_module_is_the_one_that_was_packed(folder: Path, packed: Packed) -> None:
    packed("hrp_one", hrp_one="X = 1\n")
    one = importlib.import_module("hrp_one")
    assert one.X == 1
    assert one.__file__ == str(folder / "hrp_one.py")
    assert one.__name__ == one.__spec__.name == "hrp_one"
    assert one.__package__ == ""
    assert not hasattr(one, "__path__")


def test_packages_relative_imports_and_data_beside_them(folder: Path, packed: Packed) -> None:
    packed(
        "hrp_shop.deep.model",
        hrp_shop____init__="from .prices import PRICE\n",
        hrp_shop__prices="PRICE = 5\n",
        hrp_shop__deep____init__="",
        hrp_shop__deep__model="""
            from pathlib import Path
            from .. import PRICE
            from ..prices import PRICE as again
            WEIGHTS = Path(__file__).with_name("weights.txt").read_text()
            def price():
                return PRICE
        """,
    )
    (folder / "hrp_shop/deep/weights.txt").write_text("1.5")
    model = importlib.import_module("hrp_shop.deep.model")
    assert (model.price(), model.again, model.WEIGHTS) == (5, 5, "1.5")
    shop = importlib.import_module("hrp_shop")
    assert list(shop.__path__) == [str(folder / "hrp_shop")]
    assert model.price.__code__.co_filename == str(folder / "hrp_shop/deep/model.py")
    assert (importlib.resources.files("hrp_shop.deep") / "weights.txt").read_text() == "1.5"
    assert pkgutil.get_data("hrp_shop.deep", "weights.txt") == b"1.5"


def test_namespace_packages_hold_their_parts_together(folder: Path, packed: Packed) -> None:
    packed("hrp_space.part", hrp_space__part="X = 1\n")
    (folder / "hrp_space/data.txt").write_text("data")
    (folder / "hrp_space/later.py").write_text("X = 'not in the pack'\n")
    assert importlib.import_module("hrp_space.part").X == 1
    space = importlib.import_module("hrp_space")
    assert list(space.__path__) == [str(folder / "hrp_space")]
    assert space.__file__ is None
    assert importlib.import_module("hrp_space.later").X == "not in the pack"
    assert (importlib.resources.files("hrp_space") / "data.txt").read_text() == "data"


def test_all_of_it_may_be_gone_from_disk(folder: Path, packed: Packed) -> None:
    packed(
        "hrp_space.pkg.leaf",
        hrp_space__pkg____init__="",
        hrp_space__pkg__leaf="from . import twig\nX = twig.X\n",
        hrp_space__pkg__twig="X = 1\n",
    )
    shutil.rmtree(folder)
    leaf = importlib.import_module("hrp_space.pkg.leaf")
    assert leaf.X == 1
    assert inspect.getsource(leaf) == "from . import twig\nX = twig.X\n"
    with pytest.raises(ModuleNotFoundError, match=r"hrp_space\.pkg\.other"):
        load("hrp_space.pkg.other")


def test_a_submodule_that_was_not_packed_comes_from_disk(folder: Path, packed: Packed) -> None:
    packed("hrp_pkg.a", hrp_pkg____init__="", hrp_pkg__a="X = 1\n")
    (folder / "hrp_pkg/b.py").write_text("X = 'disk'\n")
    assert importlib.import_module("hrp_pkg.a").X == 1
    assert importlib.import_module("hrp_pkg.b").X == "disk"


def test_sources_and_tracebacks_show_what_runs(folder: Path, packed: Packed) -> None:
    packed("hrp_bad", hrp_bad="# -*- coding: latin-1 -*-\ndef fail():\n    return 1 / 0  # in the pack\n")
    bad = importlib.import_module("hrp_bad")
    assert inspect.getsource(bad.fail) == "def fail():\n    return 1 / 0  # in the pack\n"
    with pytest.raises(ZeroDivisionError) as caught:
        bad.fail()
    linecache.checkcache()
    text = "".join(traceback.format_exception(caught.value))
    assert "return 1 / 0  # in the pack" in text
    assert "today" not in text
    assert linecache.getline(str(folder / "hrp_bad.py"), 2) == "def fail():\n"


@pytest.mark.parametrize(("text", "line"), [("X = (1,\n", "X = (1,"), ("raise ValueError('at import')\n", "raise Val")])
def test_a_module_that_does_not_import_says_why(folder: Path, packed: Packed, text: str, line: str) -> None:
    packed("hrp_broken", hrp_broken=text)
    with pytest.raises((SyntaxError, ValueError)) as caught:
        load("hrp_broken")
    assert line in "".join(traceback.format_exception(caught.value))
    assert "hrp_broken" not in sys.modules


def test_bytes_that_are_no_text_are_a_syntax_error(folder: Path) -> None:
    data = pack([PackedModule("hrp_bytes", str(folder / "hrp_bytes.py"), b"# coding: no-such\nX = 1\n")])
    import_from_pack(name_of(data), data)
    with pytest.raises(SyntaxError):
        load("hrp_bytes")
    assert linecache.getlines(str(folder / "hrp_bytes.py")) == []


def test_nothing_is_written_beside_the_sources(folder: Path, packed: Packed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    packed("hrp_one", hrp_one="X = 1\n")
    (folder / "hrp_one.py").write_text("X = 1\n")
    load("hrp_one")
    assert not list(folder.rglob("*.pyc"))


@pytest.mark.parametrize(
    ("edited", "compiled_after_s", "cached"),
    [("X = 1\n", 1.0, True), ("X = 1\n", 0.5, False), ("X = 2\n", 1.0, False), (None, 1.0, False)],
)
def test_bytecode_of_the_file_is_taken_if_it_is_certain_to_be_of_the_same_source(
    folder: Path, packed: Packed, edited: str | None, compiled_after_s: float, cached: bool
) -> None:
    packed("hrp_one", hrp_one="X = 1\n")
    file = folder / "hrp_one.py"
    compiled = Path(importlib.util.cache_from_source(str(file)))
    compiled.parent.mkdir()
    # Code that tells where it came from, with the mark of bytecode that was made of this file.
    mark = importlib.util.MAGIC_NUMBER + (0).to_bytes(4) + (1000).to_bytes(4, "little") + (6).to_bytes(4, "little")
    compiled.write_bytes(mark + marshal.dumps(compile("X = 'cached'", str(file), "exec")))
    os.utime(compiled, (1000.0 + compiled_after_s,) * 2)
    if edited is None:
        file.unlink()
    else:
        file.write_text(edited)
        os.utime(file, (1000.0, 1000.0))
    one = importlib.import_module("hrp_one")
    assert (one.X == "cached") is cached


def test_what_was_imported_before_stays_and_is_named(
    folder: Path, packed: Packed, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "hrp_early.py").write_text("X = 'early'\n")
    early = load("hrp_early")
    with caplog.at_level(logging.WARNING):
        packed("hrp_early", hrp_early="X = 'packed'\n")
    assert "module hrp_early was imported before" in caplog.text
    assert load("hrp_early") is early


def test_one_pack_in_one_process(folder: Path, packed: Packed) -> None:
    name = packed("hrp_one", hrp_one="X = 1\n")
    before = list(sys.meta_path)
    assert import_from_pack(name, b"is not looked at").name == name
    assert sys.meta_path == before
    assert repr(sys.meta_path[0]).startswith("<PackFinder of 1 modules in ")
    with pytest.raises(InstanceError, match=f"imports from the source pack {name}, and cannot from"):
        import_from_pack("0" * 64, b"")


@pytest.mark.parametrize("damage", ["cut", "changed", "empty"])
def test_a_pack_that_is_not_what_its_name_says_is_refused(folder: Path, damage: str) -> None:
    data = pack([PackedModule("hrp_one", "/hrp_one.py", b"X = 1\n")])
    broken = {"cut": data[:-3], "changed": data[:-1] + b"\0", "empty": b""}[damage]
    with pytest.raises(ProtocolError, match="its bytes are those of"):
        import_from_pack(name_of(data), broken)
    assert not any(isinstance(finder, PackFinder) for finder in sys.meta_path)


def test_a_pack_cannot_shadow_the_standard_library(folder: Path) -> None:
    import zlib

    import msgspec

    data = MAGIC + zlib.compress(msgspec.msgpack.encode([["os", "/os.py", b"raise SystemExit", None]]))
    with pytest.raises(ProtocolError, match="cannot have a module 'os'"):
        import_from_pack(name_of(data), data)
