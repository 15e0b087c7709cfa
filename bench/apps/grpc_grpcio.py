"""The gRPC service of `echo.proto` on grpcio's own asyncio server. argv: port."""

import asyncio
import sys

import echo_pb2
import echo_pb2_grpc
import grpc


class Echo(echo_pb2_grpc.EchoServicer):
    async def Say(self, request, context):
        return echo_pb2.Text(text=request.text, number=request.number + 1)

    async def Count(self, request, context):
        for number in range(request.number):
            yield echo_pb2.Text(text=request.text, number=number)


async def main():
    server = grpc.aio.server()
    echo_pb2_grpc.add_EchoServicer_to_server(Echo(), server)
    server.add_insecure_port(f"127.0.0.1:{sys.argv[1]}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main())
