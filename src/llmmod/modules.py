"""Where a module is on the disk, without importing it or what it lies in."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec, PathFinder


def find_module(name: str, *directories: str) -> ModuleSpec | None:
    """A module's place on the disk, None where there is none; neither it nor what it lies in is imported.

    Args:
        name: dotted.
        directories: where to look for a top-level module besides.
    """
    found: ModuleSpec | None = None
    parts = name.split(".")
    for depth in range(1, len(parts) + 1):
        if found is not None and found.submodule_search_locations is None:
            return None
        search = None if found is None else list(found.submodule_search_locations or [])
        part = ".".join(parts[:depth])
        specs = (finder.find_spec(part, search) for finder in sys.meta_path if hasattr(finder, "find_spec"))
        found = next((spec for spec in specs if spec is not None), None)
        if found is None and depth == 1 and directories:
            found = PathFinder.find_spec(part, list(directories))
        if found is None:
            return None
    return found
