"""The controller's actor: runs the instance's controller in a thread, and after its orderly end has nothing left of it.

In: the instance's name and options. Out: whether it is up. When the controller fails, so does this process: Ray begins
it anew, and it adopts what runs. It knows the controller by the name of its module alone, as the keeper does.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import threading
import time
from concurrent.futures import Future

import ray
from ray.exceptions import RayError

from headrace.engine.ray import inventory
from headrace.engine.ray.names import agent_name, controller_name
from headrace.spec.cluster import ClusterOptions
from headrace.spec.errors import HeadraceError, InstanceError

logger = logging.getLogger(__name__)

_MODULE = "headrace.controller.on_ray"
_ANEW_S = 1.0  # between a failure and the next try
_LEAVE_S = 10.0


class ControllerActor:
    """See the module."""

    def __init__(self, instance: str, options: ClusterOptions) -> None:
        level = os.environ.get("HEADRACE_LOG_LEVEL", "WARNING").upper()
        known = level in logging.getLevelNamesMapping()
        logging.basicConfig(level=level if known else "WARNING", format="%(asctime)s %(levelname)s %(message)s")
        self._instance = instance
        self._options = options
        self._id = str(ray.get_runtime_context().get_actor_id())
        self._up: Future[None] = Future()
        threading.Thread(target=self._run, name="headrace-controller", daemon=True).start()

    async def ready(self) -> int:
        """Its pid, once it has taken up what runs and listens. Raises why it could not."""
        await asyncio.wrap_future(self._up)
        return os.getpid()

    def _run(self) -> None:
        try:
            importlib.import_module(_MODULE).run(self._instance, self._options, self._started)
        except BaseException as error:
            # The top of the thread: whatever it was, Ray begins it anew.
            logger.exception("the controller of instance %s failed", self._instance)
            if not self._up.done():
                told = error if isinstance(error, HeadraceError) else InstanceError(f"{type(error).__name__}: {error}")
                self._up.set_exception(told)
            time.sleep(_ANEW_S)
            os._exit(1)
        while True:
            try:
                dissolve(self._instance, self._id)
                return  # and not once more: what has the same names from now on is of another life
            except Exception:  # the top of the thread: the GCS may be away for a while
                logger.exception("what is left of instance %s could not be ended yet", self._instance)
                time.sleep(_ANEW_S)

    def _started(self) -> None:
        self._up.set_result(None)


def dissolve(instance: str, id: str) -> None:
    """After the orderly end: nothing of the instance is left on the cluster, its controller's actor (of this id) last.

    As long as that has its name nobody can begin the instance anew; without it, nothing here is its own.
    """
    from headrace.engine.ray.cluster import forget

    own = inventory.handle(controller_name(instance))
    if own is None or inventory.id_of(own) != id:
        return
    leave(instance)
    inventory.remove_all(instance, but_controller=True)
    forget(instance)
    ray.kill(own, no_restart=True)


def leave(instance: str) -> None:
    """Have all agents end what they keep and take their sockets away, as far as they answer."""
    agents = [
        inventory.handle(name) for name in inventory.actors(instance) if name.startswith(agent_name(instance, ""))
    ]
    leaving = [agent.leave.remote() for agent in agents if agent is not None]
    if leaving:
        done, _ = ray.wait(leaving, num_returns=len(leaving), timeout=_LEAVE_S)
        for each in done:
            try:
                ray.get(each)
            except RayError as error:
                logger.warning("an agent of instance %s did not leave in order: %s", instance, error)
