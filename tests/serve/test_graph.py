import pickle
import sys

import pytest

from headrace import serve
from headrace.serve.graph import build, resolved_max_ongoing
from headrace.spec.application import ImportedCode, PickledCode
from headrace.spec.errors import GraphError, OptionTypeError, PayloadError
from headrace.spec.options import DeploymentOptions
from headrace.wire.code import load_code, unpack_arguments


@serve.deployment
class Leaf:
    def __init__(self, value=0):
        self.value = value

    async def __call__(self, request):
        return self.value


@serve.deployment
class Joint:
    def __init__(self, *args, **kwargs):
        self.args = args
        self.kwargs = kwargs

    def __call__(self, request):
        return None


@serve.deployment
def function(request):
    return None


def names(spec):
    return [deployment.name for deployment in spec.deployments]


def by_name(spec, name):
    return next(deployment for deployment in spec.deployments if deployment.name == name)


def arguments(deployment):
    return unpack_arguments(deployment.arguments, lambda name: f"<{name}>")


class TestGraph:
    def test_one_deployment(self):
        spec = build(Leaf.bind(3), "app", "/x")
        assert (spec.name, spec.route_prefix, spec.ingress) == ("app", "/x", "Leaf")
        (leaf,) = spec.deployments
        assert leaf.code == ImportedCode(__name__, "Leaf")
        assert load_code(leaf.code) is Leaf.func_or_class
        assert arguments(leaf) == ((3,), {})
        assert not leaf.is_function
        assert leaf.uses == ()

    def test_a_function(self):
        (only,) = build(function.bind()).deployments
        assert only.is_function
        assert load_code(only.code) is function.func_or_class

    def test_nested_anywhere_becomes_a_handle(self):
        leaf = Leaf.bind()
        app = Joint.bind([{"deep": (leaf,)}], key=leaf)
        spec = build(app)
        joint = by_name(spec, "Joint")
        assert arguments(joint) == (([{"deep": ("<Leaf>",)}],), {"key": "<Leaf>"})
        assert joint.uses == ("Leaf",)
        assert spec.ingress == "Joint"

    def test_inside_of_an_object(self):
        class Holder:
            def __init__(self, app):
                self.app = app

        spec = build(Joint.bind(Holder(Leaf.bind())))
        assert names(spec) == ["Leaf", "Joint"]
        assert arguments(by_name(spec, "Joint"))[0][0].app == "<Leaf>"

    def test_callees_stand_before_their_callers(self):
        spec = build(Joint.options(name="top").bind(Joint.options(name="mid").bind(Leaf.bind())))
        assert names(spec) == ["Leaf", "mid", "top"]

    def test_a_diamond_shares_one_deployment(self):
        leaf = Leaf.bind()
        left, right = Joint.options(name="left").bind(leaf), Joint.options(name="right").bind(leaf)
        spec = build(Joint.bind(left, right))
        assert names(spec) == ["Leaf", "left", "right", "Joint"]

    def test_different_nodes_of_one_name_get_numbers(self):
        spec = build(Joint.bind(Leaf.bind(1), Leaf.bind(2), Leaf.bind(3)))
        assert names(spec) == ["Leaf", "Leaf_1", "Leaf_2", "Joint"]
        assert arguments(by_name(spec, "Joint"))[0] == ("<Leaf>", "<Leaf_1>", "<Leaf_2>")
        assert arguments(by_name(spec, "Leaf_2"))[0] == (3,)

    def test_a_number_that_is_taken_is_passed_over(self):
        spec = build(Joint.bind(Leaf.options(name="Leaf_1").bind(), Leaf.bind(), Leaf.bind()))
        assert names(spec) == ["Leaf_1", "Leaf", "Leaf_2", "Joint"]

    def test_the_same_name_as_its_caller(self):
        spec = build(Joint.bind(Joint.bind()))
        assert names(spec) == ["Joint", "Joint_1"]
        assert spec.ingress == "Joint_1"

    def test_a_cycle_through_a_mutable_argument(self):
        inner = []
        app = Joint.bind(inner)
        inner.append(app)
        with pytest.raises(GraphError, match="lead back to itself"):
            build(app)

    def test_an_unbound_deployment_as_an_argument(self):
        with pytest.raises(GraphError, match=r"argument 'leaf' of 'Joint'.*Leaf.bind\("):
            build(Joint.bind(leaf=Leaf))

    def test_an_argument_of_a_node_below_that_cannot_be_pickled_is_named(self):
        with pytest.raises(PayloadError, match=r"^below.bind.*: argument 1 of type"):
            build(Joint.bind(Joint.options(name="below").bind(1, sys._getframe())))

    def test_what_is_wrong_below_is_told_as_it_is(self):
        with pytest.raises(GraphError, match="unbound deployment 'Leaf'"):
            build(Joint.bind([Joint.options(name="below").bind(Leaf)]))

    def test_a_deep_chain(self):
        app = Leaf.bind()
        for n in range(30):
            app = Joint.options(name=f"j{n}").bind(app)
        assert len(build(app).deployments) == 31

    @pytest.mark.parametrize(
        ("wrong", "match"),
        [
            (Leaf, r"use Leaf.bind\("),
            (Leaf.func_or_class, "plain class"),
            (42, "not 42"),
        ],
    )
    def test_what_is_no_application(self, wrong, match):
        with pytest.raises(OptionTypeError, match=match):
            build(wrong)

    def test_a_class_of_a_function_travels_by_value(self):
        class Local:
            def __call__(self):
                return "local"

        (only,) = build(serve.deployment(Local).bind()).deployments
        assert isinstance(only.code, PickledCode)
        assert load_code(only.code)()() == "local"

    def test_building_twice_gives_the_same(self):
        leaf = Leaf.bind()
        app = Joint.bind(leaf, 1)
        assert build(app) == build(app)

    def test_the_digest_tells_what_changed(self):
        digests = [
            build(app).deployments[0].digest
            for app in (Leaf.bind(1), Leaf.bind(2), Leaf.options(num_cpus=2).bind(1), function.bind())
        ]
        assert len(set(digests)) == 4
        assert build(Leaf.options(num_replicas=3).bind(1)).deployments[0].digest == digests[0]

    def test_the_environment_has_absolute_paths(self, monkeypatch, tmp_path):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "path", ["", "relative", "/absolute"])
        environment = build(Leaf.bind()).environment
        assert environment.sys_path == (str(tmp_path), str(tmp_path / "relative"), "/absolute")
        assert environment.cwd == str(tmp_path)

    def test_it_survives_the_wire(self):
        import msgspec

        spec = build(Joint.bind(Leaf.bind(), 2))
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(spec), type=type(spec)) == spec
        assert pickle.loads(pickle.dumps(spec)) == spec


class TestMaxOngoing:
    def resolved(self, target, **options):
        return resolved_max_ongoing(target, DeploymentOptions(**options))

    def test_a_number_given_is_taken_as_it_is(self):
        assert self.resolved(Leaf.func_or_class, max_ongoing_requests=3) == 3

    def test_async_calls(self):
        async def coroutine():
            pass

        async def generator():
            yield

        assert self.resolved(Leaf.func_or_class) == 100
        assert self.resolved(coroutine) == 100
        assert self.resolved(generator) == 100

    def test_plain_calls_get_the_cpus_of_a_replica(self):
        assert self.resolved(Joint.func_or_class) == 1
        assert self.resolved(Joint.func_or_class, num_cpus=0) == 1
        assert self.resolved(Joint.func_or_class, num_cpus=2.5) == 3

    def test_without_a_call_any_async_method_counts(self):
        class Plain:
            def predict(self):
                pass

        class Mixed(Plain):
            async def other(self):
                pass

        class Private(Plain):
            async def _other(self):
                pass

        assert self.resolved(Plain) == 1
        assert self.resolved(Mixed) == 100
        assert self.resolved(Private) == 1

    def test_an_inherited_call(self):
        class Child(Leaf.func_or_class):
            pass

        assert self.resolved(Child) == 100

    def test_the_call_decides_where_there_is_one(self):
        class Mixed:
            def __call__(self):
                pass

            async def other(self):
                pass

        assert self.resolved(Mixed) == 1

    def test_a_static_method(self):
        class Static:
            @staticmethod
            async def __call__():
                pass

        assert self.resolved(Static) == 100
