"""Keys that exist and whose feature isn't built yet: refused with a sentence, never ignored. A line goes when its feature comes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from llmmod.errors import Problem
from llmmod.schema.validate.context import Context

# what the node is called, field, whether a value asks for the feature, what to do instead
NOT_YET: tuple[tuple[str, str, Callable[[Any], bool], str], ...] = (("dataset", "mix", bool, "Give one dataset a run"),)


def check_not_yet(context: Context) -> Iterator[Problem]:
    """A problem for each feature that a configuration asks for and this version doesn't have."""
    for key, label, _ in context.labelled_nodes():
        node = context.get(key)
        for place, name, asks, do in NOT_YET:
            if place == label and isinstance(node, dict) and asks(node.get(name)):
                yield Problem(f"{key}.{name}", "this version can't do it yet", do=do)
