"""The controller's state over keys and values: cut off after any write it is whole, and the next controller goes on."""

from __future__ import annotations

import asyncio
import copy

import msgspec
import pytest
from fake_values import FakeValues
from hypothesis import given, settings
from hypothesis import strategies as st
from test_store import filled, ignore
from workshop import Workshop, application, deployment, run

from headrace.controller.kept import PackStore, StateStore
from headrace.controller.kv_store import KeyValueStore
from headrace.controller.packs import RowPacks
from headrace.controller.rows import Rows
from headrace.core.fleet import Application, Replica
from headrace.engine.directory import InstanceDirectory
from headrace.spec.application import ApplicationSpec
from headrace.spec.errors import DeployFailedError, InstanceError
from headrace.wire.control import Delete, Deploy, KeepNotes
from headrace.wire.pack import name_of

ACTIONS = st.lists(
    st.tuples(st.sampled_from(["deploy", "deploy large", "start", "stop", "retire", "delete"]), st.sampled_from("ab")),
    max_size=15,
)


def spec_of(app: str, number: int, large: bool) -> ApplicationSpec:
    one = deployment("D", user_config=number)
    return application(msgspec.structs.replace(one, arguments=b"model" * 20_000) if large else one, name=app)


class Life:
    """A controller's changes of its state, as the registry would make them."""

    def __init__(self) -> None:
        self.values = FakeValues()
        self.store = KeyValueStore(Rows(self.values))
        self.store.open(ignore)
        self.apps: dict[str, Application] = {}
        self.states: list[dict[str, Application]] = [{}]

    def noted(self) -> None:
        """What was kept now is a state that may be found later."""
        self.states.append(copy.deepcopy(self.apps))

    def act(self, what: str, name: str) -> None:
        app = self.apps.get(name)
        if what.startswith("deploy"):
            if app is None:
                app = self.apps[name] = Application(name=name)
            app.newest += 1
            app.target = app.newest
            app.revisions[app.target] = spec_of(name, app.target, what.endswith("large"))
            app.deploying = True
            self.store.keep_revision(app, app.target)
        elif app is None:
            return
        elif what == "start":
            id = f"D#{app.next_replica}"
            app.next_replica += 1
            app.replicas[id] = Replica(id=id, app=name, key="k", name="D", revision=app.target, address="unix:/x")
            self.store.keep_replica(app, app.replicas[id])
        elif what == "stop" and app.replicas:
            self.store.forget_replica(name, app.replicas.pop(min(app.replicas)).id)
        elif what == "retire" and min(app.revisions) != app.target:
            oldest = min(app.revisions)
            del app.revisions[oldest]
            self.store.forget_revision(name, oldest)
        elif what == "delete":
            del self.apps[name]
            self.store.forget_application(name)
        self.noted()


@settings(max_examples=25, deadline=None)
@given(ACTIONS, st.booleans())
def test_after_any_write_the_next_controller_finds_a_state_that_was(
    actions: list[tuple[str, str]], each_settles: bool
) -> None:
    life = Life()
    for what, name in actions:
        life.act(what, name)
        if each_settles:
            asyncio.run(life.store.settled())
    life.store.close()
    assert found(FakeValues(life.values.writes)) == life.states[-1]
    last = 0
    for count in range(len(life.values.writes)):
        state = found(FakeValues(life.values.writes[:count]))
        last = next(n for n in range(last, len(life.states)) if life.states[n] == state)  # and never an older one again


def found(values: FakeValues) -> dict[str, Application]:
    store = KeyValueStore(Rows(values))
    store.open(ignore)
    assert store.set_aside is None
    apps = store.applications()
    store.close()
    return apps


def harmed(table: str, item: str | int, value: bytes | None) -> FakeValues:
    """A store in which a row is not as it should be."""
    values = FakeValues()
    rows = Rows(values)
    store = KeyValueStore(rows)
    filled(store)
    rows.write((table, "" if table == "fact" else "app", item, value))
    store.close()
    return values


@pytest.mark.parametrize(
    ("table", "item", "value"),
    [
        ("app", "", b"\xc1"),
        ("app", "", None),
        ("spec", 2, None),
        ("spec", 1, b"\xc1"),
        ("replica", "D#2", b"\x01"),
        ("replica", "D#x", msgspec.msgpack.encode({"key": "", "name": "", "revision": 1, "address": "", "level": 0})),
        ("event", 1, b""),
        ("record", 1, b"\x00"),
        ("weights", 1, b"\x00"),
        ("kept pack", 1, b"\xff"),
        ("fact", "http", b"\x00"),
        ("fact", "grpc", b"\x01"),
    ],
)
def test_what_cannot_be_read_is_set_aside(table: str, item: str | int, value: bytes | None) -> None:
    values = harmed(table, item, value)
    again = KeyValueStore(Rows(values))
    again.open(ignore)
    assert again.applications() == {}
    assert again.set_aside == "state/1/"
    assert "state/1/head" in values.rows
    again.keep_fact("well", "again")
    again.close()
    third = KeyValueStore(Rows(values))
    third.open(ignore)
    assert (third.set_aside, third.fact("well")) == (None, "again")
    third.close()


def test_a_kept_specification_that_cannot_be_read_is_none(caplog: pytest.LogCaptureFixture) -> None:
    store = KeyValueStore(Rows(harmed("kept", 7, b"\xc1")))
    store.open(ignore)
    assert store.set_aside is None
    assert store.kept_spec("app", 7) is None
    assert "revision 7 of application 'app' cannot be read any more" in caplog.text
    store.close()


def test_a_large_specification_is_there_once() -> None:
    life = Life()
    life.act("deploy large", "a")
    life.store.keep_spec("a", 1, life.apps["a"].spec)
    life.store.close()
    assert sum(len(value) for value in life.values.rows.values()) < 1.5 * 100_000


# --- the whole controller over it -------------------------------------------------------------------------------------


def over(values: FakeValues, shop: Workshop) -> None:
    """From the next controller on, all is kept there, and nothing in the directory."""

    def keep(directory: InstanceDirectory) -> tuple[StateStore, PackStore]:
        rows = Rows(values)
        return KeyValueStore(rows), RowPacks(rows)

    shop.keep = keep


def test_the_next_controller_adopts_what_runs_from_nothing_but_the_store() -> None:
    async def body(shop: Workshop) -> None:
        values = FakeValues()
        await shop.kill()
        over(values, shop)
        await shop.begin()
        pack = b"a pack"
        spec = application(deployment("D", num_replicas=2))
        environment = msgspec.structs.replace(spec.environment, pack=name_of(pack))
        spec = msgspec.structs.replace(spec, environment=environment)
        await shop.ask(Deploy(spec, packs={name_of(pack): pack}))
        living, version = await shop.living(), shop.snapshot.version
        await shop.kill()
        for path in (shop.directory.state, shop.directory.snapshot):
            path.unlink(missing_ok=True)
        await shop.begin()
        await shop.until(lambda: shop.listed("app/D@ok-1") == ["D#1", "D#2"])
        assert await shop.living() == living
        assert shop.snapshot.version > version + 1000  # there may have been more, of which nothing was kept
        assert shop.controller.packs.load([name_of(pack)]) == {name_of(pack): pack}
        assert not shop.directory.packs.exists()
        await shop.ask(Delete("app"))
        await shop.kill()
        await shop.begin()
        assert shop.controller.registry.apps == {}
        assert shop.controller.packs.names() == {name_of(pack)}  # the history may go back to it

    run(body)


def test_a_replica_is_started_once_its_name_is_kept_and_not_before() -> None:
    async def body(shop: Workshop) -> None:
        values = FakeValues()
        await shop.kill()
        over(values, shop)
        await shop.begin()
        await shop.until(lambda: shop.controller.store.fact("life"))
        await shop.controller.store.settled()
        values.open.clear()
        deploying = asyncio.create_task(shop.deploy(application(deployment("D"))))
        await shop.until(lambda: shop.controller.registry.apps and shop.controller.registry.replicas())
        await shop.status()  # nobody else waits
        assert shop.workers == {}
        values.open.set()
        await deploying
        assert list(shop.workers) == ["D#1@app"]

    run(body)


def test_while_the_store_is_away_what_runs_runs_on_and_deploys_are_refused() -> None:
    async def body(shop: Workshop) -> None:
        values = FakeValues()
        await shop.kill()
        over(values, shop)
        await shop.begin()
        await shop.deploy(application(deployment("D")))
        values.away = True
        shop.controller.store.keep_fact("news", "1")

        def refused() -> bool:
            try:
                shop.controller.store.check()
            except InstanceError:
                return True
            return False

        await shop.until(refused)
        with pytest.raises(DeployFailedError, match="cannot be written"):
            await shop.deploy(application(deployment("D", "hang")))
        assert shop.listed("app/D@ok-1") == ["D#1"]
        values.away = False
        await shop.controller.store.settled()
        await shop.deploy(application(deployment("D", digest="two")))

    run(body)


def test_a_controller_that_was_taken_over_leaves_all_to_the_other() -> None:
    async def body(shop: Workshop) -> None:
        values = FakeValues()
        await shop.kill()
        over(values, shop)
        await shop.begin()
        await shop.deploy(application(deployment("D")))
        living = await shop.living()
        other = KeyValueStore(Rows(values))
        await asyncio.to_thread(other.open)
        shop.controller.store.keep_fact("news", "1")
        with pytest.raises(InstanceError, match="another controller writes state/1/head now: this one ends"):
            await shop.ended()
        assert other.applications().keys() == {"app"}
        other.close()
        started = list(shop.started)
        await shop.begin()
        await shop.until(lambda: shop.listed("app/D@ok-1") == ["D#1"])
        assert (await shop.living(), shop.started) == (living, started)

    run(body)


def test_what_is_answered_is_kept() -> None:
    async def body(shop: Workshop) -> None:
        values = FakeValues()
        await shop.kill()
        over(values, shop)
        await shop.begin()
        await shop.controller.store.settled()
        values.open.clear()
        keeping = asyncio.create_task(shop.ask(KeepNotes({"a": b"b"})))
        await shop.until(lambda: shop.controller.store.notes("a"))
        await shop.status()  # whoever only asks is answered
        assert not keeping.done()
        values.open.set()
        await keeping
        found = KeyValueStore(Rows(FakeValues(values.rows.items())))
        await asyncio.to_thread(found.open)
        assert found.notes("") == {"a": b"b"}
        found.close()

    run(body)
