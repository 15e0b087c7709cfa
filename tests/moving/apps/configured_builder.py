"""Application builders: functions that take a dict, or a typed model, of arguments."""

from pydantic import BaseModel

from headrace import serve
from headrace.serve import Application


@serve.deployment
class Greeter:
    def __init__(self, message: str, repeat: int):
        self.message = message
        self.repeat = repeat

    def __call__(self, request) -> str:
        return " ".join([self.message] * self.repeat)


class GreeterArgs(BaseModel):
    message: str
    repeat: int = 1
    num_replicas: int = 1


def typed(args: GreeterArgs) -> Application:
    return Greeter.options(num_replicas=args.num_replicas).bind(args.message, args.repeat)


def from_dict(args: dict[str, str]) -> Application:
    return Greeter.bind(args["message"], int(args.get("repeat", "1")))


app = typed(GreeterArgs(message="hi", repeat="2", num_replicas=2))
