"""From a command line to a composed configuration; one error names every override that can't be applied.

Hydra stops at the first override that it can't apply. So it composes only the choices of options; then Hydra's own code applies every other
override, one by one, and failures are collected. This avoids composing twice, which would take most of the time of a refusal.

`resolved` gives a composed configuration as plain Python containers, `to_root` as the dataclasses of the schemas.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import (
    InterpolationKeyError,
    InterpolationToMissingValueError,
    InterpolationValidationError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from llmmod.code_arguments import check_code_arguments, trust_typed
from llmmod.config.overrides import Composition, in_groups, parse
from llmmod.config.register import register_schemas
from llmmod.config.schema.steps import Root
from llmmod.errors import ConfigError, Problem

_HYDRA_S = re.compile(r"\$\{hydra:")  # known only once Hydra runs the job


def resolved(config: DictConfig) -> tuple[dict[str, Any], list[Problem]]:
    """The configuration as dicts and lists, and a problem for each key that is not set or whose interpolation fails.

    A value with a problem is None in the result, and so is one that only Hydra knows, `${hydra:…}`.
    """
    try:
        return _container(config), []
    except OmegaConfBaseException:
        return _one_by_one(config)


def _container(config: DictConfig) -> dict[str, Any]:
    plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(plain, dict)
    return plain  # type: ignore[return-value]


def _one_by_one(config: DictConfig) -> tuple[dict[str, Any], list[Problem]]:
    plain: Any = OmegaConf.to_container(config, resolve=False)
    problems = []
    for holder, name, key in list(_leaves(plain, "")):
        value = holder[name]
        if not isinstance(value, str) or not ("${" in value or value == "???"):
            continue
        try:
            holder[name] = OmegaConf.select(config, key, throw_on_missing=True, throw_on_resolution_failure=True)
            if OmegaConf.is_config(holder[name]):
                holder[name] = OmegaConf.to_container(holder[name], resolve=True, throw_on_missing=True)
        except OmegaConfBaseException as error:
            holder[name] = None
            if not _HYDRA_S.search(value):
                problems.append(_problem(key, value, error))
    return plain, problems


def _leaves(node: Any, key: str) -> Iterator[tuple[Any, Any, str]]:
    """Each leaf as its container, its name there, and its key."""
    for name, item in list(node.items() if isinstance(node, dict) else enumerate(node)):
        below = f"{key}[{name}]" if isinstance(node, list) else f"{key}.{name}" if key else str(name)
        if isinstance(item, (dict, list)):
            yield from _leaves(item, below)
        else:
            yield node, name, below


def _problem(key: str, value: str, error: OmegaConfBaseException) -> Problem:
    if isinstance(error, MissingMandatoryValue):
        return Problem(key, "is not set", do=f"Set it: {key}=…")
    if isinstance(error, InterpolationValidationError) and value == "${.from_step}":
        return Problem(key, "is not set", do=f"Set it: {key}=…")
    if isinstance(error, InterpolationToMissingValueError):
        return Problem(key, f"'{value}' refers to a key that is not set")
    if isinstance(error, InterpolationKeyError):
        return Problem(key, f"'{value}' refers to a missing key")
    return Problem(key, f"'{value}' can't be resolved: {str(error).splitlines()[0]}")


@dataclass
class Composed:
    """A composed configuration and its origin.

    Args:
        config: everything that a run reads, without Hydra's own node.
        hydra: Hydra's node, if it was requested.
        overrides: as typed.
        choices: group -> option, as Hydra names them: `model`, `step@steps.train`.
        user_keys: the keys that the overrides set, down to the leaves.
        in_sweep: whether this is a job of a sweep, to which Hydra gives a directory of its own.
        refused: a problem for each override that could not be applied.
        failed_groups: the groups, `model` or `step@steps.train`, whose option could not be chosen.
    """

    config: DictConfig
    hydra: DictConfig | None
    overrides: list[str]
    choices: dict[str, Any] = field(default_factory=dict)
    user_keys: list[str] = field(default_factory=list)
    in_sweep: bool = False
    refused: list[Problem] = field(default_factory=list)
    failed_groups: list[str] = field(default_factory=list)

    def lacks_option(self, key: str) -> bool:
        """Whether a key is in a part whose option could not be chosen, so that the key can't be checked."""
        return in_groups(key, self.failed_groups)


def compose_config(
    overrides: Sequence[str],
    *,
    config_dir: str | None = None,
    config_name: str = "config",
    with_hydra: bool = False,
    job_num: int | None = None,
) -> Composed:
    """The configuration that a command line's overrides compose to.

    Args:
        overrides: as typed, `group=option` and `key=value`.
        config_dir: a directory of the user's own options, in addition to the shipped ones.
        config_name: the file that composing starts from.
        with_hydra: keep Hydra's own node.
        job_num: the job's number, if it belongs to a sweep.

    Raises:
        ConfigError: with every override that can't be applied.
    """
    composed = compose_accepted(overrides, config_dir=config_dir, config_name=config_name, with_hydra=with_hydra, job_num=job_num)
    if composed.refused:
        raise ConfigError(composed.refused)
    return composed


def compose_accepted(
    overrides: Sequence[str], *, config_dir: str | None, config_name: str, with_hydra: bool, job_num: int | None
) -> Composed:
    """The configuration from all overrides that can be applied; `refused` has the others' problems. Arguments as in `compose_config`.

    Raises:
        ConfigError: if composing fails, or none of the overrides that set a key can be applied.
    """
    register_schemas()
    parsed, unread = parse(overrides)
    composition = Composition(parsed, config_dir=config_dir, config_name=config_name)
    refused = composition.compose(unread)
    full, user_keys = composition.config, composition.user_keys()
    if full is None or (refused and not user_keys):
        raise ConfigError(refused)
    trust_typed(composition.typed_true())
    with open_dict(full.hydra):
        if job_num is not None:
            full.hydra.job.num = job_num
            full.hydra.job.id = str(job_num)
    choices = dict(full.hydra.runtime.choices)
    config = full.copy() if with_hydra else full
    hydra = full.hydra if with_hydra else None
    with open_dict(config):
        del config["hydra"]
    return Composed(
        config=config,
        hydra=hydra,
        overrides=list(overrides),
        choices=choices,
        user_keys=user_keys,
        in_sweep=job_num is not None,
        refused=refused,
        failed_groups=composition.failed_groups,
    )


def to_root(config: DictConfig) -> Root:
    """The configuration as the schemas' dataclasses.

    Raises:
        ConfigError: naming each key that isn't set, each interpolation that fails, and each argument that would run code.
    """
    plain, problems = resolved(config)
    problems += check_code_arguments(plain)  # also for values from Hydra and its sweeper
    if problems:
        raise ConfigError(problems)
    try:
        root = OmegaConf.to_object(config)
    except OmegaConfBaseException as error:
        raise ConfigError(Problem(str(error.full_key or "config"), str(error.msg or error).splitlines()[0])) from error
    if not isinstance(root, Root):
        raise ConfigError(Problem("config", "was not composed by llmmod", do="Create it with llmmod.compose([…])"))
    return root
