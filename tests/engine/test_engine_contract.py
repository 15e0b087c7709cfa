"""The contract of engines, seen on those of one machine: in one process, and with real processes under a keeper."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.engine.fake import FakeEngine
from headrace.engine.local import LocalEngine
from tests.engine.engine_contract import *  # noqa: F403 - its tests are these tests
from tests.engine.engine_contract import CPUS, GPUS, World, host
from tests.engine.instances import kept

SHORT = (
    r"^c does not fit on this machine: it asks for 2 CPU, the machine has 4 of which 1 free \(held: a 3\)$",
    r"asks for 2 GPU, the machine has 2 of which 1 free \(held: b 1\)",
)


@pytest.fixture(params=["fake", "local"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    folder = Path(tempfile.mkdtemp(prefix="hr-", dir="/tmp"))
    try:
        if request.param == "fake":
            fake = FakeEngine({"worker": host}, cpus=CPUS, gpus=GPUS)
            yield World("fake", folder, lambda: fake, SHORT)
        else:
            environment = {"HEADRACE_NUM_CPUS": str(CPUS), "HEADRACE_NUM_GPUS": str(GPUS)}
            with kept(environment=environment) as keeper:
                yield World("local", folder, lambda: LocalEngine(keeper.directory), SHORT)
    finally:
        shutil.rmtree(folder)
