"""1.2: traffic shared between two backends, a third in the shadow, the user's key, and a rollout in steps."""

import os
import time
from pathlib import Path

import httpx as requests

from headrace import serve

client = serve.start(http_options={"port": 8000})
seen = Path(os.environ["SEEN"])


class Versioned:
    def __init__(self, version, folder=None):
        self.version = version
        self.folder = folder

    def __call__(self, request):
        if self.folder is not None:
            (self.folder / request.query_params["n"]).touch()
            raise RuntimeError("a shadow's error is nobody's")
        return self.version


client.create_backend("v1", Versioned, "v1")
client.create_backend("v2", Versioned, "v2")
client.create_backend("v3", Versioned, "v3", seen)
client.create_endpoint("api", backend="v1", route="/api")
session = requests.Client()


def answers(number, key=None):
    headers = {} if key is None else {"X-SERVE-SHARD-KEY": key}
    got = [session.get("http://127.0.0.1:8000/api", params={"n": i}, headers=headers) for i in range(number)]
    assert {answer.status_code for answer in got} == {200}, got
    return [answer.text for answer in got]


print(set(answers(20)))
client.set_traffic("api", {"v1": 0.25, "v2": 0.75})
drawn = answers(400)
print(0.15 < drawn.count("v1") / 400 < 0.35, set(drawn) == {"v1", "v2"})

client.shadow_traffic("api", "v3", 0.5)
print(client.list_endpoints()["api"])
print(set(answers(200)) == {"v1", "v2"})
deadline = time.monotonic() + 20
while len(list(seen.iterdir())) < 60 and time.monotonic() < deadline:
    time.sleep(0.02)
print(60 <= len(list(seen.iterdir())) <= 140)

# Who has a key keeps to a backend, by HTTP and by a handle alike.
by_key = {key: set(answers(5, key)) for key in map(str, range(20))}
print(all(len(each) == 1 for each in by_key.values()), set.union(*by_key.values()) == {"v1", "v2"})
handle = client.get_handle("api")
print(all({handle.options(shard_key=key).remote(n=0).result()} == by_key[key] for key in by_key))

# Shadows go with the policy that they were part of.
client.set_traffic("api", {"v1": 0.99, "v2": 0.01})
print(client.list_endpoints()["api"]["shadows"])
client.set_traffic("api", {"v1": 0.5, "v2": 0.5})
client.set_traffic("api", {"v1": 0.0, "v2": 1.0})
print(set(answers(50)), client.list_endpoints()["api"]["traffic"])
client.delete_backend("v1")
client.delete_backend("v3")
print(list(client.list_backends()))
