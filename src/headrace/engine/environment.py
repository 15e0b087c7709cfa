"""The environment of a process that the keeper starts: inherited, then by its resources, then as it was asked. Pure.

Threads: numeric libraries start one thread for each CPU of the machine, so that a few replicas on one machine slow each
other down. A worker gets as many as the CPUs it reserved (rounded up); one that reserved none gets half of the machine,
at most 4. GPUs: a worker sees those that it was granted, and none when it asked for none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from headrace.core.resources import Grant
from headrace.engine.base import ProcessRequest
from headrace.engine.machine import Machine

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
LIFELINE_FD = 3  # the same in every process that the keeper starts
_MOST_UNRESERVED_THREADS = 4


def process_environment(
    inherited: Mapping[str, str], request: ProcessRequest, grant: Grant, machine: Machine, identity: Mapping[str, str]
) -> dict[str, str]:
    """All variables of the process. Thread counts of the inherited environment stay: somebody set them on purpose."""
    variables = dict(inherited)
    variables.setdefault("PYTHONUNBUFFERED", "1")  # what is printed shows at once, though it goes through a pipe
    if request.role == "worker":
        for name in THREAD_VARIABLES:
            variables.setdefault(name, str(threads(grant, machine)))
        if machine.gpus:
            variables["CUDA_VISIBLE_DEVICES"] = ",".join(grant.gpus)
    return variables | request.env | dict(identity)


def threads(grant: Grant, machine: Machine) -> int:
    """How many threads a numeric library in the process should use."""
    if grant.cpus:
        return max(1, math.ceil(grant.cpus))
    return min(_MOST_UNRESERVED_THREADS, max(1, int(machine.cpus) // 2))
