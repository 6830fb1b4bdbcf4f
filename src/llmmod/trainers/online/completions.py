"""Completions as rows of a batch, the model's log-probabilities of their tokens, and `samples.jsonl`.

A batch passes through the model once, and only the positions that predict completion tokens reach its head, which is trl's, as in the other
stages (`trainers.efficient`): the logits of all of them are never in memory at once.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from llmmod.data.collators import padded
from llmmod.files.paths import atomic_write
from llmmod.models.generation.generate import padded_left
from llmmod.trainers.efficient import efficient_head

FILE = "samples.jsonl"
_IGNORED = -100  # the label of a position that predicts no completion token


class PolicyOutputs(NamedTuple):
    """A model's outputs for completion tokens, each [batch, completion], 0 for padding."""

    logps: torch.Tensor
    entropy: torch.Tensor
    values: torch.Tensor | None  # expected before each token is written; None without a value head


def completion_rows(
    prompts: Sequence[Sequence[int]], completions: torch.Tensor, mask: torch.Tensor, *, pad_id: int, left: bool = False
) -> dict[str, torch.Tensor]:
    """A batch of prompts with their completions.

    Args:
        prompts: ids.
        completions: ids, padded on the right, [batch, completion].
        mask: true for tokens, false for padding, bool [batch, completion].
        pad_id: the id of the padding.
        left: pad on the left, with positions that start at the first real token.

    Returns:
        `input_ids` and `attention_mask`, int64 [batch, seq]; `completions` and `completion_mask` as given; `predicted_from`, int64 [batch,
        completion]: the position of its row from which a token is predicted; with padding on the left also `position_ids`.
    """
    count, answers = mask.sum(1).tolist(), completions.tolist()
    rows = [[*prompt, *answer[:own]] for prompt, answer, own in zip(prompts, answers, count, strict=True)]
    ids, attention = padded_left(rows, pad_id=pad_id) if left else padded(rows, fill=pad_id)
    ends = [(ids.shape[1] - len(row) if left else 0) + len(prompt) for row, prompt in zip(rows, prompts, strict=True)]
    places = torch.arange(completions.shape[1])
    predicted_from = (torch.tensor(ends)[:, None] - 1 + places) * (places < torch.tensor(count)[:, None])
    batch = {"input_ids": ids, "attention_mask": attention, "completions": completions, "completion_mask": mask}
    batch |= {"predicted_from": predicted_from}
    return batch | ({"position_ids": (attention.cumsum(1) - 1).clamp(min=0)} if left else {})


def score_completions(
    model: Any,
    batch: dict[str, torch.Tensor],
    *,
    value_head: nn.Module | None = None,
    outputs: Sequence[str] = ("log_probs", "entropy"),
    entropy_gradient: bool = False,
) -> PolicyOutputs:
    """Log-probabilities, entropies and values of the completion tokens of a batch.

    Args:
        model: a PreTrainedModel or PeftModel with trl's head (`trl.trainer.utils.add_fused_lm_head`), whose temperature is that of the
            sampling; or what a trainer wrapped it in.
        batch: from `completion_rows`, on the model's device.
        value_head: from a hidden state to a value.
        outputs: of the head; entropies are zeros if they are not among them.
        entropy_gradient: whether the loss depends on the entropy.
    """
    mask = batch["completion_mask"]
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "position_ids") if name in batch}
    row = torch.arange(len(mask), device=mask.device)[:, None].expand(mask.shape)[mask]
    place = row, batch["predicted_from"][mask]
    labels = torch.full_like(batch["input_ids"], _IGNORED).index_put(place, batch["completions"][mask])
    with efficient_head(only=outputs, entropy_gradient=entropy_gradient) as head:
        found = model(**inputs, shift_labels=labels, fused_lm_head=True)
    values = None
    if value_head is not None:
        weight = next(value_head.parameters())
        with torch.autocast(weight.device.type, enabled=False):  # float32, since advantages are small differences of returns
            values = _spread(value_head(head.hidden.to(weight))[:, 0], mask)
    logps = found.log_probs[place]
    entropy = torch.zeros_like(logps) if found.entropy is None else found.entropy[place]
    return PolicyOutputs(_spread(logps, mask), _spread(entropy, mask), values)


def _spread(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The values of the tokens in `mask`, as [batch, completion]."""
    spread = torch.zeros(mask.shape, dtype=values.dtype, device=mask.device)
    return spread.masked_scatter(mask, values.to(mask.device))


class Samples:
    """The file `samples.jsonl`: some completions of each rollout with their scores, which shows what was rewarded, and when.

    Args:
        directory: of the step.
        count: completions of each rollout; 0: don't write the file.
    """

    def __init__(self, directory: Path, count: int) -> None:
        self._path, self._count = directory / FILE, count

    def forget_after(self, step: int) -> None:
        """Remove the lines of an optimizer step and those after it, which the run writes again."""
        if self._count and self._path.is_file():
            lines = self._path.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] < step]
            with atomic_write(self._path) as partial:
                partial.write_text("".join(kept), encoding="utf-8")

    def write(self, step: int, *, prompts: Sequence[str], completions: Sequence[str], **numbers: Sequence[float]) -> None:
        """Add the first completions of a rollout.

        Args:
            step: optimizer steps before it.
            prompts, completions: texts.
            numbers: name -> one number for each completion, NaN if it is missing.
        """
        if not self._count:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            for place in range(min(self._count, len(prompts))):
                line = {"step": step, "prompt": prompts[place], "answer": completions[place]}
                line |= {name: None if math.isnan(values[place]) else round(values[place], 6) for name, values in numbers.items()}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
