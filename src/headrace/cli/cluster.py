"""How an instance lies on a Ray cluster, as options of the commands that start one.

In: arguments. Out: options that are valid, or an OptionError, before anything is started.
"""

from __future__ import annotations

import argparse
from typing import Any

from headrace.engine.site import Site
from headrace.spec.cluster import ClusterOptions, cluster_options
from headrace.spec.errors import OptionError

LOCATIONS = ("EveryNode", "HeadOnly", "Disabled")
_TLS = ("cluster_certfile", "cluster_keyfile", "cluster_cafile")


def add_cluster(command: argparse.ArgumentParser) -> None:
    """The options of the Ray engine."""
    group = command.add_argument_group("on a Ray cluster")
    group.add_argument(
        "--proxy-location", choices=LOCATIONS, help="which nodes have an ingress: EveryNode (the default), HeadOnly"
    )
    group.add_argument(
        "--cluster-ports", metavar="FIRST-LAST", help="ports on which processes listen for those of other nodes"
    )
    group.add_argument("--cluster-certfile", metavar="FILE", help="TLS between nodes: the certificate that each shows")
    group.add_argument("--cluster-keyfile", metavar="FILE", help="the certificate's key")
    group.add_argument("--cluster-cafile", metavar="FILE", help="the authority that has signed all of them")


def cluster(arguments: argparse.Namespace, meant: Site) -> ClusterOptions | None:
    """The options; None where none was given. Raises OptionError, OptionTypeError."""
    given: dict[str, Any] = {
        name.replace("cluster_", "tls_"): getattr(arguments, name) for name in _TLS if getattr(arguments, name)
    }
    if arguments.cluster_ports is not None:
        given["ports"] = arguments.cluster_ports
    if meant.engine != "ray":
        for name in ("proxy_location", "cluster_ports", *_TLS):
            if getattr(arguments, name):
                raise OptionError(f"--{name.replace('_', '-')} has no effect without --engine ray")
    if not given:
        return None
    return cluster_options(given)
