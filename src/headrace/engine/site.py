"""Where the instance lies that a process means: on this machine, or on a Ray cluster of which this machine is a node.

In: what users say (`engine`, `address`, the instance's name, HEADRACE_ENGINE, HEADRACE_ADDRESS). Out: the instance's
directory on this machine, over which everything goes; on a cluster, the instance started and ended.
"""

from __future__ import annotations

import importlib.util
import os
import socket
import threading
from collections.abc import Mapping
from typing import Protocol

from headrace.engine.directory import InstanceDirectory, instance_directory
from headrace.spec.cluster import ClusterOptions
from headrace.spec.errors import InstanceError, OptionError, OptionTypeError
from headrace.spec.names import hint

__all__ = [
    "ENGINES",
    "Cluster",
    "LocalSite",
    "RaySite",
    "Site",
    "checked_address",
    "controller_away_s",
    "inner_site",
    "site_of",
]

ENGINES = ("local", "ray")
DEFAULT_NAME = "default"
DEFAULT_ADDRESS = "auto"  # the cluster that RAY_ADDRESS says, else the one that this machine is a node of
ANSWER_S = 5.0
AGENT_AWAY_S = 15.0  # Ray starts an agent anew that died: so long it may take
# How long a controller may be away before a request fails: its keeper restarts it at once, but Ray has to notice that a
# node is dead before it starts the controller on another.
CONTROLLER_AWAY_S = {"local": 15.0, "ray": 60.0}


class Cluster(Protocol):
    """Instances on a Ray cluster (`headrace.engine.ray.cluster`). All raise InstanceError."""

    def connect(self, address: str | None) -> None:
        """Connect this process to the cluster, if it is not."""

    def find(self, instance: str) -> InstanceDirectory | None:
        """The instance's directory on this node; None when it does not run."""

    def start(self, instance: str, options: ClusterOptions) -> tuple[InstanceDirectory, bool]:
        """See to it that the instance runs: its directory on this node, and whether it did not run before."""

    def end(self, instance: str, timeout_s: float) -> None:
        """End by force whatever of the instance is left."""


class LocalSite:
    """A directory of this machine: that of an instance here, or that which a process of any instance was told."""

    engine = "local"

    def __init__(self, directory: InstanceDirectory, *, on_ray: bool = False) -> None:
        self._directory = directory
        self.name = directory.name
        # How long the directory's keeper may be gone before the instance has ended.
        self.keeper_away_s = AGENT_AWAY_S if on_ray else 0.0
        self.controller_away_s = CONTROLLER_AWAY_S["ray" if on_ray else "local"]

    def __repr__(self) -> str:
        return f"<LocalSite of {self.name}>"

    def __str__(self) -> str:
        return f"instance {self.name!r} on this machine"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LocalSite) and other._directory == self._directory

    __hash__ = None  # type: ignore[assignment]

    def find(self) -> InstanceDirectory | None:
        """Its directory; None when it has no keeper."""
        return self._directory if self._directory.keeper_pid() is not None else None

    def directory(self) -> InstanceDirectory:
        """Its directory, whether it runs or not."""
        return self._directory

    def not_running(self) -> InstanceError:
        """The error for an instance without a keeper."""
        return InstanceError(
            f"no instance {self.name!r} is running: start one with serve.run(...) or `headrace run module:app`"
        )

    def flags(self) -> str:
        """Nothing for the default instance."""
        return _named(self.name)


class RaySite:
    """On a Ray cluster; this machine is one of its nodes, and the directory that of the node's agent, its keeper."""

    engine = "ray"
    keeper_away_s = AGENT_AWAY_S
    controller_away_s = CONTROLLER_AWAY_S["ray"]

    def __init__(self, name: str = DEFAULT_NAME, address: str = "", cluster: Cluster | None = None) -> None:
        instance_directory(name)  # raises for a name that is none
        self.name = name
        self.address = checked_address(address or DEFAULT_ADDRESS)
        self._cluster = cluster
        self._found: InstanceDirectory | None = None
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<RaySite of {self.name} at {self.address}>"

    def __str__(self) -> str:
        return f"instance {self.name!r} on the Ray cluster at {self.address!r}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RaySite) and (other.name, other.address) == (self.name, self.address)

    __hash__ = None  # type: ignore[assignment]

    def find(self, *, anew: bool = False) -> InstanceDirectory | None:
        """The directory of this node's agent, also where Ray is about to start the agent anew.

        Ray is asked where nothing was found before, what was found has no keeper any more, or this is to look `anew`:
        agents outlive a controller that somebody has killed for good.
        """
        with self._lock:
            if anew or self._found is None or self._found.keeper_pid() is None:
                self._found = self._connected().find(self.name)
            return self._found

    def directory(self) -> InstanceDirectory:
        """Its directory. Raises InstanceError when it does not run."""
        found = self.find()
        if found is None:
            raise self.not_running()
        return found

    def start(self, options: ClusterOptions) -> tuple[InstanceDirectory, bool]:
        """See to it that it runs: its directory, and whether it did not run before. Raises InstanceError."""
        with self._lock:
            self._found, started = self._connected().start(self.name, options)
            return self._found, started

    def end(self, timeout_s: float) -> None:
        """End by force what is left of it. Raises InstanceError."""
        with self._lock:
            self._found = None
            self._connected().end(self.name, timeout_s)

    def forked(self) -> None:
        """In the child of a fork: the lock may be held by a thread that is not there any more."""
        self._lock = threading.Lock()

    def not_running(self) -> InstanceError:
        """The error for an instance that the cluster knows nothing of."""
        return InstanceError(
            f"no instance {self.name!r} is running on the Ray cluster at {self.address!r}: start one with "
            f"`headrace start{self.flags()}`, or with an application on it by `headrace run module:app{self.flags()}`"
        )

    def flags(self) -> str:
        """The engine, the address where it is not the default, and the name where it is not."""
        where = "" if self.address == DEFAULT_ADDRESS else f" --address {self.address}"
        return f" --engine ray{where}{_named(self.name)}"

    def _connected(self) -> Cluster:
        if self._cluster is None:
            _check_answers(self.address)
            self._cluster = _ray_cluster()
        self._cluster.connect(self.address)
        return self._cluster


Site = LocalSite | RaySite


def site_of(
    engine: str | None = None,
    address: str | None = None,
    name: str | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Site:
    """The instance that is meant: by what is given, else by HEADRACE_ENGINE, HEADRACE_ADDRESS and HEADRACE_INSTANCE.

    Whoever names an address means Ray. Raises OptionError, OptionTypeError.
    """
    if name is None:
        name = environ.get("HEADRACE_INSTANCE") or DEFAULT_NAME
    by_environment = address is None
    if by_environment:
        address = environ.get("HEADRACE_ADDRESS") or None
    if engine is None and not by_environment:
        engine = "ray"
    if engine is None and environ.get("HEADRACE_ENGINE"):
        engine = checked_engine(environ["HEADRACE_ENGINE"], "HEADRACE_ENGINE")
    engine = checked_engine(engine or ("local" if address is None else "ray"))
    if engine == "ray":
        return RaySite(name, address or "")
    if not by_environment:
        raise OptionError(f"address={address!r} has no effect with engine='local', which has this machine alone")
    return LocalSite(instance_directory(name))


def controller_away_s(directory: InstanceDirectory) -> float:
    """How long the controller of a running instance may be away before a request to it fails."""
    return CONTROLLER_AWAY_S["ray" if directory.node.exists() else "local"]


def inner_site(directory: InstanceDirectory) -> LocalSite:
    """Where a process of an instance's own is: it goes by the directory that it was told, and never asks Ray."""
    return LocalSite(directory, on_ray=bool(os.environ.get("HEADRACE_NODE")))


def checked_engine(engine: object, option: str = "engine") -> str:
    """The engine's name. Raises OptionError with the nearest one, OptionTypeError."""
    if not isinstance(engine, str):
        raise OptionTypeError(f"{option}={engine!r} must be one of {', '.join(map(repr, ENGINES))}")
    if engine not in ENGINES:
        raise OptionError(f"{option}={engine!r}: {hint(engine, ENGINES)}")
    return engine


def checked_address(address: object) -> str:
    """The address of a cluster that this machine is a node of. Raises OptionError for what means something else."""
    if not isinstance(address, str):
        raise OptionTypeError(f"address={address!r} must be 'auto' or HOST:PORT, the address of the cluster's head")
    if address == DEFAULT_ADDRESS:
        return address
    if address.startswith("ray://"):
        raise OptionError(
            f"address={address!r} is a Ray Client's: whoever speaks to an instance must run on a node of the cluster, "
            "and says 'auto' there; `ray job submit -- headrace ...`, `kubectl exec` or ssh bring a command there"
        )
    if "://" in address:
        raise OptionError(
            f"address={address!r} is a URL, such as `ray job submit` takes: here it is 'auto' on a node of the "
            "cluster, or HOST:PORT of its head, such as 10.0.0.1:6379"
        )
    host, colon, port = address.rpartition(":")
    if not host or not colon or not port.isascii() or not port.isdecimal() or not 0 < int(port) < 65536:
        raise OptionError(
            f"address={address!r} must be 'auto', or HOST:PORT of the cluster's head, such as 10.0.0.1:6379"
        )
    return address


def _named(name: str) -> str:
    return "" if name == DEFAULT_NAME else f" --instance {name}"


def _check_answers(address: str) -> None:
    """Raise InstanceError where nobody listens: Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if not host:
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWER_S).close()
    except OSError as error:
        raise InstanceError(
            f"no Ray cluster answers at {address} ({error}): `ray start --head` starts one, and says its address"
        ) from error


def _ray_cluster() -> Cluster:
    found = importlib.util.find_spec("ray")
    if found is None or found.origin is None:  # or it is but a folder of that name
        raise InstanceError("the Ray engine needs ray, which is not installed: pip install 'headrace[ray]'")
    from headrace.engine.ray import cluster  # it loads Ray, for those who ask for it

    return cluster
