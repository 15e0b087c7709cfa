import subprocess
import sys

import pytest

from headrace import __version__
from headrace.cli import main, parse
from headrace.cli.run import builder_argv
from headrace.serve.build import arguments_of


@pytest.fixture(autouse=True)
def nobody_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("HEADRACE_HOME", str(tmp_path))
    monkeypatch.delenv("HEADRACE_INSTANCE", raising=False)


def test_version(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"headrace {__version__}\n"


def test_the_installed_command_starts_without_heavy_modules():
    heavy = "asyncio", "uvloop", "starlette", "cloudpickle", "numpy"
    code = f"import sys, headrace.cli.run, headrace.cli.status; print(sorted(set({heavy}) & set(sys.modules)))"
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
    ],
)
def test_mistakes_are_one_line_and_no_traceback(arguments, message, capsys):
    assert main(arguments) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"headrace: {message}")
    assert printed.err.count("\n") == 1


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
    for name in vars(understood):
        assert getattr(understood, name) == getattr(arguments, name), name
