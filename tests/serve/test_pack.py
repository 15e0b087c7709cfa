"""headrace.serve.pack: a build's source pack holds what its digests were made of, and nothing else."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from headrace import serve
from headrace.serve.graph import ByValue, build
from headrace.serve.pack import packs_of
from headrace.serve.run_target import RunTarget
from headrace.serve.sources import Sources
from headrace.wire.pack import PackedModule, name_of, unpack

FILES = {
    "shopping/__init__.py": "from headrace import serve\n",
    "shopping/door.py": """
        import json
        import numpy
        from headrace import serve
        from . import prices
        from .deep.inner import rate

        @serve.deployment
        class Door:
            def __call__(self):
                import shopping_late
                return prices.PRICE

        app = Door.bind()
    """,
    "shopping/prices.py": "PRICE = 1\n",
    "shopping/unused.py": "",
    "shopping/deep/inner.py": "def rate(): return 2\n",
    "shopping_late.py": "import calendar\n",
    "shopping_routes.py": """
        from headrace import serve
        import shopping_late

        class Route(serve.request_router.RequestRouter):
            async def choose_replicas(self, candidate_replicas, pending_request=None):
                return [candidate_replicas]
    """,
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text if not text.startswith("\n") else "\n".join(line[8:] for line in text.splitlines()))
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("shopping")]:
        del sys.modules[name]


def packed(app: Any) -> dict[str, PackedModule]:
    packing = ByValue()
    spec = build(app, packing=packing)
    ((name, data),) = packing.packs().items()
    assert spec.environment.pack == name == name_of(data)
    return unpack(data)


def door() -> Any:
    return importlib.import_module("shopping.door")


def test_it_holds_what_the_deployment_reaches(folder: Path) -> None:
    modules = packed(door().app)
    assert sorted(modules) == [
        "shopping",
        "shopping.deep",
        "shopping.deep.inner",
        "shopping.door",
        "shopping.prices",
        "shopping_late",
    ]
    assert modules["shopping.prices"] == PackedModule(
        "shopping.prices", str(folder / "shopping/prices.py"), b"PRICE = 1\n"
    )
    assert modules["shopping"].paths == (str(folder / "shopping"),)
    assert modules["shopping.deep"] == PackedModule("shopping.deep", "", None, (str(folder / "shopping/deep"),))


def test_equal_sources_make_an_equal_pack_and_an_edit_another(folder: Path) -> None:
    first, again = ByValue(), ByValue()
    app = door().app
    assert build(app, packing=first) == build(app, packing=again)
    assert first.packs() == again.packs()
    (folder / "shopping/prices.py").write_text("PRICE = 3\n")
    edited = ByValue()
    build(app, packing=edited)
    assert edited.packs().keys() != first.packs().keys()


def test_it_is_what_the_digest_read_though_the_file_changes_meanwhile(folder: Path) -> None:
    sources = Sources()
    digest = sources.of("shopping.prices")
    (folder / "shopping/prices.py").write_text("PRICE = 4\n")
    assert sources.of("shopping.prices") == digest
    (data,) = packs_of(sources).values()
    assert unpack(data)["shopping.prices"].source == b"PRICE = 1\n"


def test_classes_in_arguments_and_modules_of_code_by_value_come_along(folder: Path) -> None:
    prices = importlib.import_module("shopping.prices")
    inner = importlib.import_module("shopping.deep.inner")
    namespace: dict[str, Any] = {"prices": prices, "__name__": "__main__"}
    exec("def by_value(): return prices.PRICE", namespace)
    modules = packed(serve.deployment(namespace["by_value"]).bind())
    assert sorted(modules) == ["shopping", "shopping.prices"]
    exec("class Holder:\n    def __init__(self, held): pass", namespace)
    modules = packed(serve.deployment(namespace["Holder"]).bind(inner.rate))
    assert sorted(modules) == ["shopping", "shopping.deep", "shopping.deep.inner"]


def test_what_code_by_value_imports_while_it_runs_comes_along(folder: Path) -> None:
    namespace: dict[str, Any] = {"__name__": "__main__", "__package__": "shopping.deep"}
    exec("def by_value():\n    from .. import prices\n    from .inner import rate\n    import shopping_late", namespace)
    modules = packed(serve.deployment(namespace["by_value"]).bind())
    assert sorted(modules) == ["shopping", "shopping.deep", "shopping.deep.inner", "shopping.prices", "shopping_late"]
    # Many names before it, so that the import's own are far down in the tables of the code.
    many = "\n".join(f"    x{i} = 'c{i}'.n{i}" for i in range(600))
    exec(f"def by_value():\n{many}\n    from shopping import prices", namespace)
    assert sorted(packed(serve.deployment(namespace["by_value"]).bind())) == ["shopping", "shopping.prices"]


def test_functions_that_compare_a_shadow_come_along(folder: Path) -> None:
    prices = importlib.import_module("shopping.prices")
    exec("def compare(one, other): return True", vars(prices))
    packing = ByValue()
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec("def by_value(): return 1", namespace)
    app = serve.deployment(namespace["by_value"]).bind()
    RunTarget(app, rollout=serve.Shadow(fraction=0.1, compare=prices.compare)).spec(app, packing)
    ((_, data),) = packing.packs().items()
    assert "shopping.prices" in unpack(data)


def test_request_routers_come_along(folder: Path) -> None:
    deployment = door().Door.options(request_router_config={"request_router_class": "shopping_routes:Route"})
    assert {"shopping_routes", "shopping_late"} <= packed(deployment.bind()).keys()


def test_nothing_of_others_is_in_it_whatever_it_is_called(folder: Path) -> None:
    # A module of one's own called as one of the standard library is imported as it always was.
    (folder / "calendar.py").write_text("")
    (folder / "shopping/prices.py").write_text("import calendar, msgspec, headrace.serve, os\nPRICE = 1\n")
    assert all(name.startswith("shopping") for name in packed(door().app))


def test_what_is_loaded_under_another_name_is_not_packed_under_it(folder: Path) -> None:
    sys.modules["shopping_alias"] = importlib.import_module("shopping.prices")
    (folder / "shopping_late.py").write_text("import shopping_alias\n")
    modules = packed(door().app)
    assert "shopping_alias" not in modules
    assert "shopping.prices" in modules


def test_without_sources_there_is_no_pack() -> None:
    packing = ByValue()
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec("def by_value(): return 1", namespace)
    assert build(serve.deployment(namespace["by_value"]).bind(), packing=packing).environment.pack == ""
    assert packing.packs() == {}


def test_a_file_that_is_no_python_is_packed_all_the_same(folder: Path) -> None:
    (folder / "shopping_late.py").write_bytes(b"\xff\xfe not python (")
    assert packed(door().app)["shopping_late"].source == b"\xff\xfe not python ("
