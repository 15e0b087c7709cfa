"""The gRPC service of `echo.proto` on Headrace. argv: port for gRPC, port for HTTP."""

import sys

import echo_pb2

from headrace import serve


@serve.deployment(max_ongoing_requests=100)
class Echo:
    async def Say(self, request):
        return echo_pb2.Text(text=request.text, number=request.number + 1)

    async def Count(self, request):
        for number in range(request.number):
            yield echo_pb2.Text(text=request.text, number=number)


app = Echo.bind()


def main():
    grpc_port, http_port = map(int, sys.argv[1:])
    serve.start(
        http_options={"host": "127.0.0.1", "port": http_port},
        grpc_options={"port": grpc_port, "grpc_servicer_functions": ["echo_pb2_grpc.add_EchoServicer_to_server"]},
    )
    serve.run(importable(), blocking=True)


def importable():
    """The application as replicas import it, not as the script that this is."""
    import grpc_headrace

    return grpc_headrace.app


if __name__ == "__main__":
    main()
