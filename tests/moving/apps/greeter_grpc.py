"""A gRPC service of the user's own: unary and streaming methods, the context, metadata."""

from collections.abc import Generator

import grpc
from greeter_service_pb2 import Greeting, Person

from headrace import serve
from headrace.serve.grpc_util import RayServegRPCContext, gRPCInputStream


@serve.deployment
class Greeter:
    def __call__(self, person: Person) -> Greeting:
        if person.name == "nobody":
            raise ValueError("there is nobody to greet")
        return Greeting(text=f"Hello {person.name}")

    async def Loudly(self, person: Person, grpc_context: RayServegRPCContext) -> Greeting:
        grpc_context.set_trailing_metadata([("volume", "11")])
        if not person.name:
            grpc_context.set_code(grpc.StatusCode.INVALID_ARGUMENT)
            grpc_context.set_details("a name is needed")
        return Greeting(text=f"HELLO {person.name.upper()}")

    def Often(self, person: Person) -> Generator[Greeting, None, None]:
        for number in range(person.times):
            yield Greeting(text=f"{number}: Hello {person.name}")

    async def Together(self, people: gRPCInputStream) -> Greeting:
        return Greeting(text="Hello " + " and ".join([person.name async for person in people]))

    async def Echoing(self, people: gRPCInputStream):
        async for person in people:
            for _ in range(person.times):
                yield Greeting(text=person.name)


app = Greeter.bind()
