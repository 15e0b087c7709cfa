"""The option request_router_config: what it takes, what it refuses, and where requests go by it."""

from __future__ import annotations

import asyncio
import warnings
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest

from headrace import serve
from headrace.serve.config import RequestRouterConfig
from headrace.serve.experimental.round_robin_router import RoundRobinRouter
from headrace.serve.llm.request_router import KVAwareRouter
from headrace.serve.request_router import (
    ConsistentHashRouter,
    PowerOfTwoChoicesRequestRouter,
    PrefixCacheAffinityRouter,
    RequestRouter,
)
from headrace.serve.testing import TestInstance
from headrace.spec.errors import ImportPathError, OptionError, OptionTypeError
from headrace.spec.options import DeploymentOptions, deployment_options
from headrace.spec.request_router import HOME


class Last(RequestRouter):
    """The last replica that has room."""

    def choose_replicas(self, candidate_replicas, pending_request=None):  # type: ignore[no-untyped-def]
        return [[candidate_replicas[-1]]]


def path_of(given: Any) -> str | None:
    config = DeploymentOptions(request_router_config=given).request_router_config
    return None if config is None else config.request_router_class.removeprefix(f"{HOME}:")


@pytest.mark.parametrize(
    ("given", "path"),
    [
        (None, None),
        (PowerOfTwoChoicesRequestRouter, None),
        ("PowerOfTwoChoicesRequestRouter", None),
        (RequestRouterConfig(), None),
        ({}, None),
        (RoundRobinRouter, "RoundRobinRouter"),
        ("RoundRobinRouter", "RoundRobinRouter"),
        ({"request_router_class": ConsistentHashRouter}, "ConsistentHashRouter"),
        (RequestRouterConfig(request_router_class=PrefixCacheAffinityRouter), "PrefixCacheAffinityRouter"),
        ("ray.serve.llm.request_router.PrefixCacheAffinityRouter", "PrefixCacheAffinityRouter"),
        ("ray.serve.experimental.consistent_hash_router:ConsistentHashRouter", "ConsistentHashRouter"),
        ("headrace.serve.request_router.RoundRobinRouter", "RoundRobinRouter"),
        (Last, f"{__name__}:Last"),
        ("mine.routers.Best", "mine.routers:Best"),
        ("mine.routers:Best.Nested", "mine.routers:Best.Nested"),
    ],
)
def test_a_router_is_named_in_many_ways(given: Any, path: str | None) -> None:
    assert path_of(given) == path


class Nothing:
    pass


def local() -> Any:
    class Local(Last):
        pass

    return Local


IN_MAIN = type("InMain", (Last,), {"__module__": "__main__"})


@pytest.mark.parametrize(
    ("given", "error", "told"),
    [
        (3, OptionTypeError, "must be a RequestRouterConfig, a class or a dict"),
        ({"request_router": Last}, OptionTypeError, "did you mean 'request_router_"),
        ({"request_router_class": 3}, OptionTypeError, "must be a class or its 'module:Class'"),
        ("Best", OptionError, "one of PowerOfTwo"),
        ("", OptionError, "must be 'module:Class'"),
        ("a b:c", OptionError, "is not 'module:Class'"),
        ("mine:", OptionError, "is not 'module:Class'"),
        ("ray.serve.experimental.round_robin_router:RoundRobbinRouter", OptionError, "did you mean 'RoundRobinRouter'"),
        ("ray.serve.llm.request_router:KVAwareRouter", OptionError, "there is no"),
        (Nothing, OptionTypeError, "Nothing has no choose_replicas"),
        (local(), OptionError, "is defined in a function, and the processes that route requests cannot import it"),
        (IN_MAIN, OptionError, "is defined in a script or a notebook"),
        (KVAwareRouter, OptionError, "KVAwareRouter is not supported yet"),
        ({"request_router_kwargs": []}, OptionTypeError, "must be a dict"),
        ({"request_router_class": Last, "request_router_kwargs": {3: 1}}, OptionTypeError, "keys are names"),
        ({"request_router_class": Last, "request_router_kwargs": {"a": {1j}}}, OptionError, "JSON-like"),
        ({"request_router_kwargs": {"a": 1}}, OptionError, "takes no arguments"),
    ],
)
def test_what_is_wrong_is_told_where_it_is_written(given: Any, error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        deployment_options({"request_router_config": given})


def test_what_has_no_effect_here_is_warned_of() -> None:
    with pytest.warns(UserWarning, match="initial_backoff_s has no effect") as warned:
        config = RequestRouterConfig(request_router_class=Last, initial_backoff_s=0.1)
    assert warned[0].filename == __file__
    assert config == RequestRouterConfig(request_router_class=Last)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(config), type=RequestRouterConfig) == config


# --- in service ---


@serve.deployment(num_replicas=3)
class Model:
    async def __call__(self, request: Any) -> str:
        return serve.get_replica_context().replica_id

    async def who(self, *args: Any, **kwargs: Any) -> str:
        return serve.get_replica_context().replica_id


def with_router(router: Any, **kwargs: Any) -> Any:
    config = RequestRouterConfig(request_router_class=router, request_router_kwargs=kwargs)
    return Model.options(request_router_config=config).bind()


def run(check: Callable[[TestInstance], Awaitable[None]]) -> None:
    async def test() -> None:
        async with TestInstance() as instance, asyncio.timeout(30):
            await check(instance)

    asyncio.run(test())


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0)


def test_sessions_over_http_and_by_handle_have_the_same_home_and_another_when_it_dies() -> None:
    async def check(instance: TestInstance) -> None:
        handle = await instance.run(with_router(ConsistentHashRouter))
        async with instance.http_client(timeout=30) as client:

            async def home(session: str) -> str:
                asked = {(await client.get("/", headers={"x-session-id": session})).text for _ in range(4)}
                called = {await handle.options(session_id=session).who.remote() for _ in range(4)}
                (found,) = asked | called
                return str(found)

            homes = {f"s{i}": await home(f"s{i}") for i in range(12)}
            assert len(set(homes.values())) == 3
            gone = homes["s0"]
            instance.engine.crash(f"{gone}@default")
            known = set(homes.values())
            for session, before in homes.items():
                now = (await client.get("/", headers={"x-session-id": session})).text
                assert now != gone
                assert now == before or before == gone or now not in known  # its successor takes over a share
            spread = Counter([(await client.get("/")).text for _ in range(40)])
            assert len(spread) >= 2

    run(check)


def test_a_session_stays_with_its_replica_through_the_hops() -> None:
    @serve.deployment
    class Front:
        def __init__(self, model: Any) -> None:
            self.model = model

        async def __call__(self, request: Any) -> str:
            home: str = await self.model.who.remote()
            return home

    async def check(instance: TestInstance) -> None:
        await instance.run(Front.bind(with_router(ConsistentHashRouter)))
        async with instance.http_client(timeout=30) as client:
            for session in ("a", "b", "c", "d"):
                homes = {(await client.get("/", headers={"x-session-id": session})).text for _ in range(6)}
                assert len(homes) == 1

    run(check)


def test_the_router_changes_in_place() -> None:
    async def check(instance: TestInstance) -> None:
        handle = await instance.run(with_router(RoundRobinRouter), route_prefix=None)
        before = await instance.processes()
        assert Counter([await handle.who.remote() for _ in range(9)]) == {f"Model#{i}": 3 for i in (1, 2, 3)}
        await instance.run(with_router(Last), route_prefix=None)
        assert {await handle.who.remote() for _ in range(9)} == {"Model#3"}
        await instance.run(Model.bind(), route_prefix=None)
        assert len({await handle.who.remote() for _ in range(40)}) == 3
        assert await instance.processes() == before

    run(check)


def test_a_conversation_stays_where_it_began() -> None:
    async def check(instance: TestInstance) -> None:
        handle = await instance.run(with_router(PrefixCacheAffinityRouter))
        async with instance.http_client(timeout=30) as client:
            homes = set()
            for topic in ("mills", "rivers", "wheels", "weirs", "sluices"):
                talk = [{"role": "system", "content": f"You know all about {topic}. " * 10}]
                found = set()
                for turn in range(5):
                    talk.append({"role": "user", "content": f"Question {turn}?"})
                    found.add((await client.post("/", json={"messages": talk})).text)
                assert len(found) == 1
                homes |= found
            by_handle = {await handle.who.remote(prompt="Tell me. " * 20 + "x" * i) for i in range(5)}
            assert len(by_handle) == 1

    run(check)


@pytest.mark.parametrize(
    ("app", "error", "told"),
    [
        (lambda: with_router("nowhere_at_all:Router"), ImportPathError, "nowhere_at_all"),
        (lambda: with_router(f"{__name__}:Nothing"), OptionTypeError, "must be a subclass"),
        (lambda: with_router(f"{__name__}:Lost"), ImportPathError, "has no 'Lost': did you mean 'Last'"),
        (lambda: with_router(Last, x=1), OptionTypeError, "does not take its request_router_kwargs"),
        (lambda: with_router(ConsistentHashRouter, nodes=1), OptionTypeError, "nodes"),
        (lambda: with_router(PrefixCacheAffinityRouter, match_rate_threshold=7), OptionError, "match_rate_threshold=7"),
        (lambda: with_router(RoundRobinRouter, start=0.5), OptionTypeError, "start"),
    ],
)
def test_a_router_that_cannot_be_had_fails_the_deploy(app: Any, error: type[Exception], told: str) -> None:
    async def check(instance: TestInstance) -> None:
        with pytest.raises(error, match=told):
            await instance.run(app())

    run(check)
