"""Answers to many prompts: batches of like length, padded on the left, with a cache.

Prompts of like length together waste least on padding, and the longest come first, so that a batch too large for the memory is known
at the start. Each batch is handed on as it is done and then forgotten: what is held doesn't grow with the number of prompts.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import GenerationConfig

from llmmod.errors import ConfigError, Problem
from llmmod.models.ends import Ends


def answers(
    model: Any, prompts: Sequence[Sequence[int]], *, config: GenerationConfig, batch_size: int, tokenizer: Any = None
) -> Iterator[list[tuple[int, list[int]]]]:
    """Batches of (number of the prompt, ids of its answer); an answer ends with what ended it, or where it became too long.

    An answer is the same in any batch: neither the prompts beside its own nor what pads them have a part in it.

    Args:
        model: in evaluation mode.
        prompts: ids, from the beginning of the conversation to where the answer begins.
        config: as from `llmmod.models.generation.generation_config`; its `pad_token_id` pads.
        batch_size: prompts generated together.
        tokenizer: needed where `config.stop_strings` is set.

    Raises:
        ConfigError: a prompt leaves no room within `config.max_length`.
    """
    order = sorted(range(len(prompts)), key=lambda number: -len(prompts[number]))
    ends = Ends(config, tokenizer)
    for start in range(0, len(order), batch_size):
        numbers = order[start : start + batch_size]
        asked = [prompts[number] for number in numbers]
        ids, mask = padded_left(asked, pad_id=config.pad_token_id, device=model.device)
        settings, room = _room(config, asked)
        with torch.no_grad():
            output = model.generate(
                input_ids=ids, attention_mask=mask, generation_config=settings, tokenizer=tokenizer if config.stop_strings else None
            )  # [batch, prompt + answer]
        found = ends.answers(output, ids.shape[1])
        yield [(number, answer[:most]) for number, answer, most in zip(numbers, found, room, strict=True)]


def answers_in_order(model: Any, prompts: Sequence[Sequence[int]], **given: Any) -> list[list[int]]:
    """The answer of each prompt, in the order of the prompts; the arguments are those of `answers`."""
    found: list[list[int]] = [[] for _ in prompts]
    for batch in answers(model, prompts, **given):
        for number, answer in batch:
            found[number] = answer
    return found


def padded_left(prompts: Sequence[Sequence[int]], *, pad_id: int, device: Any = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and attention mask, int64 [batch, longest]; the real tokens end at the right, where generation goes on."""
    longest = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), longest), pad_id)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    return ids.to(device), mask.to(device)


def _room(config: GenerationConfig, prompts: Sequence[Sequence[int]]) -> tuple[GenerationConfig, Sequence[int | None]]:
    """Settings for a batch, and how many tokens each answer may have: `max_length` counts what pads a prompt as part of it."""
    if config.max_new_tokens is not None or config.max_length is None:
        return config, [None] * len(prompts)
    room = [config.max_length - len(prompt) for prompt in prompts]
    if min(room) < 1:
        found = f"{config.max_length} tokens with the prompt, and one of the prompts alone has {config.max_length - min(room)}"
        raise ConfigError(Problem("generation.max_length", found, do="Set generation.max_new_tokens instead"))
    config = copy.deepcopy(config)
    config.max_length, config.max_new_tokens = None, max(room)
    return config, room
