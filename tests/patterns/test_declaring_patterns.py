"""Declaring patterns: what is wrong is told where it stands, before anything runs; what is right costs no imports."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from headrace import patterns, serve
from headrace.serve.graph import build
from headrace.spec.errors import GraphError, HeadraceError, OptionError, OptionTypeError


@serve.deployment
class Model:
    def __call__(self, x: Any) -> Any:
        return x


class Plain:
    pass


A, B, C = Model.options(name="A").bind(), Model.options(name="B").bind(), Model.options(name="C").bind()

WRONG: list[tuple[Callable[[], Any], type[HeadraceError], str]] = [
    (lambda: patterns.pipeline(), OptionError, "pipeline() has no stages"),
    (lambda: patterns.pipeline([A, B]), OptionTypeError, "one by one, not in a list: pipeline(*stages)"),
    (lambda: patterns.pipeline(len, str.upper), OptionError, "functions for all of its stages"),
    (lambda: patterns.pipeline(A, Model), GraphError, "stage 2 of pipeline() is the unbound deployment 'Model'"),
    (
        lambda: patterns.pipeline(A, Plain),
        OptionTypeError,
        "stage 2 of pipeline() is the plain class Plain: decorate it",
    ),
    (lambda: patterns.pipeline("A"), OptionTypeError, "stage 1 of pipeline() must be a deployment that was bound"),
    (lambda: patterns.pipeline(A, method="_load"), OptionError, "method of pipeline() must be the name of a public"),
    (lambda: patterns.pipeline(A, method=3), OptionTypeError, "method of pipeline() must be the name of a method"),
    (lambda: patterns.pipeline(A, parse="json"), OptionTypeError, "parse='json' of pipeline() must be a function"),
    (lambda: patterns.pipeline(A, options=["x"]), OptionTypeError, "options=['x'] of pipeline() must be a dict"),
    (lambda: patterns.pipeline(A, options={"num_replica": 2}), OptionTypeError, "did you mean 'num_replicas'?"),
    (lambda: patterns.pipeline(A, options={"num_replicas": 0}), OptionError, "num_replicas=0 must be at least 1"),
    (lambda: patterns.member(Model), GraphError, "app of member() is the unbound deployment 'Model'"),
    (lambda: patterns.member(A, method="a b"), OptionError, "method of member() must be the name of a public method"),
    (lambda: patterns.member(A, timeout_s=0), OptionError, "timeout_s=0 of member() must be above 0"),
    (
        lambda: patterns.member(A, timeout_s="1"),
        OptionTypeError,
        "timeout_s='1' of member() must be a number of seconds",
    ),
    (lambda: patterns.ensemble([]), OptionError, "ensemble() has no members"),
    (lambda: patterns.ensemble({}), OptionError, "ensemble() has no members"),
    (lambda: patterns.ensemble(A), OptionTypeError, "of ensemble() must be a list of bound deployments, or a dict"),
    (lambda: patterns.ensemble(patterns.member(A)), OptionTypeError, "of ensemble() must be a list of bound"),
    (lambda: patterns.ensemble("AB"), OptionTypeError, "members='AB' of ensemble() must be a list"),
    (lambda: patterns.ensemble([A, Model]), GraphError, "member 2 of ensemble() is the unbound deployment 'Model'"),
    (lambda: patterns.ensemble({"a": Model}), GraphError, "member 'a' of ensemble() is the unbound deployment"),
    (lambda: patterns.ensemble({1: A}), OptionTypeError, "1 cannot name a member of ensemble()"),
    (lambda: patterns.ensemble([A, None]), OptionTypeError, "member 2 of ensemble() must be a deployment"),
    (lambda: patterns.ensemble([A, len]), OptionTypeError, "member 2 of ensemble() must be a deployment"),
    (lambda: patterns.ensemble([A], combine="mena"), OptionError, "must be 'mean' or 'vote'; did you mean 'mean'?"),
    (lambda: patterns.ensemble([A], combine=7), OptionTypeError, "combine=7 of ensemble() must be 'mean', 'vote'"),
    (lambda: patterns.ensemble([A], combine=Model), OptionTypeError, "of ensemble() must be 'mean', 'vote'"),
    (lambda: patterns.ensemble([A], combine=B), OptionTypeError, "of ensemble() must be 'mean', 'vote'"),
    (
        lambda: patterns.ensemble([A], combine=patterns.weighted([1, 2])),
        OptionError,
        "2 weights, and there are 1 members",
    ),
    (
        lambda: patterns.ensemble([A, B], combine=patterns.weighted({"A": 1, "Z": 2})),
        OptionError,
        "weighted() has weights for A, Z, and the members are A, B",
    ),
    (lambda: patterns.weighted([1, -2]), OptionError, "the weight -2 of weighted() must be above 0"),
    (lambda: patterns.weighted([1, 0]), OptionError, "leave out a member that is not to count"),
    (lambda: patterns.weighted([float("nan")]), OptionError, "the weight nan of weighted() must be above 0"),
    (lambda: patterns.weighted([True]), OptionTypeError, "the weight True of weighted() must be a number"),
    (lambda: patterns.weighted(3), OptionTypeError, "weights=3 of weighted() must be a list of numbers, or a dict"),
    (lambda: patterns.weighted([1], "median"), OptionError, "combine='median' of weighted() must be 'mean' or 'vote'"),
    (lambda: patterns.stacking(Model), GraphError, "the model of stacking() is the unbound deployment 'Model'"),
    (lambda: patterns.ensemble([A], wait_s=-1), OptionError, "wait_s=-1 of ensemble() must be above 0"),
    (lambda: patterns.ensemble([A], wait_s=float("nan")), OptionError, "wait_s=nan of ensemble() must be above 0"),
    (lambda: patterns.ensemble([A], wait_s="soon"), OptionTypeError, "wait_s='soon' of ensemble() must be a number"),
    (lambda: patterns.ensemble([A, B], least=3), OptionError, "least=3 of ensemble() must be 1 to 2"),
    (lambda: patterns.ensemble([A, B], least=0), OptionError, "least=0 of ensemble() must be 1 to 2"),
    (
        lambda: patterns.ensemble([A], least=True),
        OptionTypeError,
        "least=True of ensemble() must be a number of members",
    ),
    (lambda: patterns.ensemble([A], margin_s=-1), OptionError, "margin_s=-1 of ensemble() must be 0 or more seconds"),
    (lambda: patterns.ensemble([A], margin_s=None), OptionTypeError, "margin_s=None of ensemble() must be a number"),
    (
        lambda: patterns.ensemble([A], details="yes"),
        OptionTypeError,
        "details='yes' of ensemble() must be True or False",
    ),
    (lambda: patterns.cascade([A], 0.9), OptionError, "cascade() needs two members at least"),
    (lambda: patterns.cascade([A, B], "high"), OptionTypeError, "confident='high' of cascade() must be the least"),
    (lambda: patterns.cascade([A, B], True), OptionTypeError, "confident=True of cascade() must be the least"),
    (lambda: patterns.cascade([A, B], float("nan")), OptionError, "confident=nan of cascade() must be a number"),
    (lambda: patterns.cascade([A, B, C], [0.9]), OptionError, "one for each member but the last: 2"),
    (
        lambda: patterns.cascade([A, B], len, confidence="p"),
        OptionError,
        "takes confidence=, or functions as confident=",
    ),
    (
        lambda: patterns.cascade([A, B], 0.9, confidence=3),
        OptionTypeError,
        "confidence=3 of cascade() must be a function",
    ),
    (
        lambda: patterns.cascade([A, B], 0.9, allow_unsure=1),
        OptionTypeError,
        "allow_unsure=1 of cascade() must be True",
    ),
    (lambda: patterns.switch(len, {}), OptionError, "switch() has no cases"),
    (lambda: patterns.switch(len, [A]), OptionTypeError, "of switch() must be a dict of bound deployments by key"),
    (lambda: patterns.switch(3, {"a": A}), OptionTypeError, "choose=3 of switch() must be a function of the input"),
    (lambda: patterns.switch(len, {"a": Model}), GraphError, "the case 'a' of switch() is the unbound deployment"),
    (lambda: patterns.switch(len, {"a": A}, Model), GraphError, "default of switch() is the unbound deployment"),
    (lambda: patterns.switch(len, {"a": A}, "cats"), OptionTypeError, "default of switch() must be a deployment"),
    (lambda: patterns.by_header(""), OptionError, "'' is no name of a header"),
    (lambda: patterns.by_header("x animal"), OptionError, "'x animal' is no name of a header"),
    (lambda: patterns.by_header(3), OptionTypeError, "by_header() takes the name of a header"),
    (lambda: patterns.fallback(Model, 0), GraphError, "member of fallback() is the unbound deployment 'Model'"),
    (lambda: patterns.fallback(A, Model), GraphError, "default of fallback() is the unbound deployment 'Model'"),
    (lambda: patterns.fallback(A, Plain), OptionTypeError, "default of fallback() is the plain class Plain"),
    (lambda: patterns.fallback(A, 0, timeout_s=0), OptionError, "timeout_s=0 of fallback() must be above 0"),
    (lambda: patterns.fallback(A, 0, on="TimeoutError"), OptionTypeError, "must be a type of errors"),
    (lambda: patterns.fallback(A, 0, on=()), OptionTypeError, "on=() of fallback() must be a type of errors"),
    (lambda: patterns.fallback(A, 0, on=KeyboardInterrupt), OptionTypeError, "must be a type of errors"),
    (
        lambda: patterns.fallback(patterns.member(A, timeout_s=1), 0, timeout_s=2),
        OptionError,
        "fallback() has a timeout_s, and its member() too",
    ),
]


@pytest.mark.parametrize(("declare", "error", "said"), WRONG, ids=[said for _, _, said in WRONG])
def test_what_is_wrong_is_told_at_once(declare: Callable[[], Any], error: type[HeadraceError], said: str) -> None:
    with pytest.raises(error, match=re.escape(said)):
        declare()


def test_deployments_of_patterns_have_their_names_and_the_same_digests_each_time() -> None:
    def app() -> serve.Application:
        wild = patterns.cascade([A, B], 0.9, confidence=lambda answer: answer["p"])
        best = patterns.ensemble([wild, patterns.pipeline(A, lambda x: x)], combine=patterns.weighted([2, 1]), wait_s=1)
        return patterns.fallback(patterns.switch("kind", {"a": best}, default=C), default=lambda x, error: None)

    first, second = build(app()), build(app())
    names = ["A", "B", "Cascade", "Pipeline", "Ensemble", "C", "Switch", "Fallback"]
    assert [each.name for each in first.deployments] == names
    assert first.ingress == "Fallback"
    assert [each.digest for each in first.deployments] == [each.digest for each in second.deployments]
    assert all(each.max_ongoing_requests == 1000 for each in first.deployments if each.name not in "ABC")


def test_the_same_function_with_another_value_in_it_is_another_deployment() -> None:
    def app(least: float) -> str:
        return build(patterns.cascade([A, B], lambda answer: answer > least)).deployments[-1].digest

    assert app(0.5) == app(0.5) != app(0.6)


def test_declaring_them_loads_neither_loops_nor_web_libraries() -> None:
    code = (
        "import sys; from headrace import patterns, serve\n"
        "class Model:\n    def __call__(self, x): return x\n"
        "app = serve.deployment(Model).bind()\n"
        "patterns.fallback(patterns.switch(len, {1: patterns.pipeline(app, len)}), 'no answer', timeout_s=1)\n"
        "patterns.cascade([app, patterns.ensemble([app], combine=max)], 0.9, confidence=max)\n"
        "print(sorted({'uvloop', 'starlette', 'cloudpickle', 'headrace.handle', 'numpy'} & set(sys.modules)))\n"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
