"""Many models over several replicas, with real processes: hot ones and cold ones, slow loads, a replica that dies."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from bench.instance import tell_nodes, wait_for
from headrace import serve

HERE = Path(__file__).parent
PATIENCE_S = 60


class Served:
    """The instance of these tests, and what its replicas wrote down."""

    def __init__(self, handle: Any, folder: Path) -> None:
        self.handle = handle
        self.folder = folder
        proxy = next(iter(serve.status().proxies.values()))
        self.url = f"http://127.0.0.1:{proxy.port}/"
        self.grpc_port = proxy.grpc_port

    def use(self, model: str, seconds: float = 0.0) -> dict[str, Any]:
        return self.handle.options(multiplexed_model_id=model).use.remote(seconds).result(PATIENCE_S)

    def lines(self) -> list[str]:
        diary = self.folder / "diary"
        return diary.read_text().splitlines() if diary.exists() else []

    def homes(self, model: str) -> set[str]:
        """The replicas that have loaded it."""
        told = [line.split() for line in self.lines()]
        return {replica for replica, name, what in told if (name, what) == (model, "loaded")}

    def slow(self, model: str) -> Path:
        """Loads of this model do not end while the file is there."""
        file = self.folder / f"{model} is slow"
        file.touch()
        return file


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEADRACE_HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("MODELS_FOLDER", str(folder))
        tell_nodes(os.environ)
        for name in ("HEADRACE_INSTANCE", "HEADRACE_RUNTIME_DIR", "HEADRACE_PROCESS_ID"):
            patch.delenv(name, raising=False)
        patch.syspath_prepend(str(HERE))
        import model_apps

        functions = ["model_apps.add_models_to_server"]
        serve.start(http_options={"port": 0}, grpc_options={"port": 0, "grpc_servicer_functions": functions})
        yield Served(serve.run(model_apps.app), folder)
        serve.shutdown()
        sys.modules.pop("model_apps")


def test_every_door(served: Served) -> None:
    assert served.use("door")["model"] == "door"
    assert httpx.get(served.url, headers={"serve_multiplexed_model_id": "door"}).json()["model"] == "door"
    with grpc.insecure_channel(f"127.0.0.1:{served.grpc_port}") as channel:
        from google.protobuf.wrappers_pb2 import StringValue

        coders = StringValue.SerializeToString, StringValue.FromString
        use = channel.unary_unary("/models.Models/Use", *coders)
        answer = use(StringValue(value="by"), metadata=[("multiplexed_model_id", "door")], timeout=PATIENCE_S)
        assert answer.value == "by door"
    assert len(served.homes("door")) == 1


def test_calls_go_where_their_model_is(served: Served) -> None:
    first = {name: served.use(name)["pid"] for name in ("m1", "m2", "m3")}
    for _ in range(5):
        assert {name: served.use(name)["pid"] for name in first} == first
    assert all(len(served.homes(name)) == 1 for name in first)


def test_a_hot_model_among_cold_ones_gets_another_home(served: Served) -> None:
    stop = threading.Event()

    def press() -> list[bool]:
        answers = []
        while not stop.is_set():
            answers.append(served.use("hot", 0.02)["open"])
        return answers

    with ThreadPoolExecutor(12) as pool:
        pressing = [pool.submit(press) for _ in range(12)]
        try:
            wait_for(lambda: len(served.homes("hot")) == 2, "the hot model is loaded by both replicas")
            assert [served.use(f"cold{n}")["model"] for n in range(6)] == [f"cold{n}" for n in range(6)]
            pids: set[int] = set()
            wait_for(lambda: pids.add(served.use("hot")["pid"]) or len(pids) == 2, "both answer for it")
        finally:
            stop.set()
        assert all(all(future.result()) for future in pressing)


def test_loaded_models_answer_while_others_load(served: Served) -> None:
    file = served.slow("sluggish")
    served.use("quick")
    with ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(served.use, "sluggish") for _ in range(8)]
        for _ in range(50):
            assert served.use("quick")["model"] == "quick"
        assert served.use("another")["model"] == "another"
        assert not any(future.done() for future in waiting)
        file.unlink()
        assert [future.result()["model"] for future in waiting] == ["sluggish"] * 8
    assert len(served.homes("sluggish")) == 1


def test_when_its_home_dies_a_model_finds_another(served: Served) -> None:
    before = served.use("moving")["pid"]
    os.kill(before, signal.SIGKILL)
    assert served.use("moving")["pid"] != before


def test_models_are_closed_when_all_ends(served: Served) -> None:
    served.use("last")
    serve.delete("default")
    (home,) = served.homes("last")
    wait_for(lambda: f"{home} last closed" in served.lines(), "it is closed")
