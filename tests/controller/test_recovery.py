"""What dies and comes back: replicas, the controller, its file; nothing that lives is touched by it."""

from __future__ import annotations

import asyncio
import contextlib

import msgspec
import pytest
from workshop import Workshop, application, deployment, run

from headrace.engine.directory import read_snapshot
from headrace.spec.errors import InstanceError
from headrace.spec.options import DeploymentOptions
from headrace.wire.control import Delete, Deployed, Done, GetSnapshot, HostReplica, SnapshotMessage

KEY = "app/D@ok-1"


def test_a_dead_replica_is_replaced_at_once(caplog: pytest.LogCaptureFixture) -> None:
    async def body(shop: Workshop) -> None:
        await shop.deploy(application(deployment("D", num_replicas=2)))
        shop.engine.crash("D#1@app", tail=["an error of long ago", "Fatal: out of luck"])
        await shop.until(lambda: shop.listed(KEY) == ["D#2", "D#3"])
        details = (await shop.status()).applications["app"].deployments["D"]
        assert details.status == "HEALTHY"
        assert [(replica.id, replica.restarts) for replica in details.replicas] == [("D#2", 0), ("D#3", 1)]

    run(body)
    (told,) = [record.message for record in caplog.records if "D#1" in record.message]
    assert "died: SIGKILL; it printed last: Fatal: out of luck" in told


def test_a_dead_replica_leaves_the_snapshot_before_its_successor_is_there() -> None:
    async def body(shop: Workshop) -> None:
        deploying = asyncio.create_task(shop.deploy(application(deployment("D", "hang"))))
        await shop.until(lambda: shop.workers and shop.workers["D#1@app"].told)
        shop.workers["D#1@app"].ready()
        await deploying
        shop.engine.crash("D#1@app", tail=["Fatal: out of luck"])
        await shop.until(lambda: shop.listed("app/D@hang-1") == [])
        assert shop.snapshot.applications["app"].revisions[0].weight == 1.0
        status = (await shop.status()).applications["app"]
        assert status.status == "UNHEALTHY"
        assert "SIGKILL; it printed last:\nFatal: out of luck" in status.deployments["D"].message
        await shop.until(lambda: "D#2@app" in shop.workers and shop.workers["D#2@app"].told)
        shop.workers["D#2@app"].ready()
        await shop.until(lambda: shop.listed("app/D@hang-1") == ["D#2"])

    run(body)


def test_one_that_dies_again_and_again_is_tried_again_and_again() -> None:
    async def body(shop: Workshop) -> None:
        await shop.deploy(application(deployment("D")))
        for number in range(1, 15):
            await shop.until(lambda n=number: shop.listed(KEY) == [f"D#{n}"])
            shop.engine.crash(f"D#{number}@app")
        await shop.until(lambda: "D#15@app" in shop.workers)
        shop.engine.crash("D#15@app")
        await shop.until(lambda: shop.listed(KEY) == ["D#16"])

    run(body)


def test_a_start_that_takes_too_long_is_given_up() -> None:
    async def body(shop: Workshop) -> None:
        with pytest.raises(Exception, match=r"D#\d was not ready within start_timeout_s=0\.01"):
            await shop.deploy(application(deployment("D", "hang", start_timeout_s=0.01)))
        assert len(shop.started) == 3

    run(body)


def test_one_that_does_not_drain_in_time_is_ended() -> None:
    async def body(shop: Workshop) -> None:
        await shop.deploy(application(deployment("D", graceful_shutdown_timeout_s=0.0)))
        shop.busy = True
        deleting = asyncio.create_task(shop.ask(Delete("app")))
        await shop.until(lambda: shop.order)
        replica = shop.controller.registry.replicas()[0]
        replica.stop_by = 0.0  # the time that it had, and the margin, are over
        shop.controller.wake()
        assert await deleting == Done()

    run(body)


def test_a_controller_that_comes_back_adopts_what_runs() -> None:
    async def body(shop: Workshop) -> None:
        spec = application(deployment("D", num_replicas=2, user_config=1), deployment("E"))
        await shop.deploy(spec)
        before, processes = shop.snapshot, await shop.engine.list()
        await shop.kill()
        assert read_snapshot(shop.directory) == before
        await shop.begin()
        assert shop.snapshot == before  # from the first moment, before anybody has reported
        assert (await shop.status()).applications["app"].deployments["D"].replica_states == {"RUNNING": 2}
        await shop.until(lambda: all(worker.link.connected for worker in shop.workers.values()))
        answer = await shop.deploy(spec)
        assert isinstance(answer, Deployed)
        assert answer.revision == 1
        assert await shop.engine.list() == processes
        assert shop.snapshot == before
        assert len(shop.started) == 3
        # It goes on from there.
        shop.engine.crash("D#1@app")
        await shop.until(lambda: shop.listed(KEY) == ["D#2", "D#4"])
        assert shop.snapshot.version > before.version

    run(body)


def test_a_replica_that_is_silent_after_the_restart_is_left_alone() -> None:
    async def body(shop: Workshop) -> None:
        await shop.deploy(application(deployment("D", num_replicas=2)))
        await shop.kill()
        silent = shop.workers["D#1@app"]
        silent.answers = False
        silent.report = lambda: None  # type: ignore[method-assign]  # its loop computes
        await shop.begin()
        await shop.until(lambda: shop.controller.registry.replica("D#2@app").phase.value == "running")
        assert shop.listed(KEY) == ["D#1", "D#2"]
        await shop.deploy(application(deployment("E"), name="other", route=None))
        assert shop.listed(KEY) == ["D#1", "D#2"]
        assert "D#3@app" not in shop.workers

    run(body)


def test_what_died_while_there_was_no_controller_is_replaced() -> None:
    async def body(shop: Workshop) -> None:
        await shop.deploy(application(deployment("D", num_replicas=2)))
        version = shop.snapshot.version
        await shop.kill()
        shop.engine.crash("D#1@app")
        await shop.until(lambda: "D#1" not in repr(shop.engine))
        await shop.begin()
        assert shop.listed(KEY) == ["D#2"]
        assert shop.snapshot.version == version + 1
        await shop.until(lambda: shop.listed(KEY) == ["D#2", "D#3"])

    run(body)


def test_a_deploy_goes_on_over_a_restart() -> None:
    async def body(shop: Workshop) -> None:
        await shop.deploy(application(deployment("D")))
        deploying = asyncio.create_task(shop.deploy(application(deployment("D", "hang"))))
        await shop.until(lambda: "D#2@app" in shop.workers and shop.workers["D#2@app"].told)
        await shop.kill()
        with pytest.raises(InstanceError, match="went away during Deploy"):
            await deploying
        await shop.begin()
        assert (await shop.status()).applications["app"].status == "DEPLOYING"
        shop.workers["D#2@app"].ready()
        await shop.until(lambda: shop.listed("app/D@hang-1") == ["D#2"])
        await shop.until(lambda: shop.listed(KEY) == [])
        assert shop.started == ["D#1@app", "D#2@app"]
        assert (await shop.status()).applications["app"].revision == 2

    run(body)


def test_options_that_are_refused_after_a_restart_are_taken_back_too() -> None:
    async def body(shop: Workshop) -> None:
        await shop.deploy(application(deployment("D", num_replicas=2, user_config="good")))
        worker = shop.workers["D#1@app"]
        worker.answers = False  # it is about to refuse
        deploying = asyncio.create_task(shop.deploy(application(deployment("D", num_replicas=2, user_config="other"))))
        await shop.until(lambda: worker.reconfigured)
        await shop.kill()
        with pytest.raises(InstanceError, match="went away during Deploy"):
            await deploying
        await shop.begin()
        assert (await shop.status()).applications["app"].status == "DEPLOYING"
        await shop.until(lambda: worker.reconfigured == ["other", "other"])
        worker.fail()
        await shop.until(lambda: shop.listed(KEY) == ["D#2", "D#3"])
        told = shop.workers["D#3@app"].told
        assert told is not None
        assert told.spec.options.user_config == "good"
        status = (await shop.status()).applications["app"]
        assert status.status == "DEPLOY_FAILED"
        assert "ValueError: no such model" in status.message
        # The next controller knows of it as well.
        await shop.kill()
        await shop.begin()
        assert shop.controller.registry.apps["app"].spec.deployments[0].options.user_config == "good"
        assert (await shop.status()).applications["app"].status == "DEPLOY_FAILED"

    run(body)


def test_a_worker_that_was_not_told_before_the_restart_is_told_after() -> None:
    async def body(shop: Workshop) -> None:
        await shop.deploy(application(deployment("D")))
        await shop.kill()
        worker = shop.workers["D#1@app"]
        worker.told = None  # as if the controller had died between its start and the order
        await shop.begin()
        await shop.until(lambda: isinstance(worker.told, HostReplica))
        await shop.until(lambda: shop.controller.registry.replica("D#1@app").phase.value == "running")

    run(body)


def test_a_drain_goes_on_over_a_restart() -> None:
    async def body(shop: Workshop) -> None:
        await shop.deploy(application(deployment("D")))
        shop.busy = True
        deleting = asyncio.create_task(shop.ask(Delete("app")))
        await shop.until(lambda: shop.order)
        await shop.kill()
        with contextlib.suppress(InstanceError):
            await deleting
        await shop.begin()
        assert (await shop.status()).applications["app"].status == "DELETING"
        shop.workers["D#1@app"].stop()
        await shop.until(lambda: not shop.controller.registry.apps)

    run(body)


def test_the_state_of_another_life_is_forgotten() -> None:
    async def body(shop: Workshop) -> None:
        await shop.deploy(application(deployment("D")))
        version = shop.snapshot.version
        await shop.kill()
        await shop.begin("another")
        assert (await shop.status()).applications == {}
        answer = await shop.ask(GetSnapshot())
        assert isinstance(answer, SnapshotMessage)
        assert answer.snapshot.version == version + 1
        await shop.until(lambda: "D#1" not in repr(shop.engine))  # nobody's worker is ended

    run(body)


@pytest.mark.parametrize("harm", ["garbage", "torn", "newer"])
def test_a_file_that_cannot_be_read_is_set_aside(harm: str, caplog: pytest.LogCaptureFixture) -> None:
    async def body(shop: Workshop) -> None:
        await shop.deploy(application(deployment("D")))
        await shop.kill()
        state = shop.directory.state
        for journal in state.parent.glob("state.db-*"):
            journal.unlink()
        whole = state.read_bytes()
        match harm:
            case "garbage":
                state.write_bytes(b"not a database at all" * 100)
            case "torn":
                state.write_bytes(whole[: len(whole) // 2])
            case "newer":
                state.write_bytes(whole[:60] + (99).to_bytes(4) + whole[64:])  # user_version
        await shop.begin()
        assert len(list(state.parent.glob("state.db.unreadable-*"))) == 1
        assert any("cannot be read" in record.message and "begins anew" in record.message for record in caplog.records)
        assert (await shop.status()).applications == {}
        answer = await shop.deploy(application(deployment("D", digest="new")))
        assert isinstance(answer, Deployed)

    run(body)


def test_status_tells_the_calls_in_work_now() -> None:
    async def body(shop: Workshop) -> None:
        await shop.deploy(application(deployment("D", num_replicas=2)))
        shop.workers["D#1@app"].ongoing = 3
        shop.workers["D#2@app"].ongoing = 4
        both = await asyncio.gather(shop.status(), shop.status())
        for status in both:
            assert [replica.ongoing for replica in status.applications["app"].deployments["D"].replicas] == [3, 4]

    run(body)


def test_a_replica_that_says_nothing_does_not_hold_up_the_status() -> None:
    async def body(shop: Workshop) -> None:
        await shop.deploy(application(deployment("D", num_replicas=3)))
        for number in (1, 2, 3):
            shop.workers[f"D#{number}@app"].ongoing = number
        shop.workers["D#1@app"].report = lambda: None  # type: ignore[method-assign]  # its loop computes
        shop.engine.crash("D#2@app")
        status = (await shop.status()).applications["app"].deployments["D"]
        told = {replica.id: replica.ongoing for replica in status.replicas}
        assert (told["D#1"], told["D#3"]) == (0, 3)

    run(body)


def test_options_survive_the_restart() -> None:
    async def body(shop: Workshop) -> None:
        await shop.deploy(application(deployment("D", user_config={"a": [1, 2.5, None, "x"]})))
        options = shop.controller.registry.apps["app"].spec.deployments[0].options
        await shop.kill()
        await shop.begin()
        again = shop.controller.registry.apps["app"].spec.deployments[0].options
        assert again == options
        assert msgspec.msgpack.encode(again) == msgspec.msgpack.encode(options)
        assert isinstance(again, DeploymentOptions)

    run(body)
