"""Which models stay, which go and which are loaded, whatever happens in whatever order."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from headrace.core.loads import Cancel, Changed, Close, Give, Load, Loaded, Refuse, Standing, Start
from headrace.core.models import PATIENCE_S, Models

MODELS = st.sampled_from("abcdefg")


class Anything(RuleBasedStateMachine):
    """Requests come, wait, use, end and leave; loads and closings take as long as they like; routers hint."""

    limit: int | None = 2
    max_bytes: int | None = None
    alone = False
    cancellable = True
    sizes = {model: 10 + 7 * n for n, model in enumerate("abcdefg")}

    def __init__(self):
        super().__init__()
        self.models: Models[str] = Models(self.limit, self.max_bytes, self.alone, self.cancellable)
        self.now = 0.0
        self.running: list[Load] = []
        self.waiting: list[Load] = []  # one entry for each who waits
        self.using: list[Loaded] = []  # and for each who uses
        self.closing: list[Loaded] = []
        self.used: list[str] = []  # models by their last use
        self.excused: set[str] = set()  # loaded beyond the limits, as they had to be
        self.once_condemned: set[str] = set()  # or late, since they were last used: they are the first to go
        self.late: list[Loaded] = []  # brought by loads that had been given up

    def use(self, loaded):
        assert loaded.standing in (Standing.READY, Standing.CONDEMNED)
        self.using.append(loaded)

    def touch(self, model):
        if model in self.used:
            self.used.remove(model)
        self.used.append(model)
        self.once_condemned.discard(model)

    def do(self):
        while self.models.steps:
            steps, self.models.steps = self.models.steps, []
            for step in steps:
                match step:
                    case Start(load):
                        assert load.model not in [other.model for other in self.running if other not in self.dropped()]
                        self.running.append(load)
                        if load.urgent or (load.waiters and self.now - load.since >= PATIENCE_S):
                            self.excused.add(load.model)
                    case Cancel(load):
                        assert not load.waiters
                        if self.cancellable:
                            self.running.remove(load)
                            self.models.failed(load, self.now)
                    case Give(load, loaded):
                        assert loaded.model == load.model
                        self.touch(load.model)
                        for _ in range(self.waiting.count(load)):
                            self.waiting.remove(load)
                            self.use(loaded)
                    case Close(loaded):
                        assert not loaded.users
                        assert loaded not in self.using
                        self.closing.append(loaded)
                    case Refuse(load):
                        assert not load.waiters
                    case Changed(model):
                        assert self.models.standing_of(model) in (True, False, None)

    def dropped(self):
        """Loads that run and that the core has given up."""
        return [load for load in self.running if load not in self.models._running]

    def advance(self):
        due = self.models.due(self.now)
        if due is not None and due <= self.now:
            self.models.tick(self.now)

    @rule(model=MODELS, urgent=st.sampled_from([False, False, False, True]), insider=st.booleans())
    def ask(self, model, urgent, insider):
        loaded = self.models.find(model, insider)
        if loaded is not None:
            self.models.hold(loaded)
            if loaded.standing is Standing.READY:
                self.touch(model)
            self.use(loaded)
            return
        idle, before = self.idle(), len(self.closing)
        self.waiting.append(self.models.ask(model, self.now, urgent))
        self.do()
        went = [loaded.model for loaded in self.closing[before:]]
        assert went == idle[: len(went)], "the least recently used goes first"

    @rule(model=MODELS)
    def hint(self, model):
        ready = [loaded for loaded in set(self.using) if loaded.standing is Standing.READY]
        self.models.hint(model, self.now)
        self.do()
        assert all(loaded.standing is Standing.READY for loaded in ready)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), fails=st.sampled_from([False, False, False, True]))
    def end_load(self, data, fails):
        load = data.draw(st.sampled_from(self.running))
        self.running.remove(load)
        if fails:
            waiters = load.waiters
            self.models.failed(load, self.now)
            assert self.waiting.count(load) == waiters
            self.waiting = [other for other in self.waiting if other is not load]
        else:
            was_given_up = load not in self.models._running
            loaded = self.models.loaded(load, load.model.upper(), self.sizes[load.model], self.now)
            if was_given_up:
                self.late.append(loaded)
                self.once_condemned.add(load.model)
            else:
                self.touch(load.model)
            assert loaded.users == self.waiting.count(load)
            for _ in range(loaded.users):
                self.waiting.remove(load)
                self.use(loaded)
        self.do()

    @precondition(lambda self: self.waiting)
    @rule(data=st.data(), kept=st.booleans())
    def leave(self, data, kept):
        load = data.draw(st.sampled_from(self.waiting))
        self.waiting.remove(load)
        self.models.leave(load, self.now, kept)
        self.do()

    @precondition(lambda self: self.using)
    @rule(data=st.data())
    def release(self, data):
        loaded = data.draw(st.sampled_from(self.using))
        self.using.remove(loaded)
        self.models.release(loaded, self.now)
        self.do()

    @precondition(lambda self: self.closing)
    @rule(data=st.data())
    def close(self, data):
        loaded = data.draw(st.sampled_from(self.closing))
        self.closing.remove(loaded)
        self.models.closed(loaded, self.now)
        self.do()

    @rule(seconds=st.sampled_from([0.0, 1.0, PATIENCE_S]))
    def pass_time(self, seconds):
        self.now += seconds
        self.models.tick(self.now)
        self.do()

    # ---- what holds always

    def idle(self):
        return [loaded.model for loaded in self.models if not loaded.users]

    @invariant()
    def users_are_counted(self):
        for loaded in [*self.models, *self.models.leaving]:
            assert loaded.users == self.using.count(loaded)
        for load in self.models._loads.values():
            assert load.waiters == self.waiting.count(load)

    @invariant()
    def what_is_in_memory_is_known(self):
        models = self.models
        owned = [load for load in self.running if load in models._running]
        assert models.in_memory == len(list(models)) + len(models.leaving) + len(owned)
        taken = sum(loaded.size_bytes for loaded in [*models, *models.leaving])
        assert models.bytes_in_memory == taken + sum(load.expected_bytes for load in owned)
        assert set(models.closing) == set(self.closing)
        there = {load.model for load in owned} | {loaded.model for loaded in [*models, *models.leaving]}
        self.excused &= there

    @invariant()
    def there_is_one_of_each(self):
        ready, loading = [loaded.model for loaded in self.models], self.models.loading
        assert len(ready) == len(set(ready))
        assert not set(ready) & set(loading)

    @invariant()
    def the_limit_holds(self):
        if self.limit is not None:
            twice = len([loaded for loaded in self.models.leaving if loaded.model in self.excused])
            late = len([loaded for loaded in self.late if loaded.standing is Standing.CLOSING])
            assert self.models.in_memory <= self.limit + len(self.excused) + twice + late

    @invariant()
    def nobody_waits_without_need(self):
        models = self.models
        asked = [load for load in models._line if load.waiters]
        if not asked:
            return
        assert all(self.now - load.since < PATIENCE_S for load in asked)
        assert not any(load.urgent for load in asked)
        full = self.limit is not None and models.in_memory >= self.limit
        ahead = asked[0].expected_bytes
        full |= self.max_bytes is not None and models.bytes_in_memory + ahead > self.max_bytes and models.in_memory > 0
        full |= self.alone and bool(models._running)
        assert full
        if self.limit is not None and models.in_memory - len(models.leaving) >= self.limit:
            # Idle models and loads that nobody wants give way at once.
            assert not self.idle()
            assert all(load.waiters for load in models._running)

    @invariant()
    def memory_is_not_kept_that_is_too_much(self):
        if self.max_bytes is None:
            return
        going = sum(loaded.size_bytes for loaded in self.models.leaving)
        loading = sum(load.expected_bytes for load in self.models._running)
        kept = sum(loaded.size_bytes for loaded in self.models)
        if kept + loading > self.max_bytes:
            assert len(list(self.models)) <= 1, "only the newest may be too much alone"
        assert kept + loading + going == self.models.bytes_in_memory

    @invariant()
    def the_order_is_that_of_use(self):
        self.once_condemned |= {loaded.model for loaded in self.models.leaving}
        ready = [loaded.model for loaded in self.models if loaded.model not in self.once_condemned]
        assert ready == sorted(ready, key=self.used.index)

    def teardown(self):
        """Everything ends: then everybody has got what was asked for, and what is left is within the limits."""
        for _ in range(1000):
            if self.closing:
                self.models.closed(self.closing.pop(), self.now)
            elif self.using:
                self.models.release(self.using.pop(), self.now)
            elif self.running:
                load = self.running.pop()
                loaded = self.models.loaded(load, load.model.upper(), self.sizes[load.model], self.now)
                for _ in range(loaded.users):
                    self.waiting.remove(load)
                    self.use(loaded)
            else:
                break
            self.do()
        assert not self.waiting
        assert not self.models.loading
        assert not self.models.leaving
        assert self.limit is None or self.models.in_memory <= self.limit
        if self.max_bytes is not None and self.models.in_memory > 1:
            assert self.models.bytes_in_memory <= self.max_bytes


class One(Anything):
    limit = 1


class Threads(Anything):
    limit = 3
    cancellable = False


class Memory(Anything):
    limit = None
    max_bytes = 60


class Measured(Anything):
    limit = 3
    max_bytes = 90
    alone = True
    cancellable = False


class Unlimited(Anything):
    limit = None


@pytest.mark.parametrize(
    "world", [Anything, One, Threads, Memory, Measured, Unlimited], ids=lambda world: world.__name__
)
def test_whatever_happens(world):
    machine = world.TestCase
    machine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
    machine().runTest()
