"""`@serve.method(...)`: what one method of a deployment says of its calls.

In: a method or function of the user's, and options. Out: the same one, marked; `graph.py` reads the marks.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from headrace.serve.deployment import Deployment
from headrace.spec.errors import OptionTypeError
from headrace.spec.method import MARK, method_options

F = TypeVar("F", bound=Callable[..., Any])


def method(*positional: Any, **options: Any) -> Callable[[F], F]:
    """Mark a method of a deployment: `@serve.method(repeatable=False)`. It stays the method that it is.

    `repeatable` False: a call of it that a replica had started is not tried on another when the replica dies, and ends
    with ReplicaDiedError. `hedge` False: its calls get no copy on another replica, though the deployment is hedged;
    True, or a dict as the deployment's `hedge`: they do, though it is not. Subclasses inherit both with the method; one
    that overrides the method says them again. Raises OptionTypeError for an unknown option (with the nearest known one)
    and for a value of a wrong type, OptionError for one that is not allowed.
    """
    if positional:
        raise OptionTypeError("@serve.method takes options by name: @serve.method(repeatable=False)")
    parsed = method_options(options)

    def mark(decorated: F) -> F:
        plain = decorated.__func__ if isinstance(decorated, staticmethod | classmethod) else decorated
        try:
            if inspect.isclass(plain) or isinstance(plain, Deployment) or not callable(plain):
                raise AttributeError
            setattr(plain, MARK, parsed)
        except AttributeError:
            raise OptionTypeError(f"@serve.method marks a method of a deployment, not {decorated!r}") from None
        return decorated

    return mark
