"""A model that waits 5 ms, and another revision of it, twice as slow, that can be made its shadow, for the bench.

    python shadow_app.py PORT CONTROL_PORT

On the control port GET /on mirrors all requests to the slow revision, and /off ends that. All paths tell how many
replicas there are, and what became of mirrored requests so far: [replicas, sent, skipped, failed, compared, differed].
"""

import asyncio
import http.server
import json
import signal
import sys

from headrace import serve

NAME = "shadowed"
FAST_S, SLOW_S = 0.005, 0.010


@serve.deployment
class Model:
    def __init__(self, takes_s):
        self.takes_s = takes_s

    async def __call__(self, request):
        await asyncio.sleep(self.takes_s)
        return {"done": True}


def replicas():
    application = serve.status().applications[NAME]
    return sum(sum(deployment.replica_states.values()) for deployment in application.deployments.values())


def counts():
    status = serve.rollout_status(NAME)
    seen = None if status is None else status.mirrored
    return (
        [replicas()] + [0] * 5
        if seen is None
        else [replicas(), seen.sent, seen.skipped, seen.failed, seen.compared, seen.differed]
    )


class Control(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/on":
            serve.shadow_traffic(NAME, {1: 1.0})
        elif self.path == "/off":
            serve.shadow_traffic(NAME, {})
        body = json.dumps(counts()).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


if __name__ == "__main__":
    port, control_port = map(int, sys.argv[1:])
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit())
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    try:
        serve.run(Model.bind(SLOW_S), name=NAME, route_prefix="/")
        serve.run(Model.bind(FAST_S), name=NAME, route_prefix="/")
        http.server.HTTPServer(("127.0.0.1", control_port), Control).serve_forever()
    finally:
        serve.shutdown()
