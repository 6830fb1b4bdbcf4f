"""Values that are wrong on their own: of a type that the field doesn't accept, out of bounds, or not one of the choices.

OmegaConf checks the types that it supports. The tables `ACCEPTED` and `CHOICES` of the schemas, and those here, have the rest.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from llmmod.config.signature import parameters
from llmmod.config.step_parts import Context
from llmmod.config.wording import allowed, shown
from llmmod.errors import Problem, did_you_mean

# For our own fields: (the node's name, field) -> accepted types.
ACCEPTED: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("dataset", "data_files"): ("str", "list[str]", "dict[str, Any]", "None"),
    ("dataset", "val_files"): ("str", "list[str]", "None"),
    ("dataset", "format"): ("str", "dict[str, Any]"),
    ("model", "device_map"): ("str", "int", "dict[str, Any]", "None"),
    ("model", "lora_targets"): ("str", "list[str]"),
    ("render", "prefix"): ("list[str | dict[str, str]]",),
    ("render", "empty_prefix"): ("list[str | dict[str, str]]", "None"),
    ("render", "prompt"): ("list[str | dict[str, str]]",),
    ("render", "response"): ("list[str | dict[str, str]]",),
    ("render", "sep"): ("list[str | dict[str, str]]",),
}
_PLAIN = {"str": str, "int": int, "float": (int, float), "bool": bool}
_NAMES = {"str": "a text", "int": "a whole number", "float": "a number", "bool": "true or false", "None": "null", "False": "false"}
# (the node's name, field) -> the allowed values besides null.
CHOICES: Mapping[tuple[str, str], tuple[str | int, ...]] = {
    ("model.quantization", "bits"): (4, 8),
    ("model.rope_scaling", "type"): ("linear", "dynamic", "yarn"),
    ("model", "attn_implementation"): ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"),
    ("step", "layout"): ("native", "original"),
    ("training", "kl_estimator"): ("k1", "k3"),
}
_SIZE = re.compile(r"\d+(\.\d+)?\s*[KMGT]i?B", re.IGNORECASE)


def check_types(context: Context) -> Iterator[Problem]:
    """A problem for each value whose type its field doesn't accept."""
    for key, label, schema in context.labelled_nodes():
        node = context.get(key)
        own = {name: types for (place, name), types in ACCEPTED.items() if place == label}
        for name, types in (tables(schema, "ACCEPTED") | own).items():
            if isinstance(node, dict) and name in node:
                yield from _check(f"{key}.{name}", node[name], types)


@cache
def tables(schema: type, name: str) -> dict[str, tuple[str, ...]]:
    """Field -> its entry in the table `name`, of a dataclass and its bases: a class's own, or that of a generated module, for its class."""
    found: dict[str, tuple[str, ...]] = {}
    for base in reversed(schema.__mro__):
        table = vars(base).get(name) or getattr(sys.modules.get(base.__module__), name, {})
        found |= {field: table[field] for field in vars(base).get("__annotations__", {}) if field in table}
    return found


def _check(key: str, value: Any, types: tuple[str, ...]) -> Iterator[Problem]:
    if not any(accepts(value, kind) for kind in types):
        names = list(dict.fromkeys(_named(kind) for kind in types))
        yield Problem(key, f"found {shown(value)}", f"Expected {', or '.join(names)}")
        return
    nested = next((kind for kind in types if "." in kind and "[" not in kind), None)
    known = parameters(nested) if nested and isinstance(value, dict) and "dict[str, Any]" not in types else None
    for name in value if known is not None else []:
        if name not in (known or ()):
            yield Problem(f"{key}.{name}", "no such field", did_you_mean(str(name), known or ()))


def accepts(value: Any, kind: str) -> bool:
    """Whether a value has the type with a name: `str`, `list[int]`, `dict[str, Any]`, `A | B`, or a class's path for a dict."""
    if " | " in kind and kind.count("[") == 0:
        return any(accepts(value, part) for part in kind.split(" | "))
    outer, _, inner = kind.partition("[")
    inner = inner.removesuffix("]")
    if kind in ("None", "False", "Any"):
        return kind == "Any" or value is {"None": None, "False": False}[kind]
    if outer in ("list", "tuple"):
        items = _split(inner) if outer == "tuple" else [inner]
        return isinstance(value, list) and all(any(accepts(item, option) for option in _options(items[0])) for item in value)
    if outer == "dict":
        of_value = _split(inner)[-1]
        return isinstance(value, dict) and all(accepts(item, of_value) for item in value.values())
    if kind in _PLAIN:
        return isinstance(value, _PLAIN[kind]) and (kind == "bool" or not isinstance(value, bool))  # type: ignore[arg-type]
    return isinstance(value, dict)  # a class of the library, written as its fields


def _options(kind: str) -> list[str]:
    return kind.split(" | ") if " | " in kind else [kind]


def _split(text: str) -> list[str]:
    """The parts of a text such as `str, list[int]`; commas within brackets don't separate."""
    parts, depth = [""], 0
    for letter in text:
        depth += {"[": 1, "]": -1}.get(letter, 0)
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def _named(kind: str) -> str:
    outer = kind.partition("[")[0]
    if outer in ("list", "tuple"):
        return "a list, written [a,b]"
    return _NAMES.get(kind, "keys with values, written {a: 1}")


@dataclass(frozen=True)
class Bound:
    """A condition on a number, and its text in a message."""

    text: str
    holds: Callable[[float], bool]


def at_least(least: float) -> Bound:
    """`least` or more."""
    return Bound(f"{least:g} or more", lambda x: x >= least)


ABOVE_0 = Bound("above 0", lambda x: x > 0)
FROM_0, FROM_1 = at_least(0), at_least(1)
FRACTION = Bound("0 or more and below 1", lambda x: 0 <= x < 1)
SHARE = Bound("above 0, up to 1", lambda x: 0 < x <= 1)
UP_TO_1 = Bound("from 0 to 1", lambda x: 0 <= x <= 1)
SEED = Bound("0 or more, below 2**32", lambda x: 0 <= x < 2**32)
NOT_0 = Bound("above 0 for the last layers, below 0 for the first", lambda x: x != 0)
STEPS_OR_NONE = Bound("1 or more, or -1 for all steps of the epochs", lambda x: x >= 1 or x == -1)
EXAMPLES = Bound("a fraction such as 0.1, or a whole number of examples", lambda x: 0 <= x < 1 or (x >= 1 and x == int(x)))
GROUP = Bound("a share of the sequence such as 0.25, or a whole number of tokens from 2", lambda x: 0 < x < 1 or (x >= 2 and x == int(x)))

# The node's name -> field -> its bound; the schema says whether null is allowed.
BOUNDS: Mapping[str, Mapping[str, Bound]] = {
    "": {"seed": SEED},
    "training": {
        "learning_rate": ABOVE_0, "num_train_epochs": ABOVE_0, "max_steps": STEPS_OR_NONE, "warmup_steps": FROM_0,
        "per_device_train_batch_size": FROM_1, "per_device_eval_batch_size": FROM_1, "gradient_accumulation_steps": FROM_1,
        "eval_accumulation_steps": FROM_1, "weight_decay": FROM_0, "adam_beta1": FRACTION, "adam_beta2": FRACTION, "adam_epsilon": ABOVE_0,
        "max_grad_norm": FROM_0, "label_smoothing_factor": FRACTION, "neftune_noise_alpha": ABOVE_0, "logging_steps": ABOVE_0,
        "predict_steps": FROM_1, "early_stopping_patience": FROM_1, "early_stopping_threshold": FROM_0,
        "eval_steps": ABOVE_0, "save_steps": ABOVE_0, "eval_delay": FROM_0, "save_total_limit": FROM_1, "dataloader_num_workers": FROM_0,
        "dataloader_prefetch_factor": FROM_1, "torch_empty_cache_steps": FROM_1, "seed": SEED, "data_seed": SEED,
        "generation_max_length": FROM_1, "generation_num_beams": FROM_1, "beta": FROM_0,
        "label_smoothing": FRACTION, "ld_alpha": UP_TO_1, "discopop_tau": ABOVE_0, "ref_model_mixup_alpha": UP_TO_1,
        "ref_model_sync_steps": FROM_1, "precompute_ref_batch_size": FROM_1, "desirable_weight": FROM_0, "undesirable_weight": FROM_0,
        "center_rewards_coefficient": FROM_0,
        "num_ppo_epochs": FROM_1, "num_mini_batches": FROM_1, "max_completion_length": FROM_1, "generation_batch_size": FROM_1,
        "temperature": ABOVE_0, "top_p": SHARE, "top_k": FROM_0, "score_clip": ABOVE_0, "missing_eos_penalty": FROM_0, "kl_coef": FROM_0,
        "target": ABOVE_0, "horizon": ABOVE_0, "gamma": UP_TO_1, "lam": UP_TO_1, "cliprange": ABOVE_0, "cliprange_value": ABOVE_0,
        "vf_coef": FROM_0, "entropy_coef": FROM_0, "target_kl": ABOVE_0, "num_sample_answers": FROM_0,
        "num_generations": at_least(2), "num_generations_eval": FROM_1, "num_iterations": FROM_1, "steps_per_generation": FROM_1,
        "epsilon": ABOVE_0, "epsilon_high": ABOVE_0, "delta": ABOVE_0, "min_p": UP_TO_1, "repetition_penalty": ABOVE_0,
        "top_entropy_quantile": SHARE, "off_policy_mask_threshold": FROM_0, "sapo_temperature_neg": ABOVE_0,
        "sapo_temperature_pos": ABOVE_0,
    },
    "finetune": {
        "learning_rate": ABOVE_0, "r": FROM_1, "lora_alpha": FROM_1, "lora_dropout": FRACTION, "num_layers_trainable": NOT_0,
        "loraplus_lr_ratio": FROM_1,
    },
    "dataset": {
        "cutoff_len": FROM_1, "buffer_size": FROM_1, "max_samples": FROM_1, "val_size": EXAMPLES, "num_proc": FROM_1, "seed": SEED,
        "cache_max_gb": FROM_0,
    },
    "model": {"model_max_length": FROM_1, "shift_attn_group_size": GROUP},
    "model.rope_scaling": {"factor": FROM_1},
    "generation": {
        "temperature": ABOVE_0, "top_p": SHARE, "top_k": FROM_0, "min_p": UP_TO_1, "typical_p": SHARE, "top_h": SHARE,
        "repetition_penalty": ABOVE_0, "max_new_tokens": FROM_1, "min_new_tokens": FROM_0, "max_length": FROM_1, "min_length": FROM_0,
        "num_beams": FROM_1, "num_return_sequences": FROM_1, "no_repeat_ngram_size": FROM_0, "epsilon_cutoff": FRACTION,
        "eta_cutoff": FRACTION, "max_time": ABOVE_0,
    },
    "distributed": {"processes": FROM_1, "nodes": FROM_1, "rank": FROM_0},
    "distributed.fsdp": {"min_num_params": FROM_0},
    "distributed.deepspeed": {
        "reduce_bucket_size": FROM_1, "allgather_bucket_size": FROM_1, "sub_group_size": FROM_1, "stage3_max_live_parameters": FROM_1,
        "stage3_max_reuse_distance": FROM_1, "stage3_prefetch_bucket_size": FROM_1, "stage3_param_persistence_threshold": FROM_0,
        "zero_hpz_partition_size": FROM_1,
    },
    "step": {"batch_size": FROM_1, "max_samples": FROM_1, "compare_with_base": FROM_0, "on_page": FROM_1, "in_terminal": FROM_0},
}  # fmt: skip


def check_bounds(context: Context) -> Iterator[Problem]:
    """A problem for each number outside its bounds."""
    for key, label, _ in context.labelled_nodes():
        node = context.get(key)
        for name, bound in BOUNDS.get(label, {}).items():
            value = node.get(name) if isinstance(node, dict) else None
            if isinstance(value, (int, float)) and not isinstance(value, bool) and not bound.holds(value):
                number = f"{value:g}" if isinstance(value, float) else shown(value)
                yield Problem(f"{key}.{name}" if key else name, f"found {number}", f"Allowed: {bound.text}")


def check_choices(context: Context) -> Iterator[Problem]:
    """A problem for each value that isn't one of its field's choices."""
    for key, label, schema in context.labelled_nodes():
        node = context.get(key)
        if not isinstance(node, dict):
            continue
        for name, choices in tables(schema, "CHOICES").items():
            yield from _check_text(f"{key}.{name}", node.get(name), choices)
        for (place, name), own in CHOICES.items():
            if place == label and node.get(name) is not None and node[name] not in own:
                yield Problem(f"{key}.{name}", f"found {shown(node[name])}", allowed(node[name], [str(choice) for choice in own]))
        if label == "dataset" and isinstance(node.get("format"), str):
            yield from _check_text(f"{key}.format", node["format"], formats())
        if label == "step" and isinstance(node.get("max_shard_size"), str):
            yield from _check_size(f"{key}.max_shard_size", node["max_shard_size"])


def _check_text(key: str, value: Any, choices: tuple[str, ...]) -> Iterator[Problem]:
    """A problem for a text, or each text of a list, that isn't one of the choices; a part in [brackets] stands for any text."""
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, str) and not any(_matches(item, choice) for choice in choices):
            yield Problem(key, f"found {shown(item)}", allowed(item, choices))


def _matches(text: str, choice: str) -> bool:
    if "[" not in choice:
        return text == choice
    pattern = "".join(".+" if part.startswith("[") else re.escape(part) for part in re.split(r"(\[[^]]*\])", choice))
    return re.fullmatch(pattern, text) is not None


@cache
def formats() -> tuple[str, ...]:
    """The names of the data formats: `auto`, and each module of `llmmod.data.formats`."""
    directory = Path(__file__).parents[2] / "data" / "formats"
    return ("auto", *sorted(file.stem for file in directory.glob("*.py") if not file.stem.startswith("_")))


def _check_size(key: str, value: str) -> Iterator[Problem]:
    """A problem for a size without a unit: 5 would be five bytes."""
    if not _SIZE.fullmatch(value):
        number = re.fullmatch(r"\d+(\.\d+)?", value.strip())
        found = f"{value} has no unit" if number else f"found {shown(value)}"
        yield Problem(key, found, "Allowed: a number with KB, MB, GB or TB", f"Write {value}GB" if number else "")
