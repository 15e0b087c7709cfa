"""The ingress process: the composition root of what clients reach (`python -m headrace.ingress`).

In: HEADRACE_HTTP_OPTIONS (JSON of HTTPOptions) and HEADRACE_GRPC (JSON of a GrpcService) from the controller;
HEADRACE_PROCESS_ID, HEADRACE_RUNTIME_DIR and HEADRACE_LIFELINE_FD from the keeper. Out: exit code 0 after a drain, 1
when it could not start.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import gc
import logging
import os
import resource
import signal
import sys
from typing import TYPE_CHECKING

import msgspec
import uvloop

from headrace.engine.credentials import credentials_of
from headrace.engine.directory import read_snapshot, runtime_directory
from headrace.ingress.ingress import Ingress
from headrace.observe.logs import log_to_stderr
from headrace.router import Router
from headrace.spec.config import HTTPOptions, http_options
from headrace.spec.errors import HeadraceError, OptionError
from headrace.spec.grpc import GrpcService
from headrace.wire.awake import awake_for

if TYPE_CHECKING:
    from headrace.ingress.grpc_server import GrpcServer

log = logging.getLogger("headrace.ingress")

OWN_FILES = 24  # what an ingress without connections has open
LEAST_SPARE_FILES, MOST_SPARE_FILES = 16, 2048  # for connections to replicas, and to clients that are refused
ORPHAN_DRAIN_S = 3.5  # gone within five seconds after the keeper


def main() -> int:
    """Run the ingress of this process to its end."""
    faulthandler.enable()
    log_to_stderr()
    # Ctrl-C in a terminal reaches every process of it; the keeper decides what it means for this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        options = options_of(os.environ)
        options = with_files_for(options)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(options))
    except HeadraceError as error:
        print(error, file=sys.stderr, flush=True)
        return 1
    return 0


def options_of(environment: os._Environ[str]) -> HTTPOptions:
    """The options in HEADRACE_HTTP_OPTIONS (all defaults without it). Raises OptionError."""
    text = environment.get("HEADRACE_HTTP_OPTIONS") or "{}"
    try:
        values = msgspec.json.decode(text, type=dict[str, object])
    except msgspec.MsgspecError as error:
        raise OptionError(f"HEADRACE_HTTP_OPTIONS={text[:200]!r} must be a JSON object: {error}") from error
    return http_options(values)


def grpc_server(environment: os._Environ[str], router: Router) -> GrpcServer | None:
    """What serves gRPC here, None where it was not asked for. Raises OptionError when it cannot be loaded."""
    text = environment.get("HEADRACE_GRPC")
    if not text:
        return None
    from headrace.ingress.grpc_server import GrpcServer  # grpcio is an extra, and takes its time to load

    try:
        service = msgspec.json.decode(text, type=GrpcService)
    except msgspec.MsgspecError as error:
        raise OptionError(f"HEADRACE_GRPC={text[:200]!r} is no GrpcService: {error}") from error
    return GrpcServer(router, service)


async def serve(options: HTTPOptions) -> None:
    """Listen until SIGTERM or the end of the keeper, then drain."""
    loop = asyncio.get_running_loop()
    process_id = os.environ["HEADRACE_PROCESS_ID"]
    directory = runtime_directory(os.environ["HEADRACE_RUNTIME_DIR"])
    router = Router(
        loop,
        process_id,
        "ingress",
        awake_for(loop),
        node=os.environ.get("HEADRACE_NODE", ""),
        read_credentials=lambda: credentials_of(directory),
    )
    ingress = Ingress(
        process_id,
        options,
        router,
        str(directory.control_socket),
        snapshot=read_snapshot(directory),
        grpc=grpc_server(os.environ, router),
    )
    loop.add_signal_handler(signal.SIGTERM, ingress.stop)
    watch_lifeline(loop, ingress)
    spare_collector()
    try:
        await ingress.run()
    finally:
        await router.close()


def spare_collector() -> None:
    """Have the cycle collector run seldom: a request makes no cycles, and a connection breaks its own at its end.

    By default it would look at each young object after every 700 that are not freed yet: with many requests in flight
    all the time, to find nothing. What is there at the start stays for good and is never looked at.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def with_files_for(options: HTTPOptions) -> HTTPOptions:
    """The options, with no more connections than there may be open files beside what reaches the replicas.

    Raises the limit on open files as far as is needed and the system lets us. Without that rest, clients that do
    nothing but hold connections would keep the ingress from its replicas.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return options
    wanted = options.max_connections + OWN_FILES + MOST_SPARE_FILES
    if soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))
            soft = max(soft, most)
    room = max(1, soft - OWN_FILES - min(MOST_SPARE_FILES, max(LEAST_SPARE_FILES, soft // 8)))
    if room >= options.max_connections:
        return options
    log.warning(
        "max_connections=%d is more than the limit on open files, %d, allows: %d it is (ulimit -n raises it)",
        options.max_connections,
        soft,
        room,
    )
    return msgspec.structs.replace(options, max_connections=room)


def watch_lifeline(loop: asyncio.AbstractEventLoop, ingress: Ingress) -> None:
    """Drain when the keeper is gone: the write end of the lifeline is its alone."""
    text = os.environ.get("HEADRACE_LIFELINE_FD")
    if not text:
        return
    descriptor = int(text)
    os.set_inheritable(descriptor, False)
    os.set_blocking(descriptor, False)

    def readable() -> None:
        with contextlib.suppress(BlockingIOError):
            if os.read(descriptor, 64):
                return
            loop.remove_reader(descriptor)
            log.warning("the keeper is gone: this ingress ends")
            ingress.stop(ORPHAN_DRAIN_S)

    loop.add_reader(descriptor, readable)
