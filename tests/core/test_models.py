"""Which models stay, which go and which are loaded, case by case."""

from __future__ import annotations

from headrace.core.loads import Cancel, Changed, Close, Give, Load, Loaded, Refuse, Standing, Start
from headrace.core.models import PATIENCE_S, Models


class World:
    """Models with somebody who does what they say at once, but for what a test wants to do itself."""

    def __init__(self, *, closes: bool = True, **options):
        self.models: Models[str] = Models(**options)
        self.now = 0.0
        self.closes = closes  # closings end at once
        self.started: list[Load] = []
        self.cancelled: list[Load] = []
        self.refused: list[Load] = []
        self.given: dict[Load, Loaded] = {}
        self.to_close: list[Loaded] = []
        self.log: list[str] = []

    def do(self):
        while self.models.steps:
            steps, self.models.steps = self.models.steps, []
            for step in steps:
                match step:
                    case Start(load):
                        self.started.append(load)
                        self.log.append(f"load {load.model}")
                    case Cancel(load):
                        self.cancelled.append(load)
                    case Refuse(load):
                        self.refused.append(load)
                    case Give(load, loaded):
                        self.given[load] = loaded
                    case Close(loaded):
                        assert not loaded.users
                        self.log.append(f"close {loaded.model}")
                        if self.closes:
                            self.models.closed(loaded, self.now)
                        else:
                            self.to_close.append(loaded)
                    case Changed():
                        pass

    def ask(self, model, **options) -> Load:
        assert self.models.find(model) is None
        load = self.models.ask(model, self.now, **options)
        self.do()
        return load

    def use(self, model) -> Loaded:
        loaded = self.models.find(model)
        assert loaded is not None
        self.models.hold(loaded)
        return loaded

    def come(self, load, size=0) -> Loaded:
        loaded = self.models.loaded(load, load.model.upper(), size, self.now)
        self.do()
        return loaded

    def have(self, *models, size=0) -> None:
        """Have these loaded, with nobody who uses them."""
        for model in models:
            self.release(self.come(self.ask(model), size))

    def release(self, *all_loaded) -> None:
        for loaded in all_loaded:
            self.models.release(loaded, self.now)
            self.do()

    def close(self, loaded) -> None:
        self.to_close.remove(loaded)
        self.models.closed(loaded, self.now)
        self.do()

    def fail(self, load) -> None:
        self.models.failed(load, self.now)
        self.do()

    def leave(self, load, kept=False) -> None:
        self.models.leave(load, self.now, kept)
        self.do()

    def hint(self, model) -> None:
        self.models.hint(model, self.now)
        self.do()

    def wait(self, seconds) -> None:
        self.now += seconds
        self.models.tick(self.now)
        self.do()

    @property
    def ready(self):
        return [loaded.model for loaded in self.models]


# ---- by count


def test_the_least_recently_used_goes():
    world = World(limit=3)
    world.have("a", "b", "c")
    world.models.find("a")
    world.have("d")
    assert world.ready == ["c", "a", "d"]
    assert world.log[3:] == ["close b", "load d"]  # first the one, then the other: the limit holds meanwhile


def test_any_number_stays_without_a_limit():
    world = World()
    world.have(*(f"m{n}" for n in range(300)))
    assert len(world.ready) == 300
    assert not world.models.leaving


def test_there_is_one_load_for_all_who_ask():
    world = World(limit=2)
    loads = {world.ask("a"), world.ask("a"), world.ask("a")}
    assert len(loads) == len(world.started) == 1
    assert world.come(loads.pop()).users == 3


def test_loads_of_different_models_run_at_once_within_the_limit():
    world = World(limit=2)
    a, b, c = world.ask("a"), world.ask("b"), world.ask("c")
    assert world.started == [a, b]
    world.release(world.come(b))
    assert world.log == ["load a", "load b", "close b", "load c"]
    assert world.models.in_memory == 2
    assert c.started_at == 0.0


def test_a_load_that_fails_is_tried_again_by_the_next_who_asks():
    world = World(limit=1)
    first = world.ask("a")
    world.fail(first)
    second = world.ask("a")
    assert second is not first
    assert world.started == [first, second]
    assert world.models.in_memory == 1


def test_one_in_use_goes_last_and_only_when_its_last_request_has_ended():
    world = World(limit=2)
    world.have("a", "b")
    a, again = world.use("a"), world.use("a")
    world.have("c")
    assert world.ready == ["a", "c"]  # b was used later, but is idle
    world.use("c")
    world.ask("d")
    assert a.standing is Standing.CONDEMNED
    assert world.models.find("a") is None
    world.release(a)
    assert "close a" not in world.log
    world.release(again)
    assert world.log[-2:] == ["close a", "load d"]


def test_room_is_there_when_a_model_is_closed_not_before():
    world = World(limit=1, closes=False)
    world.have("a")
    load = world.ask("b")
    assert world.started[1:] == []
    world.close(world.to_close[0])
    assert world.started[1:] == [load]


def test_who_comes_first_loads_first():
    world = World(limit=1)
    world.have("a")
    a = world.use("a")
    world.ask("b")
    world.ask("c")
    world.release(a)
    assert world.log[-1] == "load b"


def test_a_request_that_holds_a_model_does_not_wait_for_room():
    world = World(limit=1)
    world.have("a")
    a = world.use("a")
    b = world.come(world.ask("b", urgent=True))
    assert world.models.in_memory == 2
    assert a.standing is Standing.CONDEMNED
    world.release(b, a)
    assert world.ready == ["b"]


def test_one_that_becomes_urgent_starts():
    world = World(limit=1)
    world.have("a")
    world.use("a")
    load = world.ask("b")
    assert load.started_at is None
    world.ask("b", urgent=True)
    assert world.started[-1] is load


def test_a_condemned_model_stays_when_nothing_needs_its_room_any_more():
    world = World(limit=1)
    world.have("a")
    a = world.use("a")
    load = world.ask("b")
    assert world.models.find("a") is None
    assert world.models.find("a", insider=True) is a
    world.leave(load)
    assert world.models.find("a") is a
    assert a.standing is Standing.READY
    world.release(a)
    assert world.ready == ["a"]


def test_those_whose_turn_it_is_get_the_condemned_model_that_they_wait_for():
    world = World(limit=1)
    world.have("a")
    a = world.use("a")
    ahead = world.ask("b")
    waiting = world.ask("a")
    assert waiting not in world.given
    world.leave(ahead)
    assert world.given == {waiting: a}
    assert a.users == 2
    assert world.started[1:] == []


def test_what_never_gives_up_its_room_stops_nobody_for_ever():
    world = World(limit=1)
    world.have("a")
    world.use("a")
    load = world.ask("b")
    due = world.models.due(world.now)
    assert due == PATIENCE_S
    world.wait(due / 2)
    assert load.started_at is None
    world.models.tick(due)
    assert world.models.steps[-1] == Start(load, overdue=True)


# ---- loads that nobody waits for


def test_a_load_that_all_have_left_is_cancelled_and_the_next_begins_anew():
    world = World(limit=1)
    first = world.ask("a")
    world.ask("a")
    world.leave(first)
    assert not world.cancelled
    world.leave(first)
    assert world.cancelled == [first]
    second = world.ask("a")
    assert second is not first
    world.fail(first)  # it has ended, which means nothing to the second
    assert world.come(second).users == 1


def test_a_load_that_was_cancelled_before_goes_on():
    world = World(limit=1)
    first = world.ask("a")
    world.leave(first)
    world.fail(first)
    second = world.ask("a")
    world.leave(second)
    assert world.cancelled == [first]
    world.come(second)
    assert world.ready == ["a"]
    world.have("b")
    third = world.ask("a")
    world.leave(third)
    assert world.cancelled == [first, third]


def test_a_load_whose_callers_ran_out_of_time_goes_on():
    world = World(limit=1)
    load = world.ask("a")
    world.leave(load, kept=True)
    assert not world.cancelled
    world.come(load)
    assert world.ready == ["a"]


def test_a_load_that_cannot_be_cancelled_goes_on_and_is_joined():
    world = World(limit=1, cancellable=False)
    load = world.ask("a")
    world.leave(load)
    assert world.ask("a") is load
    assert world.come(load).users == 1


def test_a_load_that_nobody_waits_for_makes_room():
    world = World(limit=1, cancellable=False)
    late = world.ask("a")
    world.leave(late)
    load = world.ask("b")
    assert world.started == [late, load]
    assert world.cancelled == [late]
    world.come(load)
    world.come(late)  # there is no room for it
    assert world.ready == ["b"]
    assert world.log[-1] == "close a"


def test_what_comes_late_stays_where_there_is_room():
    world = World(limit=1)
    late = world.ask("a")
    world.leave(late)
    world.come(late)
    assert world.ready == ["a"]


# ---- hints


def test_a_hint_loads_where_there_is_room_and_in_the_place_of_what_is_idle():
    world = World(limit=2)
    world.hint("a")
    world.come(world.started[-1])
    world.have("b")
    world.hint("c")
    assert world.log == ["load a", "load b", "close a", "load c"]


def test_a_hint_takes_the_place_of_nothing_in_use():
    world = World(limit=2)
    world.have("a")
    world.use("a")
    world.ask("b")
    world.hint("c")
    assert len(world.started) == 2
    assert world.models.loading == ["b"]


def test_a_hint_for_what_is_there_or_on_its_way_is_dropped():
    world = World(limit=3)
    world.have("a")
    world.ask("b")
    world.hint("a")
    world.hint("b")
    assert len(world.started) == 2


def test_who_asks_for_what_was_hinted_joins_and_goes_without_harm():
    world = World(limit=2)
    world.hint("a")
    load = world.ask("a")
    assert world.started == [load]
    world.leave(load)
    assert not world.cancelled
    world.come(load)
    assert world.ready == ["a"]


def test_a_hint_waits_for_its_room_and_gives_way_to_who_asks():
    world = World(limit=1, closes=False)
    world.have("a")
    world.hint("b")
    world.ask("c")
    world.close(world.to_close[0])
    assert [load.model for load in world.started] == ["a", "c"]
    assert world.models.loading == ["c"]


def test_a_hinted_model_that_is_too_large_goes_again():
    world = World(max_bytes=100)
    world.have("a", size=60)
    a = world.use("a")
    world.models._sizes["b"] = 10
    world.hint("b")
    world.come(world.started[-1], 50)
    assert world.ready == ["a"]
    world.release(a)
    assert world.models.bytes_in_memory == 60


# ---- by memory


def test_what_a_model_took_last_time_is_made_room_for():
    world = World(max_bytes=100)
    world.have("a", size=60)
    world.have("b", size=60)
    assert world.ready == ["b"]
    world.ask("a")
    assert world.log[-2:] == ["close b", "load a"]


def test_of_an_unknown_model_the_average_is_expected():
    world = World(max_bytes=100)
    world.have("a", "b", size=40)
    world.ask("c")
    assert world.log[-2:] == ["close a", "load c"]


def test_a_model_larger_than_the_limit_is_alone():
    world = World(max_bytes=100)
    world.have("a", "b", size=10)
    world.have("large", size=500)
    assert world.ready == ["large"]
    world.have("a", size=10)
    assert world.ready == ["a"]
    world.ask("large")
    assert world.log[-2:] == ["close a", "load large"]


def test_a_model_that_is_too_large_stays_while_it_is_alone():
    world = World(max_bytes=100)
    world.have("a", "b", size=10)
    a = world.use("a")
    large = world.come(world.ask("large"), 500)
    assert world.ready == ["large"]
    world.release(a)
    world.wait(1.0)
    world.release(large)
    assert world.ready == ["large"]
    assert world.models.in_memory == 1


def test_the_least_recently_used_goes_though_it_was_loaded_last():
    world = World(max_bytes=100)
    world.have("a", "b", size=40)
    world.models.find("a")
    world.ask("c", urgent=True)
    assert world.log[-2:] == ["load c", "close b"]


def test_models_in_use_go_after_a_model_that_needs_their_room():
    world = World(max_bytes=100)
    world.have("a", size=60)
    a = world.use("a")
    load = world.ask("b")
    world.wait(PATIENCE_S)
    b = world.come(load, 60)
    assert a.standing is Standing.CONDEMNED
    assert world.ready == ["b"]
    world.release(b, a)
    assert world.models.bytes_in_memory == 60


def test_where_memory_is_measured_by_what_grows_loads_follow_each_other():
    world = World(max_bytes=100, one_at_a_time=True)
    a, b = world.ask("a"), world.ask("b")
    assert world.started == [a]
    world.come(a, 10)
    assert world.started == [a, b]


def test_a_load_without_end_holds_up_the_others_once():
    world = World(max_bytes=100, one_at_a_time=True)
    hung, b = world.ask("hung"), world.ask("b")
    assert world.models.due(0.0) == PATIENCE_S
    world.wait(PATIENCE_S)
    assert world.started == [hung, b]
    world.come(b, 10)
    c = world.ask("c")
    assert world.started[-1] is c


# ---- the end


def test_when_it_stops_all_goes_that_is_not_in_use():
    world = World(limit=2)
    world.have("a", "b")
    b = world.use("b")
    waiting = world.ask("c")
    world.models.stop(world.now)
    world.do()
    assert world.log[-1] == "close a" or "close a" in world.log
    assert world.cancelled == [waiting] or world.refused == [waiting]
    world.release(b)
    assert world.log[-1] == "close b"
    assert not world.ready
    if waiting in world.cancelled:
        world.come(waiting)
        assert world.log[-1] == "close c"
    assert world.models.in_memory == 0


def test_loads_that_wait_for_each_other_are_found():
    a, b, c = (Load(name, 0.0, 0) for name in "abc")
    a.waits_for.append(b)
    b.waits_for.append(c)
    assert a.leads_to(c)
    assert a.leads_to(a)
    assert not c.leads_to(a)
