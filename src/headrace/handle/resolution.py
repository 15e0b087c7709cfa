"""Responses among the arguments of a call: it is sent when they have ended, with their results in their place."""

from __future__ import annotations

import functools
import threading
from typing import Any

from headrace.handle.call import FAILED, PENDING, HandleCall
from headrace.handle.response import DeploymentResponse


def send(call: HandleCall, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Send the call with these arguments: now, or when the responses among them have ended."""
    for argument in args:
        if isinstance(argument, DeploymentResponse):
            _send_when_resolved(call, args, kwargs)
            return
    if kwargs:
        for argument in kwargs.values():
            if isinstance(argument, DeploymentResponse):
                _send_when_resolved(call, args, kwargs)
                return
    call._send(args, kwargs)


def _send_when_resolved(call: HandleCall, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Submit the call once the responses among its arguments have ended; one that failed fails this call too."""
    needed = [a for a in (*args, *kwargs.values()) if isinstance(a, DeploymentResponse)]
    _Resolution(call, args, kwargs, needed).advance()


class _Resolution:
    """Waits for the responses among a call's arguments, one after the other, and sends the call with their results."""

    def __init__(
        self,
        call: HandleCall,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        needed: list[DeploymentResponse],
    ) -> None:
        self.call = call
        self.args = args
        self.kwargs = kwargs
        self.needed = needed

    def advance(self) -> None:
        """Go on as far as can be: wait for the next response, or send."""
        try:
            needed = self.needed
            while needed:
                if needed[-1]._state == PENDING and self._sleep_on(needed[-1]):
                    return
                needed.pop()
            if self.call._state == PENDING:  # else it was cancelled meanwhile
                args = tuple([a._take() if isinstance(a, DeploymentResponse) else a for a in self.args])
                kwargs = {k: v._take() if isinstance(v, DeploymentResponse) else v for k, v in self.kwargs.items()}
                self.call._send(args, kwargs)
        except Exception as error:  # whatever an argument's call raised is this call's error
            self.call._runtime.post(functools.partial(self.call._end, FAILED), error)

    def _sleep_on(self, needed: DeploymentResponse) -> bool:
        """Whether `needed` will call `advance` when it ends; False: it has ended, and the caller goes on."""
        needed._check_alive()
        first = threading.Lock()  # its end may wake us while we find out ourselves: only one of the two goes on

        def wake() -> None:
            if first.acquire(blocking=False):
                self.advance()

        needed._waiters.append(wake)
        return needed._state == PENDING or not first.acquire(blocking=False)
