"""What the builder tells `headrace run`, from two threads of its own."""

from __future__ import annotations

import io

import pytest

from headrace.serve.build import report
from headrace.wire.report import Failure, Line, read


def test_a_report_is_one_write_of_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    writes: list[str] = []

    class Stream(io.StringIO):
        def write(self, text: str) -> int:
            writes.append(text)
            return len(text)

    monkeypatch.setattr("sys.stdout", Stream())
    report(Line("importing shop:app"))
    report(Failure("port 8000 is taken\nby another process"))
    assert [text.count("\n") for text in writes] == [1, 1]
    assert all(text.endswith("\n") for text in writes)
    assert [read(text.rstrip("\n")) for text in writes] == [
        Line("importing shop:app"),
        Failure("port 8000 is taken\nby another process"),
    ]
