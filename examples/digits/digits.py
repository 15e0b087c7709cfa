"""Serves the digits classifier: `headrace run digits:app --app-dir examples/digits` (train.py first).

In: a POST with a PNG of one handwritten digit (content-type image/png; white ink on black, any size), or with JSON
`{"pixels": [[...8 numbers...], ...8 rows...]}`, each from 0 (paper) to 16 (ink). Out: JSON `{"digit": 7,
"probabilities": [...ten...]}`; status 400 and `{"error": ...}` for a body that is neither.
"""

import io
import json
from pathlib import Path

import joblib
import numpy as np
from PIL import Image
from starlette.responses import JSONResponse

from headrace import serve

MODEL = Path(__file__).with_name("digits.joblib")
LARGEST_SIDE = 4096  # pixels; a PNG of a few bytes may claim to be gigabytes large


class BadImage(ValueError):
    """The body is not an image of a digit. The message says why and what would be right."""


def pixels_from_png(data):
    """The PNG as one row of 64 numbers from 0 to 16."""
    try:
        image = Image.open(io.BytesIO(data), formats=["PNG"])  # reads the header alone
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        raise BadImage(f"the body ({len(data)} bytes) is not a PNG image of a digit") from None
    if max(image.size) > LARGEST_SIDE:
        raise BadImage(f"the image is {image.size[0]} by {image.size[1]} pixels; at most {LARGEST_SIDE} a side")
    try:
        grey = image.convert("L").resize((8, 8), Image.Resampling.BOX)
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise BadImage(f"the PNG is damaged: {error}") from None
    return np.asarray(grey, dtype=float).reshape(1, 64) * (16 / 255)


def pixels_from_json(data):
    """`{"pixels": ...}` as one row of 64 numbers from 0 to 16."""
    try:
        pixels = np.asarray(json.loads(data)["pixels"], dtype=float)
    except (ValueError, TypeError, KeyError, RecursionError):
        raise BadImage('the body is not JSON of the form {"pixels": [[...8 numbers...], ...8 rows...]}') from None
    if pixels.shape not in ((8, 8), (64,)):
        raise BadImage(f"pixels has shape {list(pixels.shape)}; [8, 8] is needed")
    if not (np.isfinite(pixels).all() and pixels.min() >= 0 and pixels.max() <= 16):
        raise BadImage("pixels must lie between 0 (paper) and 16 (ink)")
    return pixels.reshape(1, 64)


@serve.deployment(num_replicas=2)
class Digits:
    def __init__(self, path):
        if not Path(path).exists():
            raise FileNotFoundError(f"{path} is not there: run examples/digits/train.py first")
        self.model = joblib.load(path)

    async def __call__(self, request):
        body = await request.body()
        is_json = request.headers.get("content-type", "").startswith("application/json")
        try:
            pixels = pixels_from_json(body) if is_json else pixels_from_png(body)
        except BadImage as error:
            return JSONResponse({"error": str(error)}, status_code=400)
        probabilities = self.model.predict_proba(pixels)[0]
        return {"digit": int(probabilities.argmax()), "probabilities": probabilities.round(4).tolist()}


app = Digits.bind(str(MODEL))
