"""The bench's arithmetic and its tables: medians, ratios, budgets, reasons, and what is put into documents."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import budgets, table
from bench.calls import CallRound
from bench.load import LoadFailed, parse
from bench.results import PeerResults, Results, read
from bench.sections import SECTIONS
from bench.server import HttpRound, LoadFigures

WRK = """Running 1s test @ http://127.0.0.1:8111/
  1 threads and 32 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency   412.66us  201.04us   7.85ms   95.44%
    Req/Sec    78.01k     4.83k   84.91k    80.00%
  Latency Distribution
     50%  392.00us
     75%  441.00us
     90%    1.08ms
     99%    2.94s
  77631 requests in 1.00s, 9.18MB read
Requests/sec:  77581.30
Transfer/sec:      9.17MB
"""


def http_round(rate: float, p50_us: float = 100, cpu_us: float = 10, start_s: float = 0.5) -> HttpRound:
    loads = {connections: LoadFigures(rate, p50_us, cpu_us, 0) for connections in (1, 32, 128)}
    return HttpRound(start_s, 90.0, 5, loads)


def run_of(**rates: list[float]) -> Results:
    results = Results("2026-01-02T03:04:05+00:00", "2 cores", "abc1234", 3, 2.0)
    for name, seen in rates.items():
        results.peers[name] = PeerResults(name.title(), "1.0", [http_round(rate) for rate in seen])
    return results


def test_wrks_report_is_read() -> None:
    load = parse(WRK)
    assert (load.requests, load.rate, load.p50_us, load.failed) == (77631, 77581.30, 392.0, 0)


@pytest.mark.parametrize(
    ("line", "failed"),
    [
        ("  Non-2xx or 3xx responses: 17\n", 17),
        ("  Socket errors: connect 1, read 2, write 3, timeout 4\n", 10),
        ("  Socket errors: connect 0, read 2, write 0, timeout 0\n  Non-2xx or 3xx responses: 5\n", 7),
    ],
)
def test_what_failed_under_wrk_is_counted(line: str, failed: int) -> None:
    assert parse(WRK.replace("Requests/sec", line + "Requests/sec")).failed == failed


@pytest.mark.parametrize(("text", "expected"), [("1.50ms", 1500.0), ("2.00s ", 2e6), ("1.00m ", 60e6)])
def test_latencies_of_any_unit_are_microseconds(text: str, expected: float) -> None:
    assert parse(WRK.replace("392.00us", text)).p50_us == expected


def test_a_report_that_is_none_is_an_error() -> None:
    with pytest.raises(LoadFailed, match="unable to connect"):
        parse("unable to connect to 127.0.0.1:8111 Connection refused\n")


def test_figures_are_medians_and_ratios_are_of_medians() -> None:
    results = run_of(headrace=[30_000, 50_000, 40_000], uvicorn=[10_000, 90_000, 20_000])
    assert results.http("headrace", lambda seen: seen.loads[32].rate) == 40_000
    (row,) = [line for line in table.http_table(results).splitlines() if line.startswith("| Uvicorn")]
    assert row.endswith("| 2 × |")


def test_a_budget_is_met_missed_or_not_measured() -> None:
    results = run_of(headrace=[30_000], uvicorn=[20_000], fastapi=[10_000])
    by_name = {verdict.budget.what: verdict for verdict in budgets.judge(results)}
    against = "no-op JSON over HTTP, 32 connections: requests/s against "
    assert by_name[against + "uvicorn with a bare ASGI function"].met
    assert not by_name[against + "FastAPI on uvicorn"].met
    assert by_name[against + "Mosec with batches of 32"].figure is None
    text = table.budgets_table(results)
    assert "| ≥ 1 × | 1.5 × | met |" in text
    assert "| ≥ 4 × | 3 × | **missed** |" in text
    assert "| ≥ 1.1 × | – | not measured |" in text


def test_a_budget_that_is_not_measured_is_not_met() -> None:
    assert not any(verdict.met for verdict in budgets.judge(Results("", "", "", 1, 1.0)))


def test_a_limit_from_above_is_met_below_it() -> None:
    results = run_of(headrace=[1])
    results.peers["headrace"].calls = [CallRound(99, 151, 25_000, 1, 999, 1)]
    met = {verdict.budget.what: verdict.met for verdict in budgets.judge(results)}
    assert met["handle call in sequence from a coroutine in a replica: p50"]
    assert not met["handle call in sequence by .result() from a script: p50"]
    assert met["handle calls, 64 at once: calls/s"]
    assert met["10 MB array as an argument, same host: p50"]


def test_a_peer_that_failed_stays_in_the_tables_with_its_reason() -> None:
    results = run_of(headrace=[5.0], mosec=[])
    results.peers["mosec"].errors = ["could not be installed: no wheel"] * 3
    report = table.report(results, SECTIONS)
    assert "| Mosec (1.0) | – | – |" in report
    assert "- Mosec (1.0): not measured: could not be installed: no wheel" in report


def test_a_peer_that_failed_once_says_in_how_many_rounds_it_was_measured() -> None:
    results = run_of(ray=[5.0, 6.0])
    results.peers["ray"].errors = ["did not answer within 120 s"]
    assert "- Ray (1.0): measured in 2 of 3 rounds: did not answer within 120 s" in table.report(results, SECTIONS)


@pytest.mark.parametrize(
    ("value", "text"), [(None, "–"), (0.08051, "0.0805"), (12.345, "12.3"), (999.6, "1,000"), (154_321.0, "154,000")]
)
def test_numbers_have_three_digits(value: float | None, text: str) -> None:
    assert table.number(value) == text


def test_results_survive_the_disk(tmp_path: Path) -> None:
    results = run_of(headrace=[1.0, 2.0])
    results.write(tmp_path / "results" / "run.json")
    assert read(tmp_path / "results" / "run.json") == results


def test_only_what_stands_between_the_markers_is_replaced(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n")
    table.write_between(page, "new\n")
    table.write_between(page, "newer\n")
    assert page.read_text() == f"before\n{table.BEGIN}\nnewer\n{table.END}\nafter\n"


def test_a_page_without_markers_is_left_alone(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("text\n")
    with pytest.raises(ValueError, match="bench:begin"):
        table.write_between(page, "new")
    assert page.read_text() == "text\n"
