"""Arguments that a target doesn't take, that would run code, or that need a package that isn't installed.

Everything is read from the text of the configuration and from sources; modules that a configuration names are not imported. Only in Hydra's
own node the objects themselves are checked, since Hydra builds them without `instantiate`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from llmmod.code_arguments import check_code_arguments, check_outputs, find_module
from llmmod.config.signature import parameters
from llmmod.config.step_parts import Context
from llmmod.errors import ConfigError, Problem, did_you_mean
from llmmod.instantiate import locate
from llmmod.targets import allowed_prefixes, check_prefixes, check_targets, refusal, within

_SPECIAL = frozenset({"_args_", "_convert_", "_partial_", "_recursive_", "_target_"})
# field -> the module that it needs, and the package that has it
_FIELDS: Mapping[str, tuple[str, str]] = {
    "use_liger_kernel": ("liger_kernel", "liger-kernel"),
    "deepspeed": ("deepspeed", "deepspeed"),
}
# optimizers -> likewise
_OPTIMIZERS: Mapping[tuple[str, ...], tuple[str, str]] = {
    ("adamw_torch_xla",): ("torch_xla", "torch-xla"),
    ("adamw_torch_npu_fused",): ("torch_npu", "torch-npu"),
    ("adamw_anyprecision",): ("torchdistx", "torchdistx"),
    ("adamw_torch_4bit", "adamw_torch_8bit"): ("torchao", "torchao"),
    (
        "ademamix", "adamw_bnb_8bit", "adamw_8bit", "ademamix_8bit", "lion_8bit", "lion_32bit", "paged_adamw_32bit", "paged_adamw_8bit",
        "paged_ademamix_32bit", "paged_ademamix_8bit", "paged_lion_32bit", "paged_lion_8bit", "rmsprop_bnb", "rmsprop_bnb_8bit",
        "rmsprop_bnb_32bit",
    ): ("bitsandbytes", "bitsandbytes"),
    (
        "galore_adamw", "galore_adamw_8bit", "galore_adafactor", "galore_adamw_layerwise", "galore_adamw_8bit_layerwise",
        "galore_adafactor_layerwise",
    ): ("galore_torch", "galore-torch"),
    ("apollo_adamw", "apollo_adamw_layerwise"): ("apollo_torch", "apollo-torch"),
    ("lomo", "adalomo"): ("lomo_optim", "lomo-optim"),
    ("grokadamw",): ("grokadamw", "grokadamw"),
    ("schedule_free_radam", "schedule_free_adamw", "schedule_free_sgd"): ("schedulefree", "schedulefree"),
    ("stable_adamw",): ("optimi", "torch-optimi"),
}  # fmt: skip


def check_arguments(context: Context) -> Iterator[Problem]:
    """A problem for each argument in a free node that its target doesn't take, and for each missing module."""
    for key, node in nodes_of(context.plain, ""):
        target = node["_target_"]
        if not isinstance(target, str) or refusal(target):
            continue  # `check_named` refuses it
        typed = key in context.nodes
        if (absent := _absent_module(target)) and (not typed or context.user_set(f"{key}._target_")):
            yield Problem(f"{key}._target_", f"the module {absent} does not exist", _nearest_module(absent))
        elif not typed and (names := [name for name in node if name not in _SPECIAL]) and (known := parameters(target)) is not None:
            wrong = [name for name in names if name not in known]
            yield from (Problem(f"{key}.{name}", f"not an argument of {target}", did_you_mean(str(name), known)) for name in wrong)


def nodes_of(tree: Any, key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each dict with a `_target_`, with its key."""
    if isinstance(tree, dict):
        if "_target_" in tree and tree["_target_"] is not None:
            yield key, tree
        for name, item in tree.items():
            yield from nodes_of(item, f"{key}.{name}" if key else str(name))
    elif isinstance(tree, list):
        for number, item in enumerate(tree):
            yield from nodes_of(item, f"{key}.{number}")


def _absent_module(target: str) -> str:
    """The first missing module of a path, or an empty text.

    For other packages only the package itself is checked, since it may create names below it dynamically.
    """
    parts = target.split(".")
    depths = range(1, len(parts) if parts[0] == "llmmod" else 2)
    if depths and find_module(".".join(parts[: depths[-1]]), os.getcwd()) is not None:
        return ""  # one search, in most cases
    for depth in depths:
        name = ".".join(parts[:depth])
        spec = find_module(name, os.getcwd())
        if spec is None:
            return name
        if spec.submodule_search_locations is None:
            return ""  # a module in one file; the rest are names in it
    return ""


def _nearest_module(module: str) -> str:
    above, _, name = module.rpartition(".")
    spec = find_module(above, os.getcwd()) if above else None
    folders = spec.submodule_search_locations if spec is not None and spec.submodule_search_locations else []
    siblings = [os.path.splitext(entry)[0] for folder in folders for entry in os.listdir(folder) if not entry.startswith("_")]
    return did_you_mean(name, sorted(set(siblings)))


def check_code(context: Context) -> Iterator[Problem]:
    """A problem for each such argument, anywhere in the configuration."""
    yield from check_code_arguments(context.plain)
    for key, node in nodes_of(context.plain, ""):
        if key not in context.nodes:  # those of the schemas have keys of their own for where they write
            yield from check_outputs(node, key)


def check_named(context: Context) -> Iterator[Problem]:
    """A problem for each path that may not be named, and for each module that the user can't allow."""
    yield from check_prefixes()
    yield from check_targets(context.plain)
    if context.hydra is not None:
        refused = check_targets(context.hydra, "hydra")
        yield from refused
        # Hydra builds these itself, so names that an allowed module imports from another one must be checked here.
        for key, path in _targets(context.hydra, "hydra"):
            if within(path, allowed_prefixes()) and key not in {problem.key for problem in refused}:
                yield from _refused_object(key, path)


def _refused_object(key: str, path: str) -> list[Problem]:
    try:
        locate(path)
    except ConfigError as error:
        return [Problem(key, f"'{path}' {problem.found}", problem.allowed, problem.do) for problem in error.problems]
    return []


def _targets(node: Any, key: str) -> Iterator[tuple[str, str]]:
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else []
    for name, item in children:
        if name == "_target_" and isinstance(item, str):
            yield f"{key}.{name}", item
        else:
            yield from _targets(item, f"{key}.{name}")


def check_packages(context: Context) -> Iterator[Problem]:
    """A problem for each argument of a training step whose package isn't installed."""
    for place in dict.fromkeys(context.part(step, "training") for step in context.steps if context.trains(step)):
        training = context.get(place) or {}
        needed = [(name, package) for name, package in _FIELDS.items() if training.get(name)]
        of_optimizer = [("optim", package) for names, package in _OPTIMIZERS.items() if training.get("optim") in names]
        for name, (module, package) in [*needed, *of_optimizer]:
            if find_module(module) is None:
                value = "true" if training[name] is True else training[name]
                found = f"{value if isinstance(value, str) else 'set'}, but {package} isn't installed"
                yield Problem(f"{place}.{name}", found, do=f"Install it: pip install {package}")
