"""headrace.serve.objections: what the local engine makes of options that are for many machines."""

from __future__ import annotations

import warnings

import pytest

from headrace import serve
from headrace.serve.graph import build
from headrace.serve.objections import check_local
from headrace.spec.errors import OptionError


class Model:
    pass


def spec(**options):
    return build(serve.deployment(**options)(Model).bind())


def test_what_has_no_effect_gives_one_warning_at_the_users_line():
    built = spec(max_replicas_per_node=2, ray_actor_options={"memory": 9, "accelerator_type": "A100"})
    with pytest.warns(UserWarning, match="options have no effect in Headrace") as caught:
        check_local(built)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    for name in ("max_replicas_per_node of Model", "memory of Model", "accelerator_type of Model"):
        assert name in str(caught[0].message)


def test_what_would_change_an_answer_is_refused_with_its_deployment():
    with pytest.raises(OptionError, match=r"^deployment 'Model': resources=.*TPU.* does not work on the local engine"):
        check_local(spec(ray_actor_options={"resources": {"TPU": 1}}))


def test_what_every_engine_knows_is_no_cause_for_either():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_local(spec(ray_actor_options={"num_cpus": 1, "runtime_env": {"env_vars": {"A": "1"}}}))


def test_run_refuses_it_before_anything_is_started(monkeypatch, tmp_path):
    monkeypatch.setenv("HEADRACE_HOME", str(tmp_path))
    with pytest.raises(OptionError, match="does not work on the local engine"):
        serve.run(serve.deployment(ray_actor_options={"resources": {"TPU": 1}})(Model).bind())
    assert list(tmp_path.iterdir()) == []
