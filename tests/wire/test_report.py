import pytest

from headrace.wire.report import MARK, Failure, Line, Ready, read, written


@pytest.mark.parametrize(
    "event",
    [Line("two\nlines"), Ready("app", 3, None, "http://127.0.0.1:8000"), Failure("Traceback\n  é", traceback=True)],
)
def test_one_line_there_and_back(event):
    line = written(event)
    assert "\n" not in line
    assert read(line) == event


@pytest.mark.parametrize("line", ["", "printed", "{}", MARK, MARK + "{}", MARK + '{"type":"Other"}', " " + MARK])
def test_what_others_print_is_no_event(line):
    assert read(line) is None
