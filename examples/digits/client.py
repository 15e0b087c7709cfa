"""Sends handwritten digits that the model has not seen to the running example, and counts what it gets right.

In: `--url` (http://127.0.0.1:8000/), `--count` images (all 450 if not said). Out: a line for each image, prediction
beside label, and at the end the accuracy. Exits with 1 when the server cannot be reached or answers with an error.
"""

import argparse
import io
import sys
import time

import httpx
from train import split, to_image


def png(pixels):
    buffer = io.BytesIO()
    to_image(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", default="http://127.0.0.1:8000/")
    parser.add_argument("--count", type=int, default=None, help="how many images (default: all that were held out)")
    options = parser.parse_args()
    _, images, _, labels = split()
    images, labels = images[: options.count], labels[: options.count]
    right = 0
    began = time.perf_counter()
    with httpx.Client(timeout=30) as client:
        for number, (pixels, label) in enumerate(zip(images, labels, strict=True), 1):
            try:
                response = client.post(options.url, content=png(pixels), headers={"content-type": "image/png"})
            except httpx.HTTPError as error:
                sys.exit(f"{options.url}: {error}. Is the example running? Start it with `make serve`.")
            if response.status_code != 200:
                sys.exit(f"{options.url}: status {response.status_code}: {response.text.strip()}")
            answer = response.json()
            digit, probability = answer["digit"], max(answer["probabilities"])
            right += digit == label
            mark = "" if digit == label else "   <- wrong"
            print(f"{number:4}/{len(labels)}  label {label}  predicted {digit}  ({probability:4.0%}){mark}")
    seconds = time.perf_counter() - began
    print(f"{right} of {len(labels)} right ({right / len(labels):.1%}) in {seconds:.1f} s")


if __name__ == "__main__":
    main()
