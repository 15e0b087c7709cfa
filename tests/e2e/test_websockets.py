"""WebSockets and TLS on real instances: FastAPI as users write it, replicas that die, an application deployed anew."""

from __future__ import annotations

import json
import os
import signal
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme
import websocket_apps
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from bench.instance import Instance, wait_for
from headrace import serve

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEADRACE_HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("HEADRACE_INSTANCE", "talk")
        for name in ("HEADRACE_RUNTIME_DIR", "HEADRACE_PROCESS_ID"):
            patch.delenv(name, raising=False)
        serve.start(http_options={"port": 0})
        serve.run(websocket_apps.chat, name="chat", route_prefix="/chat")
        yield next(iter(serve.status().proxies.values())).port
        serve.shutdown()


def opened(url: str, **options: Any) -> ClientConnection:
    """A connection that the test closes, or sees closed."""
    return connect(url, **options).__enter__()


def open_chat(port: int) -> tuple[ClientConnection, dict[str, Any]]:
    client = opened(f"ws://127.0.0.1:{port}/chat/ws")
    return client, json.loads(client.recv())


def doubled(client: ClientConnection, number: float) -> float:
    client.send(str(number))
    return float(client.recv())


def test_a_websocket_of_fastapi_with_a_deployment_behind_it(port: int) -> None:
    client, hello = open_chat(port)
    with client:
        assert (hello["scheme"], hello["path"]) == ("ws", "/chat/ws")
        assert [doubled(client, n) for n in range(50)] == [2.0 * n for n in range(50)]
    assert client.protocol.close_code == 1000
    with pytest.raises(InvalidStatus) as caught:
        opened(f"ws://127.0.0.1:{port}/chat/nowhere")
    assert caught.value.response.status_code == 403


def test_a_replica_that_is_killed_breaks_its_websockets_alone(port: int) -> None:
    clients = [open_chat(port) for _ in range(8)]
    victim = clients[0][1]["pid"]
    assert {hello["pid"] for _, hello in clients} > {victim}
    os.kill(victim, signal.SIGKILL)
    for client, hello in clients:
        if hello["pid"] == victim:
            with pytest.raises(ConnectionClosed):
                client.recv()
            assert client.protocol.close_code == 1006
        else:
            assert doubled(client, 21) == 42
            client.close()
    client, _ = open_chat(port)
    assert doubled(client, 4) == 8
    client.close()


def test_an_application_that_is_deployed_anew_has_its_clients_come_back(port: int) -> None:
    client, before = open_chat(port)
    serve.run(
        websocket_apps.Chat.options(ray_actor_options={"num_cpus": 0.1}).bind(websocket_apps.Double.bind()),
        name="chat",
        route_prefix="/chat",
    )
    with pytest.raises(ConnectionClosed):
        client.recv()
    assert (client.protocol.close_code, client.protocol.close_reason) == (1012, "service restart")
    again, after = open_chat(port)
    assert after["pid"] != before["pid"]
    assert doubled(again, 3) == 6
    again.close()


def test_a_deployment_without_a_web_application_says_what_it_lacks(port: int) -> None:
    serve.run(websocket_apps.plain, name="plain", route_prefix="/plain")
    with pytest.raises(InvalidStatus) as caught:
        opened(f"ws://127.0.0.1:{port}/plain")
    assert caught.value.response.status_code == 501
    assert b"@serve.ingress" in caught.value.response.body
    assert httpx.get(f"http://127.0.0.1:{port}/plain").text == "plain"


# --- headrace run, with TLS ----------------------------------------------------------------------------------------


class Secure:
    """A certificate in files, by relative names as users write them; a client that trusts it."""

    def __init__(self, folder: Path) -> None:
        authority = trustme.CA()
        issued = authority.issue_cert("127.0.0.1")
        issued.cert_chain_pems[0].write_to_path(str(folder / "cert.pem"))
        issued.private_key_pem.write_to_path(str(folder / "key.pem"))
        trustme.CA().issue_cert("else").private_key_pem.write_to_path(str(folder / "other.pem"))
        self.context = ssl.create_default_context()
        authority.configure_trust(self.context)


def test_headrace_run_serves_https_and_ends_its_websockets_when_it_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    secure = Secure(tmp_path)
    flags = ("--ssl-certfile", "cert.pem", "--ssl-keyfile", "key.pem", "--ingress-workers", "2")
    with Instance(tmp_path / "h", "websocket_apps:chat", HERE, *flags, name="secure") as instance:
        wait_for(lambda: "ready in" in instance.text, f"it is ready:\n{instance.text}")
        url = f"https://127.0.0.1:{instance.port}"
        assert f"{url}/" in instance.text
        assert url in instance.cli("status").stdout
        assert httpx.get(f"{url}/-/healthz", verify=secure.context).text == "success"
        assert httpx.get(f"{url}/pid", verify=secure.context).status_code == 200
        with pytest.raises(httpx.TransportError):
            httpx.get(f"http://127.0.0.1:{instance.port}/pid")
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/pid")  # who does not know who signed the certificate
        client = opened(f"wss://127.0.0.1:{instance.port}/ws", ssl=secure.context)
        assert json.loads(client.recv())["scheme"] == "wss"
        assert doubled(client, 5) == 10
        instance.process.send_signal(signal.SIGINT)
        with pytest.raises(ConnectionClosed):
            client.recv()
        assert client.protocol.close_code == 1012
    assert instance.process.returncode == 0
    assert "Traceback" not in instance.text


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--ssl-certfile", "gone.pem"), "ssl_certfile='gone.pem' cannot be read: No such file or directory"),
        (("--ssl-certfile", "cert.pem", "--ssl-keyfile", "other.pem"), "does not belong to the certificate"),
        (("--ssl-keyfile", "key.pem"), "ssl_keyfile has no effect without ssl_certfile"),
    ],
)
def test_files_that_are_wrong_are_told_before_anything_starts(
    flags: tuple[str, ...], told: str, tmp_path: Path
) -> None:
    Secure(tmp_path)
    command = [sys.executable, "-m", "headrace.cli", "run", "websocket_apps:chat", "--app-dir", str(HERE), *flags]
    env = os.environ | {"HEADRACE_HOME": str(tmp_path / "h")}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert told in done.stderr
    assert "Traceback" not in done.stderr
