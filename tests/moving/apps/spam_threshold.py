"""user_config: what may change while the model stays loaded comes by reconfigure()."""

import os
from typing import Any

from headrace import serve


@serve.deployment(user_config={"threshold": 0.5, "words": ["win", "prize"]})
class Spam:
    def __init__(self):
        self.configured = 0
        self.threshold = None

    def reconfigure(self, config: dict[str, Any]) -> None:
        self.configured += 1
        self.threshold = config["threshold"]
        self.words = frozenset(config["words"])

    async def __call__(self, request) -> dict:
        words = (await request.body()).decode().lower().split()
        score = sum(word in self.words for word in words) / max(1, len(words))
        return {"spam": score >= self.threshold, "pid": os.getpid(), "configured": self.configured}


app = Spam.bind()
lenient = Spam.options(user_config={"threshold": 0.9, "words": ["win"]}).bind()
