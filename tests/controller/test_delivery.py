"""Deploys, splits and ways back that come while another is under way: everybody is answered, nothing is left over."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from workshop import Workshop, application, deployment, run

from headrace.spec.application import ApplicationSpec
from headrace.spec.errors import DeployFailedError, HeadraceError, OptionError, RevisionNotFound, RolledBackError
from headrace.spec.rollout import BlueGreen, Canary, Command, ShadowTraffic, Strategy
from headrace.spec.status import History, RolloutOutcome
from headrace.wire.control import (
    Answer,
    ControlRollout,
    Delete,
    Deploy,
    Deployed,
    Done,
    GetHistory,
    GetRevision,
    Operation,
    Past,
    Revision,
    Rollback,
    SetShadow,
    SetTraffic,
)

WAITING = Canary(steps=((0.5, None),), analysis=())


def model(version: int, does: str = "ok", **options: Any) -> ApplicationSpec:
    return application(deployment("D", does, digest=str(version), **options))


def begin(shop: Workshop, operation: Operation) -> asyncio.Task[Answer]:
    """Ask, and let it be answered whenever."""
    return asyncio.create_task(shop.ask(operation))


async def asked(shop: Workshop, operation: Operation) -> asyncio.Task[Answer]:
    """The same, once the controller has it among those that wait."""
    before = len(shop.controller.waiters)
    task = begin(shop, operation)
    await shop.until(lambda: len(shop.controller.waiters) > before or task.done())
    return task


async def roll_out(shop: Workshop, spec: ApplicationSpec, strategy: Strategy = WAITING) -> None:
    await shop.ask(Deploy(spec, rollout=strategy, until="ready"))
    app = shop.controller.registry.apps["app"]
    await shop.until(lambda: app.rollout is not None and app.rollout.stage == "watching")


async def history_of(shop: Workshop) -> History:
    answer = await shop.ask(GetHistory("app"))
    assert isinstance(answer, Past)
    return answer.history


async def outcomes(shop: Workshop) -> dict[int, str]:
    return {record.number: record.outcome for record in (await history_of(shop)).revisions}


def weights(shop: Workshop) -> dict[int, float]:
    revisions = shop.snapshot.applications["app"].revisions
    return {revision.number: revision.weight for revision in revisions if revision.weight}


async def settled(shop: Workshop) -> None:
    """All is as it should be: nothing under way, no revision or replica that nobody wants, nobody waits."""
    app = shop.controller.registry.apps["app"]
    used = {app.target, app.current, *app.split}
    await shop.until(
        lambda: (
            not app.deploying
            and app.rollout is None
            and set(app.revisions) <= {app.target, app.current, *app.split}
            and {replica.key for replica in app.replicas.values()} == set(app.wanted())
        )
    )
    assert not len(shop.controller.waiters)
    kept = shop.controller.store.applications()["app"]
    assert set(kept.revisions) == set(app.revisions) <= used
    assert set(kept.replicas) == set(app.replicas)
    for field in ("target", "current", "weights", "split", "fallback", "rollout", "ended", "failure", "before"):
        assert getattr(kept, field) == getattr(app, field), field


# --- everybody is answered --------------------------------------------------------------------------------------------


def test_who_waits_for_the_end_of_a_rollout_is_told_that_another_took_its_place() -> None:
    async def body(shop: Workshop) -> None:
        await shop.deploy(model(1))
        await roll_out(shop, model(2, num_replicas=2))
        deploying = await asked(shop, Deploy(model(3, "hang"), rollout=WAITING))
        promoting = await asked(shop, ControlRollout(app="app", command=Command.PROMOTE))
        await shop.deploy(model(4))
        answer = await promoting
        assert isinstance(answer, Deployed)
        assert (answer.revision, answer.outcome) == (1, RolloutOutcome.SUPERSEDED)
        with pytest.raises(DeployFailedError, match=r"revision 3, was given up: revision 4 was deployed meanwhile"):
            await deploying
        await settled(shop)
        assert await outcomes(shop) == {1: "PROMOTED", 2: "SUPERSEDED", 3: "SUPERSEDED", 4: "PROMOTED"}

    run(body)


def test_who_waits_for_a_rollout_whose_application_is_deleted_is_told_so() -> None:
    async def body(shop: Workshop) -> None:
        await shop.deploy(model(1))
        starting = await asked(shop, Deploy(model(2, "hang"), rollout=WAITING, until="ready"))
        promoting = await asked(shop, ControlRollout(app="app", command=Command.PROMOTE))
        assert isinstance(await shop.ask(Delete("app")), Done)
        for task in (starting, promoting):
            with pytest.raises(DeployFailedError, match="deleted while it was being deployed"):
                await task
        assert await outcomes(shop) == {1: "PROMOTED", 2: "SUPERSEDED"}
        assert not len(shop.controller.waiters)

    run(body)


def test_the_same_again_while_its_canary_waits_for_a_word_is_answered() -> None:
    """As a driver does that lost its controller before it had the answer."""

    async def body(shop: Workshop) -> None:
        await shop.deploy(model(1))
        await roll_out(shop, model(2))
        answer = await shop.ask(Deploy(model(2, user_config=1), rollout=WAITING, until="ready"))
        assert isinstance(answer, Deployed)
        assert (answer.revision, answer.outcome) == (2, "")
        await shop.until(lambda: shop.workers["D#2@app"].reconfigured == [1])
        await shop.ask(ControlRollout(app="app", command=Command.PROMOTE))
        await settled(shop)

    run(body)


def test_options_that_change_in_place_after_a_rollback_are_answered_as_what_they_are() -> None:
    async def body(shop: Workshop) -> None:
        await shop.deploy(model(1))
        await roll_out(shop, model(2))
        await shop.ask(ControlRollout(app="app", command=Command.ABORT))
        await shop.ask(SetTraffic(app="app", weights={1: 1.0}))
        answer = await shop.deploy(model(1, num_replicas=2))
        assert isinstance(answer, Deployed)
        assert (answer.revision, answer.outcome, answer.reason) == (1, RolloutOutcome.PROMOTED, "")

    run(body)


def test_an_operation_at_which_the_controller_fails_is_answered(caplog: pytest.LogCaptureFixture) -> None:
    async def body(shop: Workshop) -> None:
        await shop.deploy(model(1))
        shop.directory.packs.write_text("a file where a folder should be")
        with pytest.raises(HeadraceError, match="Deploy: the controller failed: NotADirectoryError"):
            await shop.deploy(model(2))
        await settled(shop)

    run(body)
    assert "a Deploy could not be taken up" in caplog.text


# --- one in the middle of another -------------------------------------------------------------------------------------


def test_what_is_deployed_again_while_it_is_taken_back_is_a_new_revision() -> None:
    async def body(shop: Workshop) -> None:
        await shop.deploy(model(1))
        await roll_out(shop, model(2))
        aborting = begin(shop, ControlRollout(app="app", command=Command.ABORT, reason="why not"))
        app = shop.controller.registry.apps["app"]
        await shop.until(lambda: app.rollout is not None and app.rollout.stage == "retreating")
        again = begin(shop, Deploy(model(2)))
        answer = await again
        assert isinstance(answer, Deployed)
        assert (answer.revision, answer.outcome) == (3, RolloutOutcome.PROMOTED)
        answer = await aborting
        assert isinstance(answer, Deployed)
        assert answer.outcome == RolloutOutcome.ROLLED_BACK
        await settled(shop)
        records = (await history_of(shop)).revisions
        assert [record.outcome for record in records] == ["PROMOTED", "ROLLED_BACK", "PROMOTED"]
        assert "why not" in records[1].reason

    run(body)


def test_options_that_are_not_taken_everywhere_yet_are_given_up_for_a_new_revision() -> None:
    async def body(shop: Workshop) -> None:
        await shop.deploy(model(1, user_config="good"))
        shop.workers["D#1@app"].answers = False
        changing = await asked(shop, Deploy(model(1, user_config="worse")))
        starting = begin(shop, Deploy(model(2, "hang"), rollout=WAITING))
        with pytest.raises(DeployFailedError, match="revision 1, was given up"):
            await changing
        app = shop.controller.registry.apps["app"]
        assert app.revisions[1].deployments[0].options.user_config == "good"
        await shop.ask(ControlRollout(app="app", command=Command.ABORT))
        with pytest.raises(RolledBackError):
            await starting
        revision = await shop.ask(GetRevision("app", 1))
        assert isinstance(revision, Revision)
        assert revision.spec.deployments[0].options.user_config == "good"

    run(body)


def test_options_of_one_revision_never_become_those_of_another() -> None:
    async def body(shop: Workshop) -> None:
        await shop.deploy(model(1, does="ok"))
        await shop.deploy(model(2, user_config="good"))
        shop.workers["D#2@app"].answers = False
        changing = await asked(shop, Deploy(model(2, user_config="other")))
        await shop.ask(SetTraffic(app="app", weights={1: 1.0}))
        with pytest.raises(DeployFailedError, match="the traffic was shared otherwise meanwhile"):
            await changing
        assert weights(shop) == {1: 1.0}
        answer = await shop.ask(GetRevision("app", 1))
        assert isinstance(answer, Revision)
        assert answer.spec.deployments[0].digest == "1"

    run(body)


def test_options_that_were_refused_are_not_those_that_a_rollback_brings_back() -> None:
    async def body(shop: Workshop) -> None:
        await shop.deploy(model(1, user_config="good"))
        with pytest.raises(DeployFailedError):
            await shop.deploy(model(1, user_config="bad"))
        await shop.deploy(model(2))
        await settled(shop)
        await shop.ask(Rollback(app="app", revision=1))
        app = shop.controller.registry.apps["app"]
        assert app.revisions[1].deployments[0].options.user_config == "good"
        await settled(shop)

    run(body)


def test_a_split_with_a_revision_that_cannot_start_is_given_up_and_says_so() -> None:
    async def body(shop: Workshop) -> None:
        await shop.deploy(model(1, "ok"))
        await shop.deploy(model(2))
        await shop.deploy(model(3))
        await shop.ask(SetTraffic(app="app", weights={2: 0.5, 3: 0.5}))
        parked = await shop.ask(Deploy(model(4, "raise", max_constructor_retry_count=1), parked=True))
        assert isinstance(parked, Deployed)
        for shares in ({4: 1.0}, {1: 0.5, 4: 0.5}):
            with pytest.raises(
                DeployFailedError, match=r"revision 4.*as before: 50.0% to revision 2, 50.0% to revision 3"
            ):
                await shop.ask(SetTraffic(app="app", weights=shares))
            await shop.until(lambda: weights(shop) == {2: 0.5, 3: 0.5})
        await settled(shop)

    run(body)


def test_a_split_that_is_asked_for_before_another_is_there_goes_back_to_the_last_that_was() -> None:
    async def body(shop: Workshop) -> None:
        await shop.deploy(model(1))
        await shop.deploy(model(2))
        await shop.ask(Deploy(model(3, "hang"), parked=True))
        await shop.ask(Deploy(model(4, "raise", max_constructor_retry_count=1), parked=True))
        first = await asked(shop, SetTraffic(app="app", weights={2: 0.5, 3: 0.5}))
        with pytest.raises(DeployFailedError):
            await shop.ask(SetTraffic(app="app", weights={2: 0.5, 4: 0.5}))
        with pytest.raises(DeployFailedError):
            await first
        await settled(shop)
        assert weights(shop) == {2: 1.0}
        # And a deploy over a split that is not there begins with what was before it.
        second = await asked(shop, SetTraffic(app="app", weights={2: 0.5, 3: 0.5}))
        await shop.ask(Deploy(model(5), rollout=WAITING, until="ready"))
        with pytest.raises(DeployFailedError, match="revision 5 was deployed meanwhile"):
            await second
        await shop.ask(ControlRollout(app="app", command=Command.ABORT))
        await settled(shop)
        assert weights(shop) == {2: 1.0}

    run(body)


def test_a_split_survives_a_deploy_that_is_aborted() -> None:
    async def body(shop: Workshop) -> None:
        await shop.deploy(model(1))
        await shop.deploy(model(2))
        await shop.ask(SetTraffic(app="app", weights={1: 0.4, 2: 0.6}))
        for strategy in (WAITING, BlueGreen()):
            await roll_out(shop, model(3), strategy)
            await shop.ask(ControlRollout(app="app", command=Command.ABORT))
            await settled(shop)
            assert weights(shop) == pytest.approx({1: 0.4, 2: 0.6})

    run(body)


def test_a_route_that_was_given_away_is_not_taken_back() -> None:
    async def body(shop: Workshop) -> None:
        await shop.deploy(application(deployment("D", digest="1"), route="/a"))
        await shop.deploy(application(deployment("D", digest="2"), route="/b"))
        await shop.deploy(application(deployment("D"), name="other", route="/a"))
        for operation in (Rollback(app="app"), SetTraffic(app="app", weights={1: 1.0})):
            with pytest.raises(OptionError, match=r"'/a'.*taken by application 'other'"):
                await shop.ask(operation)
        await settled(shop)
        assert weights(shop) == {2: 1.0}

    run(body)


def test_shares_of_revisions_that_are_not_kept_change_nothing() -> None:
    async def body(shop: Workshop) -> None:
        await shop.deploy(model(1))
        await shop.deploy(model(2))
        await settled(shop)
        with pytest.raises(RevisionNotFound, match="keeps no revision 9; it keeps 1, 2"):
            await shop.ask(SetTraffic(app="app", weights={1: 0.5, 9: 0.5}))
        with pytest.raises(RevisionNotFound):
            await shop.ask(
                SetShadow(app="app", shadows={1: ShadowTraffic(fraction=0.5), 9: ShadowTraffic(fraction=1.0)})
            )
        for bad in (
            {1: float("nan")},
            {1: -1.0, 2: 2.0},
            {},
            {1: float("inf")},
            dict.fromkeys(range(1, 100_001), 1e-5),
        ):
            with pytest.raises(HeadraceError):
                await shop.ask(SetTraffic(app="app", weights=bad))
        await settled(shop)
        assert weights(shop) == {2: 1.0}

    run(body)


def test_a_reason_of_any_length_is_kept_short() -> None:
    async def body(shop: Workshop) -> None:
        await shop.deploy(model(1))
        await roll_out(shop, model(2))
        reason = "x" * 10_000_000
        await shop.ask(ControlRollout(app="app", command=Command.ABORT, reason=reason, by=reason))
        app = shop.controller.registry.apps["app"]
        assert app.ended is not None
        assert len(app.ended.reason) < 10_000
        assert len(app.failure) < 10_000

    run(body)


def test_a_replica_is_told_the_surroundings_of_a_revision_that_it_belongs_to() -> None:
    """Also where the revision that it was started for is gone before its process says hello."""

    async def body(shop: Workshop) -> None:
        def graph(version: int, inner: str) -> ApplicationSpec:
            return application(deployment("D", digest=str(version), uses=("I",)), deployment("I", digest=inner))

        await shop.deploy(graph(1, "one"))
        await roll_out(shop, graph(2, "one"))
        app = shop.controller.registry.apps["app"]
        replica = next(each for each in app.replicas.values() if each.name == "I")
        await shop.ask(ControlRollout(app="app", command=Command.ABORT))
        await shop.ask(Deploy(graph(3, "two"), rollout=WAITING, until="ready"))
        await shop.until(lambda: 2 not in app.revisions)
        replica.revision = 2  # it was started while the second was there
        worker = shop.workers[replica.process_id]
        worker.told = None
        replica.phase = type(replica.phase).STARTING
        shop.controller.actor._host(replica)
        await shop.until(lambda: worker.told is not None)
        assert worker.told is not None
        assert worker.told.revision == 1

    run(body)
