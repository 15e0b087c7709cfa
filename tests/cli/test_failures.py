"""Each way to fail is told once, whichever comes first: what the replica prints or what the deploy reports."""

from headrace.cli.failures import StartFailures, gist

TRACEBACK = 'Traceback (most recent call last):\n  File "m.py", line 8, in __init__\n    open(path)\nOSError: no disk'


def printed(replica, error=TRACEBACK):
    return [f"ERROR replica {replica} failed:", *error.splitlines()]


def show(failures, process_id, lines):
    return [line for line in lines if failures.line(process_id, line)]


def test_the_lines_before_the_report():
    failures = StartFailures()
    assert show(failures, "D#1@default", ["loading", *printed("D#1")]) == ["loading"]
    assert failures.told("D#1@default", TRACEBACK) == ([], True)
    assert show(failures, "D#2@default", printed("D#2")) == []
    assert failures.told("D#2@default", TRACEBACK) == ([], False)
    assert failures.rest() == []


def test_the_report_before_the_lines():
    failures = StartFailures()
    assert failures.told("D#1@default", TRACEBACK) == ([], True)
    assert show(failures, "D#1@default", [*printed("D#1"), "and then"]) == ["and then"]


def test_the_report_amid_the_lines():
    failures = StartFailures()
    lines = printed("D#1")
    assert show(failures, "D#1@default", lines[:3]) == []
    assert failures.told("D#1@default", TRACEBACK) == ([], True)
    assert show(failures, "D#1@default", [*lines[3:], "and then"]) == ["and then"]


def test_what_else_is_printed_is_never_lost():
    failures = StartFailures()
    lines = printed("D#1")
    assert show(failures, "D#1@default", [*lines[:2], "of a thread", *lines[2:], "at the end"]) == []
    assert failures.told("D#1@default", TRACEBACK) == (["of a thread", "at the end"], True)
    assert show(failures, "D#1@default", ["later"]) == ["later"]


def test_what_a_replica_tells_briefly_is_not_told_twice():
    failures = StartFailures()
    failures.told("D#1@default", TRACEBACK)
    again = ["ERROR replica D#2 failed as the one before it did: OSError: no disk", "and then"]
    assert show(failures, "D#2@default", again) == []
    assert failures.told("D#2@default", TRACEBACK) == (["and then"], False)
    assert failures.told("D#3@default", TRACEBACK) == ([], False)
    assert show(failures, "D#3@default", [again[0].replace("#2", "#3"), "and then"]) == ["and then"]


def test_other_errors_and_other_processes_are_told_too():
    failures = StartFailures()
    other = TRACEBACK.replace("no disk", "no network")
    assert failures.told("D#1@default", TRACEBACK)[1]
    assert failures.told("D#2@default", other)[1]
    assert not failures.told("E#3@default", other)[1]
    assert failures.is_told(other)
    assert show(failures, "E#4@default", ["hello"]) == ["hello"]


def test_without_a_report_the_lines_come_at_the_end():
    failures = StartFailures()
    lines = printed("D#1")
    assert show(failures, "D#1@default", lines) == []
    assert failures.rest() == [("D#1@default", line) for line in lines]
    assert failures.rest() == []


def test_an_error_of_one_line_and_a_crash_need_no_more_than_their_gist():
    failures = StartFailures()
    assert failures.told("D#1@default", "D#1 does not fit") == ([], False)
    crash = "its process (pid 5) died: SIGSEGV; it printed last:\nFatal Python error: Segmentation fault\n  File x"
    assert failures.told("D#2@default", crash) == ([], False)
    assert gist(crash) == "its process (pid 5) died: SIGSEGV"


def test_the_gist_of_an_error():
    assert gist(TRACEBACK) == "OSError: no disk"
    assert gist(TRACEBACK + "\nof the second kind") == "OSError: no disk"
    assert gist("one line") == "one line"
    assert gist('  File "syn.py", line 1\n    def x(:\n          ^\nSyntaxError: invalid syntax') == (
        "SyntaxError: invalid syntax"
    )


def test_an_error_that_names_its_replica_is_told_once_for_all():
    failures = StartFailures()
    error = "{0} cannot be started: its runtime_env cannot be made: Error: Run cmd failed\nno such package"
    assert failures.told("D#1@app", error.format("D#1@app")) == ([], True)
    assert failures.told("D#2@app", error.format("D#2@app")) == ([], False)
    assert failures.told("D#3@app", error.format("D#3@app").replace("package", "file")) == ([], True)
