"""`headrace rollout` against an instance that runs, and what it prints of a history."""

import json
import urllib.request

import pytest
from terminals import PATIENCE_S

from headrace.cli.rollout import history_lines
from headrace.cli.terminal import Style
from headrace.spec.status import History, HistoryEvent, RevisionRecord

APP = """
    from headrace import serve

    @serve.deployment
    class Greeter:
        def __init__(self, greeting="1"):
            self.greeting = greeting

        async def __call__(self, request):
            return self.greeting

    def build(args):
        return Greeter.bind(args["greeting"])
"""


@pytest.fixture(scope="module")
def shop(place):
    """An instance with two revisions of `shop`, the second of which has the traffic."""
    place.write("greeting.py", APP)
    place.url = place.start()
    for number in (1, 2):
        assert deploy(place, number).returncode == 0
    return place


def deploy(shop, greeting, *arguments):
    return shop.command("deploy", "greeting:build", f"greeting={greeting}", "--name", "shop", "--wait", *arguments)


def rollout(shop, action, *arguments, app="shop", code=0):
    done = shop.command("rollout", action, app, *arguments)
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


def get(shop, headers=()):
    with urllib.request.urlopen(
        urllib.request.Request(shop.url, headers=dict(headers)), timeout=PATIENCE_S
    ) as response:
        return response.read().decode()


def test_a_canary_is_steered_by_hand(shop):
    started = shop.command(
        *("deploy", "greeting:build", "greeting=3", "--name", "shop"),
        *("--rollout", "canary", "--steps", "10%,60%", "--check", "error_rate:min_samples=1"),
    )
    assert started.returncode == 0, started.stderr
    assert rollout(shop, "pause", "--by", "ann") == "application shop, revision 3: paused\n"
    assert "paused" in rollout(shop, "status").splitlines()[0]
    assert "is paused already" in rollout(shop, "pause", code=1)
    assert "is of revision 3, not of 9" in rollout(shop, "resume", "--revision", "9", code=1)
    table = shop.command("status").stdout
    assert "revision 3: paused · step 1 of 2" in table, table
    assert rollout(shop, "resume") == "application shop, revision 3: goes on\n"
    assert "has a rollout of revision 3 under way" in rollout(shop, "traffic", "1=1", code=1)

    said = rollout(shop, "promote", "--wait", "--json", "--by", "ann", "--reason", "looks good")
    assert json.loads(said)["outcome"] == "PROMOTED"
    assert get(shop) == "3"
    assert "nothing to promote" in rollout(shop, "promote", code=1)
    history = rollout(shop, "history", "--events")
    assert "revision 3  promote by ann: looks good" in history
    assert history.startswith("revision 3  ")

    aborted = deploy_canary(shop, 4)
    assert aborted.returncode == 0, aborted.stderr
    said = rollout(shop, "abort", "--wait", "--json", "--reason", "second thoughts")
    assert json.loads(said)["outcome"] == "ROLLED_BACK"
    assert get(shop) == "3"
    watched = shop.command("rollout", "status", "shop", "--watch")
    assert watched.returncode == 2
    assert "second thoughts" in watched.stdout

    assert json.loads(rollout(shop, "undo", "--wait", "--json"))["revision"] == 2
    assert get(shop) == "2"
    assert json.loads(rollout(shop, "undo", "--to", "1", "--wait", "--json"))["outcome"] == "PROMOTED"
    assert get(shop) == "1"
    assert "revision 1 of application 'shop' has the traffic already" in rollout(shop, "undo", "--to", "1", code=1)
    assert "keeps no revision 99" in rollout(shop, "undo", "--to", "99", code=1)


def deploy_canary(shop, greeting):
    return shop.command(
        *("deploy", "greeting:build", f"greeting={greeting}", "--name", "shop"),
        *("--rollout", "canary", "--steps", "10%,60%"),
    )


def test_traffic_is_shared_and_sticks(shop):
    assert rollout(shop, "traffic", "1=0.5", "2=50%", "--sticky", "header:x-user") == (
        "application shop: 0.5 to revision 1, 0.5 to revision 2\n"
    )
    assert rollout(shop, "traffic") == "1=0.5 2=0.5\n"
    answers = [{get(shop, {"x-user": f"user-{user}"}) for _ in range(3)} for user in range(30)]
    assert all(len(each) == 1 for each in answers)
    assert set.union(*answers) == {"1", "2"}
    assert "keeps no revision 99" in rollout(shop, "traffic", "1=0.9", "99=0.1", code=1)
    assert "somebody else deployed meanwhile" in rollout(shop, "traffic", "1=1", "--expected-revision", "1", code=1)
    assert rollout(shop, "traffic", "2=1", "--no-sticky") == "application shop: 1 to revision 2\n"
    assert get(shop) == "2"


def test_requests_are_mirrored_and_no_more(shop):
    assert rollout(shop, "shadow", "1=50%", "--numeric", "1e-3") == (
        "application shop: mirrors 0.5 of the requests to revision 1\n"
    )
    assert rollout(shop, "shadow", "--off") == "application shop: mirrors nothing\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("traffic", "shop", "1"), "'1' is not REVISION=SHARE, such as 1=0.9 2=0.1"),
        (("traffic", "shop", "x=1"), "'x=1' is not REVISION=SHARE"),
        (("traffic", "shop", "²=1"), "'²=1' is not REVISION=SHARE"),
        (("traffic", "shop", "0=1"), "'0=1' is not REVISION=SHARE"),
        (("traffic", "shop", "1=0.5", "01=0.5"), "'01=0.5': revision 1 is named twice"),
        (("traffic", "shop", "1=0.5", "2=0.4"), "must add up to 1, and add up to 0.9"),
        (("traffic", "shop", "1=nan"), "must be a number from 0 to 1"),
        (("traffic", "shop", "1=much"), "'much' must be a share, such as 0.05 or 5%"),
        (("traffic", "shop", "1=1", "--sticky", "user"), "must name where the key is"),
        (("traffic", "shop", "--sticky", "header:x"), "--sticky needs the weights too"),
        (("traffic", "shop", "1=1", "--sticky", "header:x", "--no-sticky"), "exclude each other"),
        (("shadow", "shop"), "or --off to mirror no more"),
        (("shadow", "shop", "2=0"), "must be a share of the requests, above 0"),
        (("shadow", "shop", "2=1", "--atol", "1"), "--atol has no effect without --numeric"),
        (("status", "shop", "--timeout", "1"), "--timeout has no effect without --watch"),
        (("undo", "shop", "--to", "-1"), "--to -1 must be the number of a revision"),
        (("undo", "shop", "--hold", "1"), "--hold needs --rollout"),
    ],
)
def test_mistakes(arguments, message, monkeypatch, capsys, shop):
    from headrace.cli import main

    monkeypatch.setenv("HEADRACE_HOME", shop.env["HEADRACE_HOME"])
    assert main(["rollout", *arguments]) == 64
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.count("\n") == 1


@pytest.mark.parametrize("action", ["status", "pause", "undo", "history", "traffic"])
def test_an_application_that_is_not_there(action, shop):
    assert "no application is called 'shpo'" in rollout(shop, action, app="shpo", code=1)


def test_a_history_is_told_without_what_would_move_the_cursor():
    history = History(
        app="shop",
        revisions=(
            RevisionRecord(number=1, at=0.0, by="ann", source="m:app", outcome="PROMOTED", strategy="rolling_update"),
            RevisionRecord(
                number=2,
                at=1.0,
                by="\x1b[2Jeve",
                changes=("A: code changed",),
                outcome="FAILED",
                reason="it did not come up\nTraceback\n  x\nValueError: no",
                kept=False,
                labels={"commit": "1f0"},
            ),
        ),
        events=(HistoryEvent(at=1.0, revision=2, what="failed", reason="a\nb", by="ann"),),
    )
    lines = history_lines(history, 20, True, Style(False))
    assert lines[0].endswith("by  [2Jeve  failed  (not kept)")
    assert lines[1:4] == ["  A: code changed", "  commit=1f0", "  it did not come up ValueError: no"]
    assert lines[4].startswith("revision 1  ")
    assert lines[-1].endswith("revision 2  failed by ann: a b")
    assert history_lines(history, 1, False, Style(False))[-1] == "  it did not come up ValueError: no"
    assert history_lines(History(app="x"), 20, True, Style(False)) == ["application x has no revision in its history"]
