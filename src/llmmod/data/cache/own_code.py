"""The source of a user's code: of a module, and of every module that it imports and that is no installed package.

Read from the disk and not from what is loaded: an import inside a function, and a constant taken from another module, leave no trace there.
"""

from __future__ import annotations

import ast
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from llmmod.modules import find_module

_INSTALLED = tuple(Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib"))


def source_files(module: str) -> dict[str, Path]:
    """Module -> file, of a module and of the user's own that it reaches; empty where it has no file.

    Args:
        module: dotted; looked for beside the working directory too.
    """
    found: dict[str, Path] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        file = _file(name)
        if file is None or name in found or (name != module and not is_own(name, file)):
            continue
        found[name] = file
        if file.suffix == ".py":
            waiting += _imported(name, file)
    return found


def is_own(module: str, file: Path) -> bool:
    """Whether a module is neither llmmod's nor an installed package's."""
    return module.split(".")[0] != "llmmod" and not any(file.is_relative_to(place) for place in _INSTALLED)


def _file(module: str) -> Path | None:
    spec = find_module(module, os.getcwd())
    return Path(spec.origin) if spec is not None and spec.origin is not None and Path(spec.origin).is_file() else None


def _imported(module: str, file: Path) -> Iterator[str]:
    """Names that a module's import statements may mean; what is imported from a module may be one itself."""
    package = module.split(".") if file.stem == "__init__" else module.split(".")[:-1]
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (part for alias in node.names for part in _above(alias.name))
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            name = ".".join([*base, *([node.module] if node.module else [])])
            yield from _above(name) if name else ()
            yield from (f"{name}.{alias.name}" if name else alias.name for alias in node.names)


def _above(module: str) -> list[str]:
    """A module and the packages that it lies in, whose __init__ runs with it."""
    parts = module.split(".")
    return [".".join(parts[: depth + 1]) for depth in range(len(parts))]
