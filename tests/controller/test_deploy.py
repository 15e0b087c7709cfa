"""Deploys against a controller in this process: the way from a specification to a revision that takes the traffic."""

from __future__ import annotations

from workshop import Workshop, application, deployment, run

from headrace.wire.control import Deployed


def test_a_first_deploy_runs_and_is_answered() -> None:
    async def body(shop: Workshop) -> None:
        answer = await shop.deploy(application(deployment("D", num_replicas=2)))
        assert isinstance(answer, Deployed)
        assert (answer.app, answer.revision) == ("app", 1)
        assert shop.listed("app/D@ok-1") == ["D#1", "D#2"]
        assert await shop.living() == ["D#1@app", "D#2@app"]
        entry = shop.snapshot.applications["app"]
        assert entry.route_prefix == "/"
        assert [(r.number, r.weight) for r in entry.revisions] == [(1, 1.0)]
        status = await shop.status()
        assert status.applications["app"].status == "RUNNING"
        assert status.applications["app"].deployments["D"].status == "HEALTHY"
        assert status.applications["app"].deployments["D"].replica_states == {"RUNNING": 2}

    run(body)
