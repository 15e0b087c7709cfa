"""Trains classifiers on scikit-learn's bundled handwritten digits and saves them beside this file.

In: nothing; the 1,797 real images of 8 by 8 pixels come with scikit-learn. Out: `digits.joblib` (the fitted model),
`accuracy.json` (its accuracy on images that it was not trained on) and the first of those images of each digit, as PNG
in `samples/`, whether the model gets them right or not. For canary.py a second model, which gets more right
(`second.joblib`), and a third (`third.joblib`) that somebody trained on one image of each digit by mistake.
"""

import json
from pathlib import Path

import joblib
import numpy as np
from PIL import Image
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_digits
from sklearn.kernel_approximation import Nystroem
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.svm import SVC

HERE = Path(__file__).parent
NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def split():
    """The images as (train, held out, train labels, held-out labels), the same at each call: a quarter is held out."""
    images, labels = load_digits(return_X_y=True)
    return train_test_split(images, labels, test_size=0.25, random_state=7, stratify=labels)


def to_image(pixels):
    """One row of 64 pixels from 0 (paper) to 16 (ink) as an 8 by 8 grey image, 0 to 255, ink white."""
    return Image.fromarray(np.round(pixels.reshape(8, 8) * (255 / 16)).astype(np.uint8))


def main():
    train, held_out, train_labels, held_out_labels = split()
    features = Nystroem(gamma=0.001, n_components=300, random_state=7)
    model = make_pipeline(features, LogisticRegression(C=100, max_iter=1000))
    model.fit(train, train_labels)
    second = CalibratedClassifierCV(SVC(gamma=0.001, C=10), ensemble=False).fit(train, train_labels)
    few = np.concatenate([np.flatnonzero(train_labels == digit)[:1] for digit in range(10)])
    third = LogisticRegression(max_iter=1000).fit(train[few], train_labels[few])
    joblib.dump(second, HERE / "second.joblib")
    joblib.dump(third, HERE / "third.joblib")
    accuracy = model.score(held_out, held_out_labels)
    joblib.dump(model, HERE / "digits.joblib")
    (HERE / "accuracy.json").write_text(json.dumps({"accuracy": accuracy, "held_out": len(held_out)}) + "\n")
    samples = HERE / "samples"
    samples.mkdir(exist_ok=True)
    for digit, name in enumerate(NAMES):
        path = samples / f"{name}.png"
        if not path.exists():  # they are committed: another Pillow may write other bytes for the same pixels
            first = int(np.flatnonzero(held_out_labels == digit)[0])
            to_image(held_out[first]).save(path)
    print(f"Trained on {len(train)} digits; {accuracy:.1%} right on {len(held_out)} others. Saved digits.joblib.")
    others = [
        f"{name} {each.score(held_out, held_out_labels):.1%}" for name, each in (("second", second), ("third", third))
    ]
    print(f"Two more for canary.py: {', '.join(others)}.")


if __name__ == "__main__":
    main()
