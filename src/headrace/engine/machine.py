"""What this machine has for processes: CPUs (affinity and control-group limits respected) and GPUs.

In: the environment, /proc, /sys, /dev. Out: a Machine. HEADRACE_NUM_CPUS and HEADRACE_NUM_GPUS overrule what is found.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

import msgspec

from headrace.spec.errors import OptionError

_CGROUPS = Path("/sys/fs/cgroup")


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """`gpus` are the names that CUDA_VISIBLE_DEVICES takes: indices, or the UUIDs that the parent was given."""

    cpus: float
    gpus: tuple[str, ...] = ()


def detect_machine(environment: Mapping[str, str]) -> Machine:
    """What the processes of this instance may use. Raises OptionError for an overruling value that is no number."""
    cpus = _override(environment, "HEADRACE_NUM_CPUS")
    gpu_count = _override(environment, "HEADRACE_NUM_GPUS")
    gpus = _gpus(environment)
    if gpu_count is not None and int(gpu_count) != len(gpus):
        gpus = tuple(gpus[: int(gpu_count)]) or tuple(str(index) for index in range(int(gpu_count)))
    return Machine(cpus=_cpus() if cpus is None else cpus, gpus=gpus)


def _override(environment: Mapping[str, str], name: str) -> float | None:
    text = environment.get(name, "")
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e6:
        raise OptionError(f"{name}={text!r} is not a number >= 0")
    return value


def _cpus() -> float:
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    limit = _cgroup_cpus()
    return float(count) if limit is None else min(float(count), limit)


def _cgroup_cpus() -> float | None:
    """The least CPU quota of the control groups above this process (version 2, then 1), or None without one."""
    try:
        memberships = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    limits = []
    for membership in memberships:
        _, controllers, path = membership.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = _CGROUPS / "cpu" if controllers else _CGROUPS
        group = root / path.lstrip("/")
        for directory in (group, *group.parents):
            if not directory.is_relative_to(root):
                break
            quota = _quota(directory, version=1 if controllers else 2)
            if quota is not None:
                limits.append(quota)
    return min(limits, default=None)


def _quota(directory: Path, version: int) -> float | None:
    try:
        if version == 2:
            quota, period = (directory / "cpu.max").read_text().split()[:2]
        else:
            quota = (directory / "cpu.cfs_quota_us").read_text().strip()
            period = (directory / "cpu.cfs_period_us").read_text().strip()
        return int(quota) / int(period) if quota not in ("max", "-1") else None
    except (OSError, ValueError, ZeroDivisionError):  # not mounted here, or a form that this does not know
        return None


def _gpus(environment: Mapping[str, str]) -> tuple[str, ...]:
    """As CUDA reads it: CUDA_VISIBLE_DEVICES where it is set, up to its first invalid entry; else all there are."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return tuple(str(index) for index in range(_count_gpus()))
    names = []
    for name in (part.strip() for part in visible.split(",")):
        if not re.fullmatch(r"\d+|(GPU|MIG)-.+", name) or name in names:
            break
        names.append(name)
    return tuple(names)


def _count_gpus() -> int:
    try:
        return sum(1 for _ in Path("/proc/driver/nvidia/gpus").iterdir())
    except OSError:
        return sum(1 for path in Path("/dev").glob("nvidia[0-9]*") if path.name[6:].isdigit())
