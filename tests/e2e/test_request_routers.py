"""Request routers in real processes: two ingress, replicas that call others, and a script, which all agree."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.instance import Instance, wait_for

APPS = Path(__file__).parent / "routed_apps"


@pytest.fixture(scope="module")
def instance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    home = tmp_path_factory.mktemp("home")
    with Instance(home, "routed:app", APPS, "--ingress-workers", "2") as running:
        yield running.ready()


def get(instance: Instance, path: str = "/", **headers: str) -> Any:
    """The answer to a request on a connection of its own, which either ingress may take."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(f"http://127.0.0.1:{instance.port}{path}", headers=named)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def homes(instance: Instance, sessions: int, times: int) -> dict[str, set[str]]:
    return {f"s{i}": {get(instance, x_session_id=f"s{i}")["replica"] for _ in range(times)} for i in range(sessions)}


def test_a_session_goes_to_one_replica_and_moves_when_it_dies(instance: Instance) -> None:
    before = homes(instance, 12, 6)
    assert all(len(home) == 1 for home in before.values())
    assert len(set.union(*before.values())) > 1
    first = get(instance, x_session_id="s0")
    os.kill(first["pid"], signal.SIGKILL)
    after = homes(instance, 12, 3)
    known = set.union(*before.values())
    for session, home in before.items():
        # The successor of the dead, which has a name of its own, may be there already and take over its share.
        if home == {first["replica"]}:
            assert first["replica"] not in after[session]
        else:
            assert after[session] & known <= home


def test_a_users_router_goes_by_what_callers_say(instance: Instance) -> None:
    replicas = sorted(answer["replica"] for answer in get(instance, "/?all=1"))
    assert len(replicas) == 3
    # The module is imported beside the first requests, so those may go anywhere, in each ingress that there is.
    wait_for(lambda: {get(instance, "/?tenant=1")["replica"] for _ in range(30)} == {replicas[1]}, "it routes")
    assert [get(instance, f"/?tenant={tenant}")["replica"] for tenant in range(6)] == replicas * 2


def test_in_the_ingress_and_in_a_script_too(instance: Instance) -> None:
    script = """
    from headrace import serve
    from routed import tenants

    handle = serve.run(tenants, name="tenants", route_prefix="/tenants")
    names = sorted(answer["replica"] for answer in handle.broadcast("who").results(timeout_s=30))
    assert [handle.who.remote(tenant=i).result()["replica"] for i in range(6)] == names * 2
    with handle.who.choose_replica(tenant=2) as selection:
        assert selection.replica_id == names[2]
        assert handle.dispatch(selection).result()["replica"] == names[2]
    print(*names)
    """
    env = instance.env | {"PYTHONPATH": str(APPS)}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    names = done.stdout.split()[-3:]
    for tenant in range(3):
        wait_for(
            lambda tenant=tenant: (
                {get(instance, "/tenants", x_tenant=str(tenant))["replica"] for _ in range(8)} == {names[tenant]}
            ),
            "both ingress processes have imported it",
        )
    assert not [line for line in instance.output if "ERROR" in line and "the router" in line]


def test_a_router_that_no_other_process_can_import_is_an_error_of_the_deploy(instance: Instance) -> None:
    script = """
    from headrace import serve
    from headrace.serve.request_router import RequestRouter

    class Mine(RequestRouter):
        def choose_replicas(self, candidate_replicas, pending_request=None):
            return [candidate_replicas]

    serve.run(serve.deployment(request_router_config=Mine)(lambda: 1).bind(), name="mine", route_prefix=None)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env=instance.env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "put it at the top of a module of its own" in done.stderr.splitlines()[-1]
