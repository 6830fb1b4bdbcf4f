"""All checks of a composed configuration, before anything heavy is imported."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmmod.errors import Problem

if TYPE_CHECKING:
    from llmmod.schema.compose import Composed


def validate(composed: Composed) -> list[Problem]:
    """Every problem of a composed configuration."""
    return []
