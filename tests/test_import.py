"""What `import headrace` loads: nothing that a script does not need to declare its deployments."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

BASE = {"headrace", "msgspec", "cloudpickle", "typing_extensions"}  # what the public names are made of

_CODE = """
import sys, json
sys.path[:] = {path!r}
before = set(sys.modules)
{code}
print(json.dumps(sorted({{name.partition('.')[0] for name in set(sys.modules) - before}})))
"""


def loaded_by(code: str) -> set[str]:
    """The top-level modules that the code loads in a fresh interpreter."""
    code = _CODE.format(path=sys.path, code=code)
    return set(json.loads(subprocess.check_output([sys.executable, "-c", code], text=True)))


@pytest.mark.parametrize(
    "code",
    [
        "import headrace",
        "from headrace import serve",
        "from headrace import serve; [getattr(serve, name) for name in serve.__all__]",
    ],
)
def test_no_library_is_loaded_that_a_script_could_do_without(code: str) -> None:
    loaded = loaded_by(code)
    assert "headrace" in loaded
    assert loaded - sys.stdlib_module_names - BASE == set()


def test_declaring_deployments_needs_neither_loops_nor_sockets() -> None:
    loaded = loaded_by("from headrace import serve\nserve.deployment(type('Model', (), {})).bind()")
    assert "headrace" in loaded
    assert not loaded & {"asyncio", "cloudpickle", "multiprocessing", "sqlite3", "ssl", "uvloop"}
