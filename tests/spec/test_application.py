"""headrace.spec.application: the time that an application's requests may have."""

from __future__ import annotations

import pytest

from headrace.spec.application import checked_request_timeout
from headrace.spec.errors import OptionError, OptionTypeError


@pytest.mark.parametrize(("given", "expected"), [(None, None), (3, 3.0), (0.25, 0.25), (31_622_400, 31_622_400.0)])
def test_a_time_is_taken_as_it_is(given: object, expected: float | None) -> None:
    assert checked_request_timeout(given) == expected


@pytest.mark.parametrize("given", [0, -1, 0.0, float("nan"), float("inf"), 1e9, 10**400])
def test_what_is_no_time_is_refused(given: object) -> None:
    with pytest.raises(
        OptionError, match=r"request_timeout_s=.* must be a number of seconds above 0 and at most 31622400, or None"
    ):
        checked_request_timeout(given)


@pytest.mark.parametrize("given", ["3", True, b"3", [3]])
def test_one_of_a_wrong_type_is_refused(given: object) -> None:
    with pytest.raises(
        OptionTypeError, match=r"request_timeout_s=.* must be a number of seconds above 0 and at most 31622400, or None"
    ):
        checked_request_timeout(given)
