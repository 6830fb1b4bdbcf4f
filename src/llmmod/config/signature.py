"""The arguments that a class or function takes, read from its source, since importing it would load its libraries.

It follows modules on the disk, names that a package's `__init__` imports, transformers' and trl's tables of lazy imports, bases, and the
fields of dataclasses. If that is not enough, the answer is None, and building the object decides.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from llmmod.code_arguments import find_module

Function = ast.FunctionDef | ast.AsyncFunctionDef

_DEEPEST = 24  # imports and bases that are followed


@dataclass(frozen=True)
class Module:
    """A module's source, parsed."""

    name: str
    is_package: bool
    tree: ast.Module


def parameters(path: str) -> frozenset[str] | None:
    """The names of the arguments that a dotted path's class or function takes; None if unknown."""
    return _parameters(path, os.getcwd())


def called(path: str) -> Function | None:
    """The function that runs when the object at a dotted path is called, for a class its `__call__`; None if unknown."""
    directory = os.getcwd()
    module, names = _parted(path, directory)
    resolved = _resolved(module, names[0], directory, _DEEPEST) if module is not None and len(names) == 1 else None
    found = None if resolved is None else resolved[1]
    if isinstance(found, ast.ClassDef):
        found = _method(found, "__call__")
    return found if isinstance(found, Function) and not found.decorator_list else None


def required(function: Function) -> list[str]:
    """The names of a function's arguments that have no default."""
    args = function.args
    positional = [*args.posonlyargs, *args.args]
    alone = [arg for arg, default in zip(args.kwonlyargs, args.kw_defaults, strict=True) if default is None]
    return [arg.arg for arg in [*positional[: len(positional) - len(args.defaults)], *alone]]


@cache
def _parameters(path: str, directory: str) -> frozenset[str] | None:
    module, names = _parted(path, directory)
    return None if module is None else _of_name(module, names, directory, _DEEPEST)


def _parted(path: str, directory: str) -> tuple[Module | None, list[str]]:
    """The longest beginning of a path that is a module, and the names within it."""
    parts = path.split(".")
    for depth in range(len(parts) - 1, 0, -1):
        module = _module(".".join(parts[:depth]), directory)
        if module is not None:
            return module, parts[depth:]
    return None, parts


def _resolved(module: Module, name: str, directory: str, depth: int) -> tuple[Module, ast.stmt, int] | None:
    """The definition of a name in a module, imports followed: the module that has it, itself, how many more may be followed."""
    found = _definition(module, name, directory)
    if isinstance(found, tuple):
        source = _module(found[0], directory) if depth else None
        return _resolved(source, found[1], directory, depth - 1) if source is not None else None
    return None if found is None else (module, found, depth)


def _of_name(module: Module, names: list[str], directory: str, depth: int) -> frozenset[str] | None:
    """The arguments of a class, function or class's method in a module, imports followed."""
    resolved = _resolved(module, names[0], directory, depth)
    if resolved is None:
        return None
    module, found, depth = resolved
    if isinstance(found, ast.ClassDef):
        if len(names) == 1:
            return _of_class(module, found, directory, depth)
        method = _method(found, names[1])
        return _of_function(method, skip=1) if method is not None and len(names) == 2 else None
    if isinstance(found, Function) and len(names) == 1:
        return _of_function(found) if not found.decorator_list else None
    return None


def _of_class(module: Module, cls: ast.ClassDef, directory: str, depth: int) -> frozenset[str] | None:
    if _method(cls, "__new__") is not None or cls.keywords:
        return None
    if (init := _method(cls, "__init__")) is not None:
        return _of_function(init, skip=1)
    inherited: frozenset[str] | None = frozenset()
    if cls.bases:
        base = cls.bases[0]
        known = isinstance(base, ast.Name) and base.id != "object"
        inherited = _of_name(module, [base.id], directory, depth - 1) if known and depth and isinstance(base, ast.Name) else None
    if inherited is None or not any("dataclass" in ast.unparse(decorator) for decorator in cls.decorator_list):
        return inherited
    fields = {item.target.id for item in cls.body if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)}
    return inherited | fields


def _of_function(function: Function, skip: int = 0) -> frozenset[str] | None:
    """A function's named arguments without its first `skip`; None if it takes any."""
    if function.args.kwarg is not None:
        return None
    named = [*function.args.posonlyargs, *function.args.args][skip:]
    taken = [arg.arg for arg in named if arg not in function.args.posonlyargs]
    return frozenset([*taken, *(arg.arg for arg in function.args.kwonlyargs)])


def _method(cls: ast.ClassDef, name: str) -> Function | None:
    return next((item for item in cls.body if isinstance(item, Function) and item.name == name), None)


def _definition(module: Module, name: str, directory: str) -> ast.stmt | tuple[str, str] | None:
    """Where a name of a module comes from: a definition, or (module, name) of an import."""
    starred = []
    for item in _statements(module.tree.body):
        if isinstance(item, ast.ClassDef | Function) and item.name == name:
            return item
        if isinstance(item, ast.ImportFrom):
            for alias in item.names:
                if (alias.asname or alias.name) == name:
                    return _absolute(module, item), alias.name
            starred += [_absolute(module, item) for alias in item.names if alias.name == "*"]
        if isinstance(item, ast.Assign) and (source := _lazy(module, item, name)) is not None:
            return source, name
    modules = [_module(path, directory) for path in starred if path != module.name]
    return next((found for each in modules if each and (found := _definition_of(each, name, directory)) is not None), None)


def _definition_of(module: Module, name: str, directory: str) -> tuple[str, str] | None:
    """(module, name) if a module from which another imports everything has the name."""
    return (module.name, name) if _definition(module, name, directory) is not None else None


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of a module, those under `if` and `try` too."""
    for item in body:
        if isinstance(item, ast.If):
            yield from _statements([*item.body, *item.orelse])
        elif isinstance(item, ast.Try):
            yield from _statements([*item.body, *item.orelse, *(s for handler in item.handlers for s in handler.body)])
        else:
            yield item


def _lazy(module: Module, item: ast.Assign, name: str) -> str | None:
    """The submodule that a table `_import_structure = {submodule: [names]}` gives for a name."""
    if not (isinstance(item.targets[0], ast.Name) and item.targets[0].id == "_import_structure" and isinstance(item.value, ast.Dict)):
        return None
    for key, value in zip(item.value.keys, item.value.values, strict=True):
        names = [entry.value for entry in value.elts if isinstance(entry, ast.Constant)] if isinstance(value, ast.List) else []
        if name in names and isinstance(key, ast.Constant):
            return ".".join([module.name, str(key.value)])
    return None


def _absolute(module: Module, item: ast.ImportFrom) -> str:
    """The full name of the module that an import is from."""
    if not item.level:
        return item.module or ""
    up = item.level - 1 if module.is_package else item.level
    parents = module.name.split(".")
    base = ".".join(parents[: len(parents) - up])
    return f"{base}.{item.module}" if item.module else base


def _module(name: str, directory: str) -> Module | None:
    """A module's Python source, or None."""
    spec = find_module(name, directory)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    return _parsed(name, spec.origin, spec.submodule_search_locations is not None, os.stat(spec.origin).st_mtime_ns)


@cache
def _parsed(name: str, file: str, is_package: bool, changed_ns: int) -> Module:
    """A module's source without the bodies of its functions, which would be nine tenths of the tree.

    Trees are kept by file: one process validates jobs of many working directories.
    """
    tree = ast.parse(Path(file).read_text(encoding="utf-8"))
    for statement in _statements(tree.body):
        for item in [statement, *(statement.body if isinstance(statement, ast.ClassDef) else [])]:
            if isinstance(item, Function):
                item.body = []
    return Module(name, is_package, tree)
