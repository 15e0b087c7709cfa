"""The actors that keep processes: a seat holds what Ray reserved for one worker, and has that worker as its child.

In: calls of the engine, through Ray. Out: what the caretaker answers. The child runs under this actor's interpreter and
environment, which are those of its `runtime_env`; it ends when the actor does, however that ends.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping

import msgspec

from headrace.core.resources import Resources
from headrace.engine import linux, messages
from headrace.engine.base import ProcessInfo, ProcessRequest
from headrace.engine.directory import InstanceDirectory, runtime_directory
from headrace.engine.environment import THREAD_VARIABLES
from headrace.engine.machine import detect_machine
from headrace.engine.ray.caretaker import Answer, Caretaker
from headrace.spec.errors import InstanceError


class Where(msgspec.Struct, frozen=True, kw_only=True):
    """An actor that is up. `life` is another one after each restart of it."""

    node: str
    pid: int
    life: str
    processes: tuple[ProcessInfo, ...] = ()
    request: ProcessRequest | None = None  # what it was last asked to start, without the environment


class Heard(msgspec.Struct, frozen=True):
    """Ends of processes, of this life of the actor."""

    life: str
    exits: list[messages.Exited]


class Seat:
    """An actor that keeps processes. It knows nothing of its node until it is furnished.

    Async, so that one call that waits blocks no other; nothing here blocks the loop.
    """

    def __init__(self) -> None:
        import ray

        self.node: str = ray.get_runtime_context().get_node_id()
        self.life = os.urandom(8).hex()
        self.caretaker: Caretaker | None = None
        self._executable = sys.executable
        self._asked: dict[str, Resources] = {}  # what each process was to have, which Ray accounts for
        self._request: ProcessRequest | None = None

    async def where(self) -> Where:
        """Where it is, and what runs there. The first answer is the sign that it was placed."""
        processes: tuple[ProcessInfo, ...] = ()
        if self.caretaker is not None:
            answer = await self._ask(messages.ListProcesses(0))
            assert isinstance(answer, messages.Listed)
            processes = answer.processes
        return Where(node=self.node, pid=os.getpid(), life=self.life, processes=processes, request=self._request)

    async def furnish(self, directory: str, variables: dict[str, str], executable: str) -> None:
        """Have it keep processes, with the directory of the node; `executable` in an argv means this interpreter."""
        self._executable = executable
        if self.caretaker is None:
            self.caretaker = take_care(runtime_directory(directory), variables)

    async def ask(self, message: messages.ToKeeper) -> Answer:
        """As the keeper would answer."""
        return await self._ask(message)

    async def exits(self, told: int, life: str, patience_s: float) -> Heard:
        """The ends after the number `told`, as soon as there is one; none after `patience_s`."""
        if self.caretaker is None:
            await asyncio.sleep(min(patience_s, 0.05))
            return Heard(self.life, [])
        if life != self.life:
            return Heard(self.life, [])  # that is the news
        exits = self.caretaker.exits(told, patience_s)
        return Heard(self.life, await asyncio.wrap_future(exits))

    async def _ask(self, message: messages.ToKeeper) -> Answer:
        if self.caretaker is None:
            return messages.Refused(0, InstanceError.__name__, "the actor was not told where its node's directory is")
        if isinstance(message, messages.Start):
            self._asked[message.request.id] = message.request.resources
            self._request = msgspec.structs.replace(message.request, env={})
            message = messages.Start(message.n, self._localized(message.request))
        match await asyncio.wrap_future(self.caretaker.ask(message)):
            case messages.Started(n=n, info=info):
                return messages.Started(n, self._asked_for(info))
            case messages.Listed(n=n, processes=processes):
                return messages.Listed(n, tuple(map(self._asked_for, processes)))
            case answer:
                return answer

    def _localized(self, request: ProcessRequest) -> ProcessRequest:
        """Under this interpreter; GPUs are left to what Ray made visible, and CPUs tell how many threads to have."""
        argv = request.argv
        if argv and argv[0] == self._executable:
            argv = (sys.executable, *argv[1:])
        # It is alone in a seat; Ray's CPUs may be more than the machine has.
        cpus = 0.0 if self.caretaker is None else min(request.resources.cpus or 0.0, self.caretaker.cpus)
        return msgspec.structs.replace(request, argv=argv, resources=Resources(cpus=cpus or None))

    def _asked_for(self, info: ProcessInfo) -> ProcessInfo:
        return msgspec.structs.replace(info, resources=self._asked.get(info.id, info.resources), node=self.node)


def take_care(directory: InstanceDirectory, variables: Mapping[str, str], kin: str = "") -> Caretaker:
    """A caretaker with this actor's environment. What a process may use is Ray's to account for, not its.

    Those with the same `kin` share ports.
    """
    import ray

    inherited = dict(os.environ)
    for name in THREAD_VARIABLES:
        # Ray sets it in its own worker, by rules of its own; what the actor was begun with, somebody set on purpose.
        if linux.environment_value(os.getpid(), name) is None:
            inherited.pop(name, None)
    # What serves may call Ray itself: of all clusters that this machine is in, it means the one that it is served on.
    inherited["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    machine = msgspec.structs.replace(detect_machine(inherited), gpus=())
    caretaker = Caretaker(directory, machine, inherited, variables, kin)
    caretaker.open()
    return caretaker
