"""What a native class can't reproduce of a family, told at the moment when it matters and not before.

Checkpoints whose layout nothing here can load, recognised before their weights are read.

The model code that came with those of 2023 was written for transformers 4.30. Today it fails, or, worse, loads and computes nonsense
without a word (rotary buffers stay uninitialised), so it isn't run, `model.trust_remote_code` or not. `families` has those that are
converted.
"""

from __future__ import annotations

import logging
from typing import Any

from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from llmmod.errors import ConfigError, Problem
from llmmod.files.checkpoint import PATH_KEY
from llmmod.models.families.convert import original_config
from llmmod.models.families.registry import family_of
from llmmod.models.families.save import family_of_model

log = logging.getLogger(__name__)

_LONGER = ("use_dynamic_ntk", "use_logn_attn")  # of Qwen's config.json
_OF_QWEN = (
    "beyond them the original code of Qwen computes otherwise ({acting}), which isn't reproduced here. Expect worse answers; keep texts "
    "shorter with model.model_max_length."
)
_OF_INTERNLM = (
    "with each token that follows, the original code of InternLM turns all keys before it anew; the cache here keeps them as they were. "
    "What the original answers comes with generation.use_cache=false, more slowly."
)


def warn_of_trained_head(model: Any) -> None:
    """Say that a head whose rows the original normalises in each training step is trained without that.

    Args:
        model: a PreTrainedModel, ready to train.
    """
    family, head = family_of_model(model), model.get_output_embeddings()
    if family is not None and family.unit_rows and head is not None and any(parameter.requires_grad for parameter in head.parameters()):
        log.warning(
            "%s: the original code divides each row of the head by its length in every step; here that was done once, on loading, and the "
            "head is now trained as it is. The result is a model of its own, which the original code would compute otherwise. "
            "To keep to the original, leave the head frozen: finetune=lora, or finetune=freeze without lm_head.",
            family.name,
        )


def warn_beyond_trained_length(model: Any) -> None:
    """Have a model say so, once, where it is evaluated on texts that the original code would have computed otherwise."""
    raw = original_config(model.config) or {}
    acting = [name for name in _LONGER if raw.get(name)]
    if acting and raw.get("seq_length"):
        _watch(model, raw["seq_length"], _OF_QWEN.format(acting=" and ".join(acting)))
    if (raw.get("rotary") or {}).get("type") == "dynamic":
        _watch(model, raw["max_position_embeddings"], _OF_INTERNLM, cached=True)


def _watch(model: Any, limit: int, what: str, *, cached: bool = False) -> None:
    model.model.register_forward_pre_hook(_Watch(limit, what, cached=cached), with_kwargs=True)


class _Watch:
    """Looks at how long each input is, with what the cache holds; in training the original changes nothing.

    Args:
        limit: tokens up to which nothing is said.
        what: is said then.
        cached: whether only where a cache holds a part of the text.
    """

    def __init__(self, limit: int, what: str, *, cached: bool) -> None:
        self._limit, self._what, self._cached, self._said = limit, what, cached, False

    def __call__(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._said or module.training:
            return
        ids, cache = kwargs.get("input_ids", args[0] if args else None), kwargs.get("past_key_values")
        ids = kwargs.get("inputs_embeds") if ids is None else ids
        before = 0 if cache is None else int(cache.get_seq_length())
        length, positions = (0 if ids is None else ids.shape[1]) + before, kwargs.get("position_ids")
        if length > self._limit and positions is not None:  # of several texts in a row, the longest counts
            length = int(positions.max()) + 1
        if length > self._limit and (before or not self._cached):
            self._said = True
            log.warning("a text of %d tokens is longer than the %d that this model was trained on: %s", length, self._limit, self._what)


# model_type of the checkpoint -> who published models of that layout
_OF_2023 = {
    "RefinedWeb": "Falcon, before July 2023",
    "RefinedWebModel": "Falcon, before July 2023",
}


def check_layout(config: dict[str, Any], *, path: str, trust_remote_code: bool = False) -> None:
    """Nothing, where a checkpoint's config.json names a model that can be loaded.

    Raises:
        ConfigError: a layout that can't be converted, or one that only code from the checkpoint can read.
    """
    check_known_layout(config, path=path)
    model_type = config.get("model_type")
    if model_type in CONFIG_MAPPING_NAMES or family_of(config, path=path) is not None or (trust_remote_code and "auto_map" in config):
        return
    found = f"transformers has no model_type {model_type}, which config.json of '{path}' names"
    trust = "If you trust whoever made it, model.trust_remote_code=true runs the Python code that comes with it"
    raise ConfigError(Problem(PATH_KEY, found, do=trust if "auto_map" in config else ""))


def check_known_layout(config: dict[str, Any], *, path: str) -> None:
    """Nothing, unless config.json names a layout of 2023 that can't be converted.

    Raises:
        ConfigError: saying whose it is.
    """
    model_type = config.get("model_type")
    if model_type in _OF_2023:
        found = f"the layout of '{path}' (model_type {model_type}: {_OF_2023[model_type]}) can't be loaded"
        raise ConfigError(Problem(PATH_KEY, found, do="Take a later revision, which transformers has a class for"))


def report_remote_code(loaded: Any, path: str, *, trust_remote_code: bool) -> None:
    """Say what `model.trust_remote_code` came to: that code of a checkpoint was run, or that none was.

    Args:
        loaded: a model or tokenizer.
        path: of its checkpoint.
        trust_remote_code: as it was set.
    """
    kind = type(loaded)
    if kind.__module__.startswith("transformers_modules."):
        log.warning(
            "model.trust_remote_code=true: Python code that came with '%s' was run, with all your rights, and %s is what it defines. What "
            "that computes was checked by nobody here, and who loads what is saved must run the code too.",
            path, kind.__name__,
        )  # fmt: skip
    elif trust_remote_code:
        log.info("model.trust_remote_code=true: no code of '%s' was needed; %s does without.", path, kind.__name__)
