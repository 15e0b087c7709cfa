"""Deploys against a controller in this process: the way from a specification to a revision that takes the traffic."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from workshop import TRACEBACK, Workshop, application, deployment, run

from headrace.engine.base import ProcessInfo, ProcessRequest
from headrace.spec.errors import (
    ApplicationNotFound,
    DeployFailedError,
    GraphError,
    OptionError,
    ResourcesShortError,
)
from headrace.spec.rollout import RollingUpdate
from headrace.wire.control import Delete, DeltaMessage, Deploy, Deployed, Done, Message


def weights(shop: Workshop, app: str = "app") -> dict[int, float]:
    return {revision.number: revision.weight for revision in shop.snapshot.applications[app].revisions}


def test_a_first_deploy_runs_and_is_answered() -> None:
    async def body(shop: Workshop) -> None:
        lines: list[str] = []
        answer = await shop.deploy(application(deployment("D", num_replicas=2)), lines)
        assert isinstance(answer, Deployed)
        assert (answer.app, answer.revision) == ("app", 1)
        assert lines[0] == "deploying application 'app' as revision 1: D (2 replicas)"
        assert lines[1:] == ["D#1 is ready (1 of 2)", "D#2 is ready (2 of 2)"]
        assert shop.listed("app/D@ok-1") == ["D#1", "D#2"]
        assert await shop.living() == ["D#1@app", "D#2@app"]
        assert shop.snapshot.applications["app"].route_prefix == "/"
        assert weights(shop) == {1: 1.0}
        status = await shop.status()
        assert status.applications["app"].status == "RUNNING"
        assert status.applications["app"].deployments["D"].status == "HEALTHY"
        assert status.applications["app"].deployments["D"].replica_states == {"RUNNING": 2}

    run(body)


def test_the_answer_comes_when_every_router_knows() -> None:
    async def body(shop: Workshop) -> None:
        answer = await shop.deploy(application(deployment("D")))
        assert isinstance(answer, Deployed)
        await shop.deploy(application(deployment("E"), name="other", route="/other"))
        worker = shop.workers["D#1@app"]
        assert worker.snapshot == shop.snapshot
        assert worker.snapshot.version > answer.version

    run(body)


def test_the_same_again_restarts_nothing() -> None:
    async def body(shop: Workshop) -> None:
        spec = application(deployment("D", num_replicas=2), deployment("E"))
        await shop.deploy(spec)
        version = shop.snapshot.version
        answer = await shop.deploy(spec)
        assert isinstance(answer, Deployed)
        assert (answer.revision, answer.version) == (1, version)
        assert len(shop.started) == 3

    run(body)


def test_options_change_in_place() -> None:
    async def body(shop: Workshop) -> None:
        await shop.deploy(application(deployment("D", num_replicas=1, user_config={"a": 1})))
        answer = await shop.deploy(
            application(deployment("D", num_replicas=3, user_config={"a": 2}, max_ongoing_requests=4))
        )
        assert isinstance(answer, Deployed)
        assert answer.revision == 1
        assert shop.listed("app/D@ok-1") == ["D#1", "D#2", "D#3"]
        assert shop.workers["D#1@app"].reconfigured == [{"a": 2}]
        assert shop.workers["D#2@app"].reconfigured == []  # it was born with it
        assert shop.snapshot.deployments["app/D@ok-1"].max_ongoing_requests == 4
        await shop.deploy(application(deployment("D", num_replicas=1, user_config={"a": 2}, max_ongoing_requests=4)))
        assert shop.listed("app/D@ok-1") == ["D#1"]
        await shop.until(lambda: sorted(shop.order) == ["D#2", "D#3"])
        assert shop.workers["D#2@app"].drained == 20.0
        await shop.until(lambda: len(shop.controller.registry.replicas()) == 1)

    run(body)


def test_what_routers_alone_go_by_changes_in_place_and_no_replica_is_told() -> None:
    async def body(shop: Workshop) -> None:
        await shop.deploy(application(deployment("D", num_replicas=2)))
        changed = msgspec.structs.replace(
            deployment(
                "D",
                num_replicas=2,
                repeatable=False,
                retry_budget=0.5,
                backpressure_config={"status_code": 429, "retry_after_s": 2},
            ),
            unrepeatable=("pay",),
        )
        answer = await shop.deploy(msgspec.structs.replace(application(changed), request_timeout_s=1.5))
        assert isinstance(answer, Deployed)
        assert answer.revision == 1
        entry = shop.snapshot.deployments["app/D@ok-1"]
        assert (entry.repeatable, entry.unrepeatable) == (False, ("pay",))
        assert (entry.retry_ratio, entry.retry_per_second) == (0.5, 10.0)
        assert (entry.busy_status, entry.retry_after_s) == (429, 2)
        assert shop.snapshot.applications["app"].request_timeout_s == 1.5
        assert (await shop.status()).applications["app"].request_timeout_s == 1.5
        assert shop.started == ["D#1@app", "D#2@app"]
        assert [shop.workers[name].reconfigured for name in shop.started] == [[], []]
        await shop.deploy(application(deployment("D", num_replicas=2)))
        assert shop.snapshot.applications["app"].request_timeout_s is None
        assert shop.snapshot.deployments["app/D@ok-1"].busy_status == 503

    run(body)


def test_options_that_a_replica_does_not_take_are_taken_back() -> None:
    async def body(shop: Workshop) -> None:
        good = application(deployment("D", num_replicas=3, user_config="good"))
        await shop.deploy(good)
        with pytest.raises(DeployFailedError, match=r"did not take its new options, and goes on [\s\S]*no such model"):
            await shop.deploy(application(deployment("D", num_replicas=3, user_config="bad")))
        # The first that was told failed, and was replaced; the others were not even asked.
        assert shop.workers["D#1@app"].reconfigured == ["bad"]
        await shop.until(lambda: shop.listed("app/D@ok-1") == ["D#2", "D#3", "D#4"])
        assert shop.workers["D#2@app"].reconfigured == []
        told = shop.workers["D#4@app"].told
        assert told is not None
        assert told.spec.options.user_config == "good"
        assert (await shop.status()).applications["app"].status == "DEPLOY_FAILED"
        await shop.deploy(good)
        assert (await shop.status()).applications["app"].status == "RUNNING"

    run(body)


def test_a_reconfigure_that_hangs_fails_the_deploy_and_is_taken_back() -> None:
    async def body(shop: Workshop) -> None:
        await shop.deploy(application(deployment("D", num_replicas=2, user_config="good")))
        shop.workers["D#1@app"].answers = False
        deploying = asyncio.create_task(
            shop.deploy(application(deployment("D", num_replicas=2, user_config="endless", start_timeout_s=60.0)))
        )
        await shop.until(lambda: shop.workers["D#1@app"].reconfigured)
        replica = shop.controller.registry.replica("D#1@app")
        assert replica is not None
        await shop.until(lambda: replica.reconfiguring)
        replica.told_at -= 60.0  # so long ago
        shop.controller.wake()
        with pytest.raises(DeployFailedError, match=r"D#1 has not taken its options within start_timeout_s=60"):
            await deploying
        await shop.until(lambda: shop.listed("app/D@ok-1") == ["D#2", "D#3"])
        told = shop.workers["D#3@app"].told
        assert told is not None
        assert told.spec.options.user_config == "good"
        assert shop.workers["D#2@app"].reconfigured == []

    run(body)


def test_a_replica_that_dies_of_its_options_takes_none_of_the_others_along() -> None:
    async def body(shop: Workshop) -> None:
        await shop.deploy(application(deployment("D", num_replicas=2, user_config="good")))
        shop.workers["D#1@app"].answers = False
        deploying = asyncio.create_task(shop.deploy(application(deployment("D", num_replicas=2, user_config="deadly"))))
        await shop.until(lambda: shop.workers["D#1@app"].reconfigured)
        shop.engine.crash("D#1@app", code=-11)
        with pytest.raises(DeployFailedError, match="SIGSEGV"):
            await deploying
        await shop.until(lambda: shop.listed("app/D@ok-1") == ["D#2", "D#3"])
        assert shop.workers["D#2@app"].reconfigured == []

    run(body)


def test_a_report_that_comes_while_options_are_taken_does_not_say_that_they_are() -> None:
    async def body(shop: Workshop) -> None:
        await shop.deploy(application(deployment("D", user_config=1)))
        worker = shop.workers["D#1@app"]
        worker.answers = False
        deploying = asyncio.create_task(shop.deploy(application(deployment("D", user_config=2))))
        await shop.until(lambda: worker.reconfigured)
        worker.ongoing = 7
        worker.report()  # as after a new connection
        replica = shop.controller.registry.replica("D#1@app")
        assert replica is not None
        await shop.until(lambda: replica.ongoing == 7)
        assert replica.reconfiguring
        worker.told_at = replica.told_at
        worker.report()
        assert isinstance(await deploying, Deployed)

    run(body)


def test_new_code_starts_beside_the_old_and_then_takes_the_traffic() -> None:
    async def body(shop: Workshop) -> None:
        await shop.deploy(application(deployment("D", num_replicas=2), deployment("Shared")))
        shop.busy = True  # what drains goes on
        deploying = asyncio.create_task(
            shop.deploy(application(deployment("D", "hang", num_replicas=2), deployment("Shared")))
        )
        await shop.until(lambda: "D#5@app" in shop.workers and shop.workers["D#5@app"].told is not None)
        assert weights(shop) == {1: 1.0, 2: 0.0}
        assert shop.listed("app/D@ok-1") == ["D#1", "D#2"]
        shop.workers["D#4@app"].ready()
        await shop.until(lambda: shop.listed("app/D@hang-1") == ["D#4"])
        assert weights(shop) == {1: 1.0, 2: 0.0}
        shop.workers["D#5@app"].ready()
        answer = await deploying
        assert isinstance(answer, Deployed)
        assert answer.revision == 2
        await shop.until(lambda: sorted(shop.order) == ["D#1", "D#2"])
        # The old door is gone from the snapshot, the shared one serves both.
        assert weights(shop)[2] == 1.0
        assert shop.listed("app/D@ok-1") == []
        assert "Shared#3@app" in await shop.living()
        assert shop.started.count("Shared#3@app") == 1
        for id in ("D#1@app", "D#2@app"):
            shop.workers[id].stop()
        await shop.until(lambda: weights(shop) == {2: 1.0})
        assert list(shop.controller.registry.apps["app"].revisions) == [2]

    run(body)


def test_callers_drain_before_callees() -> None:
    async def body(shop: Workshop) -> None:
        chain = [deployment("A", uses=("B", "C")), deployment("B", uses=("C",)), deployment("C")]
        await shop.deploy(application(*chain))
        assert shop.started == ["C#1@app", "B#2@app", "A#3@app"]
        await shop.ask(Delete("app"))
        assert shop.order == ["A#3", "B#2", "C#1"]

    run(body)


def test_a_constructor_that_raises_fails_the_deploy_with_its_traceback() -> None:
    async def body(shop: Workshop) -> None:
        lines: list[str] = []
        with pytest.raises(DeployFailedError, match="ValueError: no such model") as caught:
            await shop.deploy(application(deployment("D", "raise")), lines)
        assert "failed to start 3 times" in str(caught.value)
        assert len(shop.started) == 3
        assert lines[1] == f"D#1 failed to start:\n{TRACEBACK}"
        orders = [shop.workers[id].told for id in shop.started]
        assert [order and order.last_error for order in orders] == ["", TRACEBACK, TRACEBACK]
        status = (await shop.status()).applications["app"]
        assert status.status == "DEPLOY_FAILED"
        assert status.deployments["D"].status == "DEPLOY_FAILED"
        assert TRACEBACK in status.deployments["D"].message
        entry = shop.snapshot.applications["app"]
        assert "no such model" in entry.failed
        assert entry.route_prefix == "/"
        await shop.until(lambda: not shop.controller.registry.replicas())
        # The same again is tried again; what is right then runs.
        with pytest.raises(DeployFailedError):
            await shop.deploy(application(deployment("D", "raise")))
        answer = await shop.deploy(application(deployment("D", "ok")))
        assert isinstance(answer, Deployed)
        assert answer.revision == 3
        assert shop.snapshot.applications["app"].failed == ""

    run(body)


def test_a_bad_revision_leaves_the_good_one_serving() -> None:
    async def body(shop: Workshop) -> None:
        await shop.deploy(application(deployment("D", num_replicas=2)))
        with pytest.raises(DeployFailedError, match="revision 1 goes on serving"):
            await shop.deploy(application(deployment("D", "die", num_replicas=2)))
        assert weights(shop)[1] == 1.0
        assert shop.listed("app/D@ok-1") == ["D#1", "D#2"]
        assert shop.order == []
        status = (await shop.status()).applications["app"]
        assert status.status == "DEPLOY_FAILED"
        assert "SIGSEGV" in status.message
        # Back to the good code: its replicas are there.
        started = len(shop.started)
        answer = await shop.deploy(application(deployment("D", num_replicas=2)))
        assert isinstance(answer, Deployed)
        assert answer.revision == 3
        assert len(shop.started) == started
        assert (await shop.status()).applications["app"].status == "RUNNING"

    run(body)


def test_what_does_not_fit_fails_at_once() -> None:
    async def body(shop: Workshop) -> None:
        await shop.deploy(application(deployment("D", num_replicas=2, num_cpus=1.0)))
        with pytest.raises(ResourcesShortError, match="asks for 1 CPU, the machine has 2 of which 0 free"):
            await shop.deploy(application(deployment("D", "ok", digest="v2", num_replicas=2, num_cpus=1.0)))
        assert shop.listed("app/D@ok-1") == ["D#1", "D#2"]

    run(body, cpus=2.0)


def test_resources_of_what_is_leaving_are_waited_for() -> None:
    async def body(shop: Workshop) -> None:
        await shop.deploy(application(deployment("D", num_replicas=2, num_cpus=1.0)))
        await shop.deploy(application(deployment("D", num_replicas=1, num_cpus=1.0)))
        answer = await shop.deploy(application(deployment("D", "ok", digest="v2", num_cpus=1.0)))
        assert isinstance(answer, Deployed)

    run(body, cpus=2.0)


def test_resources_of_what_was_leaving_when_they_were_asked_for_are_waited_for() -> None:
    """The end of what held them may be told before the answer that there are none."""

    async def body(shop: Workshop) -> None:
        await shop.deploy(application(deployment("D", num_cpus=2.0)))
        start = shop.engine.start
        refused: list[str] = []

        async def start_and_answer_late(request: ProcessRequest) -> ProcessInfo:
            try:
                return await start(request)
            except ResourcesShortError:
                refused.append(request.id)
                await shop.until(lambda: "D#1" not in shop.controller.registry.apps["app"].replicas)
                raise

        shop.engine.start = start_and_answer_late  # type: ignore[method-assign]
        spec = application(deployment("D", "ok", digest="v2", num_cpus=2.0))
        answer = await shop.ask(Deploy(spec, rollout=RollingUpdate(max_surge=0, max_unavailable=1)))
        assert isinstance(answer, Deployed)
        assert refused == ["D#2@app"]

    run(body, cpus=2.0)


def test_the_later_of_two_deploys_wins() -> None:
    async def body(shop: Workshop) -> None:
        first = asyncio.create_task(shop.deploy(application(deployment("D", "hang"))))
        await shop.until(lambda: shop.started)
        answer = await shop.deploy(application(deployment("D", "ok")))
        assert isinstance(answer, Deployed)
        with pytest.raises(DeployFailedError, match="revision 1, was given up: revision 2 was deployed meanwhile"):
            await first
        await shop.until(lambda: list(shop.controller.registry.apps["app"].replicas) == ["D#2"])

    run(body)


def test_two_who_deploy_the_same_are_both_answered() -> None:
    async def body(shop: Workshop) -> None:
        first = asyncio.create_task(shop.deploy(application(deployment("D", "hang"))))
        await shop.until(lambda: shop.workers and shop.workers["D#1@app"].told is not None)
        second = asyncio.create_task(shop.deploy(application(deployment("D", "hang"))))
        await shop.until(lambda: len(shop.controller.waiters) == 2)
        shop.workers["D#1@app"].ready()
        assert await first == await second

    run(body)


def test_applications_do_not_share_a_route() -> None:
    async def body(shop: Workshop) -> None:
        await shop.deploy(application(deployment("D"), name="one", route="/x"))
        with pytest.raises(OptionError, match="route_prefix='/x/' of application 'two' is taken by application 'one'"):
            await shop.deploy(application(deployment("D"), name="two", route="/x/"))
        await shop.deploy(application(deployment("D"), name="two", route="/x/y"))
        await shop.deploy(application(deployment("D"), name="three", route=None))
        assert set((await shop.status()).applications) == {"one", "two", "three"}

    run(body)


@pytest.mark.parametrize(
    ("spec", "error"),
    [
        (application(deployment("D", uses=("E",))), "'D' uses 'E', which is not part of it"),
        (application(deployment("D", uses=("E",)), deployment("E", uses=("D",))), "uses itself"),
        (application(deployment("D"), deployment("D")), "more than one deployment named D"),
    ],
)
def test_what_is_no_graph_is_refused(spec: object, error: str) -> None:
    async def body(shop: Workshop) -> None:
        with pytest.raises(GraphError, match=error):
            await shop.deploy(spec)
        assert (await shop.status()).applications == {}

    run(body)


def test_deleting_lets_go_of_the_route_first() -> None:
    async def body(shop: Workshop) -> None:
        await shop.deploy(application(deployment("D")))
        shop.busy = True
        deleting = asyncio.create_task(shop.ask(Delete("app")))
        await shop.until(lambda: shop.order)
        assert shop.snapshot.applications["app"].route_prefix is None
        assert "being deleted" in shop.snapshot.applications["app"].failed
        assert (await shop.status()).applications["app"].status == "DELETING"
        # Who deploys meanwhile waits until it is gone.
        again = asyncio.create_task(shop.ask(Deploy(application(deployment("D", digest="new")))))
        await shop.until(lambda: "app" in shop.controller.delivery.waiting)
        shop.busy = False
        shop.workers["D#1@app"].stop()
        assert await deleting == Done()
        answer = await again
        assert isinstance(answer, Deployed)
        assert answer.revision == 2
        with pytest.raises(ApplicationNotFound, match="no application is called 'nope'; there are: app"):
            await shop.ask(Delete("nope"))

    run(body)


def test_a_delete_is_answered_when_every_router_knows_that_the_application_is_gone() -> None:
    async def body(shop: Workshop) -> None:
        feed, loop = shop.controller.feed, asyncio.get_running_loop()
        told: list[Message] = []
        await shop.deploy(application(deployment("D")))
        feed.subscribe("router", feed.snapshot.version, lambda message: told.append(message) or True, loop.time())
        deleting = asyncio.create_task(shop.ask(Delete("app")))
        while "app" in feed.snapshot.applications:
            shop.controller.reconciler.acknowledged("router", feed.snapshot.version, loop.time())
            await asyncio.sleep(0)
        assert isinstance(told[-1], DeltaMessage)
        assert (await shop.status()).applications == {}
        assert not deleting.done()
        shop.controller.reconciler.acknowledged("router", feed.snapshot.version, loop.time())
        assert isinstance(await deleting, Done)
        assert len(shop.controller.waiters) == 0

    run(body)


def test_deleting_while_deploying() -> None:
    async def body(shop: Workshop) -> None:
        deploying = asyncio.create_task(shop.deploy(application(deployment("D", "hang"))))
        await shop.until(lambda: shop.started)
        await shop.ask(Delete("app"))
        with pytest.raises(DeployFailedError, match="was deleted while"):
            await deploying
        assert await shop.living() == []
        assert shop.snapshot.applications == {}

    run(body)
