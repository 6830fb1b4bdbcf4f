"""The list of all checks, and what they are given.

A check is a function of a `Context` that yields problems; what it looks for stands in a table beside it. A new check goes into `CHECKS`, a
new limit, choice or rule into its table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from omegaconf import DictConfig, OmegaConf

from llmmod.config.compose import Composed, resolved
from llmmod.config.step_parts import Context
from llmmod.config.validate.adapters import check_low_rank
from llmmod.config.validate.arguments import check_arguments, check_code, check_named, check_packages
from llmmod.config.validate.best_model import check_best_model
from llmmod.config.validate.data import check_data_files, check_data_kinds, check_formats, check_mix, check_packing
from llmmod.config.validate.keys import check_keys, check_taken_over, check_text, check_unread
from llmmod.config.validate.model import check_attention, check_model_files, check_positions, check_trainable_dtype
from llmmod.config.validate.online import check_groups, check_rewards, check_rollouts
from llmmod.config.validate.pipeline import check_distributed, check_from_step, check_output, check_pipeline, check_sweep
from llmmod.config.validate.training import check_contradictions, check_preferences
from llmmod.config.validate.values import check_bounds, check_choices, check_types
from llmmod.config.wording import typed_nodes
from llmmod.errors import Problem

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
    check_sweep,
    check_distributed,
    check_from_step,
    check_taken_over,
    check_contradictions,
    check_best_model,
    check_code,
    check_low_rank,
    check_trainable_dtype,
    check_attention,
    check_formats,
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
