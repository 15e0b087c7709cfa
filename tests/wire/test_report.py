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


@pytest.mark.parametrize(
    "line", ["", "printed", "{}", MARK, MARK + "{}", MARK + '{"type":"Other"}', " " + MARK, MARK + "[" * 100_000]
)
def test_what_others_print_is_no_event(line):
    assert read(line) is None


def test_nesting_without_end_is_no_event():
    assert read(MARK + '{"type":"Line","more":' + "[" * 100_000) is None


def test_a_mark_before_bytes_that_are_no_text_is_no_event():
    # As the keeper's reader hands them on: what is no UTF-8 stands as lone surrogates.
    assert read(MARK + '{"type":"Line","text":"\udcff"}') is None
