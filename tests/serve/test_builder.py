import pydantic
import pytest

from headrace import serve
from headrace.serve.builder import call_builder
from headrace.spec.errors import GraphError, OptionTypeError


@serve.deployment
class Model:
    def __init__(self, value=None):
        self.value = value


class Arguments(pydantic.BaseModel):
    path: str
    size: int = 1


def plain(args):
    return Model.bind(args)


def typed(args: dict[str, str]):
    return Model.bind(args)


def modelled(args: Arguments):
    return Model.bind(args)


def without():
    return Model.bind()


def with_more(args, extra=None):
    return Model.bind(args)


@pytest.mark.parametrize("builder", [plain, typed, with_more])
def test_arguments_as_a_dict(builder):
    assert call_builder(builder, {"a": "1"})._args == ({"a": "1"},)
    assert call_builder(builder, {})._args == ({},)


def test_arguments_as_a_pydantic_model():
    (made,) = call_builder(modelled, {"path": "x", "size": "3"})._args
    assert made == Arguments(path="x", size=3)


def test_a_model_that_does_not_fit_raises_its_own_error():
    with pytest.raises(pydantic.ValidationError, match="size"):
        call_builder(modelled, {"path": "x", "size": "many"})


def test_no_arguments():
    assert call_builder(without, {})._args == ()
    with pytest.raises(OptionTypeError, match="takes no arguments, and was given a"):
        call_builder(without, {"a": "1"})


def test_an_application_takes_none():
    app = Model.bind()
    assert call_builder(app, {}) is app
    with pytest.raises(OptionTypeError, match="takes no arguments, and was given a: only a builder function does"):
        call_builder(app, {"a": "1"})


def test_a_builder_with_several_parameters():
    def builder(a, b):
        return Model.bind()

    with pytest.raises(GraphError, match="must have one"):
        call_builder(builder, {})


def test_a_keyword_only_parameter():
    def builder(*, args):
        return Model.bind()

    with pytest.raises(GraphError, match="must have one"):
        call_builder(builder, {})


@pytest.mark.parametrize(
    ("returned", "match"), [(Model, r"use Model.bind\("), (None, "not None"), (Model.func_or_class, "plain class")]
)
def test_what_a_builder_must_return(returned, match):
    with pytest.raises(OptionTypeError, match=match):
        call_builder(lambda: returned, {})


@pytest.mark.parametrize(("target", "match"), [(Model, r"use Model.bind\("), (7, "not 7"), (Arguments, "plain class")])
def test_what_is_no_builder(target, match):
    with pytest.raises(OptionTypeError, match=match):
        call_builder(target, {})


def test_an_annotation_that_only_a_type_checker_knows():
    def builder(args: "Unknown"):  # noqa: F821
        return Model.bind(args)

    assert call_builder(builder, {"a": "1"})._args == ({"a": "1"},)


def test_an_error_of_the_builder_is_raised_as_it_is():
    def builder(args):
        raise LookupError("no such model")

    with pytest.raises(LookupError, match="no such model"):
        call_builder(builder, {})
