"""A model of 10 ms in four replicas, one of which stalls on 2 % of its calls, hedged and not, for the bench.

A stall takes 20 times as long. GET /?key asks the model; /calls tells how many calls the replicas have begun, copies
included, and how many keys these have; after GET /slow all calls of all replicas stall.
"""

import os
import random
import time
from pathlib import Path

from batch_model import wait_until

from headrace import serve

SERVICE_S = 0.010
STALL = 20
CHANCE = 0.02
SHARED = Path(os.environ.get("HEADRACE_HOME", "/tmp")) / "hedging"  # between replicas


class Model:
    def __init__(self):
        SHARED.mkdir(exist_ok=True)
        self.calls = os.open(SHARED / "calls", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self.chance = random.Random(1)
        try:
            os.close(os.open(SHARED / "stalls", os.O_CREAT | os.O_EXCL))
            self.stalls = True
        except FileExistsError:  # another replica was first
            self.stalls = False

    def __call__(self, request):
        path = request.url.path
        if path == "/calls":
            keys = (SHARED / "calls").read_text().split()
            return [len(keys), len(set(keys))]
        if path == "/slow":
            (SHARED / "slow").touch()
            return True
        began = time.perf_counter()
        os.write(self.calls, request.url.query.encode() + b"\n")
        stalls = (SHARED / "slow").exists() or (self.stalls and self.chance.random() < CHANCE)
        wait_until(began + SERVICE_S * (STALL if stalls else 1))
        return {"done": True}


hedged = serve.deployment(name="Hedged", num_replicas=4, max_ongoing_requests=4, hedge=True)(Model)
plain = serve.deployment(name="Plain", num_replicas=4, max_ongoing_requests=4)(Model)
app = hedged.bind()
without = plain.bind()
