"""The one place where a dotted path becomes an object.

`locate` finds the object and checks the object's own module and kind, not only the path, so that an alias (`torch.os.system`, a user's
`from os import system`) is refused like the original. `llmmod.targets` says which paths are allowed; another path is refused before
anything is imported. Special keys of a node are Hydra's: `_target_`, `_partial_`, `_args_`, `_recursive_`; `_convert_` is ignored, since
nodes are plain Python here.
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType, MethodType, ModuleType
from typing import Any

from llmmod.code_arguments import check_code_arguments, check_outputs, code_refused, disable_code_prompt
from llmmod.errors import ConfigError, Problem, did_you_mean, one_line
from llmmod.targets import NEVER, PACKAGES, Package, advice, allowed_prefixes, check_targets, refusal, refusal_in_package, within

__all__ = ["allowed_prefixes", "arguments", "build", "check_targets", "import_own", "locate"]

_SPECIAL = frozenset({"_args_", "_convert_", "_partial_", "_recursive_", "_target_"})
_READ_CHECKPOINTS = ("transformers", "trl", "peft")  # they read checkpoints, which may have code of their own
_ABSENT = object()
_MANY_MODULES = 500  # torch has 1,500
# Classes of allowed packages that derive from one of these run programs, or read code or pickles.
_RUNNERS = frozenset({"_pickle", "code", "ctypes", "multiprocessing", "pickle", "socketserver", "subprocess", "threading"})


def locate(path: str) -> Any:
    """The class, function or class method that a dotted path names.

    Raises:
        ConfigError: if a configuration must not name it, or if it doesn't exist.
    """
    if reason := refusal(path):
        raise ConfigError(Problem(str(path), reason, *advice(path)))
    parent, found = _walk(path)
    if path.split(".")[0] in _READ_CHECKPOINTS:
        disable_code_prompt()
    if reason := _refused_object(found, parent, path.rpartition(".")[2]):
        raise ConfigError(Problem(path, reason, *advice(f"{getattr(found, '__module__', None) or ''}.")))
    return found


def import_own(path: str) -> Any:
    """A function of llmmod, imported when it is needed; only for our own code, which may name more than a configuration."""
    module, _, name = path.rpartition(".")
    with _no_garbage_collection():
        return getattr(importlib.import_module(module), name)


def build(node: Any, /, **runtime: Any) -> Any:
    """The result of calling a node's `_target_` with its other fields, nested nodes built first.

    Args:
        node: a dataclass instance or a dict, with `_target_`. With `_partial_: true` the result is a functools.partial.
        runtime: arguments of the running program; they override the node's.

    Raises:
        ConfigError: as in `locate`; or the target doesn't accept the arguments, or one of them would run code. Errors of the target itself
            are not changed.
    """
    fields = _fields(node)
    target = locate(fields.get("_target_", ""))
    positional = _positional(fields)
    named = arguments(node) | runtime
    partial = bool(fields.get("_partial_", False))
    given = _by_name(target, fields)
    problems = check_code_arguments(given, fields["_target_"]) + check_outputs(given, fields["_target_"])
    problems += _unfit_arguments(target, fields["_target_"], positional, named, partial=partial)
    if problems:
        raise ConfigError(problems)
    if partial:
        return functools.partial(target, *positional, **named)
    with code_refused(fields["_target_"], str([*positional, *named.values(), ""][0])):
        return target(*positional, **named)


def arguments(node: Any) -> dict[str, Any]:
    """A node's fields without the special ones, nested nodes built."""
    fields = _fields(node)
    recursive = bool(fields.get("_recursive_", True))
    return {name: _built(value) if recursive else value for name, value in fields.items() if name not in _SPECIAL}


def _by_name(target: Callable[..., Any], fields: dict[str, Any]) -> dict[str, Any]:
    """A node's arguments by their names, `_args_` included as far as the target's signature is known."""
    try:
        placed = inspect.signature(target).bind_partial(*(fields.get("_args_") or [])).arguments
    except (TypeError, ValueError):
        placed = {}
    return {**placed, **{name: value for name, value in fields.items() if name not in _SPECIAL}}


def _positional(fields: dict[str, Any]) -> list[Any]:
    given = fields.get("_args_") or []
    if not isinstance(given, list):
        raise ConfigError(Problem("_args_", f"found {given!r}", "Expected a list"))
    return [_built(value) for value in given]


def _fields(node: Any) -> dict[str, Any]:
    """The fields of a dict, or of a dataclass instance with its extra attributes."""
    return dict(node) if isinstance(node, dict) else dict(vars(node))


def _built(value: Any) -> Any:
    """A value with every node in it built."""
    if isinstance(value, dict):
        return build(value) if "_target_" in value else {name: _built(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_built(item) for item in value)
    if dataclasses.is_dataclass(value) and "_target_" in vars(value):
        return build(value)
    return value


def _walk(path: str) -> tuple[Any, Any]:
    """The object at a path and its owner; imports only modules of allowed packages."""
    parts = path.split(".")
    _add_working_directory(parts[0])
    parent: Any = None
    found: Any = _imported(parts[0], path)
    for depth, name in enumerate(parts[1:], start=1):
        module = found if isinstance(found, ModuleType) else None
        if module is not None and module.__name__.split(".")[0] != parts[0]:
            raise ConfigError(Problem(path, f"leads out of {parts[0]}, to {module.__name__}", *advice("")))
        parent, found = found, _member(found, name)
        if found is _ABSENT and module is not None:
            found = _imported(".".join(parts[: depth + 1]), path, parent=module)
        if found is _ABSENT:
            raise ConfigError(Problem(path, f"{'.'.join(parts[:depth])} doesn't have '{name}'", did_you_mean(name, _public(parent))))
    return parent, found


def _member(owner: Any, name: str) -> Any:
    """An attribute, or `_ABSENT`. Lazy modules of the packages raise ImportError if a name's dependency isn't installed."""
    try:
        return getattr(owner, name, _ABSENT)
    except ImportError as error:
        raise ConfigError(Problem(f"{getattr(owner, '__name__', owner)}.{name}", f"can't be imported: {one_line(error)}")) from error


def _imported(name: str, path: str, parent: ModuleType | None = None) -> Any:
    """A module, or `_ABSENT` if `parent` doesn't have it."""
    try:
        with _no_garbage_collection():
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if parent is not None and error.name == name:
            return _ABSENT
        missing = f"module {name} does not exist" if error.name == name else f"importing {name} needs {error.name}, which isn't installed"
        raise ConfigError(Problem(path, missing, do="Is it installed, or in your working directory?")) from error
    except Exception as error:
        raise ConfigError(Problem(path, f"importing {name} failed: {one_line(error)}")) from error


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """A context without garbage collection; if large libraries were imported in it, their objects are frozen at its end.

    The libraries create half a million permanent objects. To scan them takes a quarter of the import's time, and 0.3 s in each full
    collection later, such as those of trainers at their start and end.
    """
    enabled, modules = gc.isenabled(), len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
        if len(sys.modules) > modules + _MANY_MODULES:
            gc.freeze()


def _add_working_directory(root: str) -> None:
    """Append the working directory to the search path, once the user has allowed a module in it; it stays there for later imports."""
    here = os.getcwd()
    if root not in PACKAGES and here not in sys.path and "" not in sys.path:
        sys.path.append(here)
        importlib.invalidate_caches()


def _refused_object(found: Any, owner: Any, name: str) -> str:
    """Why an object must not be used, whatever its path; empty if it may be used."""
    if isinstance(found, type):
        return _refused_origin(f"{found.__module__}.{found.__qualname__}", "classes", found)
    if isinstance(found, MethodType) and isinstance(found.__self__, type):
        owner_class = found.__self__
        full = f"{owner_class.__module__}.{owner_class.__qualname__}"
        if _is_fixed(full) and not name.startswith("from_"):
            return f"{full}.{name} is not a constructor"
        return _refused_origin(full, "classes", owner_class) or _refused_method(found)
    if isinstance(found, FunctionType) and isinstance(owner, type):
        if not isinstance(inspect.getattr_static(owner, name, None), staticmethod):
            return f"{found.__qualname__} is a method, which needs an object"
        full = f"{owner.__module__}.{owner.__qualname__}.{name}"
        return _refused_origin(full, "classes" if name.startswith("from_") else "functions")
    module = getattr(found, "__module__", None)
    if isinstance(found, FunctionType) or (inspect.isbuiltin(found) and isinstance(module, str)):
        return _refused_origin(f"{module}.{found.__qualname__}", "functions")
    if isinstance(found, ModuleType):
        return f"{found.__name__} is a module"
    return f"is a {type(found).__name__}, neither class nor function"


def _refused_method(method: MethodType) -> str:
    """Why a class method of an allowed class must not be used: it is from a base in the standard library."""
    function = method.__func__
    return f"is really {function.__module__}.{function.__qualname__}" if str(function.__module__).split(".")[0] in NEVER else ""


def _is_fixed(full: str) -> bool:
    """Whether an object belongs to another package whose allowed parts are fixed."""
    root = full.split(".")[0]
    return root in PACKAGES and root != "llmmod" and not within(full, allowed_prefixes())


def _refused_origin(full: str, kind: str, cls: type | None = None) -> str:
    """Why an object defined at `full` must not be used; `kind` is `classes` or `functions`."""
    package = PACKAGES.get(full.split(".")[0], Package(()))
    listed: tuple[str, ...] = getattr(package, kind)
    if not within(full, listed + allowed_prefixes()):
        return f"is really {full}, which a configuration must not name"
    if reason := refusal_in_package(full):
        return reason
    bases = [base for base in (cls.__mro__ if cls and _is_fixed(full) else ()) if base.__module__.split(".")[0] in _RUNNERS]
    return f"is a {bases[0].__module__}.{bases[0].__qualname__}, which runs code" if bases else ""


def _unfit_arguments(
    target: Callable[..., Any], path: str, positional: list[Any], named: dict[str, Any], *, partial: bool
) -> list[Problem]:
    """The problems of a target's arguments; empty if its signature is unknown."""
    try:
        signature = inspect.signature(target)
    except (TypeError, ValueError):
        return []
    try:
        (signature.bind_partial if partial else signature.bind)(*positional, **named)
    except TypeError as error:
        parameters = signature.parameters
        kinds = {p.kind for p in parameters.values()}
        unknown = [name for name in named if name not in parameters and inspect.Parameter.VAR_KEYWORD not in kinds]
        problems = [Problem(path, f"doesn't have an argument '{name}'", did_you_mean(name, parameters)) for name in unknown]
        return problems or [Problem(path, str(error))]
    return []


def _public(owner: Any) -> list[str]:
    return [name for name in dir(owner) if not name.startswith("_")]
