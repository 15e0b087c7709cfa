"""Application builders: functions that take arguments as a dict or a pydantic model and return an application.

In: the function and the arguments as given (`key=value` of the command line, a dict); or an application, also a web
application. Out: the bound application.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any

from headrace.serve.deployment import Application, Deployment
from headrace.serve.ingress import as_application
from headrace.spec.errors import GraphError, OptionTypeError


def call_builder(target: Any, arguments: Mapping[str, Any], name: str = "") -> Application:
    """The application that `target` returns for these arguments, or is; a web application is served as it is.

    `name` is that of the deployment of a web application. The function has no parameter, or one: a plain dict, or a
    pydantic model when it is annotated with one (whose ValidationError is raised as it is). Raises OptionTypeError,
    GraphError.
    """
    target = as_application(target, name)
    if isinstance(target, Application):
        if arguments:
            names = ", ".join(arguments)
            raise OptionTypeError(
                f"the application takes no arguments, and was given {names}: only a builder function does"
            )
        return target
    if not inspect.isroutine(target):
        raise OptionTypeError(not_an_application(target))
    built = as_application(_call(target, arguments), name)
    if not isinstance(built, Application):
        wrong = not_an_application(built)
        raise OptionTypeError(f"the builder {target.__name__}() must return what .bind() made: {wrong}")
    return built


def _call(target: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    parameters = list(inspect.signature(target).parameters.values())
    if not parameters:
        if arguments:
            names = ", ".join(arguments)
            raise OptionTypeError(f"the builder {target.__name__}() takes no arguments, and was given {names}")
        return target()
    needed = [p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if len(needed) > 1 or parameters[0].kind is inspect.Parameter.KEYWORD_ONLY:
        raise GraphError(
            f"the builder {target.__name__}() has {len(parameters)} parameters; it must have one, for all arguments: a "
            "dict or a pydantic model"
        )
    return target(_converted(target, parameters[0].name, arguments))


def _converted(target: Callable[..., Any], parameter: str, arguments: Mapping[str, Any]) -> Any:
    """The arguments as the pydantic model that the parameter is annotated with, else as a dict."""
    try:
        annotation = typing.get_type_hints(target).get(parameter)
    except NameError:  # an annotation that only a type checker can resolve
        annotation = None
    validate = getattr(annotation, "model_validate", None) if inspect.isclass(annotation) else None
    return dict(arguments) if validate is None else validate(dict(arguments))


def not_an_application(value: object) -> str:
    """What is wrong with `value` as an application, and what would be right."""
    if isinstance(value, Deployment):
        return f"{value.name!r} is a deployment, not an application yet: use {value.name}.bind(...)"
    if inspect.isclass(value):
        return (
            f"{value.__name__} is a plain class: decorate it with @serve.deployment and use {value.__name__}.bind(...)"
        )
    return (
        "an application was expected, which .bind() of a deployment makes, or an ASGI or WSGI application, not "
        f"{value!r} ({type(value).__name__})"
    )
