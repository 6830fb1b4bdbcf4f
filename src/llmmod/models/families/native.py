"""Checkpoints of 2023 as models of today's classes; a checkpoint's own code isn't run.

The model code of these checkpoints was written for transformers 4.30. Today it fails, or loads and silently gives wrong results (rotary
buffers stay uninitialised), so it isn't run, for any value of `model.trust_remote_code`. `layouts` has the families that are converted;
`check_layout` refuses the others before their weights are read.

Differences between a native class and the original code are reported only if they matter: if a head is trained that the original normalises
in each step, and if a text is so long that the original code computes it differently.
"""

from __future__ import annotations

import logging
import re
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from llmmod.errors import ConfigError, Problem
from llmmod.files.checkpoint import PATH_KEY
from llmmod.models.families.baichuan import BaichuanConfig, BaichuanForCausalLM
from llmmod.models.families.convert import ORIGINAL, converting, family_of_model, original_config
from llmmod.models.families.family import NATIVE_LAYERS, RECOMPUTED, Family, Raw
from llmmod.models.families.layouts import HEAD_IS_FINAL, family_of
from llmmod.upstream import require_upstream

require_upstream(__name__)

log = logging.getLogger(__name__)

_UNSUPPORTED = {"RefinedWeb": "Falcon, before July 2023", "RefinedWebModel": "Falcon, before July 2023"}  # by model_type
_CODE = ("trust_remote_code", "code_revision")
_LONGER = ("use_dynamic_ntk", "use_logn_attn")  # of Qwen's config.json
_QWEN_DIFFERS = (
    "beyond them the original code of Qwen computes differently ({acting}), which isn't reproduced here. Expect worse answers; keep texts "
    "shorter with model.model_max_length."
)
_INTERNLM_DIFFERS = (
    "the original code of InternLM rotates all earlier keys again with each further token; the cache here doesn't. For the original's "
    "answers set generation.use_cache=false, which is slower."
)


def check_layout(config: dict[str, Any], *, path: str, trust_remote_code: bool = False) -> None:
    """Refuse a checkpoint whose config.json names a model that can't be loaded.

    Raises:
        ConfigError: a layout that can't be converted, or one that only code from the checkpoint can read.
    """
    check_known_layout(config, path=path)
    model_type = config.get("model_type")
    if model_type in CONFIG_MAPPING_NAMES or family_of(config, path=path) is not None or (trust_remote_code and "auto_map" in config):
        return
    found = f"transformers doesn't have the model_type {model_type}, which config.json of '{path}' names"
    trust = "If you trust its author, model.trust_remote_code=true runs its own Python code"
    raise ConfigError(Problem(PATH_KEY, found, do=trust if "auto_map" in config else ""))


def check_known_layout(config: dict[str, Any], *, path: str) -> None:
    """Refuse a layout of 2023 that can't be converted.

    Raises:
        ConfigError: it is one; the message names its publisher.
    """
    model_type = config.get("model_type")
    if model_type in _UNSUPPORTED:
        found = f"the layout of '{path}' (model_type {model_type}: {_UNSUPPORTED[model_type]}) can't be loaded"
        raise ConfigError(Problem(PATH_KEY, found, do="Use a later revision, for which transformers has a class"))


def native_config(family: Family, raw: Raw) -> Any:
    """The native configuration.

    Raises:
        ConfigError: as in `Family.native_fields`.
    """
    fields = family.native_fields(raw)
    dtype = raw.get("dtype", raw.get("torch_dtype"))
    return config_class(family.native)(**fields, dtype=dtype, **{ORIGINAL: dict(raw)})


def config_class(model_type: str) -> Any:
    """The configuration's class of a model_type, including our own.

    Raises:
        KeyError: it is unknown.
    """
    return BaichuanConfig if model_type == BaichuanConfig.model_type else CONFIG_MAPPING[model_type]


def initial_model(config: Any, *, dtype: torch.dtype) -> Any:
    """A model with a configuration's initial weights, of a class of transformers or our own."""
    if isinstance(config, BaichuanConfig):
        return BaichuanForCausalLM._from_config(config, dtype=dtype)
    return AutoModelForCausalLM.from_config(config, dtype=dtype)


def load_original(path: str, family: Family, config: Any, **arguments: Any) -> Any:
    """A family's checkpoint as a model of the native class.

    Args:
        path: a directory or hub id.
        family: from `layouts.family_of`.
        config: from `native_config`.
        arguments: other arguments of from_pretrained.

    Returns:
        The model, or with `output_loading_info` model and loading info.

    Raises:
        ConfigError: the checkpoint has weights that the layout doesn't.
    """
    given = {name: value for name, value in arguments.items() if name not in _CODE}
    native = BaichuanForCausalLM if isinstance(config, BaichuanConfig) else MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    final = bool((original_config(config) or {}).get(HEAD_IS_FINAL))
    with converting(native, family, depth=config.num_hidden_layers, unit_rows=not final):
        model, info = native.from_pretrained(path, config=config, **given | {"output_loading_info": True})
    # If the rules stayed, saved files would have the original names, and a trainer that resumes from them would not find its own:
    # it warns, and continues from the base model (transformers 5.23; issues 43701, 48805).
    model._weight_conversions = []
    unknown = sorted(name for name in info["unexpected_keys"] if not _is_left_out(name, depth=config.num_hidden_layers))
    if unknown:  # the native model doesn't use them
        found = f"'{path}' doesn't have the layout of {family.name} as in its config.json: {len(unknown)} weights are unexpected"
        raise ConfigError(Problem(PATH_KEY, f"{found}, among them {unknown[0]}"))
    return (model, info) if arguments.get("output_loading_info") else model


def _is_left_out(name: str, *, depth: int) -> bool:
    """Whether a weight follows from the configuration, or belongs to a layer that is left out."""
    layer = re.match(rf"{re.escape(NATIVE_LAYERS)}\.(\d+)\.", name)
    return RECOMPUTED.search(name) is not None or (layer is not None and int(layer[1]) >= depth)


def warn_of_trained_head(model: Any) -> None:
    """Warn that a head whose rows the original normalises in each training step is trained without that.

    Args:
        model: a PreTrainedModel, ready to train.
    """
    family, head = family_of_model(model), model.get_output_embeddings()
    if family is not None and family.unit_rows and head is not None and any(parameter.requires_grad for parameter in head.parameters()):
        log.warning(
            "%s: the original code divides each row of the head by its length in every step; here that was done once, on loading, and the "
            "head is now trained without it. The original code would compute the resulting model differently. "
            "To keep to the original, leave the head frozen: finetune=lora, or finetune=freeze without lm_head.",
            family.name,
        )


def warn_beyond_trained_length(model: Any) -> None:
    """Make a model warn once if it is evaluated on texts that the original code computes differently."""
    raw = original_config(model.config) or {}
    acting = [name for name in _LONGER if raw.get(name)]
    watches = []
    if acting and raw.get("seq_length"):
        watches.append(_LengthWatch(raw["seq_length"], _QWEN_DIFFERS.format(acting=" and ".join(acting)), cached=False))
    if (raw.get("rotary") or {}).get("type") == "dynamic":
        watches.append(_LengthWatch(raw["max_position_embeddings"], _INTERNLM_DIFFERS, cached=True))
    for watch in watches:
        model.model.register_forward_pre_hook(watch, with_kwargs=True)


class _LengthWatch:
    """Checks the length of each input, with the cache; in training the original code doesn't differ.

    Args:
        limit: tokens; it warns of longer texts.
        what: the warning.
        cached: whether to warn only if a cache has a part of the text.
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
        if length > self._limit and positions is not None:  # the longest of several texts in a row
            length = int(positions.max()) + 1
        if length > self._limit and (before or not self._cached):
            self._said = True
            log.warning("a text of %d tokens is longer than the %d that this model was trained on: %s", length, self._limit, self._what)
