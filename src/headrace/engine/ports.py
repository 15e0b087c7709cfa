"""Ports that an instance holds for its life: proved free by a first bind without SO_REUSEPORT, then locked.

In: host, port. Out: a PortLock that the keeper holds, or PortBusyError naming who has it. Why a lock beside the bind:
with SO_REUSEPORT, two instances of one user would silently share the port, each answering some of the other's clients.

Order matters: (1) the lock, so that of two instances only one goes on; (2) a bind without SO_REUSEPORT, which fails
when anybody at all listens; (3) a bind with SO_REUSEPORT that stays, never listens, and so gets no connection, but
keeps other users and ordinary servers off while no ingress listens.

Nodes of one machine may have a port in common, when they are of one instance: each says by a `kin`, which those of the
instance alone know, that it has the port, and who finds kin there leaves out (1) and (2). (3) stays with each.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from headrace.engine import linux
from headrace.engine.directory import make_private
from headrace.spec.errors import HeadraceError, InstanceError, OptionError, PortBusyError

_ATTEMPTS = 20  # for port 0: between finding a free port and locking it, another may take it
_MOST_KIN = 64  # nodes on one machine
_DOOR_S = 5.0  # for kin that takes the same port at this moment
_DOOR_CHECK_S = 0.01

_Holder = socket.socket | BinaryIO
_Address = tuple[socket.AddressFamily, tuple[str, int]]


class PortLock:
    """A port that is held. Processes of the same user bind it with SO_REUSEPORT; `close` gives it back."""

    def __init__(self, host: str, port: int, holders: list[_Holder]) -> None:
        self.host = host
        self.port = port
        self._holders = holders

    def __repr__(self) -> str:
        return f"PortLock({self.host}:{self.port}{'' if self._holders else ', closed'})"

    def add(self, holder: _Holder) -> None:
        """Close this too, when the port is given back."""
        self._holders.append(holder)

    def close(self) -> None:
        """Give the port back. Harmless when closed already."""
        for holder in self._holders:
            holder.close()
        self._holders = []


class HeldPorts:
    """The ports that an instance holds, by what they are for. Holders with the same `kin` share them."""

    def __init__(self, kin: str = "") -> None:
        self._kin = kin
        self._held: dict[str, tuple[str, int, PortLock]] = {}  # name -> host, port as it was asked for, lock

    def __repr__(self) -> str:
        return f"HeldPorts({', '.join(f'{name}: {lock!r}' for name, (_, _, lock) in self._held.items())})"

    def reserve(self, name: str, host: str, port: int) -> int:
        """Hold a port for `name`, as `lock_port` does; the same again gives the same, another takes its place.

        When it cannot be had, `name` keeps what it had.
        """
        held = self._held.get(name)
        if held is not None:
            held_host, asked, lock = held
            if held_host == host and port in (asked, lock.port):
                return lock.port
            lock.close()  # first, for it may be the same port at another address
        try:
            taken = lock_port(host, port, self._kin)
        except HeadraceError:
            if held is not None:
                self._held[name] = (held[0], held[1], lock_port(held[0], held[2].port, self._kin))
            raise
        self._held[name] = (host, port, taken)
        return taken.port

    def close(self) -> None:
        """Give all back."""
        for _, _, lock in self._held.values():
            lock.close()
        self._held.clear()


def lock_port(host: str, port: int, kin: str = "") -> PortLock:
    """Hold `port` (0: any free one) at `host`, on all addresses that the name has here; with others of the same `kin`,
    where it is not empty.

    Raises PortBusyError (who has it, where that can be told), OptionError (no such host here, no such port) or
    InstanceError (a port that needs privileges).
    """
    if not 0 <= port <= 65535:
        raise OptionError(f"port={port} is no port: 0 to 65535 are allowed, 0 for any that is free")
    addresses = _resolve(host)
    if port and kin and linux.IS_LINUX:
        return _lock_with_kin(host, port, addresses, kin)
    if port:
        return _lock_addresses(host, port, addresses)
    for attempt in range(_ATTEMPTS):
        with contextlib.ExitStack() as stack:
            probe = stack.enter_context(_bind(addresses[0], 0))
            free = int(probe.getsockname()[1])
        try:
            lock = _lock_addresses(host, free, addresses)
            if kin and linux.IS_LINUX:
                lock.add(_tell_kin(free, kin))
            return lock
        except PortBusyError:
            if attempt == _ATTEMPTS - 1:
                raise
    raise AssertionError("the last attempt returns or raises")


def _lock_addresses(host: str, port: int, addresses: list[_Address]) -> PortLock:
    holders: list[_Holder] = [_take_lock(port)]
    try:
        holders.extend(_hold(address, port) for address in addresses)
    except BaseException as error:
        for holder in holders:
            holder.close()
        if isinstance(error, OSError):
            raise _explain(error, host, port) from error
        raise
    return PortLock(host, port, holders)


def _lock_with_kin(host: str, port: int, addresses: list[_Address], kin: str) -> PortLock:
    """As those of one kin do, one after the other: the first proves that nobody has the port, the others find it."""
    with _door(port, kin):
        if any(_is_ours(_kin_name(port, kin, number)) for number in range(_MOST_KIN)):
            lock = PortLock(host, port, [])
            try:
                for address in addresses:
                    lock.add(_bind_beside_kin(address, port))
                lock.add(_tell_kin(port, kin))
            except OSError as error:
                lock.close()
                raise _explain(error, host, port) from error
            with contextlib.suppress(PortBusyError):  # kin has it, as a rule; if not, then somebody should
                lock.add(_take_lock(port))
            return lock
        lock = _lock_addresses(host, port, addresses)
        lock.add(_tell_kin(port, kin))
        return lock


@contextlib.contextmanager
def _door(port: int, kin: str) -> Iterator[None]:
    """One of the kin at a time."""
    give_up = time.monotonic() + _DOOR_S
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
        while True:
            try:
                door.bind(_kin_name(port, kin, "door"))
                break
            except OSError:
                if time.monotonic() > give_up:
                    raise _busy(port, None) from None
                time.sleep(_DOOR_CHECK_S)
        yield


def _bind_beside_kin(address: _Address, port: int) -> socket.socket:
    try:
        return _bind(address, port, reuse_port=True)
    except OSError:  # what lingers in TIME_WAIT, or a server: SO_REUSEADDR tells them apart, see `_hold`
        return _bind(address, port, reuse_address=True, reuse_port=True)


def _tell_kin(port: int, kin: str) -> _Holder:
    """Have others of the kin find that the port is held. The kernel takes it back when we die."""
    told = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    for number in range(_MOST_KIN):
        with contextlib.suppress(OSError):
            told.bind(_kin_name(port, kin, number))
            told.listen(128)
            return told
    told.close()
    raise InstanceError(
        f"port {port} is held by {_MOST_KIN} nodes of the instance on this machine: more cannot share it"
    )


def _kin_name(port: int, kin: str, suffix: int | str) -> str:
    return f"\0headrace-port-{port}-{kin}-{suffix}"


def _is_ours(name: str) -> bool:
    """Whether a process of this user listens under the name: all users see it, and any could take it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.setblocking(False)
        try:
            client.connect(name)
        except BlockingIOError:
            pass  # too many have asked: it is there
        except OSError:
            return False
        return linux.peer_uid(client) == os.getuid()


def _resolve(host: str) -> list[_Address]:
    """The addresses that `host` means and that this machine has."""
    try:
        found = socket.getaddrinfo(host or None, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise OptionError(f"host={host!r} is not the name of an address ({error})") from error
    refused: OSError | None = None
    addresses: list[_Address] = []
    for family, _, _, _, address in found:
        candidate: _Address = (family, (str(address[0]), 0))
        try:
            _bind(candidate, 0).close()
        except OSError as error:  # `localhost` names ::1 also where there is no IPv6
            refused = error
        else:
            addresses.append(candidate)
    if not addresses:
        reason = refused.strerror if refused else "it has no address"
        raise OptionError(f"host={host!r} is no address of this machine ({reason}); 127.0.0.1 and 0.0.0.0 always are")
    return addresses


def _hold(address: _Address, port: int) -> socket.socket:
    """Prove that nobody has the port, then bind it to stay. Raises OSError."""
    try:
        _bind(address, port).close()
        reuse_address = False
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        # Connections of an ended server may linger in TIME_WAIT: they forbid a plain bind, and are no server. With
        # SO_REUSEADDR the bind fails for a server alone.
        _bind(address, port, reuse_address=True).close()
        reuse_address = True
    return _bind(address, port, reuse_address=reuse_address, reuse_port=True)


def _bind(address: _Address, port: int, *, reuse_address: bool = False, reuse_port: bool = False) -> socket.socket:
    family, (host, _) = address
    holder = socket.socket(family, socket.SOCK_STREAM)
    try:
        if reuse_address:
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:  # the ingress binds `::` and `0.0.0.0` apart
            holder.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        holder.bind((host, port))
    except BaseException:
        holder.close()
        raise
    return holder


def _take_lock(port: int) -> _Holder:
    """The lock of a port, freed by the kernel when its holder dies. Raises PortBusyError.

    On Linux a name in the abstract socket namespace: it belongs to the same network namespace as the port, and to all
    users alike. Elsewhere a locked file in a directory of this user.
    """
    if not linux.IS_LINUX:
        return _lock_file(port)
    name = f"\0headrace-port-{port}"
    lock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        lock.bind(name)
    except OSError as error:
        lock.close()
        raise _busy(port, _lock_holder(name)) from error
    lock.listen(128)  # nobody is accepted: who finds the name taken connects, and learns our pid by that
    return lock


def _lock_file(port: int) -> _Holder:
    directory = Path(f"/tmp/headrace-ports-{os.getuid()}")
    make_private(directory)
    file = open(directory / f"{port}.lock", "a+b")  # noqa: SIM115 - it stays open as long as the lock is held
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.seek(0)
        pid = file.read(32).strip()
        file.close()
        raise _busy(port, int(pid) if pid.isdigit() else None) from error
    file.truncate(0)
    file.write(f"{os.getpid()}\n".encode())
    file.flush()
    return file


def _lock_holder(name: str) -> int | None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client, contextlib.suppress(OSError):
        client.setblocking(False)
        client.connect(name)
        return linux.peer_pid(client)
    return None


def _busy(port: int, pid: int | None) -> PortBusyError:
    who = "another process"
    if pid is not None:
        name = linux.process_name(pid)
        who = f"process {pid} ({name})" if name else f"process {pid}"
    return PortBusyError(f"port {port} is taken by {who}: stop it, or choose another port by --port (0: any free one)")


def _explain(error: OSError, host: str, port: int) -> Exception:
    if error.errno == errno.EADDRINUSE:
        return _busy(port, linux.port_holder(port))
    if error.errno in (errno.EACCES, errno.EPERM):
        return InstanceError(f"port {port} needs privileges that you do not have: choose one of 1024 and above")
    return InstanceError(f"port {port} at {host} cannot be bound: {error.strerror}")
