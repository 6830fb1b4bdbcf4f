"""`training.reward`: what answers are worth to the stages that let a model answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# What one reward says; `weight` stands in `training.reward_weights`.
FROM_DISK = ("path", "step")
SOURCES = (*FROM_DISK, "_target_")
# Where nothing is named: how much of the row's own answer is in an answer.
DEFAULT = {"overlap": {"_target_": "llmmod.rewards.overlap.overlap"}}


def reward_nodes(conf: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Name -> what that reward is: `{path: directory}`, `{step: name}` or `{_target_: dotted path, …}`.

    Args:
        conf: `training.reward`: one of these itself, which is called `reward` then, or several by name, of which null leaves one out;
            nothing at all means `DEFAULT`.
    """
    given = {str(name): node for name, node in conf.items() if node is not None}
    if any(source in given for source in SOURCES):
        return {"reward": given}
    return {name: dict(node) for name, node in (given if set(conf) - set(SOURCES) else DEFAULT).items()}


def rehearsed(conf: Mapping[str, Any]) -> dict[str, Any]:
    """`training.reward` in a rehearsal: a reward model on the disk was made for a real model and can't read what a tiny one writes."""
    return {name: node for name, node in reward_nodes(conf).items() if "path" not in node}
