"""The no-op model on Mosec, one worker process; BENCH_BATCH above 1 turns its batching on (it waits up to 1 ms)."""

import os

import msgspec
from mosec import Server, Worker

BATCH = int(os.environ.get("BENCH_BATCH", "1"))


class Total(Worker):
    def deserialize(self, data):
        return msgspec.json.decode(data)

    def serialize(self, data):
        return msgspec.json.encode(data)

    def forward(self, data):
        if BATCH > 1:
            return [{"y": sum(item["x"])} for item in data]
        return {"y": sum(data["x"])}


if __name__ == "__main__":
    server = Server()
    if BATCH > 1:
        server.append_worker(Total, num=1, max_batch_size=BATCH, max_wait_time=1)
    else:
        server.append_worker(Total, num=1)
    server.run()
