"""Real instances whose sources are edited, moved and deleted while they run: replicas run what was deployed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bench.instance import Instance, wait_for
from headrace import runtime as runtimes
from headrace import serve
from headrace.engine.directory import runtime_directory
from headrace.serve.driver import driver
from headrace.spec.application import ApplicationSpec
from headrace.spec.errors import DeployFailedError, ProtocolError
from headrace.wire.control import Deploy, GetRevision, Revision
from headrace.wire.pack import name_of, pack

APP = """
    import os, traceback
    from pathlib import Path
    from headrace import serve
    from shoplib import words

    @serve.deployment
    class Model:
        def __init__(self):
            self.words = [words.WORD]

        async def __call__(self, request):
            if request.query_params.get("fail"):
                words.fail()
            from shoplib.lazy import LATE
            return {"pid": os.getpid(), "words": [*self.words, LATE], "file": words.__file__, "cwd": os.getcwd()}

    app = Model.bind()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    write(folder, "one")
    return folder


def write(folder: Path, word: str) -> None:
    """The application, with this word in all its modules; those of shoplib are a namespace package."""
    (folder / "shoplib").mkdir(parents=True, exist_ok=True)
    (folder / "shop.py").write_text(textwrap.dedent(APP))
    (folder / "shoplib/words.py").write_text(
        f"WORD = {word!r}\ndef fail():\n    raise LookupError({word!r})  # {word}\n"
    )
    (folder / "shoplib/lazy.py").write_text(f"LATE = {word!r}\n")


@pytest.fixture
def instance(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Instance]:
    """`headrace run` as typed in the folder."""
    instance = Instance(tmp_path / "home", "shop:app", folder)
    instance.command = ["env", "-C", str(folder), *instance.command]
    with instance:
        instance.ready()
        monkeypatch.setenv("HEADRACE_HOME", instance.env["HEADRACE_HOME"])
        monkeypatch.setenv("HEADRACE_INSTANCE", instance.name)
        yield instance
        runtimes.close_own()


def answer(instance: Instance) -> dict[str, Any]:
    status, body, _ = instance.ask()
    assert status == 200, body
    return dict(json.loads(body))


def replicas() -> list[int]:
    """The pids of those that run."""
    found = serve.status().applications["default"].deployments["Model"].replicas
    return [replica.pid for replica in found if replica.state == "RUNNING"]


def killed(instance: Instance) -> dict[str, Any]:
    """What the successor answers of the replica that is killed."""
    (pid,) = replicas()
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: replicas() not in ([], [pid]), "there is a successor")
    found = answer(instance)
    assert found["pid"] != pid
    return found


def kill_controller(instance: Instance) -> None:
    def pids() -> list[int]:
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    variables = (entry / "environ").read_bytes().split(b"\0")
                except OSError:
                    continue
                home = f"HEADRACE_RUNTIME_DIR={instance.env['HEADRACE_HOME']}/{instance.name}".encode()
                if home in variables and b"HEADRACE_PROCESS_ID=controller" in variables:
                    found.append(int(entry.name))
        return found

    (before,) = pids()
    os.kill(before, signal.SIGKILL)
    wait_for(lambda: pids() not in ([], [before]), "there is another controller")


def deploy(instance: Instance, folder: Path) -> None:
    """Run the application from the folder, as a script of the user's would."""
    code = "import shop; from headrace import serve; serve.run(shop.app)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=instance.env | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def directory(instance: Instance) -> Any:
    return runtime_directory(Path(instance.env["HEADRACE_HOME"]) / instance.name)


def test_a_successor_runs_the_code_of_its_revision_whatever_became_of_the_files(
    instance: Instance, folder: Path
) -> None:
    assert answer(instance)["words"] == ["one", "one"]
    write(folder, "two")
    found = killed(instance)
    assert found["words"] == ["one", "one"]
    assert found["file"] == str(folder / "shoplib/words.py")
    assert found["cwd"] == str(folder)

    shutil.rmtree(folder)
    found = killed(instance)
    assert found["words"] == ["one", "one"]
    assert found["file"] == str(folder / "shoplib/words.py")
    assert "where the application was built, is gone" in instance.text
    assert instance.ask("/?fail=1")[0] == 500
    wait_for(lambda: "raise LookupError('one')  # one" in instance.text, "the traceback shows the line that ran")

    kill_controller(instance)
    assert killed(instance)["words"] == ["one", "one"]


def test_each_revision_has_its_own_and_a_rollback_has_that_of_its(instance: Instance, folder: Path) -> None:
    write(folder, "two")
    deploy(instance, folder)
    assert answer(instance)["words"] == ["two", "two"]
    packs = directory(instance).packs
    assert len(list(packs.iterdir())) == 2
    assert stat.S_IMODE(packs.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in packs.iterdir()} == {0o600}

    # The same again, word for word: no revision, and no pack more.
    deploy(instance, folder)
    assert len(list(packs.iterdir())) == 2

    shutil.rmtree(folder)
    kill_controller(instance)
    serve.rollback("default")
    assert answer(instance)["words"] == ["one", "one"]
    assert killed(instance)["words"] == ["one", "one"]
    serve.rollback("default", revision=2)
    assert answer(instance)["words"] == ["two", "two"]


def test_packs_that_are_none_are_refused_or_fail_their_revision_alone(instance: Instance) -> None:
    tie = driver()
    found = tie.ask(GetRevision("default"))
    assert isinstance(found, Revision)
    ((name, data),) = found.packs.items()
    assert name == found.spec.environment.pack == name_of(data)

    def naming(pack: str) -> ApplicationSpec:
        environment = msgspec.structs.replace(found.spec.environment, pack=pack)
        (deployment,) = found.spec.deployments
        deployment = msgspec.structs.replace(deployment, digest="0" * 16)
        return msgspec.structs.replace(found.spec, environment=environment, deployments=(deployment,))

    with pytest.raises(ProtocolError, match=f"the source pack '{name}' came as"):
        tie.ask(Deploy(found.spec, packs={name: pack([])}))
    with pytest.raises(DeployFailedError, match=f"names the source pack {'0' * 64}, which was neither sent"):
        tie.ask(Deploy(naming("0" * 64)))
    with pytest.raises(ProtocolError, match="is no name of a source pack"):
        tie.ask(Deploy(naming("../state.db")))
    assert [path.name for path in directory(instance).packs.iterdir()] == [name]

    junk = b"these are not the sources"
    with pytest.raises(
        DeployFailedError, match="a source pack was expected, not bytes that begin with b'these are not"
    ):
        tie.ask(Deploy(naming(name_of(junk)), packs={name_of(junk): junk}))
    assert answer(instance)["words"] == ["one", "one"]
