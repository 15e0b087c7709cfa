"""1.0: an instance that outlives its script, found by `connect` from another one, and configured by `reconfigure`."""

import os
import subprocess
import sys

from headrace import serve

SECOND = """
from headrace import serve
client = serve.connect()
print(list(client.list_backends()), list(client.list_endpoints()))
client.create_endpoint("late", backend="threshold")
print(client.get_handle("late").remote(0.7).result())
client.update_backend_config("threshold", {"user_config": {"threshold": 0.8}, "num_replicas": 2})
print(client.get_handle("late").remote(0.7).result())
"""


class Threshold:
    def __init__(self):
        self.made_in = os.getpid()

    def reconfigure(self, config):
        self.threshold = config["threshold"]

    def __call__(self, request):
        return request.data > self.threshold


client = serve.start(detached=True, http_port=8000)
try:
    client.create_backend("threshold", Threshold, config={"user_config": {"threshold": 0.5}})
    subprocess.run([sys.executable, "-c", SECOND], check=True)
    print(client.get_backend_config("threshold").user_config, client.get_backend_config("threshold").num_replicas)
    print(sorted(serve.status().applications["late"].deployments["late"].replica_states.items()))
    client.delete_endpoint("late")
    print(client.list_endpoints(), list(client.list_backends()))
finally:
    client.shutdown()
