"""Prompts with their answers as rows of a batch, and the model's account of the answers' tokens: one forward, no more."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn

from llmmod.stages.answering.log_probs import log_probs_of


class Told(NamedTuple):
    """What a model says of the answers' tokens, each [batch, answer], 0 where there is no token."""

    log_probs: torch.Tensor
    entropy: torch.Tensor
    values: torch.Tensor | None  # expected before each token is written; None without a value head


def rows_of(
    prompts: Sequence[Sequence[int]], answers: torch.Tensor, mask: torch.Tensor, *, pad_id: int, left: bool = False
) -> dict[str, torch.Tensor]:
    """A batch of prompts with their answers.

    Args:
        prompts: ids.
        answers: ids, padded on the right, [batch, answer].
        mask: which of them are tokens, bool [batch, answer].
        pad_id: fills up.
        left: pad on the left, with positions that start at the first real token.

    Returns:
        `input_ids` and `attention_mask`, int64 [batch, seq]; `answers` and `answer_mask` as given, and `before`, int64 [batch, answer]:
        where in its row each token is told from; for padding on the left also `position_ids`.
    """
    count = mask.sum(1).tolist()
    lengths = [len(prompt) + more for prompt, more in zip(prompts, count, strict=True)]
    width = max(lengths)
    ids, attention = torch.full((len(lengths), width), pad_id), torch.zeros(len(lengths), width, dtype=torch.int64)
    before = torch.zeros_like(answers)
    for row, (prompt, length) in enumerate(zip(prompts, lengths, strict=True)):
        start = width - length if left else 0
        ids[row, start : start + len(prompt)] = torch.as_tensor(prompt)
        ids[row, start + len(prompt) : start + length] = answers[row, : count[row]]
        attention[row, start : start + length] = 1
        before[row, : count[row]] = torch.arange(start + len(prompt) - 1, start + length - 1)
    batch = {"input_ids": ids, "attention_mask": attention, "answers": answers, "answer_mask": mask, "before": before}
    return batch | ({"position_ids": (attention.cumsum(1) - 1).clamp(min=0)} if left else {})


def told(model: Any, batch: dict[str, torch.Tensor], *, value_head: nn.Module | None = None, temperature: float = 1.0) -> Told:
    """What a model says of the answers of a batch; only the answers' positions reach its head.

    Args:
        model: a PreTrainedModel or PeftModel, or what a trainer wrapped it in.
        batch: as from `rows_of`, on the model's device.
        value_head: from a hidden state to a value.
        temperature: that was sampled with.
    """
    mask = batch["answer_mask"]
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "position_ids") if name in batch}
    row = torch.arange(len(mask), device=mask.device)[:, None].expand(mask.shape)[mask]
    with _only(model, row, batch["before"][mask]) as hidden:
        logits = model(**inputs, use_cache=False).logits[0]  # [tokens, vocabulary]
    log_probs, entropy = log_probs_of(logits, batch["answers"][mask].to(logits.device), temperature=temperature)
    values = None if value_head is None else _spread(_values(value_head, hidden[0]), mask)
    return Told(_spread(log_probs, mask), _spread(entropy, mask), values)


def _values(head: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    """[tokens] in float32, mixed precision or not: a return's few digits are what advantages are made of."""
    weight = next(head.parameters())
    with torch.autocast(weight.device.type, enabled=False):
        values: torch.Tensor = head(hidden.to(weight))[:, 0]
    return values


def _spread(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Values of the tokens that are, [batch, answer]."""
    spread = torch.zeros(mask.shape, dtype=values.dtype, device=mask.device)
    return spread.masked_scatter(mask, values.to(mask.device))


@contextmanager
def _only(model: Any, row: torch.Tensor, place: torch.Tensor) -> Iterator[list[torch.Tensor]]:
    """Within it, the model's head gets the hidden states of these places alone, [1, places, channels]; the list holds them afterwards.

    A hook, since each family does things of its own between trunk and head, and behind it: scales, soft caps, norms.
    """
    kept: list[torch.Tensor] = []

    def pick(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        chosen = args[0][row.to(args[0].device), place.to(args[0].device)]
        kept.append(chosen)
        return (chosen[None], *args[1:])

    inner = unwrapped(model)
    handle = inner.get_output_embeddings().register_forward_pre_hook(pick)
    try:
        yield kept
    finally:
        handle.remove()


def unwrapped(model: Any) -> Any:
    """The causal language model within wrappers and adapters."""
    while hasattr(model, "module") and isinstance(model.module, nn.Module):
        model = model.module
    return model.get_base_model() if hasattr(model, "peft_config") else model
