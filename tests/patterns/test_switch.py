"""patterns.switch: the input, a header or the model id says who answers, and nobody else is asked."""

from __future__ import annotations

from typing import Any

import pytest
from puppets import Puppet, bound, run, until

from headrace import patterns
from headrace.serve.testing import TestInstance
from headrace.spec.errors import InputError, RequestCancelledError, RequestTimeoutError


def two(cats: Puppet, dogs: Puppet) -> dict[str, Any]:
    return {"cats": bound("Cats", cats), "dogs": bound("Dogs", dogs)}


async def chosen_slowly(image: Any, **options: Any) -> str:
    return "cats" if image["whiskers"] > 5 else "dogs"


@pytest.mark.parametrize(
    ("choose", "argument"),
    [
        (lambda image: image["animal"], {"animal": "cats"}),
        ("animal", {"animal": "cats"}),
        (chosen_slowly, {"whiskers": 6}),
    ],
)
def test_only_the_one_that_was_chosen_is_called(choose: Any, argument: Any) -> None:
    async def test(instance: TestInstance) -> None:
        cats, dogs = Puppet(lambda x: {"name": "lynx"}), Puppet()
        handle = await instance.run(patterns.switch(choose, two(cats, dogs)))
        assert await handle.remote(argument) == {"name": "lynx"}
        assert (cats.began, dogs.began) == ([argument], [])

    run(test)


def test_the_key_may_be_a_named_argument_or_an_attribute_and_of_any_kind() -> None:
    async def test(instance: TestInstance) -> None:
        app = patterns.switch(
            "real", {1.0: bound("One", Puppet("one")), 2.0: bound("Two", Puppet("two"))}, details=True
        )
        handle = await instance.run(app)
        assert await handle.remote(2 + 1j) == {"answer": "two", "by": 2.0, "failed": {}}
        assert (await handle.remote(real=1.0))["answer"] == "one"

    run(test)


@pytest.mark.parametrize("argument", [{"animal": "fish"}, {"animal": ["cats"]}, {}, [1, 2], "cats", None])
def test_an_unknown_key_is_the_default_s_or_an_error_of_the_input(argument: Any) -> None:
    async def test(instance: TestInstance) -> None:
        cases = two(Puppet(), Puppet())
        handle = await instance.run(patterns.switch("animal", cases, bound("Any", Puppet("any")), details=True))
        assert await handle.remote(argument) == {"answer": "any", "by": "default", "failed": {}}
        handle = await instance.run(patterns.switch("animal", cases), name="strict", route_prefix=None)
        missing = r"Switch (has no case .*: it has|goes by 'animal', which the input has not; the cases are) 'cats', 'd"
        with pytest.raises(InputError, match=missing):
            await handle.remote(argument)

    run(test)


def test_a_function_that_raises_ends_the_request_with_its_error() -> None:
    async def test(instance: TestInstance) -> None:
        cats = Puppet()
        handle = await instance.run(patterns.switch(lambda image: image["animal"], two(cats, Puppet()), None))
        with pytest.raises(KeyError, match="animal"):
            await handle.remote({})
        assert cats.began == []

    run(test)


def test_the_error_of_the_chosen_one_is_that_of_the_request_and_names_it() -> None:
    async def test(instance: TestInstance) -> None:
        cases = two(Puppet(error=LookupError("no such word")), Puppet())
        handle = await instance.run(patterns.switch("animal", cases, bound("Any", Puppet())))
        with pytest.raises(LookupError, match="no such word") as caught:
            await handle.remote({"animal": "cats"})
        assert caught.value.__notes__ == ["It is the error of Cats, which Switch chose by 'cats'"]

    run(test)


def test_a_slow_one_holds_up_nobody_who_chose_another() -> None:
    async def test(instance: TestInstance) -> None:
        cats, dogs = Puppet("lynx", held=True), Puppet("collie")
        handle = await instance.run(patterns.switch("animal", two(cats, dogs)))
        slow = handle.remote({"animal": "cats"})
        await until(lambda: cats.began)
        assert await handle.remote({"animal": "dogs"}) == "collie"
        assert not slow.done()
        cats.release()
        assert await slow == "lynx"

    run(test)


def test_a_hanging_one_is_stopped_by_the_deadline_and_when_the_client_leaves() -> None:
    async def test(instance: TestInstance) -> None:
        cats = Puppet(held=True)
        handle = await instance.run(patterns.switch("animal", two(cats, Puppet())))
        with pytest.raises(RequestTimeoutError):
            await handle.options(timeout_s=0.3).remote({"animal": "cats"})
        await until(lambda: len(cats.cancelled) == 1)
        response = handle.remote({"animal": "cats"})
        await until(lambda: len(cats.began) == 2)
        response.cancel()
        with pytest.raises(RequestCancelledError):
            await response
        await until(lambda: len(cats.cancelled) == 2)

    run(test)


def test_by_the_model_id_of_a_handle_or_a_client() -> None:
    async def test(instance: TestInstance) -> None:
        app = patterns.switch(patterns.by_model_id, two(Puppet("lynx"), Puppet("collie")), bound("Any", Puppet("any")))
        handle = await instance.run(app)
        assert await handle.remote("x") == "any"
        assert await handle.options(multiplexed_model_id="dogs").remote("x") == "collie"
        async with instance.http_client() as client:
            answer = await client.post("/", json={}, headers={"serve_multiplexed_model_id": "cats"})
            assert answer.text == "lynx"

    run(test)


def test_by_a_header_over_http() -> None:
    async def test(instance: TestInstance) -> None:
        cats = Puppet(lambda x: {"got": x})
        app = patterns.switch(patterns.by_header("X-Animal"), two(cats, Puppet()), bound("Any", Puppet("any")))
        handle = await instance.run(app)
        async with instance.http_client() as client:
            answer = await client.post("/", json=[1], headers={"x-animal": "cats"})
            assert answer.json() == {"got": [1]}
            assert (await client.post("/", json=[1], headers={"x-animal": "fish"})).text == "any"
            assert (await client.post("/", json=[1])).text == "any"
        assert await handle.remote([1]) == "any"

    run(test)


def test_a_request_without_the_header_or_model_id_is_told_what_it_lacks() -> None:
    async def test(instance: TestInstance) -> None:
        await instance.run(patterns.switch(patterns.by_header("X-Animal"), two(Puppet(), Puppet())))
        named = patterns.switch(patterns.by_model_id, two(Puppet(), Puppet()))
        await instance.run(named, name="named", route_prefix="/named")
        async with instance.http_client() as client:
            answer = await client.post("/", json=[1])
            assert answer.status_code == 400
            assert answer.text.startswith("Switch goes by the header 'X-Animal', which the request has not; the cases")
            answer = await client.post("/named", json=[1])
            assert answer.status_code == 400
            assert answer.text.startswith("Switch goes by the model id, and the request names none; the cases are")

    run(test)


def test_an_unknown_key_is_answered_400_over_http_at_any_depth() -> None:
    async def test(instance: TestInstance) -> None:
        inner = patterns.switch("animal", two(Puppet(), Puppet()))
        await instance.run(patterns.pipeline(inner, lambda x: x))
        async with instance.http_client() as client:
            answer = await client.post("/", json={"animal": "fish" * 100})
            assert answer.status_code == 400
            assert answer.text.startswith("Switch has no case 'fishfish")
            assert answer.text.endswith("it has 'cats', 'dogs'")
            assert len(answer.text) < 200

    run(test)
