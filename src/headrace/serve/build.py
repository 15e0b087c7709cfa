"""The builder process of `headrace run` and `headrace deploy`: imports the user's application, so that no other does.

In: arguments of the command line, the user's module. Out: requests to the controller of the instance around it, or with
`--to-fd` the built application, for whoever deploys it; for the command, reports on standard output, among whatever the
user's module prints.

HTTP is asked for in a thread of its own, so that the ingress starts while the user's imports run.
"""

from __future__ import annotations

import argparse
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Sequence

from headrace.serve.driver import driver
from headrace.serve.graph import ByValue, build
from headrace.serve.grpc_options import grpc_service
from headrace.serve.sources import own_files
from headrace.serve.target import UserCodeRaised, import_from, load_application
from headrace.spec.config import HTTPOptions
from headrace.spec.errors import HeadraceError
from headrace.spec.grpc import GrpcService
from headrace.spec.status import ProxyDetails, ProxyStatus
from headrace.wire.control import Deploy, Deployed, GetStatus, StartHTTP, Status
from headrace.wire.report import NO_HTTP, Built, Event, Failure, Imported, Line, Ready, Waiting, encode_built, written


class Builder:
    """Imports, builds, deploys; tells by `report` how far it is."""

    def __init__(self, arguments: argparse.Namespace, report: Callable[[Event], None]) -> None:
        self._arguments = arguments
        self._report = report
        self._http_failure: BaseException | None = None

    def run(self) -> None:
        """Build and deploy the application. Raises HeadraceError."""
        arguments = self._arguments
        options = HTTPOptions(
            host=arguments.host,
            port=arguments.port,
            ingress_workers=arguments.ingress_workers,
            ssl_certfile=arguments.ssl_certfile,
            ssl_keyfile=arguments.ssl_keyfile,
            ssl_ca_certs=arguments.ssl_ca_certs,
        )
        grpc = None
        if arguments.grpc_servicer_functions:
            import_from(arguments.app_dir)
            functions = arguments.grpc_servicer_functions
            port = {} if arguments.grpc_port is None else {"port": arguments.grpc_port}
            grpc = grpc_service({**port, "grpc_servicer_functions": functions})
        http = threading.Thread(target=self._start_http, args=(options, grpc), name="start-http", daemon=True)
        http.start()
        built = self.build()
        spec = built.spec
        answer = driver().ask(
            Deploy(spec, packs=built.packs, by=arguments.by), on_progress=lambda line: self._report(Line(line))
        )
        http.join()
        if self._http_failure is not None:
            raise self._http_failure
        if grpc is not None:
            self._report(Line(f"gRPC at {_host(grpc.options.host or options.host)}:{self._proxy().grpc_port}"))
        revision = answer.revision if isinstance(answer, Deployed) else 0
        self._report(Ready(spec.name, revision, spec.route_prefix, self._address(options)))

    def build(self) -> Built:
        """Import and build the application. Raises HeadraceError."""
        arguments = self._arguments
        self._report(Line(f"importing {arguments.target}"))
        words = dict(pair.split("=", 1) for pair in arguments.arguments)
        packing = ByValue()
        try:
            app = load_application(arguments.target, words, arguments.app_dir)
            spec = build(
                app,
                arguments.name,
                arguments.route_prefix,
                arguments.request_timeout,
                packing=packing,
                source=arguments.target,
            )
        finally:
            if arguments.tell_files:
                self._report(Imported(own_files()))
        return Built(spec, packing.packs())

    def _start_http(self, options: HTTPOptions, grpc: GrpcService | None) -> None:
        if not options.ingress_workers:
            return
        try:
            driver().ask(StartHTTP(options, grpc))
        except BaseException as error:
            # A busy port is no reason to wait for minutes of imports: say so and end at once.
            self._http_failure = error
            if isinstance(error, HeadraceError):
                self._report(Failure(str(error)))
                os._exit(NO_HTTP)
            raise

    def _address(self, options: HTTPOptions) -> str:
        """Where HTTP answers, "" without it; the port is the one that was found when any would do."""
        if not options.ingress_workers:
            return ""
        scheme = "http" if options.ssl_certfile is None else "https"
        return f"{scheme}://{_host(options.host)}:{options.port or self._proxy().port}"

    def _proxy(self) -> ProxyDetails:
        """What the controller tells of an ingress process: the ports that were found when any would do."""
        answer = driver().ask(GetStatus())
        proxies = answer.status.proxies.values() if isinstance(answer, Status) else ()
        return next(iter(proxies), ProxyDetails(status=ProxyStatus.UNHEALTHY))


def _host(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def arguments_of(values: Sequence[str] | None = None) -> argparse.Namespace:
    """What `headrace run` starts the builder with; it has checked them."""
    parser = argparse.ArgumentParser(prog="python -m headrace.serve.build")
    parser.add_argument("target")
    parser.add_argument("arguments", nargs="*")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--name", default="default")
    parser.add_argument("--route-prefix", default="/")
    parser.add_argument("--request-timeout", type=float)
    parser.add_argument("--app-dir", default=".")
    parser.add_argument("--ingress-workers", type=int, default=1)
    parser.add_argument("--ssl-certfile")
    parser.add_argument("--ssl-keyfile")
    parser.add_argument("--ssl-ca-certs")
    parser.add_argument("--grpc-port", type=int)
    parser.add_argument("--grpc-servicer-functions", action="append", default=[])
    parser.add_argument("--by", default="")
    parser.add_argument("--tell-files", action="store_true")
    parser.add_argument("--to-fd", type=int)
    parser.add_argument("--when-told", action="store_true")
    return parser.parse_args(values)


def wait_until_told() -> bool:
    """Report Waiting, and wait for SIGUSR1; False when the keeper is gone first. What takes time to load is loaded."""
    lifeline = os.environ.get("HEADRACE_LIFELINE_FD")
    told, wake = os.pipe()
    try:
        os.set_blocking(wake, False)
        signal.signal(signal.SIGUSR1, lambda _number, _frame: None)
        before = signal.set_wakeup_fd(wake)
        report(Waiting())
        watched = [told] if lifeline is None else [told, int(lifeline)]
        readable, _, _ = select.select(watched, [], [])
        signal.set_wakeup_fd(before)
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    finally:
        os.close(told)
        os.close(wake)
    return told in readable


def report(event: Event) -> None:
    """Tell `headrace run`. Line and end are one write: two threads report, and `print` would write them apart."""
    sys.stdout.write(f"{written(event)}\n")
    sys.stdout.flush()


def main(values: Sequence[str] | None = None) -> int:
    """Returns 0 when the application runs, 1 when it does not; the reason was reported then."""
    arguments = arguments_of(values)
    if arguments.when_told and not wait_until_told():
        return 1
    builder = Builder(arguments, report)
    try:
        if arguments.to_fd is None:
            builder.run()
        else:
            with open(arguments.to_fd, "wb") as file:
                file.write(encode_built(builder.build()))
    except UserCodeRaised as error:
        report(Failure(str(error), traceback=True))
        return 1
    except HeadraceError as error:
        report(Failure(str(error)))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
