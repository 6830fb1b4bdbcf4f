"""Answers to many prompts: batches of like length, padded on the left, with a cache.

Prompts of like length together waste least on padding, and the longest come first, so that a batch too large for the memory is known
at the start. Each batch is handed on as it is done and then forgotten: what is held doesn't grow with the number of prompts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import GenerationConfig


def answers(
    model: Any, prompts: Sequence[Sequence[int]], *, config: GenerationConfig, batch_size: int, tokenizer: Any = None
) -> Iterator[list[tuple[int, list[int]]]]:
    """Batches of (number of the prompt, ids of its answer); an answer ends with the token that ended it, or where it became too long.

    Args:
        model: in evaluation mode.
        prompts: ids, from the beginning of the conversation to where the answer begins.
        config: as from `llmmod.models.generation.generation_config`; its `pad_token_id` pads.
        batch_size: prompts generated together.
        tokenizer: needed where `config.stop_strings` is set.
    """
    order = sorted(range(len(prompts)), key=lambda number: -len(prompts[number]))
    stops = config.stop_strings
    for start in range(0, len(order), batch_size):
        numbers = order[start : start + batch_size]
        ids, mask = padded_left([prompts[number] for number in numbers], pad_id=config.pad_token_id, device=model.device)
        with torch.no_grad():
            output = model.generate(
                input_ids=ids, attention_mask=mask, generation_config=config, tokenizer=tokenizer if stops else None
            )  # [batch, prompt + answer]
        generated = output[:, ids.shape[1] :].tolist()
        yield [(number, _without_padding(answer, config)) for number, answer in zip(numbers, generated, strict=True)]


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


def _without_padding(answer: list[int], config: GenerationConfig) -> list[int]:
    # An answer that ended before the others of its batch is filled up behind its end.
    stops = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    end = next((place for place, token in enumerate(answer) if token in stops), len(answer) - 1)
    return answer[: end + 1]
