"""A class whose HTTP requests a FastAPI application answers: routes with `self`, and all that FastAPI has besides."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any

import pytest
from fake_incoming import run
from fastapi import (
    APIRouter,
    BackgroundTasks,
    Depends,
    FastAPI,
    Header,
    HTTPException,
    Query,
    Request,
    Response,
    Security,
)
from fastapi.middleware.cors import CORSMiddleware
from fastapi.middleware.gzip import GZipMiddleware
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.routing import APIRoute
from fastapi.security import APIKeyHeader
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.routing import Mount, Route
from web_replica import headers_of, replica_of

from headrace import serve
from headrace.context import current_request


class Item(BaseModel):
    name: str
    price: float = 1.0


class Priced(BaseModel):
    name: str
    total: float


app = FastAPI(title="Shop")
EVENTS: list[Any] = []


def opened() -> Iterator[str]:
    EVENTS.append("opened")
    try:
        yield "database"
    finally:
        EVENTS.append("closed")


class Pages:
    def __init__(self, page: int = 1) -> None:
        self.page = page


key_header = APIKeyHeader(name="x-key")


class Unknown(Exception):
    pass


@app.exception_handler(Unknown)
async def on_unknown(request: Request, error: Unknown) -> JSONResponse:
    return JSONResponse({"unknown": str(error)}, status_code=418)


@app.get("/plain-function")
def plain_function(q: int = 0) -> int:
    return q + 1


@serve.ingress(app)
class Shop:
    def __init__(self, factor: float = 2.0) -> None:
        self.factor = factor
        self.notes: list[str] = []

    def limit(self, top: int = 10) -> int:
        return int(top * self.factor)

    @app.get("/plain/{n}")
    def plain(self, n: int, q: int = 0) -> dict[str, Any]:
        return {"sum": n + q, "factor": self.factor, "main": threading.current_thread() is threading.main_thread()}

    @app.get("/async/{n}")
    async def coroutine(self, n: int, tags: Annotated[list[str], Query()] = []) -> dict[str, Any]:  # noqa: B006
        return {"n": n * self.factor, "tags": tags}

    @app.post("/items", response_model=Priced, status_code=201)
    async def create(self, item: Item) -> Any:
        return {"name": item.name, "total": item.price * self.factor, "secret": "not shown"}

    @app.post("/annotated")
    def annotated(self, item: Item) -> Priced:
        return Priced(name=item.name, total=item.price)

    @app.get("/depends")
    async def depends(
        self,
        base: Annotated[str, Depends(opened)],
        pages: Annotated[Pages, Depends()],
        top: int = Depends(limit),
        agent: Annotated[str, Header()] = "",
    ) -> dict[str, Any]:
        EVENTS.append("used")
        return {"base": base, "page": pages.page, "top": top, "agent": agent}

    @app.get("/secret")
    async def secret(self, key: Annotated[str, Security(key_header)]) -> str:
        return key

    @app.get("/background")
    async def background(self, tasks: BackgroundTasks) -> str:
        tasks.add_task(self.note, "later")
        return "now"

    def note(self, text: str) -> None:
        self.notes.append(text)

    @app.get("/raises/{kind}")
    async def raises(self, kind: str) -> None:
        if kind == "http":
            raise HTTPException(409, "conflict", headers={"x-why": "because"})
        if kind == "handled":
            raise Unknown("what")
        raise RuntimeError("a bug")

    @app.get("/request")
    async def request(self, request: Request, response: Response) -> dict[str, Any]:
        response.headers["x-set"] = "yes"
        context = current_request()
        assert context is not None
        return {
            "id": context.request_id,
            "url": str(request.url_for("plain", n=3)),
            "path": request.url.path,
            "client": request.client.host if request.client else "",
        }

    @app.get("/stream")
    async def stream(self) -> StreamingResponse:
        async def parts() -> AsyncIterator[bytes]:
            for n in range(3):
                yield b"part %d;" % n

        return StreamingResponse(parts(), media_type="text/plain")

    @app.get("/slash/")
    async def slash(self) -> str:
        return "with a slash"

    @staticmethod
    @app.get("/static")
    def static(q: int = 1) -> int:
        return q

    @app.post("/body-length")
    async def body_length(self, request: Request) -> dict[str, int]:
        return {"parts": len([part async for part in request.stream() if part])}

    async def not_a_route(self, n: int) -> int:
        return n


def value_of(call: Any) -> Any:
    return json.loads(call.payload)


def test_routes_are_methods_of_the_instance() -> None:
    async def check() -> None:
        async with replica_of(Shop, 3.0) as shop:
            plain = await shop.get("/plain/4?q=1")
            assert value_of(plain) == {"sum": 5, "factor": 3.0, "main": False}
            assert value_of(await shop.get("/async/4?tags=a&tags=b")) == {"n": 12.0, "tags": ["a", "b"]}
            created = await shop.post("/items", {"name": "pen", "price": 2})
            assert created.head.status == 201
            assert value_of(created) == {"name": "pen", "total": 6.0}
            assert value_of(await shop.post("/annotated", {"name": "pen"})) == {"name": "pen", "total": 1.0}
            assert value_of(await shop.get("/plain-function?q=4")) == 5
            assert value_of(await shop.get("/static?q=4")) == 4

    run(check())


def test_what_does_not_validate_names_the_user_s_parameters_alone() -> None:
    async def check() -> None:
        async with replica_of(Shop) as shop:
            wrong = await shop.get("/plain/many")
            assert wrong.head.status == 422
            assert [error["loc"] for error in value_of(wrong)["detail"]] == [["path", "n"]]
            wrong = await shop.post("/items", {"price": "high"})
            assert [error["loc"] for error in value_of(wrong)["detail"]] == [["body", "name"], ["body", "price"]]

    run(check())


def test_dependencies_of_every_kind() -> None:
    async def check() -> None:
        EVENTS.clear()
        async with replica_of(Shop) as shop:
            found = await shop.get("/depends?page=3&top=7", headers=[(b"agent", b"me")])
            assert value_of(found) == {"base": "database", "page": 3, "top": 14, "agent": "me"}
            await shop.invoker.rested()
            assert EVENTS == ["opened", "used", "closed"]
            assert value_of(await shop.get("/secret", headers=[(b"x-key", b"k")])) == "k"
            assert (await shop.get("/secret")).head.status in (401, 403)

    run(check())


def test_a_dependency_can_be_overridden() -> None:
    async def check() -> None:
        own = FastAPI()

        @serve.ingress(own)
        class Replaced:
            @own.get("/")
            def get(self, base: str = Depends(opened)) -> str:
                return base

        own.dependency_overrides[opened] = lambda: "another"
        async with replica_of(Replaced) as replica:
            assert value_of(await replica.get("/")) == "another"

    run(check())


def test_background_tasks_run_after_the_response_on_the_instance() -> None:
    async def check() -> None:
        async with replica_of(Shop) as shop:
            assert value_of(await shop.get("/background")) == "now"
            await shop.invoker.rested()
            assert shop.instance.notes == ["later"]

    run(check())


def test_errors_are_answered_as_fastapi_answers_them_and_a_bug_is_this_request_s_alone(caplog: Any) -> None:
    async def check() -> None:
        async with replica_of(Shop) as shop:
            conflict = await shop.get("/raises/http")
            assert (conflict.head.status, value_of(conflict)) == (409, {"detail": "conflict"})
            assert headers_of(conflict)["x-why"] == "because"
            handled = await shop.get("/raises/handled")
            assert (handled.head.status, value_of(handled)) == (418, {"unknown": "what"})
            bug = await shop.get("/raises/bug")
            assert bug.head.status == 500
            assert bug.payload == b"Internal Server Error"
            assert (await shop.get("/nowhere")).head.status == 404
            assert (await shop.request("DELETE", "/static")).head.status == 405

    run(check())
    assert "RuntimeError: a bug" in caplog.text


def test_under_a_route_prefix_paths_urls_docs_and_redirects_have_it() -> None:
    async def check() -> None:
        async with replica_of(Shop, root_path="/shop") as shop:
            told = await shop.get("/shop/request")
            assert value_of(told) == {
                "id": "r-1",
                "url": "http://a.test/shop/plain/3",
                "path": "/shop/request",
                "client": "10.0.0.1",
            }
            assert headers_of(told)["x-set"] == "yes"
            schema = value_of(await shop.get("/shop/openapi.json"))
            assert schema["servers"] == [{"url": "/shop"}]
            assert b"/shop/openapi.json" in (await shop.get("/shop/docs")).payload
            moved = await shop.get("/shop/slash")
            assert moved.head.status == 307
            assert headers_of(moved)["location"] == "http://a.test/shop/slash/"

    run(check())


def test_the_openapi_schema_knows_no_self() -> None:
    async def check() -> None:
        async with replica_of(Shop) as shop:
            schema = value_of(await shop.get("/openapi.json"))
            assert "self" not in json.dumps(schema)
            assert schema["info"]["title"] == "Shop"
            get = schema["paths"]["/plain/{n}"]["get"]
            assert [(p["name"], p["in"]) for p in get["parameters"]] == [("n", "path"), ("q", "query")]
            assert "/plain-function" in schema["paths"]

    run(check())


def test_streams_and_bodies_that_come_in_parts() -> None:
    async def check() -> None:
        async with replica_of(Shop) as shop:
            stream = await shop.get("/stream")
            assert stream.payload == b"part 0;part 1;part 2;"
            assert stream.stream_is_whole
            up = await shop.request("POST", "/body-length", b"a", parts=[b"b", b"c", b""])
            assert value_of(up) == {"parts": 3}

    run(check())


def test_methods_are_called_by_handle_as_ever() -> None:
    from fake_incoming import handle_call

    async def check() -> None:
        async with replica_of(Shop, 5.0) as shop:
            for call, result in (
                (handle_call("plain", 4, q=2), {"sum": 6, "factor": 5.0, "main": False}),
                (handle_call("coroutine", 2, tags=[]), {"n": 10.0, "tags": []}),
                (handle_call("not_a_route", 2), 2),
            ):
                shop.invoker.start(call)
                await call.ended.wait()
                assert call.result == result

    run(check())


def test_instances_in_one_process_do_not_see_each_other() -> None:
    async def check() -> None:
        async with replica_of(Shop, 3.0) as first, replica_of(Shop, 7.0) as second:
            assert value_of(await first.get("/async/1"))["n"] == 3.0
            assert value_of(await second.get("/async/1"))["n"] == 7.0
            assert value_of(await first.get("/plain/1"))["factor"] == 3.0
        async with replica_of(Shop, 9.0) as third:
            assert value_of(await third.get("/async/1"))["n"] == 9.0

    run(check())


def test_the_application_is_as_written_when_its_replicas_are_gone() -> None:
    async def check(first_leaves_first: bool) -> None:
        own = FastAPI()

        @own.get("/")
        def get(n: int) -> int:
            return n

        served = serve.ingress(own)(type("Web", (), {}))
        before = [route.endpoint for route in own.routes if isinstance(route, APIRoute)]
        first, second = contextlib.AsyncExitStack(), contextlib.AsyncExitStack()
        web = await first.enter_async_context(replica_of(served))
        other = await second.enter_async_context(replica_of(served))
        assert value_of(await web.get("/?n=1")) == value_of(await other.get("/?n=1")) == 1
        for stack in (first, second) if first_leaves_first else (second, first):
            await stack.aclose()
        assert [route.endpoint for route in own.routes if isinstance(route, APIRoute)] == before == [get]

    run(check(True))
    run(check(False))
    for name in ("plain", "coroutine", "create"):
        (route,) = [route for route in app.routes if getattr(route, "name", "") == name]
        assert route.endpoint is vars(Shop)[name]  # type: ignore[attr-defined]


shared = FastAPI()


@serve.ingress(shared)
class One:
    @shared.get("/")
    def get(self) -> str:
        return "one"

    @shared.get("/one")
    def only(self) -> str:
        return "only one"


@serve.ingress(shared)
class Two:
    @shared.get("/")
    def get(self) -> str:
        return "two"


def test_two_classes_on_one_application_have_their_own_routes() -> None:
    async def check() -> None:
        async with replica_of(One) as one, replica_of(Two) as two:
            assert value_of(await one.get("/")) == "one"
            assert value_of(await two.get("/")) == "two"
            assert value_of(await one.get("/one")) == "only one"
            assert (await two.get("/one")).head.status == 404
            assert list(value_of(await two.get("/openapi.json"))["paths"]) == ["/"]

    run(check())


inherited = FastAPI()


class Base:
    greeting = "base"

    @inherited.get("/greet")
    def greet(self) -> str:
        return self.greeting

    @inherited.get("/replaced")
    def replaced(self) -> str:
        return "of the base"


@serve.ingress(inherited)
class Child(Base):
    greeting = "child"

    def replaced(self) -> str:
        return "of the child, after " + super().replaced()


class Grandchild(Child):
    greeting = "grandchild"


def test_routes_are_inherited_and_methods_that_are_replaced_count() -> None:
    async def check() -> None:
        async with replica_of(Child) as child, replica_of(Grandchild) as grandchild:
            assert value_of(await child.get("/greet")) == "child"
            assert value_of(await child.get("/replaced")) == "of the child, after of the base"
            assert value_of(await grandchild.get("/greet")) == "grandchild"

    run(check())


def test_a_route_s_method_that_is_replaced_by_one_of_another_kind_is_told() -> None:
    class Confused(Child):
        async def replaced(self) -> str:  # type: ignore[override]
            return "never"

    async def check() -> None:
        with pytest.raises(serve.exceptions.HeadraceError, match=r"Confused\.replaced .* one is async"):
            async with replica_of(Confused):
                pass

    run(check())


router = APIRouter(prefix="/inner", dependencies=[Depends(opened)])
outer = FastAPI()


@serve.ingress(outer)
class Included:
    word = "included"

    @router.get("/word")
    def get(self, n: int = 1) -> str:
        return self.word * n

    def doubled(self, n: int = 1) -> int:
        return 2 * n

    @router.get("/doubled")
    async def get_doubled(self, n: int = Depends(doubled)) -> int:
        return n


outer.include_router(router, prefix="/outer")


@serve.ingress(router)
class Routed(Included):
    word = "routed"


def test_an_included_router_and_a_router_alone() -> None:
    async def check() -> None:
        async with replica_of(Included) as included:
            assert value_of(await included.get("/outer/inner/word?n=2")) == "includedincluded"
            assert value_of(await included.get("/outer/inner/doubled?n=4")) == 8
            assert "self" not in json.dumps(value_of(await included.get("/openapi.json")))
        async with replica_of(Routed) as routed:
            assert value_of(await routed.get("/inner/word")) == "routed"
            assert (await routed.get("/inner/word?n=x")).head.status == 422

    run(check())


class Timed(BaseHTTPMiddleware):
    async def dispatch(self, request: Request, call_next: Any) -> Response:
        response: Response = await call_next(request)
        response.headers["x-seen"] = f"{request.method} {current_request() is not None}"
        return response


@contextlib.asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
    EVENTS.append("startup")
    app.state.ready = True
    yield {"model": "loaded"}
    EVENTS.append("shutdown")


layered = FastAPI(lifespan=lifespan)
layered.add_middleware(Timed)
layered.add_middleware(GZipMiddleware, minimum_size=10)
layered.add_middleware(CORSMiddleware, allow_origins=["http://b.test"])


async def sub_page(request: Request) -> Response:
    return JSONResponse({"root": request.scope["root_path"], "path": request.url.path})


layered.mount("/sub", Starlette(routes=[Route("/page", sub_page)]))
sub_app = FastAPI()
layered.mount("/api", sub_app)


@serve.ingress(layered)
class Layered:
    name = "layered"

    @layered.get("/state")
    async def state(self, request: Request) -> dict[str, Any]:
        return {"model": request.state.model, "ready": request.app.state.ready}

    @layered.get("/long")
    async def long(self) -> StreamingResponse:
        async def parts() -> AsyncIterator[str]:
            for _ in range(50):
                yield "the same again and again "

        return StreamingResponse(parts())

    @sub_app.get("/name")
    async def of_sub(self) -> str:
        return self.name


def test_middleware_mounts_lifespan_and_its_state() -> None:
    async def check() -> None:
        EVENTS.clear()
        async with replica_of(Layered, root_path="/p") as layers:
            assert EVENTS == ["startup"]
            state = await layers.get("/p/state", headers=[(b"origin", b"http://b.test")])
            assert value_of(state) == {"model": "loaded", "ready": True}
            assert headers_of(state)["x-seen"] == "GET True"
            assert headers_of(state)["access-control-allow-origin"] == "http://b.test"
            packed = await layers.get("/p/long", headers=[(b"accept-encoding", b"gzip")])
            assert headers_of(packed)["content-encoding"] == "gzip"
            assert gzip.decompress(packed.payload) == b"the same again and again " * 50
            assert value_of(await layers.get("/p/sub/page")) == {"root": "/p/sub", "path": "/p/sub/page"}
            assert value_of(await layers.get("/p/api/name")) == "layered"
            assert value_of(await layers.get("/p/api/openapi.json"))["servers"] == [{"url": "/p/api"}]
        assert EVENTS == ["startup", "shutdown"]

    run(check())


def test_an_error_of_the_startup_is_raised_as_it_is() -> None:
    @contextlib.asynccontextmanager
    async def broken(app: FastAPI) -> AsyncIterator[None]:
        raise LookupError("no such model")
        yield

    @serve.ingress(FastAPI(lifespan=broken))
    class Broken:
        pass

    async def check() -> None:
        with pytest.raises(LookupError, match="no such model"):
            async with replica_of(Broken):
                pass

    run(check())


def test_a_plain_route_that_is_cancelled_holds_its_slot_until_its_thread_has_returned() -> None:
    begun, release = threading.Event(), threading.Event()
    own = FastAPI()

    @serve.ingress(own)
    class Slow:
        @own.get("/")
        def get(self) -> str:
            begun.set()
            release.wait(30)
            return "late"

    async def check() -> None:
        async with replica_of(Slow) as slow:
            call = slow.start("GET", "/")
            await asyncio.to_thread(begun.wait, 30)
            call.cancel()
            for _ in range(5):
                await asyncio.sleep(0)
            assert not call.ended.is_set()
            release.set()
            await call.ended.wait()

    run(check())


def test_as_many_plain_routes_run_at_once_as_the_replica_takes_calls() -> None:
    together = threading.Barrier(50)
    own = FastAPI()

    @serve.ingress(own)
    class Many:
        @own.get("/")
        def get(self) -> int:
            return together.wait(30)

    async def check() -> None:
        async with replica_of(Many, limit=50) as many:
            calls = [many.start("GET", "/") for _ in range(50)]
            for call in calls:
                await call.ended.wait()
            assert sorted(value_of(call) for call in calls) == list(range(50))

    run(check())


def test_a_client_that_leaves_cancels_the_route_and_what_waits_for_it_to_leave() -> None:
    own = FastAPI()
    ends: list[str] = []
    begun = asyncio.Event()

    @serve.ingress(own)
    class Watched:
        @own.get("/route")
        async def route(self) -> None:
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                ends.append("route")

        @own.get("/stream")
        async def stream(self, request: Request) -> StreamingResponse:
            async def parts() -> AsyncIterator[str]:
                try:
                    while not await request.is_disconnected():
                        begun.set()
                        yield "more "
                        await asyncio.sleep(0)
                finally:
                    ends.append("stream")

            return StreamingResponse(parts())

    async def check() -> None:
        async with replica_of(Watched) as watched:
            for path in ("route", "stream"):
                begun.clear()
                call = watched.start("GET", f"/{path}")
                await begun.wait()
                call.cancel()
                await call.ended.wait()
            assert ends == ["route", "stream"]

    run(check())


def test_starlette_routes_can_be_methods_too() -> None:
    class Old:
        async def page(self, request: Request) -> Response:
            return JSONResponse({"me": type(self).__name__})

    starlette = Starlette(routes=[Mount("/m", routes=[Route("/page", Old.page, name="page")])])
    served = serve.ingress(starlette)(Old)

    async def check() -> None:
        async with replica_of(served) as old:
            assert value_of(await old.get("/m/page")) == {"me": "Old"}

    run(check())
