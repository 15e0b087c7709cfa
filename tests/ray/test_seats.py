"""What Ray is asked for, for a process: without a cluster, but checked by Ray itself."""

from __future__ import annotations

import pytest
from ray._common.ray_option_utils import validate_actor_options

from headrace.engine.base import ProcessRequest
from headrace.engine.ray.seats import ask_for_seat, seat_options
from headrace.spec.errors import InstanceError
from headrace.spec.placement import Placement


def request(placement: Placement) -> ProcessRequest:
    return ProcessRequest(id="d#1", role="worker", argv=("true",), placement=placement)


def test_where_nodes_may_still_come_ray_knows_what_would_do_too() -> None:
    asked = request(Placement(label_selector={"zone": "a"}, fallback_label_selectors=({"zone": "b"}, {"zone": "!c"})))
    options = seat_options(asked, None, None)
    assert options["label_selector"] == {"zone": "a"}
    assert options["fallback_strategy"] == [{"label_selector": {"zone": "b"}}, {"label_selector": {"zone": "!c"}}]
    validate_actor_options(options, in_options=True)
    assert "fallback_strategy" not in seat_options(asked, "0" * 56, None)  # it is chosen


@pytest.mark.parametrize("given", [{"working_dir": "."}, {"working_dir": "/srv/app"}, {"py_modules": ["lib"]}])
def test_a_folder_of_one_machine_is_refused_by_name(given: dict[str, object]) -> None:
    with pytest.raises(InstanceError, match=r"d#1 cannot be started: '.*' in its runtime_env is a folder of one"):
        ask_for_seat("i", request(Placement(runtime_env=given)), None)
