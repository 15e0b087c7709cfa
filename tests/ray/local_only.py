"""Which tests of instances run on a Ray cluster, and which do not, and why. A file that nothing is said of fails.

In: the node ids of tests. Out: `ON_RAY`, what `make test-ray` runs beside tests/ray; the reason why a test is left out,
None for what runs. As a program it prints the files of `ON_RAY`.
"""

from __future__ import annotations

ON_RAY = (
    "tests/e2e/test_stopping.py",
    "tests/e2e/test_websockets.py",
    "tests/e2e/test_web_applications.py",
    "tests/e2e/test_multiplexing.py",
    "tests/e2e/test_request_routers.py",
)

_KEEPER = (
    "about the keeper of one machine, its processes and files; tests/ray/test_ray_faults.py is the like on a cluster"
)

# By what the node ids begin with: about one machine, and so never on a cluster.
LOCAL_ONLY: dict[str, str] = {
    "tests/e2e/test_chaos.py": _KEEPER,
    "tests/e2e/test_faults.py": _KEEPER,
    "tests/e2e/test_source_packs.py": "looks into the directory in which one machine keeps packs",
    "tests/e2e/test_websockets.py::test_headrace_run_serves_https": "`headrace run` in the foreground",
}

_PORT = "has one port for all nodes, which nodes on one machine cannot share"
# What should run on a cluster, and does not yet.
NOT_YET: dict[str, str] = {
    "tests/e2e/test_batches.py": _PORT,
    "tests/e2e/test_rollouts.py": _PORT,
    "tests/e2e/test_users.py": _PORT,
    "tests/e2e/test_request_routers.py::test_a_session_goes_to_one_replica_and_moves_when_it_dies": (
        "a session is answered by more than one replica there: a defect"
    ),
    "tests/e2e/test_hedging_in_processes.py": "not tried",
    "tests/e2e/test_mishaps.py": "not tried",
    "tests/e2e/test_shadow.py": "not tried",
    "tests/examples/test_digits.py": "starts `make serve` in the foreground",
    "tests/examples/test_digits_canary.py": _PORT,
    "tests/examples/test_search.py": "starts `headrace run` in the foreground",
}


def reason(nodeid: str) -> str | None:
    """Why the test does not run on a cluster."""
    return next((why for name, why in (LOCAL_ONLY | NOT_YET).items() if nodeid.startswith(name)), None)


if __name__ == "__main__":
    print(*ON_RAY)
