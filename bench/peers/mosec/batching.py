"""The model of `apps/batch_model.py` on Mosec, in its batches of at most 32, waited for up to 10 ms."""

import msgspec
from batch_model import infer
from mosec import Server, Worker


class Model(Worker):
    def deserialize(self, data):
        return msgspec.json.decode(data)

    def serialize(self, data):
        return msgspec.json.encode(data)

    def forward(self, data):
        return [{"y": y} for y in infer([item["x"] for item in data])]


if __name__ == "__main__":
    server = Server()
    server.append_worker(Model, num=1, max_batch_size=32, max_wait_time=10)
    server.run()
