"""From `module:attribute` to an application: import, look up, call the builder, and say well what is wrong.

In: the text of a command line or a config file. Out: an `Application`. Errors of the user's own code keep their
traceback; ours name the part of the path that is wrong and what is near.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.machinery
import os
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

from headrace.serve.builder import call_builder
from headrace.serve.deployment import Application, Deployment
from headrace.spec.errors import HeadraceError, ImportPathError, OptionTypeError
from headrace.spec.names import split_import_path

_OURS = str(Path(__file__).parents[1]) + os.sep
_MACHINERY = ("<frozen importlib", "<frozen runpy")


class UserCodeRaised(HeadraceError):
    """The user's module or builder raised. The message's first line says which, the others are its traceback."""


def load_application(path: str, arguments: Mapping[str, str], app_dir: str = ".") -> Application:
    """The application at `path` (`module:attribute`), its module found in `app_dir` first.

    Raises ImportPathError when the path is wrong, UserCodeRaised when the user's code raises, OptionTypeError when what
    is there is no application.
    """
    module_name, attribute = split_import_path(path)
    directory = import_from(app_dir)
    found = _find(_import(module_name, directory), attribute, path)
    try:
        return call_builder(found, arguments, module_name.rpartition(".")[2])
    except HeadraceError:
        raise
    except Exception as error:  # whatever the user's builder raises, it is theirs to see
        raise UserCodeRaised(f"the builder {path} raised:\n{user_traceback(error)}") from error


def check_function(path: str, what: str) -> None:
    """Raises ImportPathError, UserCodeRaised or OptionTypeError unless a function can be imported from `path`."""
    module_name, attribute = split_import_path(path)
    found = _find(_import(module_name, sys.path[0]), attribute, path)
    if not callable(found):
        raise OptionTypeError(f"{what}={path!r} must name a function, not {found!r:.100}")


def import_from(app_dir: str) -> str:
    """Have modules found in this directory first; its absolute path. Raises ImportPathError when it is none."""
    directory = str(Path(app_dir).absolute())
    if not Path(directory).is_dir():
        raise ImportPathError(f"--app-dir {app_dir!r} is not a directory")
    if directory not in sys.path:
        sys.path.insert(0, directory)
    return directory


def user_traceback(error: BaseException) -> str:
    """The traceback of `error` without the frames of ours and of the import system before the user's first.

    Of an error that is ours (a wrong option) also without the frames in which we found it.
    """
    if isinstance(error, SyntaxError) and error.filename:
        return "".join(traceback.format_exception_only(error))
    trimmed = _first_of_user(error.__traceback__)
    if not isinstance(error, HeadraceError):
        return "".join(traceback.format_exception(type(error), error, trimmed))
    frames = [frame for frame in traceback.extract_tb(trimmed) if not frame.filename.startswith(_OURS)]
    head = ["Traceback (most recent call last):\n"] if frames else []
    return "".join([*head, *traceback.format_list(frames), f"{type(error).__name__}: {error}\n"])


def _first_of_user(frames: TracebackType | None) -> TracebackType | None:
    while frames is not None:
        name = frames.tb_frame.f_code.co_filename
        if not name.startswith((_OURS, *_MACHINERY)) and os.sep + "importlib" + os.sep not in name:
            return frames
        frames = frames.tb_next
    return None


def _import(name: str, directory: str) -> ModuleType:
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(error.name + ".")):
            raise UserCodeRaised(f"{name} could not be imported:\n{user_traceback(error)}") from error
        near = difflib.get_close_matches(name, _modules_in(directory), 1)
        hint = f"did you mean {near[0]!r}?" if near else "--app-dir says where to look"
        raise ImportPathError(
            f"there is no module {error.name!r} in {directory} or on the Python path: {hint}"
        ) from None
    except (Exception, SystemExit) as error:  # whatever the user's module raises, it is theirs to see
        raise UserCodeRaised(f"{name} could not be imported:\n{user_traceback(error)}") from error


def _modules_in(directory: str) -> list[str]:
    with os.scandir(directory) as entries:
        return [
            entry.name.removesuffix(".py")
            for entry in entries
            if entry.name.endswith(".py") or (entry.is_dir() and entry.name.isidentifier())
        ]


def _find(module: ModuleType, attribute: str, path: str) -> Any:
    found: Any = module
    for name in attribute.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            raise ImportPathError(_no_attribute(module, attribute, path)) from None
    return found


def _no_attribute(module: ModuleType, attribute: str, path: str) -> str:
    """What is there instead: the nearest name, else the applications and deployments of the module."""
    public = {name: value for name, value in vars(module).items() if not name.startswith("_")}
    applications = [name for name, value in public.items() if isinstance(value, Application)]
    deployments = [name for name, value in public.items() if isinstance(value, Deployment)]
    message = f"module {module.__name__!r} ({module.__file__}) has no {attribute!r}"
    near = difflib.get_close_matches(attribute, [*applications, *public], 1)
    if near:
        return f"{message}: did you mean {module.__name__}:{near[0]}?"
    if applications:
        return f"{message}: its applications are {', '.join(applications)}"
    if deployments:
        return f"{message}, and no application: bind one, such as {attribute} = {deployments[0]}.bind(...)"
    return f"{message}, and no application"
