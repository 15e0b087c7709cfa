"""Request routers over real connections: ours, users' own, and hostile ones, under which requests go on."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest
from test_router import Asked, Replica, World, echo, in_world, until

from headrace.router.policy import GuardedRouter, make_policy
from headrace.router.request_router import DeploymentID, PowerOfTwoChoicesRequestRouter, RequestRouter
from headrace.router.router_class import complete, load, make
from headrace.spec.errors import ImportPathError, OptionError, OptionTypeError
from headrace.spec.request_router import RequestRouterConfig
from headrace.wire import payload
from headrace.wire.frames import HTTP, GrpcHead, HttpHead


def config(cls: Any, **kwargs: Any) -> RequestRouterConfig:
    path = cls if isinstance(cls, str) else f"{cls.__module__}:{cls.__qualname__}"
    return RequestRouterConfig(request_router_class=path, request_router_kwargs=kwargs)


def said(*args: Any, **kwargs: Any) -> bytes:
    return bytes(payload.encode((args, kwargs)).data)


async def ask_each(world: World, bodies: list[bytes], **fields: Any) -> list[str]:
    """Ask one after the other; who answered."""
    answered = []
    for body in bodies:
        outcome = await world.ask(body, **fields).outcome()
        assert isinstance(outcome, bytes)
        answered.append(outcome.decode())
    return answered


async def named(world: World, count: int, config: RequestRouterConfig | None) -> list[Replica]:
    """Replicas that answer with their names."""
    world.options["request_router"] = config
    replicas = await world.add(count)
    for replica in replicas:
        replica.handle = lambda incoming, name=replica.entry.id: incoming.reply(name.encode())  # type: ignore[misc]
    return replicas


# --- ours ---


def test_round_robin_goes_round(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        await named(world, 3, config("RoundRobinRouter"))
        answered = await ask_each(world, [b""] * 9)
        assert answered == answered[:3] * 3
        assert len(set(answered)) == 3

    in_world(test, tmp_path)


def test_a_session_keeps_its_replica_until_that_dies_and_others_stay(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        replicas = await named(world, 4, config("ConsistentHashRouter"))
        homes = {i: set(await ask_each(world, [b""] * 5, sticky=f"s{i}")) for i in range(20)}
        assert all(len(home) == 1 for home in homes.values())
        (gone,) = homes[0]
        next(replica for replica in replicas if replica.entry.id == gone).crash()
        after = {i: set(await ask_each(world, [b""] * 3, sticky=f"s{i}")) for i in range(20)}
        assert all(len(home) == 1 for home in after.values())
        assert all((after[i] == homes[i]) is (homes[i] != {gone}) for i in range(20))
        assert len(set(await ask_each(world, [b""] * 40))) == 3

    in_world(test, tmp_path)


def test_a_session_knows_all_replicas_of_a_large_deployment(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        await named(world, 25, config("ConsistentHashRouter"))
        (pool,) = world.router._pools.values()
        assert len(pool.balancer.replicas) == 25
        world.options["request_router"] = None
        pool.update(msgspec.structs.replace(pool.entry, request_router=None, routers=100))
        assert len(pool.balancer.replicas) == 20

    in_world(test, tmp_path)


def test_texts_go_where_their_beginning_has_been(tmp_path: Path) -> None:
    system = "You are the miller of a small village by the river. " * 5

    async def test(world: World) -> None:
        await named(world, 4, config("PrefixCacheAffinityRouter"))
        for topic in ("wheels", "flour", "rats", "floods", "weirs", "eels"):
            talk = [msgspec.json.encode({"prompt": f"{topic * 60} {system} {'more ' * i}"}) for i in range(6)]
            assert len(set(await ask_each(world, talk, kind=HTTP))) == 1
        dialogue = [said({"messages": [{"role": "user", "content": f"{system} {'and ' * i}"}]}) for i in range(6)]
        assert len(set(await ask_each(world, dialogue))) == 1

    in_world(test, tmp_path)


def test_a_call_that_waited_is_remembered_where_it_went(tmp_path: Path) -> None:
    text = "a long and winding text about the river " * 4

    async def test(world: World) -> None:
        first, second = await named(world, 2, config("PrefixCacheAffinityRouter"))
        first.handle, second.handle = first.calls.append, second.calls.append
        busy = [world.ask(said("other " * 20)), world.ask(said("thing " * 20))]
        await first.until_calls(1)
        await second.until_calls(1)
        waited = world.ask(said(text))
        second.calls.pop().reply(b"")
        await second.until_calls(1)
        second.calls.pop().reply(b"second")
        assert await waited.outcome() == b"second"
        first.calls.pop().reply(b"")
        for call in busy:
            await call.outcome()
        second.handle = echo
        assert [await world.ask(said(text)).outcome() for _ in range(5)] == [said(text)] * 5
        assert not first.calls

    in_world(test, tmp_path, limit=1)


def test_the_router_changes_in_place(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        await named(world, 3, None)
        world.options["request_router"] = config("RoundRobinRouter")
        world.publish()
        assert len(set(await ask_each(world, [b""] * 3))) == 3
        world.options["request_router"] = config("ConsistentHashRouter", num_virtual_nodes=10)
        world.publish()
        assert len(set(await ask_each(world, [b""] * 10, sticky="s"))) == 1

    in_world(test, tmp_path)


def test_arguments_that_ours_do_not_take_are_logged_and_leave_the_default(caplog: pytest.LogCaptureFixture) -> None:
    assert make_policy(config("ConsistentHashRouter", nodes=3), "app/Model") is None
    assert "nodes" in caplog.text
    assert make_policy(config("RoundRobinRouter", x=1), "app/Model") is None
    assert make_policy(None, "app/Model") is None


# --- users' own ---


class FirstLetter(RequestRouter):
    """By the first letter of the text, the a's to the first replica."""

    def initialize_state(self, *, alphabet: str = "abc") -> None:
        self.alphabet = alphabet
        self.routed: list[tuple[str, str]] = []

    async def choose_replicas(self, candidate_replicas, pending_request=None):  # type: ignore[no-untyped-def]
        text = pending_request.args[0]
        by_number = sorted(self.curr_replicas.values(), key=lambda replica: replica.replica_id)
        first = by_number[self.alphabet.index(text[0]) % len(by_number)]
        assert await first.get_queue_len(deadline_s=1) >= 0
        return [[first], candidate_replicas]

    def on_request_routed(self, pending_request, replica_id, result):  # type: ignore[no-untyped-def]
        self.routed.append((pending_request.args[0], replica_id.unique_id))


def router_of(world: World) -> Any:
    (pool,) = world.router._pools.values()
    assert isinstance(pool.balancer.policy, GuardedRouter)
    return pool.balancer.policy._router


def test_a_users_router_chooses_and_is_told(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        await named(world, 3, config(FirstLetter, alphabet="cba"))
        texts = ["all", "but", "can", "art"]
        answered = await ask_each(world, [said(text) for text in texts])
        assert answered == ["Model#3", "Model#2", "Model#1", "Model#3"]
        router = router_of(world)
        assert router.routed == list(zip(texts, answered, strict=True))
        assert router.app_name == "app"
        assert [replica.node_id for replica in router.curr_replicas.values()]

    in_world(test, tmp_path)


def test_the_next_rank_is_for_when_the_first_has_no_room(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        first, second = await named(world, 2, config(FirstLetter))
        first.handle = first.calls.append
        held = world.ask(said("a"))
        await first.until_calls(1)
        assert await ask_each(world, [said("a")] * 3) == ["Model#2"] * 3
        first.calls[0].reply(b"")
        await held.outcome()
        first.handle = second.handle
        second.crash()
        assert await ask_each(world, [said("b")] * 2) == ["Model#2"] * 2  # by the first, in the name of the second
        assert len(router_of(world).curr_replicas) == 1

    in_world(test, tmp_path, limit=1)


SEEN: list[Any] = []


class Curious(PowerOfTwoChoicesRequestRouter):
    """Looks at everything."""

    def __init__(self, *, note: str) -> None:
        self.note = note

    def choose_replicas(self, candidate_replicas, pending_request=None):  # type: ignore[no-untyped-def]
        SEEN.append(
            (
                pending_request.metadata,
                pending_request.args,
                pending_request.kwargs,
                pending_request.headers,
                pending_request.text(),
                [(r.replica_id, r.max_ongoing_requests, r.num_ongoing_requests) for r in candidate_replicas],
                self.note,
            )
        )
        assert pending_request.created_at > 0
        assert self.apply_multiplex_routing(pending_request) == set(self.curr_replicas)
        assert self.apply_locality_routing() == set(self.curr_replicas)
        assert self.rank_replicas_via_locality(candidate_replicas)[0] == candidate_replicas
        assert self.rank_replicas_via_multiplex(candidate_replicas, "m")[1] == candidate_replicas
        assert self.select_available_replicas() == candidate_replicas
        for replica in candidate_replicas:
            assert replica.num_own_requests == 0
            assert (replica.multiplexed_model_ids, replica.routing_stats, replica.replica_metadata) == (set(), {}, {})
            assert replica.availability_zone is None
            assert replica.replica_id.to_full_id_str() == f"app#{replica.replica_id}"
        return super().choose_replicas(candidate_replicas, pending_request)


def test_a_router_is_shown_replicas_and_calls(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        SEEN.clear()
        await named(world, 2, config(Curious, note="x"))
        head = HttpHead("POST", b"/a?b", "", [(b"x-tenant", b"acme")], "1.1", "http", None, None)
        http = msgspec.Raw(msgspec.msgpack.encode(head))
        await ask_each(world, [said("hello", k=3)], request_id="r", method="m", sticky="s", model_id="v", priority=2)
        await ask_each(world, [b'{"text": "from outside"}'], kind=HTTP, http=http)
        await ask_each(world, [b"\x80\x05broken"], kind=HTTP, http=msgspec.Raw(b"\x01"))
        metadata, args, kwargs, headers, text, replicas, note = SEEN[0]
        assert (metadata.request_id, metadata.call_method, metadata.session_id) == ("r", "m", "s")
        assert (metadata.multiplexed_model_id, metadata.app_name, metadata.priority) == ("v", "app", 2)
        assert (args, kwargs, headers, text, note) == (["hello"], {"k": 3}, {}, "hello", "x")
        assert [(str(i), i.deployment_id.name, limit, load) for i, limit, load in replicas] == [
            ("Model#1", "Model", 10, 0),
            ("Model#2", "Model", 10, 0),
        ]
        metadata, args, kwargs, headers, text, _, _ = SEEN[1]
        assert metadata.is_http_request
        assert (args, kwargs, headers, text) == ([], {}, {"x-tenant": "acme"}, "from outside")
        assert SEEN[2][3] == {}

    in_world(test, tmp_path)


class Extended(sys.modules["headrace.router.request_router"].RoundRobinRouter):
    """A router of ours with something added."""

    def choose_replicas(self, candidate_replicas, pending_request=None):  # type: ignore[no-untyped-def]
        assert super().choose_replicas(candidate_replicas, None) == [candidate_replicas]
        return super().choose_replicas(candidate_replicas, pending_request)


def test_routers_of_ours_can_be_extended(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        replicas = await named(world, 3, config(Extended))
        answered = await ask_each(world, [b""] * 6)
        assert answered == answered[:3] * 2
        assert len(set(answered)) == 3
        replicas[0].crash()
        (pool,) = world.router._pools.values()
        await until(lambda: len(pool.balancer.replicas) == 2)
        assert Counter(await ask_each(world, [b""] * 4)) == {"Model#2": 2, "Model#3": 2}

    in_world(test, tmp_path)


# --- hostile ones ---


class Hostile(RequestRouter):
    """Answers as it is told."""

    def __init__(self, *, how: str) -> None:
        self.how = how
        self.last: Any = None

    def choose_replicas(self, candidate_replicas, pending_request=None):  # type: ignore[no-untyped-def]
        last, self.last = self.last, candidate_replicas
        if self.how in RAISED:
            raise RAISED[self.how]
        if self.how == "recursion":
            return self.choose_replicas(candidate_replicas, pending_request)
        if self.how == "gone":
            return [last or candidate_replicas]
        if self.how == "endless":
            return iter(lambda: [], None)
        if self.how == "waits":
            return self.wait()
        if self.how == "task":
            return asyncio.get_running_loop().create_task(self.wait())
        if self.how == "stubborn":
            return self.stubborn()
        if self.how == "flat":
            return candidate_replicas
        return NONSENSE[self.how]

    async def wait(self) -> Any:
        await asyncio.sleep(0)
        return []

    async def stubborn(self) -> Any:
        with contextlib.suppress(GeneratorExit):
            await asyncio.sleep(0)
        await asyncio.sleep(0)

    def on_request_routed(self, pending_request, replica_id, result):  # type: ignore[no-untyped-def]
        raise ValueError("not now")


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


RAISED = {
    "error": ValueError("no idea"),
    "exit": SystemExit(3),
    "cancelled": asyncio.CancelledError(),
    "generator exit": GeneratorExit(),
    "unprintable": Unprintable(),
    "stop": StopIteration(),
}
NONSENSE = {
    "none": None,
    "number": 3,
    "text": "Model#1",
    "ranks of texts": [["Model#1"]],
    "ranks of numbers": [3],
    "empty": [],
    "empty rank": [[]],
}
QUIET = {"empty", "empty rank", "endless", "gone"}  # these are answers: no preference


@pytest.mark.parametrize(
    "how", [*RAISED, *NONSENSE, "recursion", "endless", "waits", "task", "stubborn", "flat", "gone"]
)
def test_requests_go_on_whatever_a_router_does(tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str) -> None:
    async def test(world: World) -> None:
        await named(world, 3, config(Hostile, how=how))
        asked: set[str] = set()
        while len(asked) < 2:  # the first calls may all go to the one that was dialed first
            asked.update(await ask_each(world, [b""] * 12))
        told = [record for record in caplog.records if "choose_replicas" in record.message]
        assert len(told) == (how not in QUIET)
        assert all(record.levelno == logging.ERROR and "app/Model" in record.message for record in told)
        (routed,) = [record for record in caplog.records if "on_request_routed" in record.message]
        assert "not now; the request goes on" in routed.message
        assert "policy.Nonsense" not in caplog.text

    in_world(test, tmp_path)


def test_a_replica_that_is_gone_is_passed_over_and_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def test(world: World) -> None:
        first, _ = await named(world, 2, config(Hostile, how="gone"))
        while not first.server.links:
            await ask_each(world, [b""])
            router_of(world).last = None
        router = router_of(world)
        stale = list(router.curr_replicas.values())
        first.crash()
        (pool,) = world.router._pools.values()
        await until(lambda: len(pool.balancer.replicas) == 1)
        for _ in range(3):
            router.last = stale[:1]
            assert await ask_each(world, [b""]) == ["Model#2"]
        assert caplog.text.count("Model#1 takes no calls any more") == 1

    in_world(test, tmp_path)


class Unmakeable(RequestRouter):
    def __init__(self) -> None:
        raise OSError("no disk")

    def choose_replicas(self, candidate_replicas, pending_request=None):  # type: ignore[no-untyped-def]
        return []


@pytest.mark.parametrize(
    ("path", "told"),
    [
        (f"{__name__}:Unmakeable", "no disk"),
        (f"{__name__}:Missing", "has no 'Missing'"),
        (f"{__name__}:World", "must be a subclass"),
        (f"{__name__}:RequestRouter", "has no choose_replicas"),
        ("no_such_module_anywhere:Router", "no_such_module_anywhere"),
    ],
)
def test_a_router_that_cannot_be_had_leaves_the_default(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, path: str, told: str
) -> None:
    async def test(world: World) -> None:
        await named(world, 2, config(path))
        (pool,) = world.router._pools.values()
        policy = pool.balancer.policy
        await until(lambda: policy._found is not None)
        assert len(set(await ask_each(world, [b""] * 12))) == 2
        assert len(caplog.records) == 1
        assert told in caplog.text

    in_world(test, tmp_path)


# --- where it is imported from ---

WRITTEN = """
from headrace.serve.request_router import RequestRouter

class Last(RequestRouter):
    version = {version}

    def choose_replicas(self, candidate_replicas, pending_request=None):
        return [[max(candidate_replicas, key=lambda replica: replica.replica_id)]]
"""


def written(directory: Path, module: str, version: int = 1, text: str = WRITTEN) -> RequestRouterConfig:
    directory.mkdir(exist_ok=True)
    (directory / f"{module}.py").write_text(text.format(version=version))
    sys.path.insert(0, str(directory))
    try:
        return complete(RequestRouterConfig(request_router_class=f"{module}:Last"), sys.path)
    finally:
        sys.path.remove(str(directory))


@pytest.fixture
def imports() -> Any:
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def version_of(cls: Any) -> Any:
    return cls.version


def test_a_process_imports_from_where_the_application_was_built(tmp_path: Path, imports: None) -> None:
    built = written(tmp_path / "lib", "routers_of_mine")
    del sys.modules["routers_of_mine"]
    assert str(tmp_path / "lib") in built.sys_path
    assert str(tmp_path / "lib") not in sys.path

    async def test(world: World) -> None:
        await named(world, 3, built)
        (pool,) = world.router._pools.values()
        await until(lambda: pool.balancer.policy._found is not None)
        assert await ask_each(world, [b""] * 4) == ["Model#3"] * 4

    in_world(test, tmp_path)


def test_what_has_changed_since_is_loaded_anew_and_the_same_is_not(tmp_path: Path, imports: None) -> None:
    first = written(tmp_path, "changing")
    assert version_of(load(first)) == 1
    second = written(tmp_path, "changing", 2)
    assert first.source != second.source
    assert version_of(load(second)) == 2
    assert load(second) is load(second)
    assert version_of(load(first)) == 1


def test_two_modules_of_one_name_are_two(tmp_path: Path, imports: None) -> None:
    first = written(tmp_path / "one", "twins", 1)
    second = msgspec.structs.replace(first, sys_path=(str(tmp_path / "two"),), source="2")
    written(tmp_path / "two", "twins", 2)
    assert [version_of(load(config)) for config in (first, second)] == [1, 2]


def test_an_import_that_hangs_holds_up_nobody(tmp_path: Path, imports: None) -> None:
    built = written(tmp_path, "slow_import")
    del sys.modules["slow_import"]
    gate = threading.Event()
    sys.modules["gate_of_test"] = gate  # type: ignore[assignment]
    slow = "import gate_of_test\ngate_of_test.wait()\n" + WRITTEN
    (tmp_path / "slow_import.py").write_text(slow.format(version=1))

    async def test(world: World) -> None:
        await named(world, 3, built)
        assert len(set(await ask_each(world, [b""] * 12))) > 1
        other = make_policy(built, "app/Other")  # while the first import is under way
        assert isinstance(other, GuardedRouter)
        assert other._found is None
        gate.set()
        (pool,) = world.router._pools.values()
        await until(lambda: pool.balancer.policy._found is not None)
        assert await ask_each(world, [b""] * 4) == ["Model#3"] * 4
        await until(lambda: other._found is not None)

    in_world(test, tmp_path)


def test_a_broken_module_is_told_with_its_traceback(
    tmp_path: Path, imports: None, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ImportPathError, match="cannot be imported: ZeroDivisionError"):
        written(tmp_path, "broken_router", text="1 / 0  # {version}")
    broken = RequestRouterConfig(request_router_class="broken_router:Last", sys_path=(str(tmp_path),), source="1")

    async def test(world: World) -> None:
        await named(world, 1, broken)
        (pool,) = world.router._pools.values()
        await until(lambda: pool.balancer.policy._found is not None)
        assert await ask_each(world, [b""] * 3) == ["Model#1"] * 3
        assert caplog.text.count("1 / 0") == 1

    in_world(test, tmp_path)


# --- what is checked when an application is built ---


@pytest.mark.parametrize(
    ("given", "error", "told"),
    [
        (config(FirstLetter, alphabte="x"), OptionTypeError, "alphabte"),
        (config(Curious), OptionTypeError, "note"),
        (config(Unmakeable, x=1), OptionTypeError, "unexpected keyword argument|too many|'x'"),
        (config("ConsistentHashRouter", num_virtual_nodes=0), OptionError, "num_virtual_nodes=0"),
        (config("__main__:Router"), OptionError, "put it at the top of a module of its own"),
        (config(f"{__name__}:FirstLeter"), ImportPathError, "did you mean 'FirstLetter'"),
        (config("nowhere_at_all:Router"), ImportPathError, "nowhere_at_all"),
    ],
)
def test_what_is_wrong_is_told_when_the_application_is_built(
    given: RequestRouterConfig, error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told):
        complete(given, sys.path)


def test_what_others_cannot_import_is_an_error(imports: None) -> None:
    sys.modules["made_here"] = type(sys)("made_here")
    FirstLetter.__module__, before = "made_here", FirstLetter.__module__
    try:
        sys.modules["made_here"].FirstLetter = FirstLetter  # type: ignore[attr-defined]
        with pytest.raises(OptionError, match="other processes cannot import"):
            complete(config(FirstLetter), sys.path)
    finally:
        FirstLetter.__module__ = before


def test_memory_is_bounded_whatever_ray_serves_options_say() -> None:
    with pytest.warns(UserWarning, match="do_eviction has no effect"):
        complete(config("PrefixCacheAffinityRouter", do_eviction=False), sys.path)


def test_a_router_takes_its_arguments_by_its_state_or_its_constructor() -> None:
    here = DeploymentID("Model", "app")
    assert make(FirstLetter, {"alphabet": "x"}, here).alphabet == "x"  # type: ignore[attr-defined]
    assert make(Curious, {"note": "x"}, here).note == "x"  # type: ignore[attr-defined]
    assert make(Curious, {"note": "x"}, here).app_name == "app"


# --- the text of a call ---


class Prompted:
    prompt = "of an object"


class Angry:
    @property
    def prompt(self) -> str:
        raise RuntimeError("no")


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b'{"prompt": "p", "text": "t"}', "p"),
        (
            b'  {"messages": [{"role": "user", "content": "a"}, {"content": [{"type": "text", "text": "b"}]}]}',
            "user\na\nb",
        ),
        (b'{"inputs": ["a", "b"]}', "a\nb"),
        (b'{"prompt": 3, "inputs": "i"}', "i"),
        (b'{"other": 1}', '{"other": 1}'),
        (b'{"prompt": "p"', '{"prompt": "p"'),
        (b'{"prompt": ' + b"[" * 100_000, ('{"prompt": ' + "[" * 5000)[:4096]),
        (b"plain" * 2000, "plain" * 819 + "p"),
        (b"\xff\xfe\x80\x05", "\x05"),
        (b"", ""),
    ],
)
def test_the_text_of_a_request(body: bytes, text: str) -> None:
    assert Asked(body, kind=HTTP).text() == text


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (said("hello", 3), "hello"),
        (said(3, {"prompt": "p"}), "p"),
        (said(x=1, text="t"), "t"),
        (said({"messages": ["a", {"content": "b"}]}), "a\nb"),
        (said(Prompted()), "of an object"),
        (said(Angry()), ""),
        (said(1, [2], None, b"x"), ""),
        (b"no pickle", ""),
        (b"", ""),
    ],
)
def test_the_text_of_a_call(body: bytes, text: str) -> None:
    assert Asked(body).text() == text


def test_what_comes_from_outside_is_never_unpickled() -> None:
    class Exploding:
        def __reduce__(self) -> Any:
            return (SEEN.append, ("exploded",))

    SEEN.clear()
    body = said(Exploding())
    for kind in (HTTP, HTTP | 8, 128, 128 | 8):
        call = Asked(body, kind=kind, http=msgspec.Raw(msgspec.msgpack.encode(GrpcHead("/s/m", "unary_unary", []))))
        call.text()
    assert SEEN == []
