"""A small model, of which there are many: 100 KB of weights, that take 20 ms to load."""

import time

import numpy as np

FEATURES, OUTPUTS = 100, 125
LOAD_S = 0.020
SLOW_LOAD_S = 0.200  # of a model whose id begins with "slow"


class Ridge:
    def __init__(self, model_id):
        began = time.perf_counter()
        seed = sum(model_id.encode())
        self.weights = np.random.default_rng(seed).standard_normal((FEATURES, OUTPUTS))
        load_s = SLOW_LOAD_S if model_id.startswith("slow") else LOAD_S
        time.sleep(max(0.0, began + load_s - time.perf_counter()))

    def predict(self, x):
        """The output that is the largest."""
        return int((np.asarray(x) @ self.weights).argmax())
