"""Rewards that say too little or too much, or name a step or a directory that can't score."""

from __future__ import annotations

from ast import AsyncFunctionDef
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from llmmod.errors import ConfigError, Problem, did_you_mean
from llmmod.instantiate import import_own
from llmmod.paths import resolve_path
from llmmod.schema.reward import SOURCES, reward_nodes, unfit
from llmmod.schema.validate.context import Context
from llmmod.schema.validate.signature import called, required

_HOW = "Allowed: {path: a reward model's directory}, {step: an earlier step}, {_target_: a function}, or several of these by name"


def check_rewards(context: Context) -> Iterator[Problem]:
    """A problem for each reward of a training that can't be asked."""
    for step in context.steps:
        place = context.part(step, "training")
        training = context.get(place)
        conf = training.get("reward") if isinstance(training, dict) else None
        if context.trains(step) and isinstance(conf, Mapping):
            yield from _of(context, step, f"{place}.reward", conf)
            yield from _weights(f"{place}.reward_weights", training.get("reward_weights") or {}, conf)


def _of(context: Context, step: str, key: str, conf: Mapping[str, Any]) -> Iterator[Problem]:
    given = {name: node for name, node in conf.items() if node is not None}
    alone = any(source in given for source in SOURCES)
    if not alone and not all(isinstance(node, Mapping) for node in given.values()):
        yield Problem(key, f"found {given}", _HOW)
        return
    nodes = reward_nodes(conf)
    if not nodes:
        yield Problem(key, "every reward is left out, so no answer is better than another", _HOW)
    for name, node in nodes.items():
        own = key if alone else f"{key}.{name}"
        sources = [source for source in SOURCES if node.get(source) is not None]
        others = [field for field in node if field not in SOURCES]
        if len(sources) != 1 or (others and sources != ["_target_"]):
            yield Problem(own, f"found {node}", _HOW)
        elif sources == ["step"]:
            yield from _step(context, step, f"{own}.step", str(node["step"]))
        elif sources == ["path"] and not context.smoke:
            yield from _path(f"{own}.path", str(node["path"]))
        elif sources == ["_target_"]:
            yield from _function(f"{own}._target_", node)


def _step(context: Context, step: str, key: str, named: str) -> Iterator[Problem]:
    heads = {name: context.head(name) for name in context.training_steps_before(step)}
    rewards = [name for name, head in heads.items() if head == "reward"]
    if named in heads and named not in rewards:
        yield Problem(key, f"{named} trains a model that writes, not one that scores", did_you_mean(named, rewards) if rewards else "")
    elif named not in heads:
        allowed = did_you_mean(named, rewards) if rewards else ""
        do = "" if rewards else "Put a step with stage=rm before it, or give training.reward.path"
        yield Problem(key, f"no step '{named}' trains before {step}", allowed, do)


def _path(key: str, path: str) -> Iterator[Problem]:
    try:
        found = resolve_path(path, key=key)
    except ConfigError as error:
        yield from error.problems
        return
    if isinstance(found, Path) and not any((found / name).is_file() for name in ("adapter_config.json", "config.json")):
        yield Problem(key, f"{found} holds neither a model nor an adapter", do="Give what stage=rm wrote: <run>/train")
    elif isinstance(found, Path):
        problem = import_own("llmmod.models.stage_file.wrong_head")(path, found, wanted="reward", key=key)
        yield from [problem] if problem is not None else []
    elif path.startswith((".", "/", "~")) or path.count("/") != 1:
        yield Problem(key, f"there is no directory {path}", do="Give what stage=rm wrote: <run>/train")


def _function(key: str, node: Mapping[str, Any]) -> Iterator[Problem]:
    """Told from its source alone; of what can't be read there, `llmmod.stages.rewards` says it once the function is found."""
    function = called(str(node["_target_"]))
    if function is not None:
        needed = [name for name in required(function) if name not in node]
        problem = unfit(key, str(node["_target_"]), awaited=isinstance(function, AsyncFunctionDef), required=needed)
        yield from [problem] if problem is not None else []


def _weights(key: str, weights: Mapping[str, Any], conf: Mapping[str, Any]) -> Iterator[Problem]:
    if all(node is None or isinstance(node, Mapping) or name in SOURCES for name, node in conf.items()):
        names = reward_nodes(conf)
        yield from (Problem(f"{key}.{name}", "there is no such reward", did_you_mean(name, names)) for name in weights if name not in names)
