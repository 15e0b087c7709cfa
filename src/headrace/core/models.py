"""Which models one function keeps loaded, which it loads now, and which have to go for that.

In: requests that need a model, routers that would like to have one loaded, the ends of loads, of requests and of
closings, with `now`. Out: the model where it is loaded; else the load to wait for, and the steps that are due: to start
or to cancel a load, to close a model.

What holds always:
- There is one load of a model at a time, and all who need the model wait for that one.
- What is in memory (loaded, being loaded, on its way out) is within both limits, but for loads that must not wait: of
  requests that hold a model already and would wait for themselves, and of those that have waited for PATIENCE_S.
- A model is closed when no request uses it. The least recently used goes first, and those in use last: such a one is
  *condemned*, which gives it to nobody any more, and closed when its last request has ended.
- A load waits for nothing but room, and, where memory is measured by loading one at a time, for its turn.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import Generic, TypeVar

from headrace.core.loads import Cancel, Changed, Close, Give, Load, Loaded, Refuse, Standing, Start, Step

T = TypeVar("T")

PATIENCE_S = 10.0  # what a load waits for room: what never gives it up (a request without end) must not stop all
SIZES_KEPT = 10_000  # of models that were loaded once
GIVEN_UP_KEPT = 100


class Models(Generic[T]):
    """The models of one function. `limit` and `max_bytes` None: any. `one_at_a_time`: loads follow each other.

    `cancellable`: a load that nobody wants can be stopped. `patience_s`: what a load waits for room at most. What is to
    be done gathers in `steps`, which the caller empties and does, in order. `find` is O(1); what changes the set of
    models is O(models).
    """

    def __init__(
        self,
        limit: int | None = None,
        max_bytes: int | None = None,
        one_at_a_time: bool = False,
        cancellable: bool = True,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self.limit = limit
        self.max_bytes = max_bytes
        self.one_at_a_time = one_at_a_time
        self.cancellable = cancellable
        self.patience_s = patience_s
        self.steps: list[Step] = []
        self.stopped = False
        self._ready: OrderedDict[str, Loaded[T]] = OrderedDict()  # the least recently used first
        self._condemned: list[Loaded[T]] = []
        self._closing: dict[Loaded[T], None] = {}
        self._loads: dict[str, Load] = {}  # that can be waited for
        self._line: deque[Load] = deque()  # of those the ones that have not started
        self._running: dict[Load, None] = {}  # those that have; both in order, so that all that is chosen is determined
        self._bytes = 0  # of all that is in memory, loads as they are expected
        self._given_up: dict[str, None] = {}  # models whose last load was cancelled
        self._sizes: OrderedDict[str, int] = OrderedDict()  # of models that were loaded once

    def __repr__(self) -> str:
        limit = "" if self.limit is None else f"/{self.limit}"
        memory = "" if self.max_bytes is None else f", {self._bytes} of {self.max_bytes} B"
        return f"<Models {len(self._ready)}{limit} ready, {len(self._loads)} loads{memory}>"

    # ---- what is there

    def __iter__(self) -> Iterator[Loaded[T]]:
        """The models that are ready, the least recently used first."""
        return iter(self._ready.values())

    @property
    def in_memory(self) -> int:
        """How many models take memory: those that are ready, being loaded, condemned, being closed."""
        return len(self._ready) + len(self._running) + len(self._condemned) + len(self._closing)

    @property
    def bytes_in_memory(self) -> int:
        return self._bytes

    @property
    def closing(self) -> list[Loaded[T]]:
        """The models that are being closed."""
        return list(self._closing)

    @property
    def leaving(self) -> list[Loaded[T]]:
        """The models that are on their way out."""
        return [*self._condemned, *self._closing]

    @property
    def loading(self) -> list[str]:
        """The models that are being loaded, or wait to be."""
        return list(self._loads)

    def standing_of(self, model: str) -> bool | None:
        """True: it is ready; False: it is being loaded; None: neither."""
        if model in self._ready:
            return True
        load = self._loads.get(model)
        return False if load is not None and load.started_at is not None else None

    def size_of(self, model: str) -> int | None:
        """What it took when it was last loaded."""
        return self._sizes.get(model)

    # ---- requests

    def find(self, model: str, insider: bool = False) -> Loaded[T] | None:
        """The model if it is ready; it counts as used now. Who goes on to use it says so by `hold`.

        `insider`: somebody who holds the model may be waiting for who asks, so a condemned one will do.
        """
        loaded = self._ready.get(model)
        if loaded is not None:
            self._ready.move_to_end(model)
        elif insider and self._condemned:
            return self._condemned_one(model)
        return loaded

    def hold(self, loaded: Loaded[T]) -> None:
        """One user more of a model that was found: say by `release` when that has ended."""
        loaded.users += 1

    def load_of(self, model: str) -> Load | None:
        """The load that who asks for the model now would wait for."""
        return self._loads.get(model)

    def ask(self, model: str, now: float, urgent: bool = False) -> Load:
        """Somebody needs a model that `find` did not find: the load to wait for.

        The wait ends with `loaded`, `failed` or a step Give or Refuse for the load, or, for one who leaves, by `leave`.
        `urgent`: who asks may hold what a load would wait for.
        """
        load = self._loads.get(model)
        if load is None:
            load = self._loads[model] = Load(model, now, self._expected(model))
            self._line.append(load)
        elif not load.waiters:
            load.since = now
        load.waiters += 1
        load.urgent |= urgent
        self._settle(now)
        return load

    def hurry(self, load: Load, now: float) -> None:
        """Who waits for this load may hold by now what it would wait for."""
        load.urgent = True
        self._settle(now)

    def leave(self, load: Load, now: float, kept: bool = False) -> None:
        """One who waits leaves. `kept`: the model is wanted nevertheless.

        When all have left a load is cancelled if it can be, else it goes on as long as nothing else needs its room. It
        also goes on when it was cancelled so before: of callers that wait for less than it takes, none would ever wait
        long enough.
        """
        load.waiters -= 1
        load.kept |= kept or load.model in self._given_up
        if load.waiters:
            return
        if load.started_at is None:
            if not load.hinted:
                self._refuse(load)
        elif load in self._running and self.cancellable and not load.kept:
            self._given_up = dict.fromkeys([*self._given_up, load.model][-GIVEN_UP_KEPT:])
            self._disown(load)
        self._settle(now)

    def release(self, loaded: Loaded[T], now: float) -> None:
        """One user of the model has ended."""
        loaded.users -= 1
        if loaded.users:
            return
        if loaded.standing is Standing.CONDEMNED:
            self._condemned.remove(loaded)
            self._close(loaded)
        elif not self._line:
            return
        self._settle(now)

    def hint(self, model: str, now: float) -> None:
        """Load it although nobody asks, if that takes the place of no model in use, and waits for no other load."""
        if self.stopped or model in self._ready or model in self._loads or self._condemned_one(model) is not None:
            return
        expected = self._expected(model)
        fixed = [loaded for loaded in self._ready.values() if loaded.users] + self._condemned
        if self.limit is not None and len(fixed) + len(self._loads) >= self.limit:
            return
        taken = sum(loaded.size_bytes for loaded in fixed) + sum(load.expected_bytes for load in self._loads.values())
        if self.max_bytes is not None and taken + expected > self.max_bytes:
            return
        load = self._loads[model] = Load(model, now, expected, hinted=True)
        self._line.append(load)
        self._settle(now)

    # ---- loads

    def loaded(self, load: Load, value: T, size_bytes: int, now: float) -> Loaded[T]:
        """The load has brought the model, which takes so much memory. All who wait for it are its users now."""
        self._remember(load.model, size_bytes)
        self._given_up.pop(load.model, None)
        loaded = Loaded(load.model, value, size_bytes, load.waiters)
        self._bytes += size_bytes
        if load not in self._running:
            self._came_late(loaded)
        else:
            del self._running[load]
            self._bytes -= load.expected_bytes
            del self._loads[load.model]
            self._ready[load.model] = loaded
            self.steps.append(Changed(load.model))
            if load.hinted and not load.waiters and self._takes_from_others(loaded):
                self._evict(loaded)
        self._settle(now, loaded)
        return loaded

    def failed(self, load: Load, now: float) -> None:
        """The load has brought nothing. The next who asks for its model has it tried again."""
        if load in self._running:
            del self._running[load]
            self._bytes -= load.expected_bytes
            del self._loads[load.model]
            self.steps.append(Changed(load.model))
        self._settle(now)

    def closed(self, loaded: Loaded[T], now: float) -> None:
        """The model is no longer in memory."""
        loaded.standing = Standing.CLOSED
        del self._closing[loaded]
        self._bytes -= loaded.size_bytes
        self._settle(now)

    # ---- time, and the end

    def due(self, now: float) -> float | None:
        """When `tick` is to be called if nothing happens before; None: never."""
        if not self._line:
            return None
        times = [load.since + self.patience_s for load in self._line if load.waiters]
        times += [(load.started_at or 0.0) + self.patience_s for load in self._running]
        return min((time for time in times if time > now), default=None)

    def tick(self, now: float) -> None:
        """Time has passed."""
        self._settle(now)

    def stop(self, now: float) -> None:
        """Nothing is loaded any more, and all goes when it is not in use."""
        self.stopped = True
        for load in list(self._line):
            self._refuse(load)
        for load in list(self._running):
            self._disown(load)
            load.waiters = 0
        for loaded in list(self._ready.values()):
            self._evict(loaded)

    # ---- deciding

    def _settle(self, now: float, newest: Loaded[T] | None = None) -> None:
        """Start what may start, and make room for what may not, until nothing more follows. `newest` has just come, and
        goes for nobody's sake but of those who wait.
        """
        if self._line or self._over():
            while self._start_next(now) or self._evict_next(newest):
                pass
        if self._condemned and not self.stopped:
            self._pardon()

    def _over(self) -> bool:
        count, size = self._short()
        return count > 0 or size > 0

    def _short(self) -> tuple[float, float]:
        """How many models, and how many bytes, are to go for all who wait, beyond those that are going already."""
        asked = [load for load in self._line if load.waiters]
        count = size = float("-inf")
        if self.limit is not None:
            going = len(self._condemned) + len(self._closing)
            count = self.in_memory - going + min(len(asked), self.limit) - self.limit
            asked = asked[: self.limit]
        if self.max_bytes is not None:
            going = sum(loaded.size_bytes for loaded in self.leaving)
            size = self._bytes - going + sum(load.expected_bytes for load in asked) - self.max_bytes
        return count, size

    def _start_next(self, now: float) -> bool:
        """Start the load whose turn it is, if it may. Hints come after all that is asked for."""
        asked = [load for load in self._line if load.waiters]
        load = next((load for load in asked if load.urgent), None) or next(iter(asked or self._line), None)
        if load is None:
            return False
        condemned = self._condemned_one(load.model)
        if condemned is not None and load.waiters:
            self._give(load, condemned)
            return True
        has_room = self._has_room(load, now)
        overdue = not has_room and not load.urgent and load.waiters > 0 and now - load.since >= self.patience_s
        if not (has_room or load.urgent or overdue):
            return False
        self._line.remove(load)
        self._running[load] = None
        self._bytes += load.expected_bytes
        load.started_at = now
        self.steps += (Changed(load.model), Start(load, overdue))
        return True

    def _has_room(self, load: Load, now: float) -> bool:
        if self.limit is not None and self.in_memory >= self.limit:
            return False
        if self.max_bytes is not None and self.in_memory and self._bytes + load.expected_bytes > self.max_bytes:
            return False
        # One that takes for ever holds up the others once, not each of them.
        return not self.one_at_a_time or all(
            now - (other.started_at or 0.0) >= self.patience_s for other in self._running
        )

    def _evict_next(self, newest: Loaded[T] | None) -> bool:
        """Let one go of which there are too many, if any is. One that alone is too large stays while nobody waits."""
        count, size = self._short()
        asked = any(load.waiters for load in self._line)
        if count > 0 or (size > 0 and (asked or self._running or len(self._ready) > 1)):
            return self._evict_one(spare=None if count > 0 or asked else newest)
        return bool(self._line) and not asked and self._evict_for_hint(self._line[0])

    def _evict_one(self, spare: Loaded[T] | None) -> bool:
        """The least recently used that is idle; a load that nobody waits for; the least recently used of all."""
        known = [loaded for loaded in self._ready.values() if loaded is not spare]
        idle = next((loaded for loaded in known if not loaded.users), None)
        if idle is not None:
            self._evict(idle)
            return True
        unwanted = next((load for load in self._running if not load.waiters), None)
        if unwanted is not None:
            self._disown(unwanted)
        elif known:
            self._evict(known[0])
        return unwanted is not None or bool(known)

    def _evict_for_hint(self, hint: Load) -> bool:
        """Make room for a hint by what is idle alone; where that is not enough, forget the hint."""
        closing = sum(loaded.size_bytes for loaded in self._closing)
        count = 0 if self.limit is None else self.in_memory - len(self._closing) + 1 - self.limit
        size = 0 if self.max_bytes is None else self._bytes - closing + hint.expected_bytes - self.max_bytes
        if count <= 0 and size <= 0:
            return False  # the room is on its way, or another load is
        idle = next((loaded for loaded in self._ready.values() if not loaded.users), None)
        if idle is not None:
            self._evict(idle)
        else:
            self._refuse(hint)
        return True

    def _evict(self, loaded: Loaded[T]) -> None:
        del self._ready[loaded.model]
        self.steps.append(Changed(loaded.model))
        if loaded.users:
            loaded.standing = Standing.CONDEMNED
            self._condemned.append(loaded)
        else:
            self._close(loaded)

    def _close(self, loaded: Loaded[T]) -> None:
        loaded.standing = Standing.CLOSING
        self._closing[loaded] = None
        self.steps.append(Close(loaded))  # type: ignore[arg-type]

    def _pardon(self) -> None:
        """Keep condemned models that need not go after all, the most recently used first."""
        for loaded in reversed(self._condemned):
            if loaded.model in self._ready or loaded.model in self._loads:
                continue
            count, size = self._short()
            if count + 1 <= 0 and size + loaded.size_bytes <= 0:
                self._reprieve(loaded)
                self._ready.move_to_end(loaded.model, last=False)

    def _give(self, load: Load, loaded: Loaded[T]) -> None:
        """It is the turn of those who wait for a condemned model: they get it."""
        self._drop(load)
        self._reprieve(loaded)
        loaded.users += load.waiters
        self.steps.append(Give(load, loaded))  # type: ignore[arg-type]

    def _reprieve(self, loaded: Loaded[T]) -> None:
        self._condemned.remove(loaded)
        loaded.standing = Standing.READY
        self._ready[loaded.model] = loaded
        self.steps.append(Changed(loaded.model))

    def _drop(self, load: Load) -> None:
        """It waits for room no more."""
        self._line.remove(load)
        del self._loads[load.model]

    def _refuse(self, load: Load) -> None:
        self._drop(load)
        self.steps.append(Refuse(load))

    def _disown(self, load: Load) -> None:
        """A load that has started is wanted no more: what it brings comes late."""
        del self._running[load]
        self._bytes -= load.expected_bytes
        del self._loads[load.model]
        self.steps += (Changed(load.model), Cancel(load))

    def _came_late(self, loaded: Loaded[T]) -> None:
        """What a disowned load has brought: keep it where there happens to be room."""
        count, size = self._short()
        if (
            not self.stopped
            and loaded.model not in self._ready
            and loaded.model not in self._loads
            and count < 0
            and size <= 0
            and self.leaving == []
        ):
            self._ready[loaded.model] = loaded
            self.steps.append(Changed(loaded.model))
        elif loaded.users:
            loaded.standing = Standing.CONDEMNED
            self._condemned.append(loaded)
        else:
            self._close(loaded)

    def _takes_from_others(self, newest: Loaded[T]) -> bool:
        """Whether one for which nobody has asked is so large that models in use would have to go."""
        if self.max_bytes is None:
            return False
        needed = sum(loaded.size_bytes for loaded in self._ready.values() if loaded.users or loaded is newest)
        needed += sum(load.expected_bytes for load in self._running)
        return needed > self.max_bytes

    def _condemned_one(self, model: str) -> Loaded[T] | None:
        return next((loaded for loaded in reversed(self._condemned) if loaded.model == model), None)

    # ---- sizes

    def _expected(self, model: str) -> int:
        """What it took last time; of one that was never loaded, what models take on average."""
        if self.max_bytes is None:
            return 0
        known = self._sizes.get(model)
        if known is None:
            known = sum(self._sizes.values()) // len(self._sizes) if self._sizes else 0
        return known

    def _remember(self, model: str, size_bytes: int) -> None:
        self._sizes[model] = size_bytes
        self._sizes.move_to_end(model)
        if len(self._sizes) > SIZES_KEPT:
            self._sizes.popitem(last=False)
