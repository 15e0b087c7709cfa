"""The process of the control API: it is put together here, and lives until SIGINT or SIGTERM.

In: an instance's directory and where to listen. Out: the control API on that port, for who has the token. The instance
may start later, end and start again meanwhile.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from headrace import __version__
from headrace.api.app import Api
from headrace.api.controller import Controller
from headrace.api.deployer import ProcessDeployer
from headrace.api.desk import Desk
from headrace.api.guard import Guard, is_loopback
from headrace.api.server import listening, server_of
from headrace.api.token import own_token
from headrace.engine.directory import InstanceDirectory
from headrace.observe.logs import log_to_stderr

_ANY = ("", "0.0.0.0", "::")


def run(directory: InstanceDirectory, host: str, port: int, allowed_hosts: Sequence[str], app_dir: Path) -> None:
    """Serve the API of the instance. Raises InstanceError (no private token), PortBusyError."""
    directory.create()
    token = own_token(directory.api_token)
    listener = listening(host, port)
    hosts = [*allowed_hosts, *(() if host in _ANY else (host,))]
    desk = Desk(Controller(directory), ProcessDeployer(directory, app_dir))
    bound = listener.getsockname()[1]
    server = server_of(Api(Guard(token, hosts), desk))

    def say() -> None:
        print(f"headrace {__version__} · control API of instance {directory.name} · http://{_in_url(host)}:{bound}")
        print(f"the token is in {directory.api_token}", flush=True)

    server.on_started = say
    if not is_loopback(host):
        print(
            f"headrace: {host or 'any address'} can be reached from other machines, and the token crosses the network "
            "as it is: put TLS before the API, or use an SSH tunnel to a loopback address",
            file=sys.stderr,
            flush=True,
        )
    log_to_stderr()
    server.run([listener])


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host or "0.0.0.0"
