"""`headrace promote`: what was tried on one instance serves on another, whatever became of its files."""

import json
import urllib.request

import msgspec
import pytest
from terminals import PATIENCE_S

from headrace.cli.promote import describe, unlike
from headrace.spec.application import ApplicationSpec, DeploymentSpec, Environment, ImportedCode
from headrace.spec.options import DeploymentOptions
from headrace.wire.control import Revision
from headrace.wire.pack import PackedModule, name_of, pack

APP = """
    from headrace import serve
    from words import WORD

    @serve.deployment
    class Greeter:
        async def __call__(self, request):
            return WORD

    app = Greeter.bind()
"""


def get(url):
    with urllib.request.urlopen(url, timeout=PATIENCE_S) as response:
        return response.read().decode()


def revisions(terminal, instance):
    done = terminal.command("rollout", "history", "shop", "--json", "--instance", instance)
    return json.loads(done.stdout)["revisions"]


def test_from_staging_to_production(terminal):
    terminal.write("greeting.py", APP)
    terminal.write("words.py", "WORD = 'tried'\n")
    staging, production = terminal.start("staging"), terminal.start("production")
    deployed = terminal.command("deploy", "greeting:app", "--name", "shop", "--wait", "--instance", "staging")
    assert deployed.returncode == 0, deployed.stderr
    assert get(staging) == "tried"

    # Another edit, and then the sources are gone: production gets what staging tried.
    terminal.write("words.py", "WORD = 'not tried'\n")
    (terminal.path / "greeting.py").unlink()
    way = ("promote", "shop", "--from", "staging", "--to", "production")
    done = terminal.command(*way, "--wait", "--json", "--expected-revision", "0", "--by", "ci")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["outcome"] == "PROMOTED"
    assert "revision 1 of application shop, from staging to production:" in done.stderr
    assert "sources of 2 modules" in done.stderr
    assert get(production) == "tried"
    assert revisions(terminal, "production")[0]["by"] == "ci"

    again = terminal.command(*way, "--wait")
    assert again.returncode == 0
    assert len(revisions(terminal, "production")) == 1

    for arguments, message in [
        (("promote", "shpo", "--from", "staging", "--to", "production"), "no application is called 'shpo'"),
        ((*way, "--revision", "9"), "revision 9 of application 'shop' is not kept"),
        (
            ("promote", "shop", "--from", "staging", "--to", "prod"),
            "no instance 'prod' is running; running: production",
        ),
        ((*way, "--expected-revision", "0"), "revision 0 was expected to be its newest"),
    ]:
        refused = terminal.command(*arguments)
        assert refused.returncode == 1
        assert message in refused.stderr


MODULE = PackedModule("greeting", "/nowhere/greeting.py", b"x = 1\n")
PACK = pack([MODULE])


def revision(pack_name, packs, module="greeting"):
    deployment = DeploymentSpec(
        name="Greeter",
        code=ImportedCode(module, "Greeter"),
        arguments=b"",
        options=DeploymentOptions(),
        digest="0123456789abcdef",
        max_ongoing_requests=1,
    )
    spec = ApplicationSpec(
        name="shop",
        route_prefix="/",
        ingress="Greeter",
        deployments=(deployment,),
        environment=Environment(pack=pack_name),
    )
    return Revision(1, spec, packs)


def test_what_came_whole_is_the_same_elsewhere():
    whole = revision(name_of(PACK), {name_of(PACK): PACK})
    assert unlike(whole) == ""
    assert describe(whole)[0] == "Greeter  0123456789abcdef  1 replica"
    assert describe(whole)[1].startswith("sources of 1 module, ")
    installed = msgspec.structs.replace(revision("", {}, "sklearn.svm"))
    assert unlike(installed) == ""
    assert describe(installed)[-1] == "imported from where they are installed: sklearn.svm"


@pytest.mark.parametrize(
    ("pack_name", "packs", "trouble"),
    [
        (name_of(PACK), {}, "is missing"),
        (name_of(PACK), {name_of(PACK): PACK[:-1]}, "is damaged"),
        (name_of(PACK), {name_of(PACK): b""}, "is damaged"),
        (name_of(PACK), {"0" * 64: PACK}, "is damaged"),
    ],
)
def test_what_would_run_other_code_is_refused(pack_name, packs, trouble):
    assert trouble in unlike(revision(pack_name, packs))
