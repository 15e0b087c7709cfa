"""Work that nobody waits for any more stops, three hops down: in coroutines, in threads, in streams of both kinds.

A client that hangs up, a call that is cancelled, and a time that is over each end it, in real processes.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.instance import Instance, wait_for
from headrace import runtime as runtimes
from headrace import serve
from headrace.handle import DeploymentHandle
from headrace.spec.errors import RequestCancelledError, RequestTimeoutError

KINDS = ("coroutine", "thread", "stream", "thread_stream")


@pytest.fixture(scope="module")
def instance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    here = Path(__file__).parent
    with Instance(tmp_path_factory.mktemp("stopping"), "stopping_apps:app", here) as instance:
        yield instance.ready()


@pytest.fixture
def door(instance: Instance, monkeypatch: pytest.MonkeyPatch) -> Iterator[DeploymentHandle]:
    """The application's handle, from this process."""
    monkeypatch.setenv("HEADRACE_HOME", instance.env["HEADRACE_HOME"])
    monkeypatch.setenv("HEADRACE_INSTANCE", instance.name)
    yield serve.get_app_handle("default")
    runtimes.close_own()


class Bottom:
    """What goes on in the last deployment."""

    def __init__(self) -> None:
        self.handle = serve.get_deployment_handle("Bottom", "default")
        self.before = self.counts()

    def counts(self) -> dict[str, dict[str, int]]:
        return self.handle.counts.remote().result(timeout_s=30)

    def grown(self, what: str, kind: str) -> int:
        return self.counts()[what].get(kind, 0) - self.before[what].get(kind, 0)

    def wait(self, what: str, kind: str) -> None:
        wait_for(lambda: self.grown(what, kind) == 1, f"the {kind} at the bottom has {what}")


@pytest.mark.parametrize("kind", KINDS)
def test_a_client_that_hangs_up(instance: Instance, door: DeploymentHandle, kind: str) -> None:
    bottom = Bottom()
    with socket.create_connection(("127.0.0.1", instance.port)) as client:
        client.sendall(b"GET /%b HTTP/1.1\r\nhost: a\r\n\r\n" % kind.encode())
        bottom.wait("began", kind)
        assert bottom.grown("ended", kind) == 0
    bottom.wait("ended", kind)


@pytest.mark.parametrize("kind", KINDS)
def test_a_time_that_is_over_by_http(instance: Instance, door: DeploymentHandle, kind: str) -> None:
    bottom = Bottom()
    with socket.create_connection(("127.0.0.1", instance.port)) as client:
        client.sendall(b"GET /%b HTTP/1.1\r\nhost: a\r\nx-request-timeout-seconds: 0.4\r\n\r\n" % kind.encode())
        bottom.wait("began", kind)
        bottom.wait("ended", kind)
        head = client.recv(64)
    # A response that streams has begun long before: it breaks off.
    assert head.startswith(b"HTTP/1.1 200" if "stream" in kind else b"HTTP/1.1 408")


@pytest.mark.parametrize("kind", KINDS)
def test_a_call_that_is_cancelled(door: DeploymentHandle, kind: str) -> None:
    bottom = Bottom()
    response = door.options(method_name=kind, stream="stream" in kind).remote()
    bottom.wait("began", kind)
    response.cancel()
    bottom.wait("ended", kind)
    with pytest.raises(RequestCancelledError):
        next(response) if "stream" in kind else response.result(timeout_s=30)


@pytest.mark.parametrize("kind", KINDS)
def test_a_time_that_is_over_by_handle(door: DeploymentHandle, kind: str) -> None:
    bottom = Bottom()
    response = door.options(method_name=kind, stream="stream" in kind, timeout_s=0.4).remote()
    bottom.wait("began", kind)
    bottom.wait("ended", kind)
    with pytest.raises(RequestTimeoutError):
        list(response) if "stream" in kind else response.result(timeout_s=30)


def test_slots_are_free_again(door: DeploymentHandle) -> None:
    """After all that was stopped above: each deployment is idle."""
    wait_for(
        lambda: all(
            replica.ongoing == 0
            for deployment in serve.status().applications["default"].deployments.values()
            for replica in deployment.replicas
        ),
        "no call is in work",
    )
