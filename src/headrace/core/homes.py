"""Where each model is: which replicas of a deployment have it loaded, as one router knows it, and where it goes next.

In: what replicas say of their models, calls for a model and what becomes of those that load one, replicas that go.
Out: for a call, the replica that has its model; for a model that is nowhere, its first home; for one whose homes are
busier than others, one home more.

A replica is to load a model once, and nobody is to wait for that without need: so the first call for a model that is
nowhere goes to some replica as its *loader*, and those that follow wait here, where they take no slot from calls of
other models, until that home says that it is ready. Where the model is ready somewhere, calls go there alone, and a
further home is asked to load it without any call waiting for it.

What replicas say is bounded by what they keep. What is only guessed, of models that no replica has, is bounded here:
clients may name as many as they like.
"""

from __future__ import annotations

import enum
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headrace.core.balance import Replica

PRESSURE = 4.0  # so many calls found all homes busy within about PRESSURE_HALF_LIFE_S: one home more
PRESSURE_HALF_LIFE_S = 1.0
MOST_GUESSES = 10_000  # models that are OPEN, remembered at most
HINT_LASTS_S = 10.0  # a replica that was asked to load a model has so long before another is asked


class State(enum.Enum):
    """Of a model in a replica."""

    LOADER = "loader"  # its loader went there, and the replica has not said that it loads
    LOADING = "loading"  # it says so
    READY = "ready"
    OPEN = "open"  # its load failed, or its loader ended without one: calls go there all the same


class Model:
    """One model: where it is, and how hard its homes are pressed."""

    __slots__ = ("_pressed_at", "_pressure", "hinted_until", "states", "taking")

    def __init__(self) -> None:
        self.states: dict[Replica, State] = {}
        self.taking: list[Replica] = []  # those READY or OPEN
        self.hinted_until = float("-inf")
        self._pressure = 0.0
        self._pressed_at = 0.0

    def set(self, replica: Replica, state: State | None) -> None:
        """It is so there now; None: it is not there any more."""
        takes = state is State.READY or state is State.OPEN
        if takes is not (replica in self.taking):
            (self.taking.append if takes else self.taking.remove)(replica)
        if state is None:
            self.states.pop(replica, None)
        else:
            self.states[replica] = state

    def press(self, now: float) -> bool:
        """A call found all its homes busy. True: that has happened often of late."""
        self._pressure *= 0.5 ** (max(0.0, now - self._pressed_at) / PRESSURE_HALF_LIFE_S)
        self._pressed_at = now
        self._pressure += 1.0
        if self._pressure < PRESSURE:
            return False
        self._pressure = 0.0
        return True


class Homes:
    """The models of one deployment's replicas. O(homes of the model) per call, and O(replicas) for a new home."""

    __slots__ = ("_guesses", "_models", "_random", "_waited_for")

    def __init__(self, random: Callable[[], float], waited_for: Callable[[str], bool]) -> None:
        self._models: dict[str, Model] = {}
        self._guesses: OrderedDict[str, None] = OrderedDict()  # models that were OPEN, those that became so first
        self._random = random
        self._waited_for = waited_for  # whether calls wait for the model, which is not to be forgotten then

    def __repr__(self) -> str:
        return f"<Homes of {len(self._models)} models>"

    # --- what replicas say -----------------------------------------------------------------------------------------

    def told(
        self, replica: Replica, ready: Iterable[str] = (), loading: Iterable[str] = (), gone: Iterable[str] = ()
    ) -> None:
        """What has changed of the replica's models."""
        for name in loading:
            self._model(name).set(replica, State.LOADING)
        for name in ready:
            model = self._model(name)
            model.set(replica, State.READY)
            model.hinted_until = float("-inf")
            for other in [other for other, state in model.states.items() if state is State.OPEN]:
                model.set(other, None)
        for name in gone:
            self._gone(name, replica)

    def _gone(self, name: str, replica: Replica) -> None:
        model = self._models.get(name)
        before = None if model is None else model.states.get(replica)
        if model is None or before is None:
            return
        if before is State.READY or State.READY in model.states.values():
            model.set(replica, None)
            self._forget(name)
        else:  # a load that failed: those that waited for it find out there, by one further load at most
            self._open(name, model, replica)

    def removed(self, replica: Replica) -> None:
        """The replica takes no more calls."""
        for name, model in list(self._models.items()):
            if replica in model.states:
                model.set(replica, None)
                self._forget(name)

    # --- where calls go --------------------------------------------------------------------------------------------

    def takes(self, name: str, replica: Replica) -> bool:
        """Whether a call for the model may go to this replica now: any may load a model that is nowhere."""
        model = self._models.get(name)
        if model is None:
            return True
        state = model.states.get(replica)
        return state is State.READY or state is State.OPEN

    def known(self, name: str) -> bool:
        """Whether it is somewhere, or on its way there."""
        return name in self._models

    def pick(self, name: str, has_room: Callable[[Replica], bool]) -> Replica | None:
        """A home with room for a call: of two random ones the lesser load."""
        model = self._models.get(name)
        if model is None:
            return None
        taking = model.taking
        if len(taking) > 2:
            first = taking[int(self._random() * len(taking))]
            second = taking[int(self._random() * len(taking))]
            pair = [replica for replica in (first, second) if has_room(replica)]
            if pair:
                return min(pair, key=load)
        fit = [replica for replica in taking if has_room(replica)]
        return min(fit, key=load) if fit else None

    def first(self, name: str, replicas: Sequence[Replica]) -> Replica | None:
        """Which of `replicas` is to load a model that is nowhere, by rendezvous hashing; None where there are none.

        All routers come to the same one, as long as they see the same replicas. (Thaler and Ravishankar, Using
        name-based mappings to increase hit rates, 1998.)
        """
        return max(replicas, key=lambda replica: _rank(name, replica), default=None)

    def sent(self, name: str, replica: Replica) -> bool:
        """A call for the model goes to this replica. True: it is the model's loader there; say when it has `ended`."""
        if name in self._models:
            return False
        self._model(name).set(replica, State.LOADER)
        return True

    def ended(self, name: str, replica: Replica, started: bool = True) -> bool:
        """The model's loader has ended. True: calls for it may go where they could not before."""
        model = self._models.get(name)
        if model is None or model.states.get(replica) is not State.LOADER:
            return False
        if started and State.READY not in model.states.values():
            self._open(name, model, replica)
        else:
            model.set(replica, None)
            self._forget(name)
        return True

    def spread(self, name: str, now: float, others: Sequence[Replica]) -> Replica | None:
        """The homes of the model are busy. One of the `others`, which have room, that is to load it too; None: none is.

        It is less than half as loaded as the least loaded home, and none is asked while another home is on its way.
        """
        model = self._models.get(name)
        if model is None or not model.taking or len(model.states) > len(model.taking) or now < model.hinted_until:
            return None
        if not model.press(now):
            return None
        least = min(map(load, model.taking))
        strangers = [replica for replica in others if replica not in model.states and 2 * load(replica) < least]
        if not strangers:
            return None
        model.hinted_until = now + HINT_LASTS_S
        return max(strangers, key=lambda replica: _rank(name, replica))

    def _model(self, name: str) -> Model:
        model = self._models.get(name)
        if model is None:
            model = self._models[name] = Model()
        return model

    def _open(self, name: str, model: Model, replica: Replica) -> None:
        model.set(replica, State.OPEN)
        guesses = self._guesses
        guesses[name] = None
        guesses.move_to_end(name)
        if len(guesses) <= MOST_GUESSES:
            return
        eldest, _ = guesses.popitem(last=False)
        known = self._models.get(eldest)
        if known is None or any(state is not State.OPEN for state in known.states.values()):
            return  # more than a guess by now, or less
        if self._waited_for(eldest):
            guesses[eldest] = None
        else:
            del self._models[eldest]

    def _forget(self, name: str) -> None:
        if not self._models[name].states:
            del self._models[name]


def load(replica: Replica) -> int:
    """The calls there, as far as is known."""
    return replica.ours + replica.others


def _rank(name: str, replica: Replica) -> bytes:
    return hashlib.blake2b(f"{name}\0{replica.id}".encode(), digest_size=8).digest()
