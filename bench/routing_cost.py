"""What routing costs for each request, by the number of replicas: `python bench/routing_cost.py`.

Three rows: to choose a replica and hear its reply; to queue a call and send it on an offer; to offer a freed slot while
so many callers wait. Each figure is the median of interleaved rounds, in microseconds, and as a ratio to that for ten.
With one or two replicas there is less to choose; from ten on, a row that grew with the number would be a defect. (The
offer keeps a heap of callers, so it grows with their logarithm.)
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from random import Random
from time import perf_counter

from headrace.core.balance import Balancer, Replica
from headrace.core.gate import Gate

COUNTS = (1, 2, 10, 30, 100, 300, 1000)
BASE = 10
ROUNDS = 7
REQUESTS = 20_000
LIMIT = 8


def balancer(replicas: int) -> Balancer[int]:
    made: Balancer[int] = Balancer(LIMIT, -1, Random(1))
    for i in range(replicas):
        made.add(f"d#{i}")
    return made


def prepare_choose(replicas: int) -> Callable[[], None]:
    """Half of the slots are taken; a call ends, another is sent."""
    router = balancer(replicas)
    sent = [router.choose() for _ in range(replicas * LIMIT // 2)]
    busy: list[Replica] = [replica for replica in sent if replica is not None]
    choose, finished, announce = router.choose, router.finished, router.announce

    def run() -> None:
        count, at = len(busy), 0
        for _ in range(REQUESTS):
            replica = busy[at]
            finished(replica, replica.ours - 1)
            chosen = choose()
            announce()
            assert chosen is not None
            busy[at] = chosen
            at += 1
            if at == count:
                at = 0

    return run


def prepare_queue(replicas: int) -> Callable[[], None]:
    """All slots are taken; a call comes and waits, a call ends, and its slot is offered to the eldest."""
    router = balancer(replicas)
    busy: list[Replica] = []
    while (replica := router.choose()) is not None:
        busy.append(replica)
    for call in range(-10, 0):
        router.enqueue(call, 0.0)
    router.announce()

    def run() -> None:
        count = len(busy)
        for i in range(REQUESTS):
            if router.choose() is None:
                router.enqueue(i, float(i))
            replica = busy[i % count]
            router.finished(replica, LIMIT)
            router.offered(replica, LIMIT, float(i))
            router.urgency_s(float(i), replica)
            router.announce()
        # The next round counts from 0 again: leave it nothing that is younger than its own calls.
        router.take_all()
        for call in range(-10, 0):
            router.enqueue(call, 0.0)
        router.announce()

    return run


def prepare_offer(callers: int) -> Callable[[], None]:
    """A slot comes free, is offered to the caller that waits longest, and its call takes it."""
    gate: Gate[int] = Gate(LIMIT)
    for _ in range(LIMIT):
        gate.enter(-1, False, 0.0)
    for caller in range(callers):
        gate.waiting(caller, 5, 1.0 - caller / callers, 1.0)

    def run() -> None:
        for i in range(REQUESTS):
            chosen = gate.leave(2.0 + i)
            assert chosen is not None
            gate.enter(chosen, True, 2.0 + i, 0.5)

    return run


ROWS = {
    "choose a replica, hear its reply (by replicas)": prepare_choose,
    "wait in the queue, go on an offer (by replicas)": prepare_queue,
    "offer a freed slot (by callers that wait)": prepare_offer,
}


def measure(prepare: Callable[[int], Callable[[], None]]) -> dict[int, float]:
    """Microseconds for each request, by count: the median of rounds that take turns."""
    runs = {count: prepare(count) for count in COUNTS}
    times: dict[int, list[float]] = {count: [] for count in COUNTS}
    for _ in range(ROUNDS):
        for count, run in runs.items():
            start = perf_counter()
            run()
            times[count].append((perf_counter() - start) / REQUESTS * 1e6)
    return {count: statistics.median(found) for count, found in times.items()}


def main() -> int:
    print(f"{'µs a request':50}" + "".join(f"{count:>12}" for count in COUNTS))
    for name, prepare in ROWS.items():
        found = measure(prepare)
        print(f"{name:50}" + "".join(f"{cost:6.2f} {cost / found[BASE]:4.2f}x" for cost in found.values()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
