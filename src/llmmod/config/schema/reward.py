"""`training.reward`: what answers are worth to the stages that let a model answer."""

from collections.abc import Collection, Mapping
from typing import Any

from llmmod.errors import Problem

# What one reward says; `weight` stands in `training.reward_weights`.
FROM_DISK = ("path", "step")
SOURCES = (*FROM_DISK, "_target_")
# What trl hands to a function besides, of its trainer or its environments.
_TRLS = ("trainer_state", "log_extra", "log_metric", "environments")
# Where nothing is named: how much of the row's own answer is in an answer.
DEFAULT = {"overlap": {"_target_": "llmmod.rewards.overlap"}}


def answer_metrics() -> dict[str, Any]:
    """What held-out answers are measured by beside their reward: what a reward model can't be fooled about."""
    names = {"rouge": "rouge.Rouge", "exact": "exact.Exact", "length": "length.Length", "repetition": "repetition.Repetition"}
    return {name: {"_target_": f"llmmod.metrics.{target}"} for name, target in names.items()}


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


def unfit(key: str, target: str, *, awaited: bool, required: Collection[str]) -> Problem | None:
    """Why a function can't be asked, although trl's GRPO could ask it.

    Args:
        key: of the reward.
        target: its dotted path.
        awaited: whether it is an `async def`.
        required: its arguments without a default that the configuration doesn't give.
    """
    if awaited:
        return Problem(key, f"{target} is an async def, and a reward is called and not awaited", do="Make it a plain function")
    needed = [name for name in _TRLS if name in required]
    if needed:
        found = f"{target} can't do without {' and '.join(needed)}, which trl's own trainer hands in and this one doesn't"
        return Problem(key, found, do=f"Give it a default: {', '.join(f'{name}=None' for name in needed)}")
    return None
