"""User code and constructor arguments on their way into a replica: packed by the driver, loaded by the worker.

In, at the driver: a class or function and its arguments, with other deployments bound in them. Out: the `Code` and the
bytes of a DeploymentSpec. At the replica the same, the other way round, with a handle in the place of each deployment.
"""

from __future__ import annotations

import importlib
import io
import pickle
import sys
from collections.abc import Callable, Mapping, Sequence
from types import FunctionType, ModuleType
from typing import Any

import cloudpickle

from headrace.spec.application import Code, ImportedCode, PickledCode
from headrace.spec.errors import ImportPathError, PayloadError, ProtocolError

_DEPLOYMENT = "deployment"  # the first part of the persistent id that stands for a bound deployment


def pack_code(target: Callable[..., Any]) -> Code:
    """`target` by its import path where a replica can import it, else by value, with the helpers that it uses.

    `target` is the class or function itself, not the Deployment around it. A module counts as importable when the
    import system finds it by its name now, which it then also does in a replica, whose `sys.path` is the driver's.
    Raises PayloadError naming what it refers to that cannot be pickled.
    """
    if found_by_import(target):
        return ImportedCode(target.__module__, target.__qualname__)
    module = sys.modules.get(getattr(target, "__module__", None) or "")
    return PickledCode(_pickle_code(target, module))


def found_by_import(target: Any) -> bool:
    """Whether a process with our `sys.path` finds this very class or function by importing its module."""
    module_name, qualname = getattr(target, "__module__", None), getattr(target, "__qualname__", None)
    module = sys.modules.get(module_name or "")
    if module is None or module_name is None or not qualname or not is_importable(module_name, module):
        return False
    return _find(module, qualname) is target


def load_code(code: Code) -> Any:
    """The class or function, as a replica calls it. Raises ImportPathError when it cannot be had here.

    What the user's module raises while it is imported is raised as it is.
    """
    if isinstance(code, ImportedCode):
        try:
            module = importlib.import_module(code.module)
        except ModuleNotFoundError as error:
            if not error.name or not f"{code.module}.".startswith(f"{error.name}."):
                raise  # the module is there; something that it imports is not
            raise ImportPathError(
                f"{code.module}:{code.qualname}: the replica finds no module {error.name!r}; its sys.path is {sys.path}"
            ) from error
        found = _find(module, code.qualname)
        if found is None:
            raise ImportPathError(f"the module {code.module} of the replica has no {code.qualname!r}")
        return found
    return pickle.loads(code.data)


def pack_arguments(
    args: Sequence[Any], kwargs: Mapping[str, Any], name_of: Callable[[Any], str | None]
) -> tuple[bytes, tuple[str, ...]]:
    """`(args, kwargs)` pickled, and the names of the deployments in them, at any depth, in the order of appearance.

    `name_of` is asked of each object and gives the name of the deployment that the object stands for, else None. Raises
    PayloadError when an argument cannot be pickled.
    """
    file = io.BytesIO()
    pickler = _ArgumentPickler(file, name_of)
    try:
        pickler.dump((tuple(args), dict(kwargs)))
    except PayloadError:
        raise
    except Exception as error:  # whatever a __reduce__ of the user raises
        raise PayloadError(f"{_which_argument(args, kwargs, name_of)} ({type(error).__name__}: {error})") from error
    return file.getvalue(), tuple(pickler.uses)


def unpack_arguments(data: bytes, handle_for: Callable[[str], Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of the constructor, with `handle_for(name)` in the place of each deployment.

    What restoring a user's object raises is raised as it is. Raises ProtocolError when `data` is not of pack_arguments.
    """
    arguments = _ArgumentUnpickler(io.BytesIO(data), handle_for).load()
    match arguments:
        case (tuple() as args, dict() as kwargs):
            return args, kwargs
    raise ProtocolError(f"constructor arguments were expected in the pickle, not a {type(arguments).__name__}")


class _ArgumentPickler(cloudpickle.Pickler):  # type: ignore[misc]
    def __init__(self, file: io.BytesIO, name_of: Callable[[Any], str | None]) -> None:
        super().__init__(file, protocol=5)
        self.name_of = name_of
        self.uses: dict[str, None] = {}

    def persistent_id(self, obj: Any) -> tuple[str, str] | None:
        name = self.name_of(obj)
        if name is None:
            return None
        self.uses[name] = None
        return (_DEPLOYMENT, name)


class _ArgumentUnpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, handle_for: Callable[[str], Any]) -> None:
        super().__init__(file)
        self.handle_for = handle_for
        self.handles: dict[str, Any] = {}

    def persistent_load(self, pid: Any) -> Any:
        match pid:
            case (str() as kind, str() as name) if kind == _DEPLOYMENT:
                if name not in self.handles:
                    self.handles[name] = self.handle_for(name)
                return self.handles[name]
        raise ProtocolError(f"constructor arguments refer to {pid!r}, which is no deployment")


def is_importable(name: str, module: ModuleType) -> bool:
    """Whether a process with our `sys.path` finds this very module by its name."""
    if name == "__main__" or getattr(module, "__spec__", None) is None:
        return False
    parent, _, _ = name.rpartition(".")
    path = None
    if parent:
        outer = sys.modules.get(parent)
        if outer is None or not is_importable(parent, outer):
            return False
        path = getattr(outer, "__path__", None)
    for finder in sys.meta_path:
        find_spec = getattr(finder, "find_spec", None)
        spec = find_spec(name, path) if find_spec is not None else None
        if spec is not None:
            origin = getattr(module.__spec__, "origin", None)
            return bool(spec.origin == origin)
    return False


def _find(module: ModuleType, qualname: str) -> Any:
    """What `qualname` names in the module, without the Deployment around it."""
    found: Any = module
    for name in qualname.split("."):
        if name == "<locals>":
            return None
        found = _bare(getattr(found, name, None))
        if found is None:
            return None
    return found


def _bare(found: Any) -> Any:
    # a Deployment is of a layer above; it is told by the attribute that it shares with that of Ray Serve
    if isinstance(found, type | FunctionType):
        return found
    return getattr(found, "func_or_class", found)


def _pickle_code(target: Callable[..., Any], module: ModuleType | None = None) -> bytes:
    """The cloudpickle of `target`; what it uses of `module`, which no replica can import, goes along."""
    register = module is not None and module.__name__ != "__main__" and not is_importable(module.__name__, module)
    if register:
        cloudpickle.register_pickle_by_value(module)
    try:
        return bytes(cloudpickle.dumps(target, protocol=5))
    except PayloadError:
        raise
    except Exception as error:  # whatever a __reduce__ of the user raises
        name = getattr(target, "__qualname__", repr(target))
        raise PayloadError(
            f"{name} cannot be sent to a replica: it refers to something that cannot be pickled "
            f"({type(error).__name__}: {error}); create it in __init__, or put the code in a module that can be "
            "imported"
        ) from error
    finally:
        if register:
            cloudpickle.unregister_pickle_by_value(module)


def _which_argument(args: Sequence[Any], kwargs: Mapping[str, Any], name_of: Callable[[Any], str | None]) -> str:
    named = [(f"argument {index}", value) for index, value in enumerate(args)]
    named += [(f"argument {name!r}", value) for name, value in kwargs.items()]
    for label, value in named:
        try:
            _ArgumentPickler(io.BytesIO(), name_of).dump(value)
        except Exception:  # that it raises is the answer
            return f"{label} of type {type(value).__name__} cannot be sent to a replica"
    return "the arguments cannot be sent to a replica"
