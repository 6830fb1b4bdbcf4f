"""A composed configuration as plain Python containers, interpolations resolved."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    InterpolationKeyError,
    InterpolationToMissingValueError,
    InterpolationValidationError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from llmmod.errors import Problem

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
    """Each leaf as the container that holds it, its name there, and its key."""
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
        return Problem(key, f"'{value}' refers to a key that there isn't")
    return Problem(key, f"'{value}' can't be worked out: {str(error).splitlines()[0]}")
