"""Patterns in real processes, over real HTTP, declared in a script with functions that only the script has."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import json, os, sys, urllib.error, urllib.request
from headrace import patterns, serve

SCALE = 10  # a global of the script, used in a function
serve.start(http_options={"port": int(sys.argv[1])})
PORT = int(sys.argv[1])


@serve.deployment
class Words:
    def split(self, text): return text.split()


@serve.deployment
class Scorer:
    def __init__(self, weight): self.weight = weight
    def __call__(self, words): return {"p": min(1.0, self.weight * len(words)), "pid": os.getpid()}


@serve.deployment
class Crashing:
    def __call__(self, words): os._exit(3)


def ask(body):
    request = urllib.request.Request(f"http://127.0.0.1:{PORT}/", json.dumps(body).encode())
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def main():
    threshold = 0.8  # captured by a function

    async def highest(answers):
        return max(answers.values(), key=lambda answer: answer["p"])

    cheap, dear = Scorer.options(name="Cheap").bind(0.2), Scorer.options(name="Dear").bind(0.1)
    long = patterns.ensemble({"one": cheap, "other": dear}, combine=highest)
    short = patterns.cascade([cheap, dear], lambda answer: answer["p"] > threshold)
    broken = patterns.fallback(Crashing.options(repeatable=False).bind(), lambda words, error: {"p": 0, "pid": 0})
    app = patterns.pipeline(
        patterns.member(Words.bind(), method="split"),
        patterns.switch(lambda words: "long" if len(words) > 2 else words[0], {"long": long, "s": short, "b": broken}),
        lambda answer: {**answer, "p": round(answer["p"] * SCALE, 3), "mine": os.getpid()},
    )
    handle = serve.run(app, name="moods")
    status, answer = ask("one two three")
    assert (status, answer["p"]) == (200, 6.0), (status, answer)
    assert len({answer["pid"], answer["mine"], os.getpid()}) == 3, answer
    assert ask("s")[1]["p"] == 1.0  # the cheap one is not sure
    assert ask("b x")[1]["p"] == 0  # a process died for it
    assert handle.remote("b x").result(30)["pid"] == 0
    status, text = ask("z")
    assert (status, text) == (400, "Switch has no case 'z': it has 'long', 's', 'b'"), (status, text)
    assert ask(["no text"])[0] == 500
    print("all of it")


main()
"""


def test_functions_of_a_script_reach_the_replicas(tmp_path: Path) -> None:
    from bench.instance import free_port, on_ray

    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, str(script), str(free_port())],
        env=os.environ | {"HEADRACE_HOME": str(tmp_path / "h")},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all of it\n" in done.stdout
    if on_ray():
        return  # what replicas print stays on their nodes
    assert "It is the error of stage 1 of 3 of Pipeline: Words" in done.stdout
    assert "Fallback: Crashing failed, and the default is answered (ReplicaDiedError: " in done.stdout
