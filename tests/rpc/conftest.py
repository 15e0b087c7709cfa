"""The modules that protoc makes of library.proto, for the tests and the processes that they start."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from grpc_tools import protoc

from bench.instance import tell_nodes

HERE = Path(__file__).parent


@pytest.fixture(scope="session", autouse=True)
def generated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("generated")
    command = ["protoc", f"-I{HERE}", f"--python_out={folder}", f"--grpc_python_out={folder}", "library.proto"]
    assert protoc.main(command) == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.syspath_prepend(str(HERE))
        yield folder


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A private home for the instances of a module, and the diary that their replicas write."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("home")
        patch.setenv("HEADRACE_HOME", str(folder))
        patch.setenv("LIBRARY_DIARY", str(folder / "diary"))
        for name in ("HEADRACE_INSTANCE", "HEADRACE_RUNTIME_DIR", "HEADRACE_PROCESS_ID"):
            patch.delenv(name, raising=False)
        tell_nodes(os.environ)
        yield Path(os.environ["HEADRACE_HOME"])
