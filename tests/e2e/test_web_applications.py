"""FastAPI and Flask applications on a real instance: of modules, of `__main__`, as they are; clients that leave."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import web_apps

from bench.instance import tell_nodes
from headrace import serve
from headrace.spec.errors import DeployFailedError

PATIENCE_S = 60

SCRIPT = """
from __future__ import annotations

from fastapi import APIRouter, Depends, FastAPI
from pydantic import BaseModel

from headrace import serve

app = FastAPI()
router = APIRouter()


class Item(BaseModel):
    name: str
    price: float = FACTOR


def tax(rate: float = 0.5) -> float:
    return rate


@serve.deployment
@serve.ingress(app)
class Shop:
    def __init__(self, greeting):
        self.greeting = greeting

    @app.post("/item")
    async def item(self, item: Item, rate: float = Depends(tax)) -> dict:
        replica = serve.get_replica_context().replica_id
        return {"greeting": self.greeting, "price": item.price * (1 + rate), "replica": replica}

    @router.post("/plain")
    def plain(self, item: Item) -> Item:
        return item


app.include_router(router, prefix="/more")
serve.run(Shop.bind("hello"), name="script", route_prefix="/script")
print(serve.get_app_handle("script").plain.remote(Item(name="by handle")).result().name)
"""


@pytest.fixture(scope="module")
def diary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEADRACE_HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("HEADRACE_INSTANCE", "web")
        for name in ("HEADRACE_RUNTIME_DIR", "HEADRACE_PROCESS_ID"):
            patch.delenv(name, raising=False)
        path = tmp_path_factory.mktemp("web") / "diary"
        path.touch()
        patch.setenv("WEB_DIARY", str(path))
        tell_nodes(os.environ)
        yield path


@pytest.fixture(scope="module")
def port(diary: Path) -> Iterator[int]:
    serve.start(http_options={"port": 0})
    serve.run_many(
        [
            serve.RunTarget(web_apps.Front.bind(web_apps.Echo.bind(), "!"), "front", "/front"),
            serve.RunTarget(web_apps.flask, "flask", "/flask"),
            serve.RunTarget(web_apps.plain, "plain", "/plain"),
            serve.RunTarget(web_apps.Built.bind(3), "built", "/built"),
        ]
    )
    yield next(iter(serve.status().proxies.values())).port
    serve.shutdown()


def ask(port: int, path: str, value: Any = None, body: bytes | None = None) -> Any:
    data = body if value is None else json.dumps(value).encode()
    headers = {"content-type": "application/json"} if value is not None else {}
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, headers)
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as response:
        text = response.read()
    return json.loads(text) if response.headers["content-type"].startswith("application/json") else text.decode()


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_fastapi_front_with_a_deployment_behind_it(port: int) -> None:
    assert ask(port, "/front/repeat", {"text": " ab ", "times": 2}) == {"text": "abab!"}
    with pytest.raises(urllib.error.HTTPError) as caught:
        ask(port, "/front/repeat", {"times": "many"})
    assert caught.value.code == 422
    assert ask(port, "/front/events") == "data: 0\n\ndata: 1\n\ndata: 2\n\n"


def test_each_replica_has_its_own_lifespan_and_urls_have_the_prefix(port: int) -> None:
    seen: dict[int, Any] = {}

    def both() -> bool:  # a request goes to the nearer one, unless that one has work
        for found in at_once.map(lambda _: ask(port, "/front/who"), range(30)):
            seen[found["pid"]] = found
        return len(seen) == 2

    with ThreadPoolExecutor(10) as at_once:
        until(both)
    assert os.getpid() not in seen
    assert all(found["same"] for found in seen.values())
    assert {found["url"] for found in seen.values()} == {f"http://127.0.0.1:{port}/front/who"}
    schema = ask(port, "/front/openapi.json")
    assert schema["servers"] == [{"url": "/front"}]
    assert "self" not in json.dumps(schema)


def test_methods_by_handle(port: int) -> None:
    front = serve.get_app_handle("front")
    message = web_apps.Message(text="x", times=3)
    assert front.repeat.remote(message).result(PATIENCE_S) == {"text": "xxx!"}


def test_a_client_that_leaves_ends_what_a_thread_of_a_route_waits_for(port: int, diary: Path) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as client:
        client.sendall(b"GET /front/wait HTTP/1.1\r\nhost: a\r\n\r\n")
        until(lambda: "for ever\n" in diary.read_text())
    until(lambda: "ended\n" in diary.read_text())


def test_flask_as_it_is(port: int) -> None:
    answer = ask(port, "/flask/predict", [1, 2])
    assert answer["result"] == [2, 4]
    assert answer["thread"].startswith("headrace-")
    assert ask(port, "/flask/parts") == "0 1 2 "
    assert ask(port, "/flask/size", body=b"x" * 3_000_000) == "3000000"


def test_fastapi_as_it_is_and_built_in_each_replica(port: int) -> None:
    assert ask(port, "/plain/hi?name=b") == {"hi": "b"}
    made = ask(port, "/built/made")
    assert made["factor"] == 3
    assert made["in"] != os.getpid()


def test_an_application_of_a_script_and_what_counts_as_changed(port: int, tmp_path: Path) -> None:
    def run(factor: int) -> Any:
        script = tmp_path / "shop.py"
        script.write_text(SCRIPT.replace("FACTOR", str(factor)))
        done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=PATIENCE_S)
        assert (done.returncode, done.stdout) == (0, "by handle\n"), done.stderr
        return ask(port, "/script/item", {"name": "pen"})

    first = run(2)
    assert (first["greeting"], first["price"]) == ("hello", 3.0)
    assert ask(port, "/script/more/plain", {"name": "pen"}) == {"name": "pen", "price": 2.0}
    assert run(2) == first
    changed = run(4)
    assert (changed["price"], changed["replica"] == first["replica"]) == (6.0, False)


def test_a_startup_that_fails_fails_the_deploy_with_its_traceback(port: int) -> None:
    with pytest.raises(DeployFailedError) as caught:
        serve.run(web_apps.Broken.bind(), name="broken", route_prefix="/broken")
    assert "LookupError: no model in this house" in str(caught.value)
    assert "in broken_lifespan" in str(caught.value)
    serve.delete("broken")


def test_the_shutdown_comes_before_the_instance_is_destroyed(port: int, diary: Path) -> None:
    serve.delete("front")
    lines = diary.read_text().split("\n")
    assert lines.count("startup of Front") == lines.count("shutdown") == lines.count("del Front") == 2
    assert lines.index("shutdown") < lines.index("del Front")
