"""`@serve.ingress`: what it takes, how it tells web applications apart, and what it says of anything else."""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Callable
from typing import Any

import cloudpickle
import pytest
from a2wsgi import WSGIMiddleware
from fastapi import APIRouter, FastAPI
from flask import Flask
from starlette.applications import Starlette
from starlette.endpoints import HTTPEndpoint
from starlette.middleware.cors import CORSMiddleware

from headrace import serve
from headrace.serve.api import resolve_target
from headrace.serve.graph import DEFAULT_ASYNC_ONGOING, DEFAULT_WSGI_ONGOING, build
from headrace.spec.errors import OptionTypeError, PayloadError
from headrace.spec.ingress import Ingress, Interface, ingress_of, interface_of

A, W, B = Interface.ASGI, Interface.WSGI, Interface.BUILDER
flask = Flask(__name__)
fastapi = FastAPI()


async def asgi(scope: Any, receive: Any, send: Any) -> None: ...
def asgi_returning(scope: Any, receive: Any, send: Any) -> Any: ...
def wsgi(environ: Any, start_response: Any) -> Any: ...
def wsgi_with_more(environ: Any, start_response: Any, debug: bool = False) -> Any: ...
def builder() -> Any: ...
async def async_builder() -> Any: ...
def builder_with_default(debug: bool = False) -> Any: ...


class AsgiObject:
    async def __call__(self, scope: Any, receive: Any, send: Any) -> None: ...


class AsgiWrapper:
    async def __call__(self, *args: Any) -> None: ...


class WsgiWrapper:
    wsgi_app = None

    def __call__(self, *args: Any) -> None: ...


class Page(HTTPEndpoint):
    pass


@pytest.mark.parametrize(
    ("app", "interface"),
    [
        (fastapi, A),
        (APIRouter(), A),
        (Starlette(), A),
        (CORSMiddleware(Starlette()), A),
        (asgi, A),
        (asgi_returning, A),
        (functools.partial(asgi), A),
        (AsgiObject(), A),
        (AsgiWrapper(), A),
        (AsgiObject().__call__, A),
        (Page, A),
        (WSGIMiddleware(flask), A),
        (flask, W),
        (flask.wsgi_app, W),
        (wsgi, W),
        (wsgi_with_more, W),
        (WsgiWrapper(), W),
        (builder, B),
        (async_builder, B),
        (builder_with_default, B),
        (lambda: fastapi, B),
        (functools.partial(builder_with_default, debug=True), B),
    ],
)
def test_it_is_the_way_of_calling_that_tells(app: Any, interface: Interface) -> None:
    assert interface_of(app) is interface


class Loose:
    def __call__(self, *args: Any) -> None: ...


class NoArguments:
    def __call__(self) -> None: ...


async def two_async(environ: Any, start_response: Any) -> None: ...
def asgi_2(scope: Any) -> Any: ...


@pytest.mark.parametrize(
    ("app", "why"),
    [
        (None, "NoneType cannot be called"),
        ("module:app", "str cannot be called"),
        (FastAPI, r"is a class: give an instance of it, such as FastAPI\(\)"),
        (Flask, "is a class"),
        (asgi_2, "ASGI 3 is called with scope, receive and send"),
        (two_async, "takes 2 arguments"),
        (Loose(), "takes any arguments"),
        (NoArguments(), "takes 0 arguments"),
        (types, "module cannot be called"),
    ],
)
def test_what_is_no_web_application_is_told_with_what_would_be_right(app: Any, why: str) -> None:
    with pytest.raises(OptionTypeError, match=rf"serve\.ingress\(.*{why}") as caught:
        serve.ingress(app)
    if app not in (FastAPI, Flask):
        assert "such as Flask's (called with environ, start_response)" in str(caught.value)


def test_the_class_stays_the_class() -> None:
    class Web:
        """Its docs."""

        def __init__(self, n: int) -> None:
            self.n = n

    assert serve.ingress(fastapi)(Web) is Web
    assert ingress_of(Web).app is fastapi  # type: ignore[union-attr]
    assert Web(3).n == 3
    with pytest.raises(OptionTypeError, match="does not fit its constructor"):
        serve.deployment(Web).bind()


def test_a_subclass_has_the_ingress_of_its_base_or_its_own() -> None:
    @serve.ingress(fastapi)
    class Base:
        pass

    class Child(Base):
        pass

    @serve.ingress(flask)
    class Other(Base):
        pass

    assert ingress_of(Child).app is fastapi  # type: ignore[union-attr]
    assert ingress_of(Other).app is flask  # type: ignore[union-attr]
    assert ingress_of(object) is ingress_of(builder) is None


def other_order() -> None:
    @serve.ingress(fastapi)
    @serve.deployment
    class Web:
        pass


def without_application() -> None:
    @serve.ingress  # type: ignore[arg-type]
    class Web:
        pass


def on_a_function() -> None:
    @serve.ingress(fastapi)  # type: ignore[type-var]
    def web() -> None:
        pass


def twice() -> None:
    @serve.ingress(fastapi)
    @serve.ingress(flask)
    class Web:
        pass


def of_a_deployment() -> None:
    serve.ingress(serve.deployment(type("Web", (), {})))


def of_an_application() -> None:
    serve.ingress(serve.deployment(type("Web", (), {})).bind())


def without_either() -> None:
    @serve.ingress()
    class Web:
        pass


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (without_either, r"Web has no __serve_build_asgi_app__"),
        (other_order, r"above @serve\.deployment of 'Web': write @serve\.deployment first"),
        (without_application, r"serve\.ingress\(Web\) was given the class: write @serve\.ingress\(app\)"),
        (on_a_function, r"decorates a class, not <function on_a_function.*serve\.run\(app\)"),
        (twice, "Web has an ingress already"),
        (of_a_deployment, r"not Deployment\(name='Web'\)"),
        (of_an_application, r"not Application\('Web'\)"),
    ],
)
def test_wrong_ways_to_use_it_are_told(wrong: Callable[[], None], told: str) -> None:
    with pytest.raises(OptionTypeError, match=told):
        wrong()


# ---- applications that are served as they are


@pytest.mark.parametrize("app", [fastapi, flask, AsgiObject(), asgi, wsgi])
def test_a_web_application_stands_for_a_deployment_of_it(app: Any) -> None:
    spec = build(resolve_target(app))
    (deployment,) = spec.deployments
    assert deployment.name == ("AsgiObject" if isinstance(app, AsgiObject) else "test_ingress_decorator")
    made = cloudpickle.loads(deployment.code.data)  # type: ignore[union-attr]
    assert ingress_of(made).interface is interface_of(app)  # type: ignore[union-attr]
    if app in (fastapi, flask):
        assert ingress_of(made).app is app  # type: ignore[union-attr]  # by its module: Flask cannot be pickled


def test_a_builder_may_return_one_and_other_functions_are_builders_of_applications() -> None:
    assert build(resolve_target(lambda: fastapi)).deployments[0].name
    with pytest.raises(OptionTypeError, match="an ASGI or WSGI application, not None"):
        resolve_target(builder)


def test_what_it_may_do_at_once() -> None:
    def limit(app: Any, **options: Any) -> int:
        made = serve.deployment(**options)(serve.ingress(app)(type("Web", (), {})))
        return build(made.bind()).deployments[0].max_ongoing_requests

    assert limit(fastapi) == limit(builder) == DEFAULT_ASYNC_ONGOING
    assert limit(flask) == DEFAULT_WSGI_ONGOING
    assert limit(flask, num_cpus=12) == 12
    assert limit(flask, max_ongoing_requests=3) == limit(fastapi, max_ongoing_requests=3) == 3


def test_a_flask_application_of_no_module_cannot_travel_and_says_what_to_do() -> None:
    with pytest.raises(PayloadError, match=r"<Flask 'lost'> cannot be sent .*headrace run module:app"):
        build(resolve_target(Flask("lost")))


def test_an_application_of_no_module_travels_by_value() -> None:
    module = types.ModuleType("__nowhere__")
    code = """
from __future__ import annotations
from fastapi import FastAPI, APIRouter
from pydantic import BaseModel
app = FastAPI()
app.state.word = "kept"
router = APIRouter()
class Item(BaseModel):
    name: str
class Web:
    @router.post("/item")
    def get(self, item: Item) -> None: ...
app.include_router(router, prefix="/r")
"""
    sys.modules[module.__name__] = module
    try:
        exec(code, vars(module))
        made = serve.deployment(serve.ingress(module.app)(module.Web))
        code_of = build(made.bind()).deployments[0].code
        item = module.Item
    finally:
        del sys.modules[module.__name__]
    ingress = ingress_of(cloudpickle.loads(code_of.data))  # type: ignore[union-attr]
    assert isinstance(ingress, Ingress)
    assert ingress.app.state.word == "kept"
    assert "/r/item" in ingress.app.openapi()["paths"]
    assert module.Web.get.__annotations__ == {"item": item, "return": None}
