"""Arguments that run what they point at or write where they are told to, and a checkpoint's own code that nobody allowed."""

from __future__ import annotations

from collections.abc import Iterator

from llmmod.code_arguments import check_code_arguments, check_outputs
from llmmod.errors import Problem
from llmmod.schema.validate.arguments import nodes_of
from llmmod.schema.validate.context import Context


def check_code(context: Context) -> Iterator[Problem]:
    """A problem for each such argument, wherever it stands."""
    yield from check_code_arguments(context.plain)
    for key, node in nodes_of(context.plain, ""):
        if key not in context.nodes:  # those of the schemas have keys of their own for where they write
            yield from check_outputs(node, key)
