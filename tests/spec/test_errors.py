"""headrace.spec.errors: one tree; every error says whose fault it was, has a status, and survives pickling."""

from __future__ import annotations

import copy
import pickle

import pytest

from headrace.spec import errors
from headrace.spec.errors import BackPressureError, CallerError, HeadraceError, ServingError, UserCodeError

TREE = sorted(
    (c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, HeadraceError)),
    key=lambda c: c.__name__,
)


def test_the_tree_is_whole() -> None:
    found: set[type] = set()
    rest = [HeadraceError]
    while rest:
        kind = rest.pop()
        found.add(kind)
        rest += [c for c in kind.__subclasses__() if c.__module__ == errors.__name__]

    assert found == set(TREE)
    assert len(TREE) > 20


@pytest.mark.parametrize("kind", TREE)
def test_every_error_survives_pickling_and_copying(kind: type[HeadraceError]) -> None:
    error = kind("replica 'Digits#3' is gone")
    error.add_note("a note")

    for again in (*(pickle.loads(pickle.dumps(error, p)) for p in range(2, 6)), copy.copy(error)):
        assert type(again) is kind
        assert again.args == error.args
        assert str(again) == str(error)
        assert vars(again) == vars(error)
        assert again.status == kind.status


@pytest.mark.parametrize("kind", TREE)
def test_every_error_says_what_it_was_given(kind: type[HeadraceError]) -> None:
    assert "replica 'Digits#3'" in str(kind("replica 'Digits#3'"))


@pytest.mark.parametrize("kind", TREE)
def test_every_error_has_a_status_and_a_contract(kind: type[HeadraceError]) -> None:
    assert 400 <= kind.status <= 599
    assert kind.__doc__
    assert not issubclass(kind, CallerError) or not issubclass(kind, ServingError)


def test_attributes_that_are_not_the_default_survive() -> None:
    refused = pickle.loads(pickle.dumps(BackPressureError("full", retry_after_s=7.5)))
    failed = pickle.loads(pickle.dumps(UserCodeError("boom", "mymodel.Broken", "Traceback ...")))

    assert (refused.retry_after_s, str(refused)) == (7.5, "full")
    assert (failed.type_name, failed.traceback_text, str(failed)) == (
        "mymodel.Broken",
        "Traceback ...",
        "mymodel.Broken: boom",
    )


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [
        (errors.OptionError, ValueError),
        (errors.OptionTypeError, TypeError),
        (errors.GraphError, ValueError),
        (errors.ApplicationNotFound, KeyError),
        (errors.MethodNotFound, AttributeError),
        (errors.PayloadError, TypeError),
        (errors.LoopBlockedError, RuntimeError),
        (errors.RequestTimeoutError, TimeoutError),
        (errors.DeployFailedError, RuntimeError),
    ],
)
def test_code_written_for_the_builtin_error_catches_ours(kind: type[Exception], builtin: type[Exception]) -> None:
    assert issubclass(kind, builtin)
