"""Whether a deployment keeps several models: what `@serve.multiplexed(...)` leaves on its function.

In: the class or function that users deploy. Out: whether any of its functions loads models by their id.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

MARK = "__headrace_multiplexed__"  # the attribute of a function that loads models


def is_multiplexed(target: Callable[..., Any]) -> bool:
    """Whether requests that name a model go where that model is loaded."""
    members = [target] if not inspect.isclass(target) else [member for _, member in inspect.getmembers_static(target)]
    return any(inspect.getattr_static(member, MARK, None) is not None for member in members)
