"""A command line becomes a configuration: Hydra composes it, and what Hydra refuses is said in our words, all of it at once.

Hydra stops at the first override that it can't apply. So only the choices of options are given to it to compose with; then every other
override is applied by Hydra's own code, one by one, and each that fails is kept. This costs no second composing, which takes most of the
time that a refusal takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from llmmod.code_arguments import check_code_arguments, trust_typed
from llmmod.errors import ConfigError, Problem
from llmmod.schema.overrides import Composition, parse
from llmmod.schema.plain import resolved
from llmmod.schema.register import register_schemas
from llmmod.schema.root import Root


@dataclass
class Composed:
    """A composed configuration, and how it came about.

    Args:
        config: all that a run reads; without Hydra's own node.
        hydra: Hydra's node, where it was asked for.
        overrides: as typed.
        choices: group -> option, as Hydra names them: `model`, `step@steps.train`.
        user_keys: the keys that the overrides set, down to the leaves.
        in_sweep: whether this is a job of a sweep, to which Hydra gives a directory of its own.
    """

    config: DictConfig
    hydra: DictConfig | None
    overrides: list[str]
    choices: dict[str, Any] = field(default_factory=dict)
    user_keys: list[str] = field(default_factory=list)
    in_sweep: bool = False


def compose_config(
    overrides: Sequence[str],
    *,
    config_dir: str | None = None,
    config_name: str = "config",
    with_hydra: bool = False,
    job_num: int | None = None,
) -> Composed:
    """What a command line's overrides compose to.

    Args:
        overrides: as typed, `group=option` and `key=value`.
        config_dir: a directory of options of the user's own, beside the shipped ones.
        config_name: the file that composing starts from.
        with_hydra: keep Hydra's own node.
        job_num: the job's number, if it belongs to a sweep.

    Raises:
        ConfigError: with every override that is wrong, and with what validation says of the keys that the others set.
    """
    register_schemas()
    parsed, unread = parse(overrides)
    composition = Composition(parsed, config_dir=config_dir, config_name=config_name)
    problems = composition.compose(unread)
    if composition.config is None:
        raise ConfigError(problems)
    composed = _separate(composition.config, list(overrides), with_hydra=with_hydra, job_num=job_num)
    composed.user_keys = composition.user_keys()
    trust_typed(composition.typed_true())
    if problems:
        raise ConfigError(problems + _also(composed, composition, {p.key for p in problems}))
    return composed


def validated(composed: Composed) -> DictConfig:
    """The configuration, once every check has passed.

    Raises:
        ConfigError: with every problem found.
    """
    if problems := _validate(composed):
        raise ConfigError(problems)
    return composed.config


def to_root(config: DictConfig) -> Root:
    """The configuration as plain Python, in the schemas' dataclasses; to be made once, at the border.

    Raises:
        ConfigError: naming each key that isn't set, each interpolation that fails, and each argument that would run what it points at.
    """
    plain, problems = resolved(config)
    problems += check_code_arguments(plain)  # also of what only Hydra knew, and of what its sweeper added
    if problems:
        raise ConfigError(problems)
    try:
        root = OmegaConf.to_object(config)
    except OmegaConfBaseException as error:
        raise ConfigError(Problem(str(error.full_key or "config"), str(error.msg or error).splitlines()[0])) from error
    if not isinstance(root, Root):
        raise ConfigError(Problem("config", "is none that llmmod composed", do="Make it with llmmod.compose([…])"))
    return root


def _also(composed: Composed, composition: Composition, known: set[str]) -> list[Problem]:
    """What validation says of the keys that the other overrides set; of the rest, it says nothing until the wrong ones are put right."""
    if not composed.user_keys:
        return []  # importing the checks, and running them, would take a tenth of the time of a refusal
    found = [p for p in _validate(composed) if p.key in composed.user_keys and p.key not in known]
    return [p for p in found if not composition.in_failed_group(p.key)]


def _validate(composed: Composed) -> list[Problem]:
    from llmmod.schema.validate import validate

    return validate(composed)


def _separate(full: DictConfig, overrides: list[str], *, with_hydra: bool, job_num: int | None) -> Composed:
    """The run's part and Hydra's part of a composed configuration."""
    choices = dict(full.hydra.runtime.choices)
    with open_dict(full.hydra):
        if job_num is not None:
            full.hydra.job.num = job_num
            full.hydra.job.id = str(job_num)
    config = full.copy() if with_hydra else full
    with open_dict(config):
        del config["hydra"]
    hydra = full.hydra if with_hydra else None
    return Composed(config=config, hydra=hydra, overrides=overrides, choices=choices, in_sweep=job_num is not None)
