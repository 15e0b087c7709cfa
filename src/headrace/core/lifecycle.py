"""The life of one replica as the controller sees it: phases, events, and the table of what follows what.

In: an event that the controller observed or caused. Out: the next phase, or IllegalTransition. Two rules hold: a phase
that has left the path of requests (RETIRING and later) never comes back to it, and GONE is the end.
"""

from __future__ import annotations

import enum

from headrace.spec.errors import HeadraceError


class Phase(enum.Enum):
    """Where a replica is between being asked for and being gone."""

    LAUNCHING = "launching"  # the engine was asked for its process
    STARTING = "starting"  # its process lives and constructs
    RECOVERING = "recovering"  # its process lives; this controller has not heard from it yet
    RUNNING = "running"  # it takes calls
    RETIRING = "retiring"  # no snapshot lists it any more; some router may not know yet
    DRAINING = "draining"  # it was told to finish what it has in work and to exit
    FAILED = "failed"  # it said that it cannot serve; its process may still live
    STOPPING = "stopping"  # the engine was asked to end its process
    GONE = "gone"  # no process


class Event(enum.Enum):
    """What happens to a replica. The first six are observed, the last three are the controller's own acts."""

    LAUNCHED = "launched"  # the engine has its process
    CONSTRUCTING = "constructing"  # its worker reports STARTING
    READY = "ready"  # its worker reports RUNNING
    BROKEN = "broken"  # its worker reports FAILED
    LEAVING = "leaving"  # its worker reports STOPPING or STOPPED
    EXITED = "exited"  # its process is gone, or never came to be
    RETIRE = "retire"  # take it out of the snapshot
    DRAIN = "drain"  # tell it to finish and exit
    STOP = "stop"  # have the engine end it


class IllegalTransition(HeadraceError):
    """The event cannot happen in the phase."""


_P, _E = Phase, Event

TRANSITIONS: dict[Phase, dict[Event, Phase]] = {
    # A worker may report before the engine's answer is back.
    _P.LAUNCHING: {
        _E.LAUNCHED: _P.STARTING,
        _E.CONSTRUCTING: _P.STARTING,
        _E.READY: _P.RUNNING,
        _E.BROKEN: _P.FAILED,
        _E.LEAVING: _P.STOPPING,
        _E.EXITED: _P.GONE,
        _E.STOP: _P.STOPPING,
    },
    _P.STARTING: {
        _E.LAUNCHED: _P.STARTING,
        _E.CONSTRUCTING: _P.STARTING,
        _E.READY: _P.RUNNING,
        _E.BROKEN: _P.FAILED,
        _E.LEAVING: _P.STOPPING,
        _E.EXITED: _P.GONE,
        _E.STOP: _P.STOPPING,
    },
    _P.RECOVERING: {
        _E.CONSTRUCTING: _P.STARTING,
        _E.READY: _P.RUNNING,
        _E.BROKEN: _P.FAILED,
        _E.LEAVING: _P.DRAINING,
        _E.EXITED: _P.GONE,
        _E.RETIRE: _P.RETIRING,
        _E.STOP: _P.STOPPING,
    },
    _P.RUNNING: {
        _E.LAUNCHED: _P.RUNNING,
        _E.READY: _P.RUNNING,
        _E.BROKEN: _P.FAILED,
        _E.LEAVING: _P.DRAINING,
        _E.EXITED: _P.GONE,
        _E.RETIRE: _P.RETIRING,
        _E.STOP: _P.STOPPING,
    },
    _P.RETIRING: {
        _E.LAUNCHED: _P.RETIRING,
        _E.CONSTRUCTING: _P.RETIRING,
        _E.READY: _P.RETIRING,
        _E.BROKEN: _P.FAILED,
        _E.LEAVING: _P.DRAINING,
        _E.EXITED: _P.GONE,
        _E.DRAIN: _P.DRAINING,
        _E.STOP: _P.STOPPING,
    },
    _P.DRAINING: {
        _E.LAUNCHED: _P.DRAINING,
        _E.CONSTRUCTING: _P.DRAINING,
        _E.READY: _P.DRAINING,
        _E.BROKEN: _P.DRAINING,
        _E.LEAVING: _P.DRAINING,
        _E.EXITED: _P.GONE,
        _E.STOP: _P.STOPPING,
    },
    _P.FAILED: {
        _E.LAUNCHED: _P.FAILED,
        _E.BROKEN: _P.FAILED,
        _E.LEAVING: _P.FAILED,
        _E.EXITED: _P.GONE,
        _E.STOP: _P.STOPPING,
    },
    _P.STOPPING: {
        _E.LAUNCHED: _P.STOPPING,
        _E.CONSTRUCTING: _P.STOPPING,
        _E.READY: _P.STOPPING,
        _E.BROKEN: _P.STOPPING,
        _E.LEAVING: _P.STOPPING,
        _E.EXITED: _P.GONE,
        _E.STOP: _P.STOPPING,
    },
    _P.GONE: {},
}

COUNTED = frozenset({Phase.LAUNCHING, Phase.STARTING, Phase.RECOVERING, Phase.RUNNING})
"""Phases in which a replica counts towards the number that its deployment should have."""


def advance(phase: Phase, event: Event) -> Phase:
    """The phase after the event. Raises IllegalTransition when the event cannot happen in the phase."""
    try:
        return TRANSITIONS[phase][event]
    except KeyError:
        raise IllegalTransition(f"a replica that is {phase.value} cannot become {event.value}") from None
