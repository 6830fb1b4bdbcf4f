"""What a configuration names and may not: by the text of the paths, and in Hydra's own node by the objects too."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llmmod.errors import ConfigError, Problem
from llmmod.instantiate import locate
from llmmod.schema.validate.context import Context
from llmmod.targets import allowed_prefixes, check_prefixes, check_targets, within


def check_named(context: Context) -> Iterator[Problem]:
    """A problem for each path that may not be named, and for each module that the user can't allow."""
    yield from check_prefixes()
    yield from check_targets(context.plain)
    if context.hydra is not None:
        refused = check_targets(context.hydra, "hydra")
        yield from refused
        # Hydra builds these itself: what an allowed module borrows from another must be found here.
        for key, path in _targets(context.hydra, "hydra"):
            if within(path, allowed_prefixes()) and key not in {problem.key for problem in refused}:
                yield from _not_what_it_seems(key, path)


def _not_what_it_seems(key: str, path: str) -> list[Problem]:
    try:
        locate(path)
    except ConfigError as error:
        return [Problem(key, f"'{path}' {problem.found}", problem.allowed, problem.do) for problem in error.problems]
    return []


def _targets(node: Any, key: str) -> Iterator[tuple[str, str]]:
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else []
    for name, item in children:
        if name == "_target_" and isinstance(item, str):
            yield f"{key}.{name}", item
        else:
            yield from _targets(item, f"{key}.{name}")
