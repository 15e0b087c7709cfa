"""headrace.controller.history: what became of revisions, kept over restarts, bounded, and gone back to."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from workshop import Workshop, application, deployment, run

from headrace.controller.history import LONGEST_TEXT, MOST_EVENTS, MOST_GONE, MOST_RECORDS, Chronicle
from headrace.controller.store import Store
from headrace.spec.application import ApplicationSpec, Environment
from headrace.spec.errors import ApplicationNotFound, DeployFailedError, RevisionNotFound
from headrace.spec.rollout import Canary, RollingUpdate
from headrace.spec.status import History, RolloutOutcome
from headrace.wire.control import Delete, Deploy, GetHistory, GetRevision, Past, Revision, Rollback

PROMOTED, FAILED, ROLLED_BACK = RolloutOutcome.PROMOTED, RolloutOutcome.FAILED, RolloutOutcome.ROLLED_BACK


def spec(replicas: int = 1, pack: str = "") -> ApplicationSpec:
    made = application(deployment("D", num_replicas=replicas))
    return msgspec.structs.replace(made, environment=Environment(pack=pack), source="shop:app", labels={"commit": "1f"})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    store = Store(path, synced=False)
    store.open()
    yield store
    store.close()


@pytest.fixture
def chronicle(store: Store) -> Chronicle:
    made = Chronicle(store)
    made.load()
    return made


def again(store: Store) -> Chronicle:
    """As the next controller reads it."""
    store.close()
    store.open()
    made = Chronicle(store)
    made.load()
    return made


def deploy(chronicle: Chronicle, number: int, outcome: str = PROMOTED, at: float = 0.0, app: str = "app") -> None:
    chronicle.begin(app, number, spec(number), RollingUpdate(), "ada@desk", at or float(number))
    if outcome:
        chronicle.end(app, number, outcome, "", at or number + 0.5)


def test_a_revision_and_its_end(chronicle: Chronicle) -> None:
    chronicle.begin("app", 1, spec(1), RollingUpdate(), "ada@desk", 10.0)
    chronicle.end("app", 1, PROMOTED, "", 11.0)
    chronicle.begin("app", 2, spec(3), Canary(), "bob@ci", 20.0, spec(1))
    chronicle.event("app", 2, "traffic", "5.0% to revision 2", at=21.0)
    chronicle.end("app", 2, ROLLED_BACK, "errors 4 % against 1 %", 22.0)
    first, second = chronicle.history("app").revisions
    assert (first.number, first.by, first.strategy, first.outcome) == (1, "ada@desk", "rolling_update", PROMOTED)
    assert first.changes == ("D: added",)
    assert (first.source, first.labels) == ("shop:app", {"commit": "1f"})
    assert second.changes == ("D: num_replicas 1 → 3",)
    assert (second.at, second.ended_at, second.strategy) == (20.0, 22.0, "canary")
    assert (second.outcome, second.reason) == (ROLLED_BACK, "errors 4 % against 1 %")
    assert [(event.revision, event.what) for event in chronicle.history("app").events] == [
        (1, "deployed"),
        (1, "promoted"),
        (2, "deployed"),
        (2, "traffic"),
        (2, "rolled back"),
    ]
    assert chronicle.newest("app") == 2


def test_what_is_not_there(chronicle: Chronicle) -> None:
    assert "app" not in chronicle
    assert chronicle.history("app").revisions == ()
    assert chronicle.newest("app") == 0
    assert chronicle.spec_of("app", 1) is None
    assert chronicle.last_promoted("app", 5) == 0
    chronicle.prune("app", 0, set())
    assert "app" not in chronicle  # asking makes none
    with pytest.raises(ValueError, match="GREAT"):
        chronicle.end("app", 1, "GREAT", "", 1.0)


def test_changes_are_told_against_the_newest_that_is_kept(chronicle: Chronicle) -> None:
    deploy(chronicle, 1)
    deploy(chronicle, 2)
    chronicle.prune("app", 0, {1})
    chronicle.begin("app", 3, spec(7), None, "", 3.0)
    record = chronicle.record("app", 3)
    assert record is not None
    assert record.changes == ("D: num_replicas 1 → 7",)
    assert (record.strategy, chronicle.history("app").events[-1].what) == ("", "parked")


def test_a_revision_that_is_rolled_out_again_stays_as_it_was_deployed(chronicle: Chronicle) -> None:
    deploy(chronicle, 1)
    deploy(chronicle, 2)
    chronicle.end("app", 2, ROLLED_BACK, "by hand", 3.0)
    chronicle.begin("app", 2, spec(2), Canary(), "bob@ci", 9.0)
    record = chronicle.record("app", 2)
    assert record is not None
    assert (record.at, record.by, record.strategy, record.outcome) == (2.0, "ada@desk", "canary", "")
    assert chronicle.history("app").events[-1].by == "bob@ci"


def test_options_that_changed_in_place(chronicle: Chronicle) -> None:
    deploy(chronicle, 1)
    chronicle.changed("app", 1, spec(5), "bob@ci", 4.0, spec(1))
    assert chronicle.spec_of("app", 1) == spec(5)
    event = chronicle.history("app").events[-1]
    assert (event.what, event.reason, event.by) == ("changed in place", "D: num_replicas 1 → 5", "bob@ci")
    before = chronicle.history("app")
    chronicle.changed("app", 1, spec(5), "bob@ci", 5.0, spec(5))
    assert chronicle.history("app") == before


def test_the_last_promoted_passes_over_what_was_rolled_back_since(chronicle: Chronicle) -> None:
    for number, outcome in enumerate((PROMOTED, PROMOTED, FAILED, PROMOTED, ROLLED_BACK), 1):
        deploy(chronicle, number, outcome)
    assert chronicle.last_promoted("app", 5) == 4
    assert chronicle.last_promoted("app", 4) == 2
    chronicle.end("app", 4, ROLLED_BACK, "by hand", 9.0)
    assert chronicle.last_promoted("app", 5) == 2
    assert chronicle.last_promoted("app", 1) == 0


def test_pruning_keeps_what_is_in_use_and_as_many_as_are_asked_for(chronicle: Chronicle, store: Store) -> None:
    for number, outcome in enumerate((PROMOTED, PROMOTED, PROMOTED, FAILED, ROLLED_BACK, "", PROMOTED), 1):
        deploy(chronicle, number, outcome)
    chronicle.prune("app", 2, {7})
    assert chronicle.kept("app") == [2, 3, 5, 6, 7]
    assert [record.kept for record in chronicle.history("app").revisions] == [
        False,
        True,
        True,
        False,
        True,
        True,
        True,
    ]
    assert chronicle.spec_of("app", 4) is None
    chronicle.prune("app", 0, {1, 3})
    assert again(store).kept("app") == [3]  # 1 was let go before, and is not there again
    assert chronicle.last_promoted("app", 9) == 3


def test_it_comes_back_as_it_was(chronicle: Chronicle, store: Store) -> None:
    deploy(chronicle, 1)
    deploy(chronicle, 2, FAILED)
    chronicle.begin("other", 1, spec(1, "pack-1"), Canary(), "", 4.0)
    chronicle.prune("app", 1, {1})
    later = again(store)
    assert later.history("app") == chronicle.history("app")
    assert later.history("other") == chronicle.history("other")
    assert later.packs() == {"pack-1"}
    assert later.spec_of("app", 1) == spec(1)
    assert later.spec_of("app", 2) is None


def test_it_outlives_the_application_and_the_life_of_the_instance(chronicle: Chronicle, store: Store) -> None:
    deploy(chronicle, 1)
    deploy(chronicle, 2)
    store.forget_application("app")
    store.forget_all()
    later = again(store)
    assert later.newest("app") == 2
    assert later.spec_of("app", 2) == spec(2)


def test_it_is_bounded(chronicle: Chronicle, store: Store) -> None:
    for number in range(1, MOST_RECORDS + 6):
        chronicle.begin("app", number, spec(), None, "", float(number))
        chronicle.prune("app", 3, {1, number})
    assert len(chronicle.history("app").revisions) == MOST_RECORDS
    assert chronicle.spec_of("app", 1) is not None  # in use, though its record is gone
    assert chronicle.newest("app") == MOST_RECORDS + 5
    for number in range(MOST_EVENTS):
        chronicle.event("app", 1, "traffic", str(number), at=1e6)
    chronicle.event("other", 1, "traffic", "", at=1e6)
    later = again(store)
    assert later.history("app") == chronicle.history("app")
    assert [event.reason for event in later.history("app").events] == [str(number) for number in range(MOST_EVENTS)]
    assert len(later.history("other").events) == 1
    chronicle.event("app", 1, "traffic", "x" * 10**6 + "the end", "y" * 10**6, at=1e6)
    last = chronicle.history("app").events[-1]
    assert len(last.reason) == len(last.by) == LONGEST_TEXT
    assert last.reason.endswith("the end")


def test_of_applications_that_are_gone_the_oldest_are_forgotten(store: Store) -> None:
    chronicle = Chronicle(store, lambda: ["app0"])
    for number in range(MOST_GONE + 4):
        deploy(chronicle, 1, at=1.0 + number, app=f"app{number}")
    for later in (chronicle, again(store)):
        assert "app0" in later
        assert "app1" not in later
        assert "app2" not in later
        assert "app3" in later
    assert chronicle.newest("app1") == 0


def test_a_specification_that_cannot_be_read_is_not_there(chronicle: Chronicle, store: Store, path: Path) -> None:
    deploy(chronicle, 1)
    with sqlite3.connect(path) as database:
        database.execute("UPDATE kept SET spec = ?", (b"\xc1broken",))
    database.close()
    assert chronicle.spec_of("app", 1) is None


def test_a_history_that_cannot_be_read_is_set_aside(chronicle: Chronicle, store: Store, path: Path) -> None:
    deploy(chronicle, 1)
    with sqlite3.connect(path) as database:
        database.execute("UPDATE events SET event = ?", (b"\xc1broken",))
    database.close()
    later = again(store)
    assert store.set_aside is not None
    assert "app" not in later


class Lives(RuleBasedStateMachine):
    """Whatever happens in whatever order, what is on disk is what is in memory, and numbers only grow."""

    def __init__(self) -> None:
        super().__init__()
        self.store = Store(Path(":memory:"), synced=False)
        self.store.open()
        self.chronicle = Chronicle(self.store)
        self.number = 0
        self.now = 0.0

    def tick(self) -> float:
        self.now += 1.0
        return self.now

    @rule(strategy=st.sampled_from([RollingUpdate(), Canary(), None]))
    def begin(self, strategy: RollingUpdate | Canary | None) -> None:
        self.number += 1
        self.chronicle.begin("app", self.number, spec(self.number), strategy, "", self.tick())

    @rule(back=st.integers(0, 5), outcome=st.sampled_from(list(RolloutOutcome)))
    def end(self, back: int, outcome: RolloutOutcome) -> None:
        if self.number > back:
            self.chronicle.end("app", self.number - back, outcome, "because", self.tick())

    @rule(back=st.integers(0, 5))
    def deploy_again(self, back: int) -> None:
        old = self.chronicle.spec_of("app", self.number - back)
        if old is not None:
            self.chronicle.begin("app", self.number - back, old, Canary(), "", self.tick())

    @rule(depth=st.integers(0, 4), in_use=st.sets(st.integers(1, 20)))
    def prune(self, depth: int, in_use: set[int]) -> None:
        before = set(self.chronicle.kept("app"))
        self.chronicle.prune("app", depth, in_use)
        kept = set(self.chronicle.kept("app"))
        assert before & in_use <= kept <= before
        assert len(kept - in_use) <= 2 * depth

    @invariant()
    def disk_says_the_same(self) -> None:
        later = Chronicle(self.store)
        later.load()
        assert later.history("app") == self.chronicle.history("app")
        assert later.kept("app") == self.chronicle.kept("app")
        for record in later.history("app").revisions:
            assert record.kept == (later.spec_of("app", record.number) == spec(record.number))
        assert self.chronicle.newest("app") == self.number

    def teardown(self) -> None:
        self.store.close()


TestLives = Lives.TestCase
TestLives.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)


# --- as the controller keeps it ---------------------------------------------------------------------------------------


async def history_of(shop: Workshop, app: str = "app") -> History:
    answer = await shop.ask(GetHistory(app))
    assert isinstance(answer, Past)
    return answer.history


async def revision_of(shop: Workshop, number: int = 0) -> Revision:
    answer = await shop.ask(GetRevision("app", number))
    assert isinstance(answer, Revision)
    return answer


def model(version: int, does: str = "ok") -> ApplicationSpec:
    return application(deployment("D", does, digest=str(version)))


def test_the_controller_tells_what_was() -> None:
    async def body(shop: Workshop) -> None:
        await shop.ask(Deploy(model(1), by="ada@desk"))
        await shop.ask(Deploy(application(deployment("D", digest="1", num_replicas=2)), by="bob@ci"))
        await shop.ask(Deploy(model(2)))
        history = await history_of(shop)
        assert [(record.number, record.by, record.outcome) for record in history.revisions] == [
            (1, "ada@desk", PROMOTED),
            (2, "", PROMOTED),
        ]
        (in_place,) = [event for event in history.events if event.what == "changed in place"]
        assert (in_place.revision, in_place.by, in_place.reason) == (1, "bob@ci", "D: num_replicas 1 → 2")
        assert (await revision_of(shop)).number == 2
        assert (await revision_of(shop, 1)).spec == application(deployment("D", digest="1", num_replicas=2))
        with pytest.raises(RevisionNotFound, match="revision 7 of application 'app' is not kept; those that are: 1, 2"):
            await revision_of(shop, 7)
        with pytest.raises(ApplicationNotFound, match="'other'; there are: app"):
            await history_of(shop, "other")
        with pytest.raises(ApplicationNotFound):
            await shop.ask(GetRevision("other", 1))

    run(body)


def test_a_controller_that_was_killed_knows_all_of_it_again() -> None:
    async def body(shop: Workshop) -> None:
        for version in (1, 2, 3):
            await shop.deploy(model(version))
        before = await history_of(shop)
        await shop.kill()
        await shop.begin()
        assert await history_of(shop) == before
        await shop.ask(Rollback(app="app", revision=1))
        assert (await revision_of(shop)).spec == model(1)

    run(body)


def test_numbers_go_on_in_another_life_and_after_a_deletion() -> None:
    async def body(shop: Workshop) -> None:
        for version in (1, 2):
            await shop.deploy(model(version))
        await shop.ask(Delete("app"))
        await shop.deploy(model(1))
        assert (await revision_of(shop)).number == 3
        await shop.kill()
        await shop.engine.end()
        await shop.begin(life="two")
        with pytest.raises(RevisionNotFound, match="no revision of application 'app' has the traffic now"):
            await revision_of(shop)
        await shop.deploy(model(4))
        assert (await revision_of(shop)).number == 4
        await shop.ask(Rollback(app="app", revision=2))
        assert (await revision_of(shop)).spec == model(2)
        assert [record.number for record in (await history_of(shop)).revisions] == [1, 2, 3, 4]

    run(body)


def test_a_failed_revision_is_told_with_its_traceback() -> None:
    async def body(shop: Workshop) -> None:
        await shop.deploy(model(1))
        with pytest.raises(DeployFailedError):
            await shop.deploy(model(2, "raise"))
        record = (await history_of(shop)).revisions[-1]
        assert (record.number, record.outcome) == (2, FAILED)
        assert "no such model" in record.reason
        await shop.deploy(model(3))
        assert [record.kept for record in (await history_of(shop)).revisions] == [True, False, True]

    run(body)
