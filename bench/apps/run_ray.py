"""Runs the `app` of a module on Ray Serve until it is stopped. argv: port, module."""

import importlib
import sys

from ray import serve

if __name__ == "__main__":
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
    serve.run(importlib.import_module(sys.argv[2]).app, blocking=True)
