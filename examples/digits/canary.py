"""Rolls out two new models under load: the second, which is better, to 100 %, and a third, which goes back by itself.

In: `--port` (8010), `--seconds` a step (4). Clients send images that no model was trained on, all the time, and report
of each answer whether it was right: that is what the rollouts go by. Out: what happens, line by line; exits with 1 when
a request failed, or a rollout ended otherwise. Train first: `python train.py`.
"""

import argparse
import sys
import threading
from pathlib import Path

import httpx
from client import png
from digits import MODEL, Digits
from train import split

from headrace import serve

APP = "digits"
CLIENTS = 4
PAUSE_S = 0.01  # of each client: the machine has other things to do as well


class Clients:
    """Threads that ask again and again, and report what was right."""

    def __init__(self, url):
        _, images, _, labels = split()
        self.asked = self.failed = 0
        self._work = [(png(pixels), label) for pixels, label in zip(images, labels, strict=True)]
        self._url = url
        self._done = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._ask, args=(first,)) for first in range(CLIENTS)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error):
        self._done.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, first):
        with httpx.Client(timeout=30, headers={"content-type": "image/png"}) as client:
            number = first
            while not self._done.wait(PAUSE_S):
                body, label = self._work[number % len(self._work)]
                number += CLIENTS
                try:
                    response = client.post(self._url, content=body)
                    failed = response.status_code != 200
                except httpx.HTTPError:
                    failed = True
                with self._lock:
                    self.asked += 1
                    self.failed += failed
                if not failed:
                    right = response.json()["digit"] == label
                    serve.observe("right", right, request_id=response.headers["x-request-id"], app_name=APP)


def roll_out(name, steps):
    """Roll out the model of this name; how it ended."""
    rollout = serve.Canary(
        steps=steps, analysis=[serve.ErrorRate(), serve.Metric(name="right", better="higher", tolerance=0.02)]
    )
    print(f"\n{name}: {', then '.join(f'{weight:.0%} for {pause_s:g} s' for weight, pause_s in steps)}", flush=True)
    serve.run(Digits.bind(str(MODEL.with_name(f"{name}.joblib"))), name=APP, rollout=rollout)
    status = serve.wait_for_rollout(APP, 120, on_change=show)
    print(f"{name}: {status.outcome}. {status.reason}", flush=True)
    return status.outcome


def show(status):
    weights = ", ".join(f"{weight:.0%} to revision {number}" for number, weight in sorted(status.weights.items()))
    print(f"  {status.stage}: {weights}", flush=True)
    for check in status.checks:
        print(f"    {check.text}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=8010)
    parser.add_argument("--seconds", type=float, default=4.0, help="how long each step lasts")
    options = parser.parse_args()
    for name in ("digits", "second", "third"):
        if not Path(MODEL.with_name(f"{name}.joblib")).exists():
            sys.exit(f"{name}.joblib is not there: run examples/digits/train.py first")
    steps = [(0.2, options.seconds), (0.5, options.seconds)]
    serve.start(http_options={"port": options.port})
    try:
        serve.run(Digits.bind(str(MODEL)), name=APP)
        with Clients(f"http://127.0.0.1:{options.port}/") as clients:
            outcomes = [roll_out(name, steps) for name in ("second", "third")]
        weights = serve.rollout_status(APP).weights
    finally:
        serve.shutdown()
    print(f"\n{clients.asked} requests, {clients.failed} failed. The traffic goes to revision {max(weights)}.")
    if clients.failed or outcomes != ["PROMOTED", "ROLLED_BACK"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
