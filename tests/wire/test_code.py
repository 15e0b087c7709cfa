"""headrace.wire.code: code by import path where it can be, else by value; deployments in arguments become handles."""

from __future__ import annotations

import dataclasses
import importlib.util
import subprocess
import sys
import textwrap
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import msgspec
import pytest

from headrace.spec.application import Code, ImportedCode, PickledCode
from headrace.spec.errors import ImportPathError, PayloadError, ProtocolError
from headrace.wire.code import load_code, pack_arguments, pack_code, unpack_arguments


class Wrapper:
    """What a Deployment looks like to this module."""

    def __init__(self, func_or_class: Any) -> None:
        self.func_or_class = func_or_class


@Wrapper
class Wrapped:
    pass


class Outer:
    class Inner:
        pass


def test_a_class_of_a_module_goes_by_its_path() -> None:
    assert pack_code(OrderedDict) == ImportedCode("collections", "OrderedDict")
    assert load_code(pack_code(OrderedDict)) is OrderedDict


def test_a_nested_class_goes_by_its_path() -> None:
    assert pack_code(Path.home) != pack_code(Path)
    assert load_code(ImportedCode("dataclasses", "Field")) is dataclasses.Field


def run_in_new_process(script: str, *arguments: str, cwd: Path | None = None) -> bytes:
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *arguments], capture_output=True, check=False, cwd=cwd
    )
    assert run.returncode == 0, run.stderr.decode()
    return run.stdout


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "mymodel.py").write_text(
        textwrap.dedent("""
            class Wrapper:
                def __init__(self, func_or_class):
                    self.func_or_class = func_or_class

            @Wrapper
            class Model:
                def __call__(self):
                    return "by path"

            class Plain:
                class Inner:
                    pass

            def make():
                class Local:
                    def __call__(self):
                        return "local"
                return Local
        """)
    )
    return tmp_path


def packed(script: str, project: Path) -> Code:
    """What a driver that runs `script` in `project` packs as `target`."""
    end = """
        import msgspec, sys
        from headrace.wire.code import pack_code
        sys.stdout.buffer.write(msgspec.msgpack.encode(pack_code(target)))
    """
    return msgspec.msgpack.decode(
        run_in_new_process(textwrap.dedent(script) + textwrap.dedent(end), cwd=project), type=Code
    )


def called(code: Code, project: Path) -> str:
    """What an instance of the code says in a replica."""
    script = """
        import msgspec, sys
        from headrace.spec.application import Code
        from headrace.wire.code import load_code
        code = msgspec.msgpack.decode(bytes.fromhex(sys.argv[1]), type=Code)
        print(load_code(code)()())
    """
    return run_in_new_process(script, msgspec.msgpack.encode(code).hex(), cwd=project).decode().strip()


def test_a_wrapped_class_goes_by_its_path_and_is_unwrapped(project: Path) -> None:
    code = packed("import mymodel; target = mymodel.Model.func_or_class", project)

    assert code == ImportedCode("mymodel", "Model")
    assert called(code, project) == "by path"


def test_nested_classes_have_dotted_paths(project: Path) -> None:
    assert packed("import mymodel; target = mymodel.Plain.Inner", project) == ImportedCode("mymodel", "Plain.Inner")


def test_a_class_made_in_a_function_goes_by_value(project: Path) -> None:
    code = packed("import mymodel; target = mymodel.make()", project)

    assert isinstance(code, PickledCode)
    assert called(code, project) == "local"


def test_code_of_main_takes_its_helpers_along(project: Path, tmp_path: Path) -> None:
    script = """
        import mymodel
        GREETING = "hello"
        class Base:
            def say(self):
                return helper()
        def helper():
            return GREETING + " " + mymodel.Model.func_or_class()()
        class target(Base):
            def __call__(self):
                return self.say()
    """
    code = packed(script, project)

    assert isinstance(code, PickledCode)
    assert called(code, project) == "hello by path"


def test_a_module_that_no_replica_finds_goes_by_value(project: Path) -> None:
    script = """
        import importlib.util, sys
        sys.path.remove("")
        spec = importlib.util.spec_from_file_location("elsewhere", "mymodel.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules["elsewhere"] = module
        spec.loader.exec_module(module)
        target = module.Model.func_or_class
    """
    code = packed(script, project)

    assert isinstance(code, PickledCode)
    assert called(code, project.parent) == "by path"


def test_another_class_under_the_same_name_goes_by_value(project: Path) -> None:
    script = """
        import mymodel
        target = mymodel.Plain
        mymodel.Plain = None
    """

    assert isinstance(packed(script, project), PickledCode)


def test_code_that_cannot_be_pickled_is_an_error_that_says_what_to_do() -> None:
    lock = threading.Lock()

    def uses_lock() -> object:
        return lock

    with pytest.raises(PayloadError, match=r"uses_lock.*cannot be sent.*lock.*__init__"):
        pack_code(uses_lock)


@pytest.mark.parametrize(
    ("module", "qualname", "words"),
    [
        ("no_such_module", "X", "no module 'no_such_module'"),
        ("collections.no_such", "X", r"no module 'collections\.no_such'"),
        ("collections", "NoSuch", "collections of the replica has no 'NoSuch'"),
        ("collections", "OrderedDict.no_such", "OrderedDict.no_such"),
    ],
)
def test_what_is_not_in_the_replica_is_named(module: str, qualname: str, words: str) -> None:
    with pytest.raises(ImportPathError, match=words):
        load_code(ImportedCode(module, qualname))


def test_an_error_in_the_users_module_is_raised_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "imports_what_is_not_there.py").write_text("import surely_not_installed\n")
    (tmp_path / "raises_when_imported.py").write_text("raise RuntimeError('bad weather')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()

    with pytest.raises(ModuleNotFoundError, match="surely_not_installed"):
        load_code(ImportedCode("imports_what_is_not_there", "X"))
    with pytest.raises(RuntimeError, match="bad weather"):
        load_code(ImportedCode("raises_when_imported", "X"))


# Arguments


class Bound:
    def __init__(self, name: str) -> None:
        self.name = name


@dataclasses.dataclass
class Holder:
    inside: Any


def name_of(value: object) -> str | None:
    return value.name if isinstance(value, Bound) else None


def test_deployments_at_any_depth_become_handles_and_are_listed() -> None:
    a, b = Bound("a"), Bound("b")
    data, uses = pack_arguments((1, [b, {"k": a}], Holder(b)), {"model": a}, name_of)

    assert uses == ("b", "a")
    args, kwargs = unpack_arguments(data, lambda name: f"handle of {name}")
    assert args == (1, ["handle of b", {"k": "handle of a"}], Holder("handle of b"))
    assert kwargs == {"model": "handle of a"}


def test_one_deployment_is_one_handle() -> None:
    a = Bound("a")
    data, uses = pack_arguments((a, [a]), {}, name_of)
    asked: list[str] = []

    def handle_for(name: str) -> object:
        asked.append(name)
        return object()

    (first, (second,)), _ = unpack_arguments(data, handle_for)
    assert uses == ("a",)
    assert asked == ["a"]
    assert first is second


def test_functions_made_on_the_spot_are_arguments_too() -> None:
    data, _ = pack_arguments((lambda x: x + 1,), {}, name_of)
    (function,), _ = unpack_arguments(data, lambda name: None)

    assert function(1) == 2


@pytest.mark.parametrize(
    ("args", "kwargs", "words"),
    [
        ((1, threading.Lock()), {}, "argument 1 of type lock"),
        ((1,), {"guard": [threading.Lock()]}, "argument 'guard' of type list"),
    ],
)
def test_an_argument_that_cannot_be_sent_is_named(args: Any, kwargs: Any, words: str) -> None:
    with pytest.raises(PayloadError, match=words):
        pack_arguments(args, kwargs, name_of)


def test_what_restoring_an_argument_raises_is_raised_as_it_is() -> None:
    class Broken:
        def __reduce__(self) -> Any:
            return int, ("no number",)

    data, _ = pack_arguments((Broken(),), {}, name_of)
    with pytest.raises(ValueError, match="no number"):
        unpack_arguments(data, lambda name: None)


def test_what_is_no_pack_of_arguments_is_refused() -> None:
    import pickle

    with pytest.raises(ProtocolError, match="list"):
        unpack_arguments(pickle.dumps([1, 2]), lambda name: None)
