"""The model of `apps/batch_model.py` on LitServe, in its batches of at most 32, waited for up to 10 ms. argv: port."""

import sys

import litserve
from batch_model import infer


class Model(litserve.LitAPI):
    def setup(self, device):
        pass

    def decode_request(self, request):
        return request["x"]

    def batch(self, inputs):
        return inputs

    def predict(self, vectors):
        return infer(vectors)

    def unbatch(self, output):
        return output

    def encode_response(self, output):
        return {"y": output}


if __name__ == "__main__":
    model = Model(max_batch_size=32, batch_timeout=0.010)
    server = litserve.LitServer(model, accelerator="cpu", workers_per_device=1)
    server.run(
        host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, num_api_servers=1, log_level="warning"
    )
