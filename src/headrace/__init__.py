"""Headrace: serve machine-learning models from plain Python. Start with `from headrace import serve`."""

__version__ = "0.1.0"
