"""A pipeline: each stage gets what the one before it answered.

In: a call. Out: the answer of the last stage, or the error of the one that failed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from headrace import serve
from headrace.patterns.member import Declared, Member, check_method, one
from headrace.patterns.pattern import Parse, Pattern, add_note, bind, is_function, value_of
from headrace.spec.errors import OptionError, OptionTypeError

if TYPE_CHECKING:
    from starlette.requests import Request

    from headrace.serve.handle import DeploymentResponse


def pipeline(
    *stages: Any,
    method: str | None = None,
    parse: Parse | None = None,
    options: Mapping[str, Any] | None = None,
) -> serve.Application:
    """Stages one after the other: the first gets the call's arguments, each further one the answer before it.

    A stage is a bound deployment, a handle, a `member()`, or a function that runs in the pipeline itself. `method` is
    what the stages are called by where they do not say another; `parse` makes the first stage's input of an HTTP
    request; `options` are those of the pipeline's own deployment. Raises OptionError, OptionTypeError, GraphError.
    """
    if len(stages) == 1 and isinstance(stages[0], list | tuple) and not isinstance(stages[0], Declared):
        raise OptionTypeError("pipeline() takes its stages one by one, not in a list: pipeline(*stages)")
    if not stages:
        raise OptionError("pipeline() has no stages: give it bound deployments, such as pipeline(Model.bind())")
    if all(map(is_function, stages)):
        raise OptionError("pipeline() has functions for all of its stages: give it a bound deployment among them")
    check_method("pipeline", method)
    declared = [
        stage if is_function(stage) else one(f"stage {place} of pipeline()", stage, method)
        for place, stage in enumerate(stages, 1)
    ]
    return bind(Pipeline, options, stages=declared, parse=parse)


class Pipeline(Pattern):
    """The deployment of a pipeline.

    A stage's call is made with the response of the one before as its argument, so that it leaves when that one has
    come, and this code waits once, for the last.
    """

    def __init__(self, stages: Sequence[Any], parse: Parse | None = None) -> None:
        super().__init__(parse=parse)
        self._stages: list[Any] = [Member(stage) if isinstance(stage, Declared) else stage for stage in stages]

    async def answer(self, args: tuple[Any, ...], kwargs: dict[str, Any], request: Request | None) -> Any:
        """The answer of the last stage. Raises the error of a stage, with a note that names it."""
        under_way: list[tuple[int, DeploymentResponse]] = []
        for place, stage in enumerate(self._stages, 1):
            if under_way and not (isinstance(stage, Member) and not stage.timed):
                args = (await self._end(under_way),)
                under_way = []
            if isinstance(stage, Member):
                response = stage.remote(args, kwargs)
                under_way.append((place, response))
                args = (response,)
            else:
                args = (await self._apply(stage, place, args, kwargs),)
            kwargs = {}
        return await self._end(under_way) if under_way else args[0]

    async def _apply(self, function: Any, place: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        try:
            return await value_of(function(*args, **kwargs))
        except Exception as error:  # of a user's function, which may raise anything; it goes on
            self._note(error, place)
            raise

    async def _end(self, under_way: Sequence[tuple[int, DeploymentResponse]]) -> Any:
        """The answer of the last of these calls, each of which waits for the one before it."""
        try:
            return await under_way[-1][1]
        except Exception as error:  # of users' stages; it goes on
            self._note(error, await _first_failed(under_way))
            raise

    def _note(self, error: Exception, place: int) -> None:
        stage = self._stages[place - 1]
        name = stage.name if isinstance(stage, Member) else getattr(stage, "__name__", "a function")
        add_note(error, f"It is the error of stage {place} of {len(self._stages)} of {self._name}: {name}")


async def _first_failed(under_way: Sequence[tuple[int, DeploymentResponse]]) -> int:
    """The place of the stage whose error the last one has."""
    for place, response in under_way[:-1]:
        if not response.done():
            return place
        try:
            await response  # which does not wait
        except Exception:  # the very error that is being told
            return place
    return under_way[-1][0]
