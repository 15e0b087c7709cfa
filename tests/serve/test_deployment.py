import pickle
import sys

import cloudpickle
import pytest

from headrace import serve
from headrace.serve.deployment import Application, Deployment
from headrace.spec.errors import OptionError, OptionTypeError


class Model:
    """A model."""

    def __init__(self, path, *, scale=1):
        self.path = path
        self.scale = scale

    def predict(self, x):
        return x


def double(request):
    return 2


class TestDecorator:
    def test_bare(self):
        made = serve.deployment(Model)
        assert isinstance(made, Deployment)
        assert made.name == "Model"
        assert made.func_or_class is Model
        assert made.num_replicas == 1
        assert made.__doc__ == "A model."

    def test_with_options(self):
        made = serve.deployment(num_replicas=3, max_ongoing_requests=7, name="other")(Model)
        assert (made.name, made.num_replicas, made.max_ongoing_requests) == ("other", 3, 7)

    def test_with_a_positional_name(self):
        assert serve.deployment("named", num_replicas=2)(double).name == "named"

    def test_empty_parentheses(self):
        assert serve.deployment()(double).name == "double"

    def test_on_a_function(self):
        assert serve.deployment(double).func_or_class is double

    def test_ray_actor_options_are_resources(self):
        made = serve.deployment(ray_actor_options={"num_cpus": 2, "num_gpus": 1})(Model)
        assert made.ray_actor_options == {"num_cpus": 2, "num_gpus": 1}

    def test_ray_actor_options_are_shown_as_they_are_taken(self):
        given = {
            "num_cpus": 2,
            "num_gpus": 1,
            "memory": 10**9,
            "resources": {"TPU": 1.0},
            "accelerator_type": "A100",
            "label_selector": {"zone": "eu"},
            "fallback_strategy": [{"label_selector": {"zone": "us"}}],
            "runtime_env": {"pip": ["torch"], "env_vars": {"A": "1"}},
        }
        made = serve.deployment(ray_actor_options=given)(Model)
        assert made.ray_actor_options == given
        assert made.options(ray_actor_options=made.ray_actor_options) == made

    def test_an_unknown_option_names_the_nearest(self):
        with pytest.raises(TypeError, match=r"num_replica.*did you mean 'num_replicas'"):
            serve.deployment(num_replica=2)

    def test_a_value_that_is_not_allowed(self):
        with pytest.raises(ValueError, match="num_replicas"):
            serve.deployment(num_replicas=0)

    @pytest.mark.parametrize("name", ["", "a/b", "a#1", "a@b", "x" * 101, "with space"])
    def test_a_name_that_is_not_allowed(self, name):
        with pytest.raises(OptionError, match="name="):
            serve.deployment(name=name)(Model)

    def test_a_name_that_is_no_string(self):
        with pytest.raises(OptionTypeError, match="name=3"):
            serve.deployment(name=3)

    def test_something_that_is_neither_class_nor_function(self):
        with pytest.raises(OptionTypeError, match="class or a function"):
            serve.deployment(42)

    def test_a_deployment_is_not_deployed_again(self):
        with pytest.raises(OptionTypeError, match="already"):
            serve.deployment(num_replicas=2)(serve.deployment(Model))

    def test_the_decorator_stays_a_function_when_its_module_is_imported(self):
        import headrace.serve.deployment  # noqa: F401 - it binds the module's name in the package

        assert callable(serve.deployment)


class TestOptions:
    def test_what_is_not_named_stays(self):
        first = serve.deployment(num_replicas=3, max_queued_requests=9)(Model)
        second = first.options(num_replicas=4, name="second")
        assert (second.name, second.num_replicas, second.max_queued_requests) == ("second", 4, 9)
        assert (first.name, first.num_replicas) == ("Model", 3)

    def test_another_class(self):
        assert serve.deployment(Model).options(double).func_or_class is double

    def test_equality_is_by_name_code_and_options(self):
        one = serve.deployment(Model)
        assert one == serve.deployment(Model)
        assert hash(one) == hash(serve.deployment(Model))
        assert one != one.options(num_replicas=2)
        assert one != "Model"

    def test_a_bad_option(self):
        with pytest.raises(OptionTypeError, match="replicas_num"):
            serve.deployment(Model).options(replicas_num=2)


class TestBind:
    def test_it_only_notes(self):
        app = serve.deployment(Model).bind("m.joblib", scale=2)
        assert isinstance(app, Application)
        assert repr(app) == "Application('Model')"

    def test_arguments_that_do_not_fit_fail_at_once(self):
        with pytest.raises(OptionTypeError, match=r"Model.bind.*missing a required argument: 'path'"):
            serve.deployment(Model).bind()

    def test_a_function_takes_none(self):
        with pytest.raises(OptionTypeError, match="function"):
            serve.deployment(double).bind(1)

    def test_a_class_without_a_signature_is_left_to_the_replica(self):
        assert serve.deployment(dict).bind([("a", 1)])._args == ([("a", 1)],)

    def test_a_method_of_an_application_says_what_to_do(self):
        app = serve.deployment(Model).bind("m")
        with pytest.raises(AttributeError, match=r"handle that serve.run"):
            app.predict  # noqa: B018
        with pytest.raises(AttributeError, match="does not run yet"):
            app.remote  # noqa: B018
        with pytest.raises(AttributeError, match="no attribute 'other'"):
            app.other  # noqa: B018

    def test_an_application_pickles_by_value(self):
        app = cloudpickle.loads(cloudpickle.dumps(serve.deployment(Model).bind("m", scale=3)))
        assert app._kwargs == {"scale": 3}


def test_calling_a_deployment_says_what_to_do():
    with pytest.raises(TypeError, match=r"Model.bind\(...\).*func_or_class"):
        serve.deployment(Model)("m")


def test_a_deployment_survives_pickling():
    made = serve.deployment(num_replicas=2)(Model)
    assert pickle.loads(pickle.dumps(made)) == made


def test_a_name_that_is_none_says_so():
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        serve.nonsense  # noqa: B018


def test_all_public_names_exist():
    for name in serve.__all__:
        assert getattr(serve, name) is not None
    assert set(serve.__all__) <= set(dir(serve))
    assert "headrace.serve.api" in sys.modules


def test_a_hook_that_nothing_calls_is_told():
    with pytest.warns(UserWarning, match=r"Guarded\.check_health will not be called"):

        @serve.deployment
        class Guarded:
            def check_health(self):
                raise RuntimeError

    with pytest.warns(UserWarning, match="check_health") as told:
        serve.deployment(num_replicas=2)(Guarded.func_or_class)
    assert told[0].filename == __file__
