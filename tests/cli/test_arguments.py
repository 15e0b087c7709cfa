import argparse
import subprocess
import sys

import pytest

from headrace import __version__
from headrace.cli import main, parse
from headrace.cli.listening import add_listening, asks_for_listening
from headrace.cli.run import builder_argv
from headrace.cli.strategy import strategy
from headrace.serve.build import arguments_of
from headrace.spec.rollout import BlueGreen, Canary, Comparison, ErrorRate, RollingUpdate, Shadow


@pytest.fixture(autouse=True)
def nobody_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("HEADRACE_HOME", str(tmp_path))
    monkeypatch.delenv("HEADRACE_INSTANCE", raising=False)


def test_version(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"headrace {__version__}\n"


@pytest.mark.parametrize("command", ["run", "start", "deploy", "rollout", "promote", "status", "shutdown"])
def test_the_installed_command_starts_without_heavy_modules(command):
    heavy = "asyncio", "uvloop", "starlette", "cloudpickle", "numpy"
    code = (
        f"import sys; from headrace import cli; cli.parser({command!r}); print(sorted(set({heavy}) & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize(
    "arguments",
    [
        "",
        "nonsense",
        "run",
        "run m:a --nonsense",
        "run m:a --port x",
        "run m:a --request-timeout soon",
        "status word",
        "run m:a --port 1 k=v -x",
    ],
)
def test_arguments_that_are_not_right(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments.split())
    assert caught.value.code == 2
    assert "usage: headrace" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["status"], "no instance 'default' is running"),
        (["shutdown", "--instance", "other"], "no instance 'other' is running"),
        (["status", "--instance", "a/b"], "instance='a/b' is not a name"),
        (["run", "m:a", "--port", "65536"], "port=65536 must be from 0 to 65535"),
        (["run", "m:a", "--ingress-workers", "-1"], "ingress_workers=-1 must be from 0 to 256"),
        (["run", "m:a", "word"], "'word' is not KEY=VALUE"),
        (["run", "m:a", "=x"], "'=x' is not KEY=VALUE"),
        (["run", "m:a", "--instance", ""], "instance='' is not a name"),
        (["run", "m", "--instance", "x"], "'m' is not MODULE:APP"),
        (["run", "m:a", "--route-prefix", "x"], "route_prefix='x' must start with '/'"),
        (["run", "m:a", "--name", "a b"], "name='a b' must be"),
        (["run", "m:a", "--request-timeout", "0"], "request_timeout_s=0.0 must be a number of seconds above 0"),
        (["run", "m:a", "--request-timeout", "nan"], "request_timeout_s=nan must be"),
        (["run", "m:a", "--grpc-port", "1"], "--grpc-port has no effect without --grpc-servicer-functions"),
        (["run", "m:a", "--app-dir", "/nowhere"], "--app-dir '/nowhere' is not a directory"),
        (["run", "m:a", "--engine", "ray", "--reload"], "--reload has no effect with --engine ray"),
        (["run", "m:a", "--cluster-ports", "7000-7999"], "--cluster-ports has no effect without --engine ray"),
        (["start", "--proxy-location", "HeadOnly"], "--proxy-location has no effect without --engine ray"),
        (["start", "--engine", "ray", "--cluster-ports", "7000"], "ports='7000' must be two ports"),
        (["start", "--engine", "ray", "--cluster-certfile", "c.pem"], "tls_certfile='c.pem' needs tls_keyfile and"),
        (["status", "--address", "ray://head:10001"], "address='ray://head:10001' is a Ray Client's"),
        (["status", "--engine", "local", "--address", "auto"], "address='auto' has no effect with engine='local'"),
        (["shutdown", "--address", "127.0.0.1:1"], "no Ray cluster answers at 127.0.0.1:1"),
    ],
)
def test_mistakes_are_one_line_and_no_traceback(arguments, message, capsys):
    assert main(arguments) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"headrace: {message}")
    assert printed.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ("deplyo m:a", 2, "there is no command 'deplyo': did you mean 'deploy'?"),
        ("zzz", 2, "there is no command 'zzz': there is run, start, deploy"),
        ("run m:a --reolad", 2, "unrecognized arguments: --reolad (did you mean '--reload'?)"),
        ("deploy m:a --rolout=canary", 64, "(did you mean '--rollout'?)"),
        ("deploy", 64, "the following arguments are required: MODULE:APP"),
        ("deploy m:a --expected-revision one", 64, "invalid int value: 'one'"),
        ("rollout", 64, "the following arguments are required: ACTION"),
        ("rollout abrot app", 64, "'abrot': did you mean 'abort'?"),
        ("rollout pause", 64, "the following arguments are required: APP"),
        ("rollout pause app word", 64, "unrecognized arguments: word"),
        ("rollout undo app --too 1", 64, "(did you mean '--to'?)"),
        ("status --engine rey", 2, "'rey': did you mean 'ray'?"),
        ("deploy m:a --engine locale", 64, "'locale': did you mean 'local'?"),
        ("promote app --from a", 64, "the following arguments are required: --to"),
    ],
)
def test_the_nearest_name_is_told_and_no_mistake_looks_like_a_rollback(arguments, code, message, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments.split())
    assert caught.value.code == code
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["deploy", "m"], "'m' is not MODULE:APP"),
        (["deploy", "m:a", "word"], "'word' is not KEY=VALUE"),
        (["deploy", "m:a", "--name", "a b"], "name='a b' must be"),
        (["deploy", "m:a", "--rollout", "canray"], "--rollout 'canray': did you mean 'canary'?"),
        (["deploy", "m:a", "--steps", "0.1"], "--steps needs --rollout: it is part of canary"),
        (["deploy", "m:a", "--rollout", "canary", "--hold", "1"], "--hold does not belong to --rollout canary"),
        (["deploy", "m:a", "--rollout", "canary", "--steps", "0.1:soon"], "--steps 'soon' must be a time"),
        (["deploy", "m:a", "--rollout", "canary", "--steps", "0.1:"], "--steps '' must be a time"),
        (["deploy", "m:a", "--rollout", "canary", "--steps", ""], "--steps '' must be weights and pauses"),
        (["deploy", "m:a", "--rollout", "canary", "--steps", "0.5,0.1"], "Canary: the weights of steps="),
        (["deploy", "m:a", "--rollout", "canary", "--steps", "nan:1"], "Canary: weight=nan must be a number"),
        (["deploy", "m:a", "--rollout", "canary", "--steps", "a%:1"], "--steps 'a%' must be a share"),
        (
            ["deploy", "m:a", "--rollout", "canary", "--steps", "50:1"],
            "--steps '50' must be a share, such as 0.05 or 5%; did you mean '50%'?",
        ),
        (["deploy", "m:a", "--rollout", "canary", "--check", "error"], "--check 'error': did you mean 'error_rate'?"),
        (["deploy", "m:a", "--rollout", "canary", "--check", "latency:q=1"], "analysis: latency has no 'q'"),
        (["deploy", "m:a", "--rollout", "canary", "--check", "latency:q"], "--check 'latency:q': 'q' is not KEY=VALUE"),
        (
            ["deploy", "m:a", "--rollout", "canary", "--check", "error_rate:max=x"],
            "ErrorRate: max='x' must be a number",
        ),
        (["deploy", "m:a", "--rollout", "rolling-update", "--max-surge", "-1"], "RollingUpdate: max_surge=-1.0 must"),
        (["deploy", "m:a", "--sticky", "x-user"], "sticky='x-user' must name where the key is"),
        (["deploy", "m:a", "--label", "=x"], "--label '=x' is not KEY=VALUE"),
        (["deploy", "m:a", "--expected-revision", "-1"], "--expected-revision -1 must be a revision"),
        (["deploy", "m:a", "--timeout", "1"], "--timeout has no effect without --wait"),
        (["deploy", "m:a", "--wait", "--timeout", "nan"], "--timeout nan must be a number of seconds above 0"),
        (["promote", "app", "--from", "a", "--to", "a"], "--from and --to are both 'a'"),
        (["promote", "app", "--from", "a", "--to", "b", "--revision", "-2"], "--revision -2 must be the number"),
    ],
)
def test_mistakes_of_who_deploys_are_no_failed_deploys(arguments, message, capsys):
    assert main(arguments) == 64
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"headrace: {message}"), printed.err
    assert printed.err.count("\n") == 1


def test_what_is_said_of_a_rollout():
    given = ["--rollout", "canary", "--steps", "5%:90s, 0.25:2m,50%", "--check", "error_rate:max=0.02,min_samples=50"]
    assert strategy(parse(["deploy", "m:a", *given])) == Canary(
        steps=((0.05, 90.0), (0.25, 120.0), (0.5, None)), analysis=(ErrorRate(max=0.02, min_samples=50),)
    )
    given = ["--rollout", "shadow", "--fraction", "10%", "--duration", "1h", "--numeric", "1e-3", "--no-promote"]
    assert strategy(parse(["deploy", "m:a", *given])) == Shadow(
        fraction=0.1, duration_s=3600, compare=Comparison(kind="numeric", rtol=1e-3), promote=False
    )
    given = ["--rollout", "rolling-update", "--max-surge", "2", "--max-unavailable", "25%"]
    assert strategy(parse(["deploy", "m:a", *given])) == RollingUpdate(max_surge=2, max_unavailable=0.25)
    assert strategy(parse(["deploy", "m:a", "--rollout", "blue-green", "--hold", "5m"])) == BlueGreen(hold_s=300)
    assert strategy(parse(["deploy", "m:a"])) is None


def test_the_instance_of_the_environment(monkeypatch, capsys):
    monkeypatch.setenv("HEADRACE_INSTANCE", "mine")
    assert main(["status"]) == 1
    assert "no instance 'mine'" in capsys.readouterr().err


def test_arguments_of_a_builder_may_stand_anywhere():
    assert parse(["run", "m:a", "a=1", "b=2", "--port", "1"]).arguments == ["a=1", "b=2"]
    assert parse(["run", "m:a", "a=1", "--port", "1", "b=2"]).arguments == ["a=1", "b=2"]
    assert parse(["run", "--port", "1", "m:a", "b=2"]).arguments == ["b=2"]


@pytest.mark.parametrize("value", ["a=b", "x=--port=3", "--=1"])
def test_the_builder_understands_what_it_is_given(value):
    given = ["run", "m:a", "--host", "::1", "--port", "0", "--route-prefix", "/-p", "--name", "n"]
    arguments = parse([*given, "--request-timeout", "1e-3", "--", value])
    assert arguments.arguments == [value]
    argv = builder_argv(arguments)
    assert argv[1:4] == ("-P", "-m", "headrace.serve.build")
    understood = arguments_of(argv[4:])
    for name in vars(understood).keys() - {"by", "tell_files", "to_fd", "when_told"}:
        assert getattr(understood, name) == getattr(arguments, name), name


@pytest.mark.parametrize(
    ("given", "asks"),
    [([], False), (["--port=8000"], False), (["--port=0"], True), (["--ssl-certfile=cert.pem"], True)],
)
def test_who_runs_an_application_asks_for_http_only_by_what_differs(given: list[str], asks: bool) -> None:
    parser = argparse.ArgumentParser()
    add_listening(parser)
    assert asks_for_listening(parser.parse_args(given)) is asks
