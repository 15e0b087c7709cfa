"""Which request a call is made for: what it takes over from the code that makes it.

In: a call that was just made, on the thread and in the context of users' code. Out: the same, with the id, the
revision, the deadline and the trace of its request, or with an id of its own.
"""

from __future__ import annotations

import os
import time

from headrace.context import current_replica, request_variable
from headrace.core.request_ids import new_id
from headrace.core.traffic import own_revision
from headrace.handle.call import HandleCall


def new_request_id() -> str:
    """An id that says when it was made: a UUID of version 7."""
    return new_id(time.time(), os.urandom(10))


def take_origin(call: HandleCall) -> None:
    """Have the call belong to the request that the running code works for, if it does; then it ends with it.

    Outside of any request the code of a replica may have to stay in its own revision.
    """
    request = request_variable.get()
    if request is not None:
        meta = request.meta
        call.request_id = meta.request_id
        if meta.app == call.app:
            call.revision = meta.revision
        call.deadline = request.deadline
        call.trace = meta.trace
        call.sticky = meta.sticky
        if meta.priority:
            call.priority = meta.priority
            if meta.mirrored:  # those have a priority: the lowest
                call.mirrored = True
                call.hedge = False
        calls = request.calls
        if calls is None:
            calls = request.calls = set()
        calls.add(call)
        call._siblings = calls
    else:
        call.request_id = new_request_id()
        replica = current_replica()
        if replica is not None and replica.app_name == call.app:
            entry = call._runtime.router.snapshot.applications.get(call.app)
            if entry is not None:
                call.revision = own_revision(entry, replica.deployment, replica.revision)
