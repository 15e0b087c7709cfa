import sys
import textwrap

import pytest

from headrace.serve.deployment import Application
from headrace.serve.target import UserCodeRaised, load_application
from headrace.spec.errors import ImportPathError, OptionTypeError


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A directory of modules; what the test imports of it is forgotten."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)

    class Project:
        path = tmp_path

        def write(self, name, text):
            file = tmp_path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(textwrap.dedent(text))

        def load(self, path, **arguments):
            return load_application(path, arguments, str(tmp_path))

    yield Project()
    for name in set(sys.modules) - before:
        del sys.modules[name]


APP = """
    from headrace import serve

    @serve.deployment
    class Digits:
        def __init__(self, args=None): self.args = args

    digits_app = Digits.bind()
    def builder(args): return Digits.bind(args)
"""


def test_an_application(project):
    project.write("served.py", APP)
    assert isinstance(project.load("served:digits_app"), Application)


def test_a_builder_with_arguments(project):
    project.write("served.py", APP)
    assert project.load("served:builder", a="1")._args == ({"a": "1"},)


def test_in_a_package_and_behind_an_attribute(project):
    project.write("pack/__init__.py", "")
    project.write("pack/served.py", APP + "\n    class Box:\n        app = digits_app\n")
    assert isinstance(project.load("pack.served:Box.app"), Application)


def test_a_module_that_is_not_there_names_the_nearest(project):
    project.write("served.py", APP)
    with pytest.raises(ImportPathError, match=r"no module 'servd'.*did you mean 'served'"):
        project.load("servd:app")


def test_a_submodule_that_is_not_there(project):
    project.write("pack/__init__.py", "")
    with pytest.raises(ImportPathError, match=r"no module 'pack.served'"):
        project.load("pack.served:app")


def test_an_attribute_that_is_not_there_names_the_nearest(project):
    project.write("served.py", APP)
    with pytest.raises(ImportPathError, match="has no 'digits_ap': did you mean served:digits_app"):
        project.load("served:digits_ap")


def test_or_the_applications(project):
    project.write("served.py", APP)
    with pytest.raises(ImportPathError, match="its applications are digits_app"):
        project.load("served:zzz")


def test_or_the_deployments(project):
    project.write("served.py", APP.replace("digits_app = Digits.bind()", ""))
    with pytest.raises(ImportPathError, match=r"no application: bind one, such as zzz = Digits.bind\("):
        project.load("served:zzz")


def test_a_deployment_is_no_application(project):
    project.write("served.py", APP)
    with pytest.raises(OptionTypeError, match=r"use Digits.bind\("):
        project.load("served:Digits")


def test_a_directory_that_is_not_there():
    with pytest.raises(ImportPathError, match="--app-dir 'nowhere' is not a directory"):
        load_application("served:app", {}, "nowhere")


def test_an_error_of_the_module_is_shown_from_its_own_first_line(project):
    project.write("served.py", "def f():\n    return 1 / 0\n\nf()\n")
    with pytest.raises(UserCodeRaised) as caught:
        project.load("served:app")
    lines = str(caught.value).splitlines()
    assert lines[:2] == ["served could not be imported:", "Traceback (most recent call last):"]
    assert lines[2] == f'  File "{project.path}/served.py", line 4, in <module>'
    assert lines[-1] == "ZeroDivisionError: division by zero"
    assert "headrace" not in str(caught.value).replace(str(project.path), "")
    assert "importlib" not in str(caught.value)


def test_an_import_that_fails_inside_of_the_module_is_its_own(project):
    project.write("served.py", "import not_installed_anywhere\n")
    with pytest.raises(UserCodeRaised, match="No module named 'not_installed_anywhere'"):
        project.load("served:app")


def test_a_syntax_error(project):
    project.write("served.py", "def f(:\n")
    with pytest.raises(UserCodeRaised, match=r"served.py.*\n.*def f\(:[\s\S]*SyntaxError"):
        project.load("served:app")


def test_a_module_that_exits(project):
    project.write("served.py", "raise SystemExit('no model here')\n")
    with pytest.raises(UserCodeRaised, match="SystemExit: no model here"):
        project.load("served:app")


def test_an_error_of_the_builder(project):
    project.write("served.py", "def builder(args):\n    raise LookupError('no such model')\n")
    with pytest.raises(UserCodeRaised) as caught:
        project.load("served:builder")
    lines = str(caught.value).splitlines()
    assert lines[0] == "the builder served:builder raised:"
    assert lines[2] == f'  File "{project.path}/served.py", line 2, in builder'


def test_a_wrong_option_is_shown_without_the_frames_that_found_it(project):
    project.write("served.py", "from headrace import serve\n\n@serve.deployment(num_replica=2)\nclass A: ...\n")
    with pytest.raises(UserCodeRaised) as caught:
        project.load("served:app")
    lines = str(caught.value).splitlines()
    assert [line for line in lines if line.startswith("  File")] == [
        f'  File "{project.path}/served.py", line 3, in <module>'
    ]
    assert lines[-1] == "OptionTypeError: 'num_replica' is no option of a deployment; did you mean 'num_replicas'?"
