"""headrace.serve.digest: equal where a replica would be the same, in any process; another where it would not."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.serve.digest import digest
from headrace.spec.options import DeploymentOptions

SCRIPT = """
import dataclasses, functools
from helpers import scale
import pack.inner
from headrace.serve.digest import digest
from headrace.spec.options import DeploymentOptions

FACTOR = 3
NAMES = {"a", "b", "c", "dd", "ee"}

@dataclasses.dataclass
class Config:
    width: int = 3

def helper(x):
    return scale(x) * FACTOR + pack.inner.offset()

def decorated(function):
    @functools.wraps(function)
    def inner(*args):
        return function(*args)
    return inner

class Model:
    names = NAMES
    def __init__(self, config):
        self.config = config
    @decorated
    def __call__(self, x):
        if x in {"p", "q", "r", "s"}:
            import lazily
            return lazily.value
        return [helper(y) for y in x]
    @property
    def width(self):
        return self.config.width
    @staticmethod
    def pair(a, b=2):
        return a, b
    @functools.cached_property
    def area(self):
        return self.width ** 2

print(digest(Model, (Config(4), {"x", "y", "z"}), {}, DeploymentOptions(), lambda v: None)[0])
"""

MODULES = {
    "helpers.py": "from deeper import base\n\ndef scale(x):\n    return base(x)\n",
    "deeper.py": "def base(x):\n    return x + 1\n",
    "lazily.py": "value = 5\n",
    "unrelated.py": "value = 6\n",
    "pack/__init__.py": "",
    "pack/inner.py": "from . import sibling\n\ndef offset():\n    return sibling.OFFSET\n",
    "pack/sibling.py": "OFFSET = 1\n",
    "pack/other.py": "OFFSET = 2\n",
    "app.py": SCRIPT,
}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name, text in MODULES.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return tmp_path


def digest_of_script(project: Path, seed: int = 0) -> str:
    environment = os.environ | {"PYTHONHASHSEED": str(seed), "PYTHONDONTWRITEBYTECODE": "1"}
    run = subprocess.run(
        [sys.executable, "app.py"], cwd=project, env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def test_the_digest_is_the_same_in_every_process(project: Path) -> None:
    digests = {digest_of_script(project, seed) for seed in (1, 2, 3)}

    assert len(digests) == 1
    assert len(digests.pop()) == 16


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("helpers.py", "base(x)", "base(x) * 2"),
        ("deeper.py", "x + 1", "x + 2"),
        ("lazily.py", "5", "6"),
        ("pack/inner.py", "sibling.OFFSET", "-sibling.OFFSET"),
        ("pack/sibling.py", "1", "2"),
        ("pack/__init__.py", "", "x = 1\n"),
        ("app.py", "FACTOR = 3", "FACTOR = 4"),
        ("app.py", "* FACTOR", "- FACTOR"),
        ("app.py", '"dd"', '"ff"'),
        ("app.py", '"s"}', '"t"}'),
        ("app.py", "b=2", "b=3"),
        ("app.py", "** 2", "** 3"),
        ("app.py", "self.config.width", "self.config.width + 1"),
        ("app.py", "Config(4)", "Config(5)"),
        ("app.py", "return function(*args)", "return function(*args) or None"),
        ("app.py", "DeploymentOptions()", "DeploymentOptions(num_cpus=2)"),
        ("app.py", "DeploymentOptions()", "DeploymentOptions(environment={'A': '1'})"),
        ("app.py", "DeploymentOptions()", "DeploymentOptions(resources={'TPU': 1})"),
        ("app.py", "DeploymentOptions()", "DeploymentOptions(runtime_env={'pip': ['torch']})"),
        ("app.py", "DeploymentOptions()", "DeploymentOptions(max_replicas_per_node=1)"),
    ],
)
def test_what_makes_another_replica_makes_another_digest(project: Path, name: str, old: str, new: str) -> None:
    before = digest_of_script(project)
    path = project / name
    path.write_text(path.read_text().replace(old, new, 1))

    assert digest_of_script(project) != before


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("unrelated.py", "6", "7"),
        ("pack/other.py", "2", "3"),
        ("app.py", "FACTOR = 3", "UNUSED = 9\n\n# a comment\nFACTOR = 3"),
        ("app.py", "DeploymentOptions()", "DeploymentOptions(num_replicas=5, max_ongoing_requests=7)"),
        ("app.py", "DeploymentOptions()", "DeploymentOptions(user_config={'threshold': 1})"),
    ],
)
def test_what_makes_no_other_replica_makes_no_other_digest(project: Path, name: str, old: str, new: str) -> None:
    before = digest_of_script(project)
    path = project / name
    path.write_text(path.read_text().replace(old, new, 1))

    assert digest_of_script(project) == before


# Arguments, in this process


class Model:
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass


class Bound:
    def __init__(self, name: str) -> None:
        self.name = name


def name_of(value: object) -> str | None:
    return value.name if isinstance(value, Bound) else None


def of(*args: Any, **kwargs: Any) -> str:
    return digest(Model, args, kwargs, DeploymentOptions(), name_of)[0]


@dataclasses.dataclass
class Point:
    x: Any
    y: Any = None


class Node:
    def __init__(self) -> None:
        self.me = self
        self.value = 1


DIFFERENT = [
    (),
    (None,),
    (1,),
    (1.0,),
    (True,),
    ("1",),
    (b"1",),
    (bytearray(b"1"),),
    ([1],),
    ((1,),),
    ({1},),
    (frozenset({1}),),
    ({1: 2},),
    (1, 2),
    ([1, [2]],),
    ([[1], 2],),
    (Point(1),),
    (Point(2),),
    (Point(1, Point(1)),),
    (Bound("a"),),
    (Bound("b"),),
    ([Bound("a")],),
    (np.arange(3),),
    (np.arange(3, dtype="i4"),),
    (np.arange(3.0),),
    (np.arange(4).reshape(2, 2),),
    (np.arange(4),),
    (np.arange(8)[::2],),
    (np.array(["2024-01-01"], "M8[D]"),),
    (np.array([{"a": 1}], object),),
    (np.float64(1.0),),
    (Model,),
    (Point,),
    (len,),
    (of,),
    (Path("a"),),
    (Path("b"),),
    (Node(),),
]


def test_different_arguments_have_different_digests_and_equal_ones_equal_digests() -> None:
    first, second = [of(*args) for args in DIFFERENT], [of(*args) for args in DIFFERENT]

    assert first == second
    assert len(set(first)) == len(DIFFERENT)


def test_arguments_by_name_are_in_no_order() -> None:
    assert of(a=1, b=2) == of(b=2, a=1)
    assert of(a=1) != of(1)
    assert of(a=1) != of(b=1)


def test_equal_values_count_as_equal_whether_they_are_one_object_or_two() -> None:
    shared = [1, 2]

    assert of(shared, shared) == of([1, 2], [1, 2])


def test_a_closure_is_told_by_what_it_captures() -> None:
    def make(factor: int) -> Any:
        return lambda x: x * factor

    assert of(make(2)) == of(make(2))
    assert of(make(2)) != of(make(3))


def test_a_file_that_an_argument_names_counts_with_its_content(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    missing = of(str(path))
    path.write_bytes(b"one")
    first = of(str(path))
    assert first == of(str(path))
    path.write_bytes(b"second")

    assert len({missing, first, of(str(path))}) == 3


def test_in_doubt_it_is_another_each_time() -> None:
    first, second = of(threading.Lock()), of(threading.Lock())

    assert first != second
    assert len(first) == len(second) == 16


def test_a_deeply_nested_value_is_doubtful_and_not_fatal() -> None:
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]

    assert len(of(nested)) == 16
