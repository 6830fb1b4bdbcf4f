"""Answers of the policy: the settings they are sampled with, and random numbers of their own."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import GenerationConfig

from llmmod.errors import ConfigError, Problem
from llmmod.models.generation import generation_config

# What a checkpoint brings along and would have answers sampled from something else than what the model says -> as good as not set.
_PLAIN = {
    "repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "min_p": 0.0, "typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0,
    "num_beams": 1,
}  # fmt: skip
_OF_GRPO = ("min_p", "repetition_penalty", "cache_implementation")  # has fields for these, too


def sampling_settings(args: Any, model: Any) -> GenerationConfig:
    """How answers are sampled; they end with what the model's own settings say, which are the render's stop words.

    Args:
        args: PpoArguments, or GrpoArguments.
        model: a PreTrainedModel or PeftModel.

    Raises:
        ConfigError: `training.generation_kwargs` has a field that GenerationConfig doesn't.
    """
    ends = model.generation_config.eos_token_id
    fields = {"temperature": args.temperature, "top_p": args.top_p, "top_k": args.top_k, "max_new_tokens": args.max_completion_length}
    fields |= {name: plain for name, plain in _PLAIN.items() if getattr(model.generation_config, name, None) is not None}
    fields |= {name: getattr(args, name) for name in _OF_GRPO if getattr(args, name, None) is not None}
    known = GenerationConfig().to_dict()
    if unknown := [name for name in args.generation_kwargs if name not in known]:
        raise ConfigError(Problem(f"training.generation_kwargs.{unknown[0]}", "GenerationConfig has no such field"))
    chosen = GenerationConfig(do_sample=True, **{**fields, **args.generation_kwargs})
    stop_ids = [ends] if isinstance(ends, int) else list(ends or [])
    return generation_config(chosen, model, stop_ids=stop_ids, pad_id=model.generation_config.pad_token_id)


def seed_of(*parts: object) -> int:
    """A seed that hangs on all of its parts, and is the same on every machine."""
    return random.Random(" ".join(map(str, parts))).getrandbits(62)


@contextmanager
def drawing(seed: int) -> Iterator[None]:
    """Within it, random numbers come from a seed; afterwards those of training go on as if nothing had been drawn.

    So a rollout depends on the policy and its number alone, and a resumed run samples what the uninterrupted one would have.
    """
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
