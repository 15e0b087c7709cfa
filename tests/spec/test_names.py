import pytest

from headrace.spec.errors import ImportPathError, OptionError, OptionTypeError
from headrace.spec.names import checked_name, checked_route_prefix, split_import_path


@pytest.mark.parametrize("name", ["a", "A-b_c.d:e+f", "é", "x" * 100])
def test_names(name):
    assert checked_name(name) == name


@pytest.mark.parametrize("name", ["", "a/b", "a#1", "a@b", "x" * 101, "a b", "<lambda>"])
def test_what_is_no_name(name):
    with pytest.raises(OptionError, match="name="):
        checked_name(name)


def test_a_name_of_a_wrong_type():
    with pytest.raises(OptionTypeError, match="name=3"):
        checked_name(3)


def test_import_paths():
    assert split_import_path("pack.mod:Box.app") == ("pack.mod", "Box.app")


@pytest.mark.parametrize(
    ("path", "match"),
    [
        ("served", "not MODULE:APP, such as served:app"),
        ("served:", "not MODULE:APP"),
        (":app", "not MODULE:APP, such as digits:app"),
        ("a b:app", "not MODULE:APP"),
        ("served:a-b", "not MODULE:APP"),
        ("served.py:app", "names a file: .* such as served:app$"),
        ("x/served.py", "names a file: .* such as served:app --app-dir x$"),
    ],
)
def test_paths_of_a_wrong_form(path, match):
    with pytest.raises(ImportPathError, match=match):
        split_import_path(path)


class TestRoutePrefix:
    @pytest.mark.parametrize(
        ("given", "expected"), [("/", "/"), ("/a", "/a"), ("/a/", "/a"), ("/a/b//", "/a/b"), (None, None)]
    )
    def test_allowed(self, given, expected):
        assert checked_route_prefix(given) == expected

    @pytest.mark.parametrize("given", ["a", "", "/{x}", "/a?b", "/a#b", "/a b", "/a\n"])
    def test_not_allowed(self, given):
        with pytest.raises(OptionError, match="route_prefix="):
            checked_route_prefix(given)

    def test_of_a_wrong_type(self):
        with pytest.raises(OptionTypeError, match="route_prefix=3"):
            checked_route_prefix(3)
