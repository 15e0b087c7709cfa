"""A scikit-learn model that a fitting function hands over, arrays between deployments and to the client."""

import numpy as np
from starlette.requests import Request

from headrace import serve


def fitted():
    # Not above: only who fits the model, and the replica that gets it, spend the time for it.
    from sklearn.datasets import load_iris
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    data = load_iris()
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=200))
    return model.fit(data.data, data.target), [str(name) for name in data.target_names]


@serve.deployment
class Iris:
    def __init__(self, model, names: list[str]):
        self.model = model
        self.names = names

    def probabilities(self, rows: np.ndarray) -> np.ndarray:
        return self.model.predict_proba(rows)

    def name(self, number: int) -> str:
        return self.names[number]


@serve.deployment
class Front:
    def __init__(self, iris):
        self.iris = iris

    async def __call__(self, request: Request):
        rows = np.asarray((await request.json())["rows"])
        probabilities = await self.iris.probabilities.remote(rows)
        best = probabilities.argmax(axis=1)
        names = [await self.iris.name.remote(number) for number in best]
        return {"names": names, "best": best, "sure": probabilities.max(axis=1) > 0.9, "rows": np.int64(len(rows))}

    async def big(self, side: int) -> np.ndarray:
        return np.ones((side, side))


app = Front.bind(Iris.bind(*fitted()))
