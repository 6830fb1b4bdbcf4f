"""Everything that can be known to be wrong with a composed configuration, at once, before anything heavy is imported.

Each check is a function of a `Context` that gives problems; what it looks for stands in a table beside it. A new check goes into
`CHECKS`, a new limit, choice or rule into its table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from llmmod.errors import Problem
from llmmod.schema.names import typed_nodes
from llmmod.schema.plain import resolved
from llmmod.schema.validate.arguments import check_arguments
from llmmod.schema.validate.attention import check_attention
from llmmod.schema.validate.bounds import check_bounds
from llmmod.schema.validate.choices import check_choices
from llmmod.schema.validate.code import check_code
from llmmod.schema.validate.context import Context
from llmmod.schema.validate.contradictions import check_contradictions
from llmmod.schema.validate.data_files import check_data_files
from llmmod.schema.validate.data_kinds import check_data_kinds
from llmmod.schema.validate.from_step import check_from_step
from llmmod.schema.validate.groups import check_groups
from llmmod.schema.validate.keys import check_keys
from llmmod.schema.validate.low_rank import check_low_rank
from llmmod.schema.validate.mix import check_mix
from llmmod.schema.validate.model_files import check_model_files
from llmmod.schema.validate.named import check_named
from llmmod.schema.validate.output import check_output
from llmmod.schema.validate.packages import check_packages
from llmmod.schema.validate.packing import check_packing
from llmmod.schema.validate.pipeline import check_pipeline
from llmmod.schema.validate.positions import check_positions
from llmmod.schema.validate.preferences import check_preferences
from llmmod.schema.validate.rewards import check_rewards
from llmmod.schema.validate.rollouts import check_rollouts
from llmmod.schema.validate.taken_over import check_taken_over
from llmmod.schema.validate.text import check_text
from llmmod.schema.validate.trainable_dtype import check_trainable_dtype
from llmmod.schema.validate.types import check_types
from llmmod.schema.validate.unread import check_unread

if TYPE_CHECKING:
    from llmmod.schema.compose import Composed

Check = Callable[[Context], Iterable[Problem]]


CHECKS: tuple[Check, ...] = (
    check_text,
    check_keys,
    check_types,
    check_choices,
    check_bounds,
    check_named,
    check_arguments,
    check_pipeline,
    check_from_step,
    check_taken_over,
    check_contradictions,
    check_code,
    check_low_rank,
    check_trainable_dtype,
    check_attention,
    check_data_kinds,
    check_mix,
    check_preferences,
    check_groups,
    check_rollouts,
    check_unread,
    check_packages,
    check_data_files,
    check_model_files,
    check_packing,
    check_positions,
    check_rewards,
    check_output,
)


def validate(composed: Composed) -> list[Problem]:
    """Every problem of a composed configuration, in the order of `CHECKS`, each once."""
    context, problems = context_of(composed)
    unusable = {problem.key for problem in problems}
    for check in CHECKS:
        problems += [problem for problem in check(context) if problem.key not in unusable]
        # Of a value that is wrong in itself, later checks could only say the same again.
        unusable |= {problem.key for problem in problems}
    return problems


def context_of(composed: Composed) -> tuple[Context, list[Problem]]:
    """What the checks see of a composed configuration, and what can't be resolved in it."""
    plain, problems = resolved(composed.config)
    context = Context(
        config=composed.config,
        plain=plain,
        nodes=typed_nodes(composed.config),
        user_keys=frozenset(composed.user_keys),
        choices=composed.choices,
        hydra=_unresolved(composed.hydra),
        in_sweep=composed.in_sweep,
    )
    return context, problems


def _unresolved(hydra: DictConfig | None) -> dict[str, object] | None:
    if hydra is None:
        return None
    plain = OmegaConf.to_container(hydra, resolve=False)
    assert isinstance(plain, dict)
    return {str(name): value for name, value in plain.items()}
