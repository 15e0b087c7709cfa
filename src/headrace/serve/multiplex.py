"""Many models in one replica, as far as it works: the model id that a request names."""

from headrace.context import current_request
from headrace.serve.unsupported import unsupported_function

multiplexed = unsupported_function("", "multiplexed", "keep the models that are loaded in a dict of the replica")


def get_multiplexed_model_id() -> str:
    """The model id of the request that the calling code works for; "" when it names none, and outside of any."""
    request = current_request()
    return "" if request is None else request.model_id or ""


__all__ = ["get_multiplexed_model_id", "multiplexed"]
