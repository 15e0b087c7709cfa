"""The decorator that makes batches, which does not work yet: it can be imported, and says so when it is used."""

from headrace.serve.unsupported import unsupported_function

batch = unsupported_function("batching", "batch", "call the model with one request at a time")

__all__ = ["batch"]
