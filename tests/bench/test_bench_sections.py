"""The bench's sections: who is chosen, what their figures become in budgets and tables, and what their tools say."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator

import pytest

from bench import budgets, rounds, table
from bench.__main__ import choose, only_budgets
from bench.calls import figures_in
from bench.environments import version
from bench.fastapi_apps import CHUNKS, MESSAGE, MESSAGE_QUESTION, MESSAGE_SCRIPT
from bench.load import LoadFailed, parse_h2load
from bench.peers import PEERS, Peer
from bench.results import Entry, Measured, Results
from bench.section import Column, Section
from bench.sections import SECTIONS
from bench.server import PeerFailed, Question, check_answer

H2LOAD = """finished in 1.00s, 5036.00 req/s, 402.52KB/s
requests: 5036 total, 5068 started, 5036 done, 5036 succeeded, 0 failed, 0 errored, 0 timeout
status codes: 5036 2xx, 0 3xx, 0 4xx, 0 5xx
traffic: 402.52KB (412184) total, 15.05KB (15408) headers (space savings 96.22%), 118.03KB (120864) data
                     min         max         mean         sd        +/- sd
time for request:      280us     14.81ms      6.32ms      1.55ms    69.48%
time for connect:       53us       100us        79us        19us    50.00%
"""


def run_of(section: str, **figures: dict[str, list[float]]) -> Results:
    """A run in which each entrant has these figures, a value a round."""
    results = Results("2026-01-02T03:04:05+00:00", "2 cores", "abc1234", 3, 2.0)
    results.sections[section] = {
        name.replace("_", "-"): Entry(
            name, "1.0", [Measured(dict(zip(seen, values, strict=True))) for values in zip(*seen.values(), strict=True)]
        )
        for name, seen in figures.items()
    }
    return results


def verdicts(results: Results) -> dict[str, budgets.Verdict]:
    return {verdict.budget.what: verdict for verdict in budgets.judge(results) if verdict.figure is not None}


def test_h2loads_report_is_read() -> None:
    load = parse_h2load(H2LOAD, 24)
    assert (load.requests, load.rate, load.p50_us, load.failed) == (5036, 5036.0, 6320.0, 0)


def test_a_grpc_error_is_an_answer_without_a_message() -> None:
    assert parse_h2load(H2LOAD.replace("(120864) data", "(0) data"), 24).failed == 5036
    assert parse_h2load(H2LOAD.replace("(120864) data", "(120840) data"), 24).failed == 1


def test_a_report_that_is_none_is_an_error() -> None:
    with pytest.raises(LoadFailed, match="could not be read"):
        parse_h2load("failed to resolve host", 24)


def test_figures_are_found_among_what_a_script_prints() -> None:
    assert json.loads(figures_in('a warning\nFIGURES {"a": 1.5}\nbye\n', "x.py", 0)) == {"a": 1.5}
    with pytest.raises(PeerFailed, match=r"x\.py: status 3: ValueError: no"):
        figures_in("Traceback\nValueError: no\n", "x.py", 3)
    with pytest.raises(PeerFailed, match="nothing said"):
        figures_in("", "x.py", -9)


def test_a_line_of_figures_that_is_cut_is_none() -> None:
    with pytest.raises(PeerFailed):
        figures_in('FIGURES {"a": 1.5, "b"', "x.py", -9)


def test_everything_is_chosen_unless_said_otherwise() -> None:
    choice = choose([])
    assert choice.peers == PEERS
    assert (choice.http, choice.calls) == (True, True)
    assert [section.name for section, _ in choice.sections] == list(SECTIONS)
    assert all(entrants == section.entrants for section, entrants in choice.sections)


def test_sections_and_peers_are_chosen_by_name() -> None:
    choice = choose(["grpc", "calls", "headrace"])
    assert [peer.name for peer in choice.peers] == ["headrace"]
    assert (choice.http, choice.calls) == (False, True)
    assert [(section.name, [peer.name for peer in entrants]) for section, entrants in choice.sections] == [
        ("grpc", ["headrace"])
    ]


def test_peers_alone_take_part_wherever_they_can() -> None:
    choice = choose(["ray-fast"], http=False)
    assert [peer.name for peer in choice.peers] == ["ray-fast"]
    assert [section.name for section, _ in choice.sections] == ["composed", "streams", "batching"]


def test_handle_calls_alone_start_no_server_without_handles() -> None:
    assert [peer.name for peer in choose(["calls"]).peers] == ["headrace", "ray", "ray-fast"]


def test_the_least_leaves_out_who_is_there_for_the_picture() -> None:
    choice = choose([], least=True)
    assert {peer.name for peer in choice.peers} == {*budgets.PEERS_NEEDED, "ray-fast"}
    chosen = {section.name: {peer.name for peer in entrants} for section, entrants in choice.sections}
    assert chosen["composed"] == {"headrace", "ray-fast"}
    assert chosen["overload"] == {"headrace"}
    assert "ray" in {peer.name for peer in choose(["ray"], least=True).peers}, "unless named"


def test_the_budgets_have_all_that_they_need() -> None:
    choice = only_budgets(choose([], least=True))
    results = Results("", "", "", 1, 1.0)
    for section, entrants in choice.sections:
        figures = {column.figure: 1.0 for column in section.columns}
        results.sections[section.name] = {peer.name: Entry("", "", [Measured(figures)]) for peer in entrants}
    foundation = [peer.name for peer in choice.peers]
    assert foundation == ["headrace", "nohop", "uvicorn", "fastapi", "mosec32"]
    missing = [verdict.budget.what for verdict in budgets.judge(results) if verdict.figure is None]
    assert len(missing) == 12, f"those of the no-op model and of handle calls alone: {missing}"


def test_each_section_can_be_told_apart_and_compares_what_it_shows() -> None:
    for name, section in SECTIONS.items():
        assert name == section.name
        figures = [column.figure for column in section.columns]
        assert len(set(figures)) == len(figures)
        assert not section.compare or section.compare in figures
        names = [peer.name for peer in section.entrants]
        assert "headrace" in names
        assert len(set(names)) == len(names)
        assert section.picture < set(names)


def test_each_entrant_has_pinned_requirements_and_shows_a_version_where_it_is_not_ours() -> None:
    for section in SECTIONS.values():
        for peer in section.entrants:
            if peer.requirements is not None:
                pins = peer.requirements.read_text().split()
                assert all(re.fullmatch(r"[\w-]+(\[\w+\])?==[\w.]+", pin) for pin in pins), peer.name
            assert bool(version(peer)) is not peer.name.startswith("headrace"), (section.name, peer.name)


def test_commands_name_files_that_are_there() -> None:
    for section in SECTIONS.values():
        for peer in section.entrants:
            command = peer.command_line(8001, 8002)
            assert not any("{" in part for part in command)
            assert peer.holds_headrace is (peer.folder == "web")


def test_the_message_is_that_of_the_script() -> None:
    repeated, length = re.findall(r'rep\("(\w+)", (\d+)\)', MESSAGE_SCRIPT.read_text())[0]
    assert (repeated * int(length))[:10_000] == MESSAGE
    assert len(MESSAGE) == 10_000
    assert MESSAGE_QUESTION.right(json.dumps({"text": MESSAGE}).encode())
    assert not MESSAGE_QUESTION.right(json.dumps({"text": MESSAGE[1:]}).encode())
    assert CHUNKS.count(b"\n") == 100


def test_a_ratio_of_a_section_is_of_medians() -> None:
    results = run_of("asgi", headrace={"rate_32": [9.0, 100.0, 8.0]}, fastapi={"rate_32": [10.0, 10.0, 1.0]})
    (verdict,) = verdicts(results).values()
    assert verdict.figure == pytest.approx(0.9)
    assert verdict.met


def test_rays_best_is_the_better_of_its_modes() -> None:
    results = run_of("composed", headrace={"rate_32": [50.0]}, ray={"rate_32": [5.0]}, ray_fast={"rate_32": [11.0]})
    (verdict,) = verdicts(results).values()
    assert verdict.figure == pytest.approx(50 / 11)
    assert not verdict.met
    del results.sections["composed"]["ray-fast"]
    (verdict,) = verdicts(results).values()
    assert verdict.met


def test_the_batching_peers_best_counts_for_each_end() -> None:
    results = run_of(
        "batching",
        headrace={"p50_ms": [2.2], "full": [9600.0]},
        headrace_32={"full": [7000.0]},
        headrace_fixed={"full": [10000.0]},
        headrace_bare={"p50_ms": [2.1]},
        mosec={"p50_ms": [12.0], "full": [7100.0]},
        bentoml={"p50_ms": [4.0], "full": [500.0]},
    )
    found = {name: (round(verdict.figure or 0, 3), verdict.met) for name, verdict in verdicts(results).items()}
    assert sorted(found.values()) == [(0.55, True), (0.96, True), (0.986, False), (1.048, True), (1.352, True)]
    assert len(budgets.judge(results)) == len(budgets.BUDGETS)


@pytest.mark.parametrize(("share", "high", "met"), [(0.9, 1.0, [True, True]), (0.899, 0.999, [False, False])])
def test_overload_is_met_by_shares(share: float, high: float, met: list[bool]) -> None:
    results = run_of("overload", headrace={"in_time_share": [share], "high_in_time_share": [high]})
    assert [verdict.met for verdict in verdicts(results).values()] == met


def test_one_item_too_many_misses_the_slow_readers_budget() -> None:
    results = run_of("slow-reader", headrace={"growth_mb": [0.0], "made_meanwhile": [1.0]})
    assert sorted(verdict.met for verdict in verdicts(results).values()) == [False, True]


def test_the_report_has_a_table_for_each_section_and_reasons() -> None:
    results = run_of("asgi", headrace={"rate_32": [900.0]}, fastapi={"rate_32": [450.0]})
    results.sections["grpc"] = {"grpcio": Entry("grpcio", "1.0", [], ["h2load is not installed"])}
    report = table.report(results, SECTIONS)
    assert "## A FastAPI application" in report
    assert "| fastapi (1.0) | – | – | 450 | – | – | – | 2 × |" in report
    assert "- grpc, grpcio (1.0): not measured: h2load is not installed" in report
    assert "## No-op JSON" not in report
    assert "![" not in report
    assert "\n\n![A FastAPI application](a.svg)\n\n## gRPC" in table.report(results, SECTIONS, {"asgi": "a.svg"})
    assert "FastAPI application, 32 connections: requests/s against uvicorn | ≥ 0.9 × | 2 × | met |" in report


def measured_by(measure: object) -> Results:
    """Two rounds of one section with one entrant that has no environment of its own."""
    peer = Peer("headrace", "Headrace", (), None)
    section = Section("asgi", "", "", (peer,), (Column("rate_32", ""),), measure)  # type: ignore[arg-type]
    results = Results("", "", "", 2, 1.0)
    rounds.run(rounds.Choice((), False, False, ((section, (peer,)),)), results)
    return results


def test_a_round_that_breaks_is_told_and_the_others_count(capfd: pytest.CaptureFixture[str]) -> None:
    answers: Iterator[Exception | Measured] = iter([ZeroDivisionError("oh"), Measured({"rate_32": 5.0})])

    def measure(peer: Peer, seconds: float) -> Measured:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    results = measured_by(measure)
    entry = results.sections["asgi"]["headrace"]
    assert entry.errors == ["ZeroDivisionError: oh"]
    assert results.figure("asgi", "headrace", "rate_32") == 5.0
    assert "measured in 1 of 2 rounds: ZeroDivisionError: oh" in table.failures(results)
    assert "Traceback" in capfd.readouterr().err


def test_a_wrong_answer_is_told() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        question = Question("/", None, lambda body: False, "nothing")
        with pytest.raises(PeerFailed, match="ConnectionRefusedError"):
            check_answer(nobody.getsockname()[1], question)
