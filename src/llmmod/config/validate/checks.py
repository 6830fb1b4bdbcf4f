"""The list of all checks, and their argument.

A check is a function that takes a `Context` and yields problems; a table next to it has its limits, choices or rules. Add a new check to
`CHECKS`, and a new limit, choice or rule to its table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from omegaconf import DictConfig, OmegaConf

from llmmod.config.compose import Composed, resolved
from llmmod.config.step_parts import Context
from llmmod.config.validate.arguments import check_arguments, check_code, check_named, check_packages
from llmmod.config.validate.data import check_data_files, check_data_kinds, check_formats, check_mix, check_packing
from llmmod.config.validate.keys import check_keys, check_taken_over, check_text, check_unread
from llmmod.config.validate.model import check_attention, check_low_rank, check_model_files, check_positions, check_trainable_dtype
from llmmod.config.validate.pipeline import check_distributed, check_from_step, check_output, check_pipeline, check_sweep
from llmmod.config.validate.stages import check_groups, check_preferences, check_rewards, check_rollouts
from llmmod.config.validate.training import check_best_model, check_contradictions, check_resumed
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
    check_resumed,
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
        # If a value is wrong on its own, later checks could only report the same key again.
        unusable |= {problem.key for problem in problems}
    return problems


def context_of(composed: Composed) -> tuple[Context, list[Problem]]:
    """The checks' view of a composed configuration, and a problem for each interpolation that can't be resolved."""
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
