"""The tiny stand-ins of `smoke=true`: a random model of the same architecture, and the tokenizer that travels with the project."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedTokenizerFast

from llmmod.errors import ConfigError, Problem, did_you_mean
from llmmod.models.families.config import config_class, initial_model
from llmmod.models.own_length import keep_own_lengths
from llmmod.models.shrunk import shrunk

STAND_IN = "is_stand_in"  # attribute of a tiny model: what is asked of the real one's many layers is asked of its few
_SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")
TINY_TOKENIZER = Path(__file__).parent / "tiny_tokenizer"


def tiny_model(
    architecture: dict[str, Any],
    *,
    tokenizer: Any,
    seed: int,
    dtype: torch.dtype | None = None,
    prepare: Callable[[Any], object] | None = None,
) -> Any:
    """A model of random weights, small enough to train in a second.

    Args:
        architecture: `model_type`, and fields of its configuration.
        tokenizer: gives the vocabulary's size and the special tokens.
        seed: of the weights.
        dtype: of the weights; None: float32.
        prepare: called with the configuration before the model is built, to change it.

    Raises:
        ConfigError: no `model_type`, one that transformers doesn't have, or fields that it refuses.
    """
    fields = dict(architecture)
    model_type = fields.pop("model_type", None)
    if model_type is None:
        do = "Give it the model_type of its config.json and a few small sizes, as the files in conf/model do"
        raise ConfigError(Problem("model.architecture", "no model_type, so smoke=true can't build a tiny model of it", do=do))
    special = {name: getattr(tokenizer, name) for name in _SPECIAL}
    try:
        config = config_class(model_type)(vocab_size=len(tokenizer), **special, **fields)
    except (KeyError, TypeError, ValueError, StrictDataclassError) as error:
        raise ConfigError(_refused(model_type, error)) from error
    if prepare is not None:
        prepare(config)
    model = random_model(config, seed=seed, dtype=dtype)
    setattr(model, STAND_IN, True)
    return model


def shrunk_model(
    config: Any,
    *,
    tokenizer: Any,
    seed: int,
    dtype: torch.dtype | None = None,
    prepare: Callable[[Any], object] | None = None,
) -> Any:
    """A model of random weights of an architecture that only its configuration tells; as `tiny_model` otherwise.

    Args:
        config: a PreTrainedConfig of the real one's sizes.
        tokenizer, seed, dtype, prepare: as of `tiny_model`.

    Raises:
        ConfigError: a class that can't be made small so.
    """
    special = {name: getattr(tokenizer, name) for name in _SPECIAL}
    try:
        small = shrunk(config, vocab_size=len(tokenizer), special=special)
        if prepare is not None:
            prepare(small)
        model = random_model(small, seed=seed, dtype=dtype)
    except ConfigError:
        raise
    except Exception as error:  # whatever a class of anybody's raises
        said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        do = "Give it sizes that fit together: model.architecture={model_type: …, hidden_size: 64, …}"
        raise ConfigError(Problem("model.architecture", f"no tiny model of {config.model_type} can be made ({said})", do=do)) from error
    setattr(model, STAND_IN, True)
    return model


def random_model(config: Any, *, seed: int, dtype: torch.dtype | None = None) -> Any:
    """A model of an architecture's initial weights, which the seed alone decides; the process's own random state stays as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = initial_model(config, dtype=dtype or torch.float32).eval()
    keep_own_lengths(model)
    return model


def tiny_tokenizer(extra_tokens: Sequence[str] = ()) -> Any:
    """The tokenizer that travels with the project, with more special tokens: those of a render."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(TINY_TOKENIZER)
    known = tokenizer.get_vocab()
    new = [token for token in dict.fromkeys(extra_tokens) if token not in known]
    if new:
        tokenizer.add_special_tokens({"additional_special_tokens": new}, replace_extra_special_tokens=False)
    return tokenizer


def _refused(model_type: str, error: Exception) -> Problem:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    if model_type not in CONFIG_MAPPING_NAMES:
        near = did_you_mean(model_type, CONFIG_MAPPING_NAMES)
        return Problem("model.architecture.model_type", f"transformers has no '{model_type}'", near)
    return Problem("model.architecture", f"{model_type} refuses it: {' '.join(str(error).split())[:300]}")
