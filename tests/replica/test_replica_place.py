"""A replica of a node among several: it listens at a socket of its own node's directory, and for others over TCP."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from pathlib import Path

import pytest
from fake_incoming import run
from hosting import S, short_directory, snapshot_of, spec_of
from test_replica_process import Process

from headrace import runtime
from headrace.engine.credentials import credentials_of, write_tls_files
from headrace.engine.directory import InstanceDirectory, write_secret
from headrace.handle import DeploymentHandle
from headrace.replica.place import place_of
from headrace.router import Router
from headrace.runtime import Runtime
from headrace.spec.errors import InstanceError, OptionError
from headrace.spec.snapshot import ReplicaEntry, Snapshot
from headrace.wire.control import HostReplica, ReplicaReport
from headrace.wire.tls import TlsFiles

SECRET = bytes(range(32))


@pytest.fixture
def directory(tmp_path: Path) -> InstanceDirectory:
    made = InstanceDirectory(tmp_path)
    write_secret(made, SECRET)
    return made


def test_without_a_node_there_is_no_place(tmp_path: Path) -> None:
    assert place_of(InstanceDirectory(tmp_path), {}) is None


def test_the_place_is_what_the_environment_says(directory: InstanceDirectory) -> None:
    environ = {"HEADRACE_NODE": "n1", "HEADRACE_NODE_HOST": "10.0.0.1", "HEADRACE_PORTS": "20000-20010"}
    place = place_of(directory, environ)
    assert place is not None
    assert (place.node, place.host, place.ports) == ("n1", "10.0.0.1", (20000, 20010))
    assert place.credentials.secret == SECRET
    assert place.near("unix:/elsewhere/r/7.sock") == f"unix:{directory.replicas}/7.sock"


@pytest.mark.parametrize("ports", ["20000", "20010-20000", "a-b", "0-10", "1-65536", "1-2-3", "-", "٣-٤"])
def test_ports_that_are_none_are_an_error_that_names_them(directory: InstanceDirectory, ports: str) -> None:
    environ = {"HEADRACE_NODE": "n1", "HEADRACE_NODE_HOST": "h", "HEADRACE_PORTS": ports}
    with pytest.raises(OptionError, match="FIRST-LAST"):
        place_of(directory, environ)


def test_a_node_without_an_address_or_a_secret_is_an_error(directory: InstanceDirectory) -> None:
    with pytest.raises(OptionError, match="HEADRACE_NODE_HOST"):
        place_of(directory, {"HEADRACE_NODE": "n1"})
    directory.secret.unlink()
    with pytest.raises(InstanceError, match="secret"):
        place_of(directory, {"HEADRACE_NODE": "n1", "HEADRACE_NODE_HOST": "h"})


def test_processes_that_the_instance_did_not_start_find_the_tls_files_in_the_directory(
    directory: InstanceDirectory,
) -> None:
    files = TlsFiles("/c.pem", "/k.pem", "/a.pem")
    assert credentials_of(directory, {}).tls is None
    write_tls_files(directory, files)
    assert credentials_of(directory, {}).tls == files
    other = TlsFiles("/c2.pem", "/k2.pem", "/a2.pem")
    assert credentials_of(directory, other.variables()).tls == other
    (directory.path / "tls.json").write_text("{")
    with pytest.raises(InstanceError, match=r"tls\.json"):
        credentials_of(directory, {})
    write_tls_files(directory, None)
    assert credentials_of(directory, {}).tls is None


def listed(order: HostReplica, report: ReplicaReport) -> Snapshot:
    snapshot = snapshot_of(order)
    (entry,) = snapshot.deployments.values()
    replica = ReplicaEntry(report.replica_id, report.address, report.node, report.near)
    entry = entry.__class__(
        key=entry.key,
        app=entry.app,
        name=entry.name,
        max_ongoing_requests=8,
        max_queued_requests=100,
        replicas=(replica,),
    )
    return Snapshot(version=1, applications=snapshot.applications, deployments={entry.key: entry})


def test_a_worker_is_reached_by_its_socket_on_its_node_and_by_tcp_from_others() -> None:
    async def check() -> None:
        loop = asyncio.get_running_loop()
        with short_directory() as path:
            process = Process(path, spec_of("Echo"))
            home = InstanceDirectory(process.peer.path.parent)
            home.replicas.mkdir(mode=0o700, exist_ok=True)
            write_secret(home, SECRET)
            await process.start({"HEADRACE_NODE": "n1", "HEADRACE_NODE_HOST": "127.0.0.1"})
            try:
                await process.host()
                report = await process.until_reported(S.RUNNING)
                assert report.node == "n1"
                assert report.near == f"unix:{home.replicas / Path(process.order.address).name}"
                assert report.address.startswith("tcp:127.0.0.1:")
                for node, family in (("n1", socket.AF_UNIX), ("n2", socket.AF_INET)):
                    router = Router(loop, f"test-{node}", node=node, read_credentials=lambda: credentials_of(home, {}))
                    runtime.install(Runtime(router, loop, threading.get_ident()))
                    router.update(listed(process.order, report))
                    seen = await DeploymentHandle("Echo", "shop").process.remote()
                    assert seen["pid"] == process.child.pid
                    assert [link.sock.family for link in router.links] == [family]
                    await router.close()
            finally:
                process.child.kill()
                await process.child.communicate()
                os.close(process.lifeline)
                runtime.install(None)
                await process.peer.stop()

    run(check())
