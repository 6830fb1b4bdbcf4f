"""What the stage makes of a row, and options of a dataset that other kinds of rows have."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llmmod.errors import Problem
from llmmod.schema.validate.context import Context


def kinds(context: Context, dataset: str) -> set[str]:
    """What rows of a dataset become in the steps that read it; empty where nobody says."""
    readers = [step for step in context.steps if context.part(step, "dataset") == dataset]
    found = {context.get(f"{context.part(step, 'training')}.data_kind") for step in readers}
    return {str(kind) for kind in found if kind is not None}


def only(context: Context, dataset: str, *others: str) -> bool:
    """Whether all rows of a dataset become one of these kinds."""
    found = kinds(context, dataset)
    return bool(found) and found <= set(others)


def check_data_kinds(context: Context) -> Iterator[Problem]:
    """A problem where rows of a kind that can't share a row are to be packed."""
    for place in context.places("dataset"):
        dataset: dict[str, Any] = context.get(place) or {}
        found = kinds(context, place) - {"conversation", "document"}
        if dataset.get("packing") and found:
            kind = sorted(found)[0]
            said = f"true, but each row of this stage is a {kind}, and only conversations and documents share rows"
            yield Problem(f"{place}.packing", said, do="Set it to false")
