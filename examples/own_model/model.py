"""A saved joblib file at an endpoint: `headrace run model:app --app-dir examples/own_model` where model.joblib lies."""

import joblib

from headrace import serve


@serve.deployment
class Model:
    def __init__(self, path):
        self.model = joblib.load(path)

    async def __call__(self, request):
        return self.model.predict(await request.json())


app = Model.bind("model.joblib")
