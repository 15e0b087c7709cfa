"""Which tests of instances run on a Ray cluster, and which do not, and why. One that nothing is said of fails.

In: the node ids of tests. Out: `ON_RAY`, what `make test-ray` runs beside tests/ray; `LONG`, what it leaves out for its
time, and `make test-ray-long` runs; the reason why a test is left out, None for what runs. As a program it prints what
`make test-ray` has `tests/beside.py` run, three parts about as long as one another; with `long`, the files of the rest.
"""

from __future__ import annotations

import sys

ON_RAY = (
    "tests/e2e/test_stopping.py",
    "tests/e2e/test_websockets.py",
    "tests/e2e/test_web_applications.py",
    "tests/e2e/test_multiplexing.py",
    "tests/e2e/test_request_routers.py",
    "tests/e2e/test_batches.py",
    "tests/e2e/test_rollouts.py",
    "tests/e2e/test_users.py",
    "tests/e2e/test_mishaps.py",
    "tests/e2e/test_shadow.py",
    "tests/examples/test_digits.py",
    "tests/examples/test_digits_canary.py",
    "tests/examples/test_search.py",
    "tests/moving/test_moving.py",
    "tests/patterns/test_patterns_in_processes.py",
)

# Tests of tests/ray whose clusters are their own, and which wait more than they work; then one that makes up for it.
APART = (
    "tests/ray/test_cut_off.py",
    "tests/ray/test_partition.py",
    "tests/ray/test_head_loss.py",
    "tests/ray/test_fabric.py",
    "tests/ray/test_ray_contract.py",
    "tests/examples/test_digits_canary.py",
)

_KEEPER = (
    "about the keeper of one machine, its processes and files; tests/ray/test_ray_faults.py is the like on a cluster"
)

_NONE = "starts no instance"
_SEARCH = "tests/examples/test_search.py::test_"
# By what the node ids begin with: about one machine, and so never on a cluster.
LOCAL_ONLY: dict[str, str] = {
    "tests/e2e/test_chaos.py": _KEEPER,
    "tests/e2e/test_faults.py": _KEEPER,
    "tests/e2e/test_hedging_in_processes.py": (
        "stalls one replica of several and asks from one process, whose calls stay on its own node on a cluster: "
        "tests/router/test_locality.py has where copies go"
    ),
    "tests/e2e/test_source_packs.py": "looks into the directory in which one machine keeps packs",
    "tests/e2e/test_websockets.py::test_headrace_run_serves_https": "`headrace run` in the foreground",
    "tests/examples/test_digits.py::test_the_curl_line_that_make_serve_prints_works_as_pasted": (
        "`make serve` in the foreground"
    ),
    "tests/examples/test_digits.py::test_the_client_says_what_to_do_when_nothing_listens": _NONE,
    f"{_SEARCH}vectors_are_those_of_the_reference": _NONE,
    f"{_SEARCH}a_text_has_the_same_vector": _NONE,
    f"{_SEARCH}queries_that_come_while_the_model_works": _NONE,
    f"{_SEARCH}what_was_not_prepared": _NONE,
    f"{_SEARCH}the_nearest_come_first": _NONE,
    f"{_SEARCH}the_ranker_puts_sold_out_books_lower": _NONE,
    f"{_SEARCH}preparing_without_a_table": _NONE,
    "tests/e2e/test_rollouts.py::test_a_controller_that_is_killed": (
        "kills a child of the keeper: tests/ray/test_ray_faults.py has the same with the actor"
    ),
    "tests/patterns/": "in the local testing mode, which has no processes; test_patterns_in_processes.py runs",
}

_ONE = "one replica that calls no other, again and again: test_web_applications.py is the like, and runs"
# What runs on a cluster too, and is not run each time.
LONG: dict[str, str] = {
    "tests/rpc/": "an instance for each file; the services of tests/moving go the same way through the same ingress",
    "tests/moving/test_moving.py::TestPlainHandlers": _ONE,
    "tests/moving/test_moving.py::TestFastAPI": _ONE,
    "tests/moving/test_moving.py::TestComposition": "graphs of replicas: test_users.py is the like, and runs",
    "tests/moving/test_moving.py::TestStreams": "test_mishaps.py has the streams that run, and end otherwise",
}


def reason(nodeid: str, long: bool = False) -> str | None:
    """Why the test does not run on a cluster, or not in this run: that of the `long` ones, or that of the others."""
    file = nodeid.partition("::")[0]
    for name, why in (LOCAL_ONLY | LONG).items():
        if nodeid.startswith(name) and ("::" in name or file not in ON_RAY):
            return None if long and name in LONG else why
    return "make test-ray runs it" if long else None


def parts() -> list[list[str]]:
    """The arguments of pytest for each of the parts."""
    rest = [file for file in ON_RAY if file not in APART]
    beside = [file for file in rest if file.startswith(("tests/examples/", "tests/patterns/", "tests/e2e/test_users"))]
    return [
        [file for file in rest if file not in beside],
        list(APART),
        ["tests/ray", *beside, *(f"--ignore={file}" for file in APART)],
    ]


if __name__ == "__main__":
    if "long" in sys.argv:
        print("--engine ray --long", *dict.fromkeys(name.partition("::")[0] for name in LONG))
    else:
        print(" -- ".join(" ".join(["--engine", "ray", *part]) for part in parts()))
