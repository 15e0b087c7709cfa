"""Batches in real processes: many clients, a request that takes its replica down, classes of a script."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from bench.instance import Instance

HERE = Path(__file__).parent
PATIENCE_S = 60
CLIENTS, EACH = 16, 25

SCRIPT = """
import asyncio
from headrace import serve

FACTOR = 3

@serve.deployment
class Model:
    def __init__(self):
        self.triple.set_max_batch_size(5)

    @serve.batch(max_batch_size=64, bucket_fn=lambda item: item % 2)
    def triple(self, items):
        return [(item * FACTOR, len(items), {i % 2 for i in items}) for item in items]

    @serve.batch
    async def spell(self, words):
        for i in range(max(map(len, words))):
            yield [word[i] if i < len(word) else StopIteration for word in words]

handle = serve.run(Model.bind(), route_prefix=None)
results = [call.result() for call in [handle.triple.remote(i) for i in range(40)]]
print([value for value, _, _ in results] == [i * 3 for i in range(40)])
print(1 < max(size for _, size, _ in results) <= 5, all(len(parities) == 1 for _, _, parities in results))
streams = [handle.options(stream=True).spell.remote(word) for word in ("one", "three")]
print(["".join(stream) for stream in streams])
"""


@pytest.mark.parametrize("target", ["app", "direct"])
def test_every_request_is_answered_but_the_one_that_takes_its_replica_down(target: str, tmp_path: Path) -> None:
    answers: dict[int, tuple[int, Any]] = {}

    with Instance(tmp_path, f"batch_apps:{target}", HERE) as instance:
        instance.ready()

        def ask(client: int) -> None:
            connection = http.client.HTTPConnection("127.0.0.1", instance.port, timeout=PATIENCE_S)
            for number in range(client * EACH, (client + 1) * EACH):
                connection.request("POST", "/", str(number))
                response = connection.getresponse()
                body = response.read()
                answers[number] = response.status, json.loads(body) if response.status == 200 else body
            connection.close()

        threads = [threading.Thread(target=ask, args=(client,)) for client in range(CLIENTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(answers) == CLIENTS * EACH
    assert answers.pop(13)[0] == 500
    wrong = {number: answer for number, answer in answers.items() if answer[0] != 200}
    assert not wrong
    assert all(answer["square"] == number * number for number, (_, answer) in answers.items())
    assert 1 < max(answer["of"] for _, answer in answers.values()) <= 8


def test_a_class_of_a_script(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    env = os.environ | {"HEADRACE_HOME": str(tmp_path / "home"), "HEADRACE_INSTANCE": "batches"}
    ran = subprocess.run(
        [sys.executable, script], env=env, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines() == ["True", "True True", "['one', 'three']"]
