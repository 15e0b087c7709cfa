"""A revision goes away while calls to it are under way, or while some wait: each is answered, and counted once."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from test_router import Replica, World, echo, in_world

from headrace.spec.errors import DeploymentUnavailableError, ReplicaDiedError
from headrace.spec.snapshot import DeploymentEntry, RevisionEntry, Snapshot


async def replaced(world: World, name: str = "Model", keep: float | None = None) -> Replica:
    """Revision 2 has the traffic, with a replica of its own, which answers; `keep`: the weight of revision 1."""
    world.started += 1
    replica = Replica(world.directory, world.started, 10)
    await replica.server.listen(replica.entry.address)
    replica.handle = echo
    entry = DeploymentEntry(
        key=f"app/{name}@2", app="app", name=name, max_ongoing_requests=10, max_queued_requests=10,
        replicas=(replica.entry,),
    )  # fmt: skip
    before = world.snapshot
    app = before.applications["app"]
    first = tuple(msgspec.structs.replace(each, weight=keep or 0.0) for each in app.revisions)
    second = RevisionEntry(number=2, weight=1.0 - (keep or 0.0), deployments={name: entry.key}, ingress=name)
    if keep is None:
        app = msgspec.structs.replace(app, revisions=(second,), ingress=name)
        entries = {entry.key: entry}
    else:
        app = msgspec.structs.replace(app, revisions=(*first, second), ingress=name)
        entries = {**before.deployments, entry.key: entry}
    world.version += 1
    world.snapshot = Snapshot(version=world.version, applications={"app": app}, deployments=entries)
    world.router.update(world.snapshot)
    return replica


def requests(world: World, revision: int, name: str = "Model") -> tuple[int, int]:
    tally = world.router.tallies.of("app", revision, name)
    return tally.requests, tally.errors


@pytest.mark.parametrize("how", ["refused", "died"])
def test_a_call_that_comes_back_after_its_revision_is_gone_is_drawn_again(tmp_path: Path, how: str) -> None:
    async def test(world: World) -> None:
        (old,) = await world.add()
        if how == "refused":  # it drains, and has said so, but the router has not read it yet
            await _connected(world, old)
            old.server.drain()
        call = world.ask(b"again")
        if how == "died":
            await old.until_calls(1)
        new = await replaced(world)
        if how == "died":
            old.crash()
        assert await call.outcome() == b"again"
        assert call.revision == 2
        assert requests(world, 2) == (1, 0)
        assert bool(call.suspect) is (how == "died")
        new.server.close()

    in_world(test, tmp_path)


@pytest.mark.parametrize("how", ["refused", "died"])
def test_a_pinned_call_that_comes_back_after_its_revision_is_gone_fails(tmp_path: Path, how: str) -> None:
    async def test(world: World) -> None:
        (old,) = await world.add()
        if how == "refused":
            await _connected(world, old)
            old.server.drain()
        call = world.ask(b"pinned", revision=1)
        tally = call.tally
        assert tally is not None
        if how == "died":
            await old.until_calls(1)
        new = await replaced(world)
        if how == "died":
            old.crash()
        assert isinstance(await call.outcome(), DeploymentUnavailableError | ReplicaDiedError)
        assert tally.errors == 1
        new.server.close()

    in_world(test, tmp_path)


def test_a_call_to_a_door_of_the_past_goes_to_that_of_now(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        world.publish()
        waiting = world.ask(b"waiting")
        new = await replaced(world, "Gate")
        assert await waiting.outcome() == b"waiting"
        late = world.ask(b"late")  # its head was read, or its handle made, when the door was another
        assert await late.outcome() == b"late"
        assert waiting.deployment == late.deployment == "Gate"
        assert requests(world, 2, "Gate") == (2, 0)
        assert "no deployment 'Nobody'" in str(await world.ask(deployment="Nobody").outcome())
        new.server.close()

    in_world(test, tmp_path)


def test_an_inner_deployment_that_is_called_as_a_door_was_is_reached(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        (inner,) = await world.add()
        inner.handle = lambda incoming: incoming.reply(b"inner")
        door = await replaced(world, "Gate")
        app = world.snapshot.applications["app"]
        (second,) = app.revisions
        entry = msgspec.structs.replace(
            world.snapshot.deployments["app/Gate@2"], key="app/Model@2", name="Model", replicas=(inner.entry,)
        )
        second = msgspec.structs.replace(second, deployments={**second.deployments, "Model": entry.key})
        world.router.update(
            Snapshot(
                version=99,
                applications={"app": msgspec.structs.replace(app, revisions=(second,))},
                deployments={**world.snapshot.deployments, entry.key: entry},
            )
        )
        assert await world.ask(b"x").outcome() == b"inner"
        assert await world.ask(b"x", revision=2).outcome() == b"inner"
        assert await world.ask(b"x", deployment="Gate").outcome() == b"x"
        door.server.close()

    in_world(test, tmp_path)


async def _connected(world: World, replica: Replica) -> None:
    handle, replica.handle = replica.handle, echo
    await world.ask(b"connect").outcome()
    world.router.tallies.of("app", 1, "Model").requests = 0
    replica.handle = handle
