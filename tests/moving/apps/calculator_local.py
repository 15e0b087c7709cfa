"""Tried out without a cluster: `serve.run(app, _local_testing_mode=True)` in a unit test."""

from headrace import serve
from headrace.serve.handle import DeploymentHandle


@serve.deployment
class Adder:
    def __init__(self, increment: int):
        self.increment = increment

    def add(self, number: int) -> int:
        if number < 0:
            raise ValueError("no negative numbers here")
        return number + self.increment


@serve.deployment
class Calculator:
    def __init__(self, adder: DeploymentHandle, factor: int):
        self.adder = adder
        self.factor = factor

    async def __call__(self, number: int) -> int:
        return self.factor * await self.adder.add.remote(number)

    async def steps(self, number: int):
        for step in range(number):
            yield await self.adder.add.remote(step)


app = Calculator.bind(Adder.bind(10), factor=3)
