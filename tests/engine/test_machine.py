"""headrace.engine.machine: what a machine has, as the environment and the kernel limit it."""

from __future__ import annotations

import os

import pytest

from headrace.engine.machine import detect_machine
from headrace.spec.errors import OptionError


def test_the_environment_overrules() -> None:
    machine = detect_machine({"HEADRACE_NUM_CPUS": "2.5", "HEADRACE_NUM_GPUS": "3"})
    assert (machine.cpus, machine.gpus) == (2.5, ("0", "1", "2"))


@pytest.mark.parametrize(
    ("visible", "gpus"),
    [
        ("", ()),
        ("-1", ()),
        ("0", ("0",)),
        ("2, 0", ("2", "0")),
        ("1,-1,2", ("1",)),
        ("1,1,2", ("1",)),
        ("NoDevFiles", ()),
        ("GPU-8932f937-d72c,MIG-3", ("GPU-8932f937-d72c", "MIG-3")),
    ],
)
def test_visible_devices_are_read_as_cuda_reads_them(visible: str, gpus: tuple[str, ...]) -> None:
    assert detect_machine({"CUDA_VISIBLE_DEVICES": visible}).gpus == gpus


def test_a_number_of_gpus_takes_the_first_of_the_visible_ones() -> None:
    assert detect_machine({"CUDA_VISIBLE_DEVICES": "5,6,7", "HEADRACE_NUM_GPUS": "2"}).gpus == ("5", "6")
    assert detect_machine({"CUDA_VISIBLE_DEVICES": "5", "HEADRACE_NUM_GPUS": "0"}).gpus == ()


def test_no_more_cpus_than_this_process_may_use() -> None:
    allowed = os.sched_getaffinity(0)
    assert 0 < detect_machine({}).cpus <= len(allowed)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert detect_machine({}).cpus <= 1
    finally:
        os.sched_setaffinity(0, allowed)


@pytest.mark.parametrize("name", ["HEADRACE_NUM_CPUS", "HEADRACE_NUM_GPUS"])
@pytest.mark.parametrize("value", ["many", "-1", "nan", "inf"])
def test_a_number_that_is_none_is_refused_by_name(name: str, value: str) -> None:
    with pytest.raises(OptionError, match=f"{name}='{value}' is not a number >= 0"):
        detect_machine({name: value})
