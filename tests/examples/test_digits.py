"""The digits example as a newcomer meets it: trained, served by `make serve`, asked with images and with nonsense."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import joblib
import numpy as np
import pytest
from PIL import Image

from bench.instance import Instance, free_port, on_ray

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "examples" / "digits"
BIN = Path(sys.executable).parent
NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


@dataclass(frozen=True)
class Served:
    """The example as it runs: its port, and what its terminal has shown so far."""

    port: int
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """`make serve` on a free port, in an instance of its own; ends well when it is asked to."""
    folder = tmp_path_factory.mktemp("digits")
    if on_ray():  # `make serve` serves on this machine
        with Instance(folder / "home", "digits:app", DIGITS) as instance:
            yield Served(instance.ready().port, folder / "terminal.txt")
        return
    served = Served(free_port(), folder / "terminal.txt")
    # The make that runs the tests must not hand its own flags (a dry run, a job server) to this one.
    kept = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
    with served.log.open("wb") as output:
        server = subprocess.Popen(
            ["make", "serve", f"PORT={served.port}"],
            cwd=ROOT,
            env={**kept, "HEADRACE_HOME": str(folder / "home")},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    end = time.monotonic() + 110
    while "ready in" not in served.log.read_text():
        assert server.poll() is None, served.log.read_text()
        assert time.monotonic() < end, served.log.read_text()
        time.sleep(0.02)
    yield served
    os.killpg(server.pid, signal.SIGINT)  # what Ctrl-C does: the whole foreground group gets it
    server.wait(40)
    assert "stopped" in served.log.read_text()


def ask(served: Served, body: bytes, content_type: str = "image/png") -> httpx.Response:
    return httpx.post(served.url, content=body, headers={"content-type": content_type}, timeout=30)


def test_the_curl_line_that_make_serve_prints_works_as_pasted(served: Served) -> None:
    line = re.search(r"^\s*(curl .+)$", served.log.read_text(), re.MULTILINE)
    assert line is not None
    done = subprocess.run(["bash", "-c", line[1]], cwd=ROOT, capture_output=True, text=True, timeout=30, check=True)
    assert json.loads(done.stdout)["digit"] == 7


def test_a_sample_over_http_is_read_as_the_model_itself_reads_it(served: Served) -> None:
    model = joblib.load(DIGITS / "digits.joblib")
    right = 0
    for digit, name in enumerate(NAMES):
        png = (DIGITS / "samples" / f"{name}.png").read_bytes()
        with Image.open(io.BytesIO(png)) as image:
            pixels = np.round(np.asarray(image) * (16 / 255)).reshape(1, 64)
        answer = ask(served, png).json()
        assert answer["digit"] == model.predict(pixels)[0]
        assert answer["probabilities"] == pytest.approx(model.predict_proba(pixels)[0].tolist(), abs=0.02)
        right += answer["digit"] == digit
    assert right >= 8


def test_pixels_as_json_and_a_larger_png_give_the_same_answer(served: Served) -> None:
    with Image.open(DIGITS / "samples" / "four.png") as image:
        pixels = (np.asarray(image) * (16 / 255)).tolist()
        enlarged = io.BytesIO()
        image.resize((64, 64), Image.Resampling.NEAREST).convert("RGB").save(enlarged, format="PNG")
    as_json = ask(served, json.dumps({"pixels": pixels}).encode(), "application/json").json()
    assert as_json["digit"] == 4
    assert ask(served, enlarged.getvalue()).json() == as_json


def huge_png() -> bytes:
    buffer = io.BytesIO()
    Image.new("1", (5000, 10)).save(buffer, format="PNG")
    return buffer.getvalue()


SAMPLE = (DIGITS / "samples" / "one.png").read_bytes()
BAD = {
    "empty": (b"", "image/png", "not a PNG"),
    "text": (b"hello", "image/png", "not a PNG"),
    "cut off": (SAMPLE[: len(SAMPLE) // 2], "image/png", "damaged"),
    "too large": (huge_png(), "image/png", "5000 by 10"),
    "no JSON": (b"{", "application/json", "not JSON"),
    "no pixels": (b'{"image": []}', "application/json", "not JSON of the form"),
    "a list": (b"[1, 2]", "application/json", "not JSON of the form"),
    "nested deeply": (b"[" * 100_000, "application/json", "not JSON"),
    "wrong shape": (b'{"pixels": [[1, 2], [3, 4]]}', "application/json", "[2, 2]"),
    "ragged": (b'{"pixels": [[1, 2], [3]]}', "application/json", "not JSON of the form"),
    "out of range": (json.dumps({"pixels": [17.0] * 64}).encode(), "application/json", "between 0"),
    "not a number": (b'{"pixels": [' + b"NaN," * 63 + b"NaN]}", "application/json", "between 0"),
}


@pytest.mark.parametrize(("body", "content_type", "reason"), BAD.values(), ids=BAD)
def test_a_bad_image_is_a_400_that_says_why(served: Served, body: bytes, content_type: str, reason: str) -> None:
    answer = ask(served, body, content_type)
    assert answer.status_code == 400
    assert reason in answer.json()["error"]


def test_the_client_sends_images_that_the_model_was_not_trained_on_and_counts(served: Served) -> None:
    command = [sys.executable, str(DIGITS / "client.py"), "--url", served.url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 451
    assert re.match(r" *1/450  label \d  predicted \d", lines[0])
    right = sum("<- wrong" not in line for line in lines[:-1])
    assert lines[-1].startswith(f"{right} of 450 right")
    assert right / 450 == pytest.approx(json.loads((DIGITS / "accuracy.json").read_text())["accuracy"])
    assert right / 450 > 0.95


def test_the_client_says_what_to_do_when_nothing_listens() -> None:
    command = [sys.executable, str(DIGITS / "client.py"), "--url", f"http://127.0.0.1:{free_port()}/"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "make serve" in done.stderr
