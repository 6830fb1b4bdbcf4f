"""Prompts with their answers as rows of a batch, and the model's account of the answers' tokens: one forward, no more.

Log-probability and entropy of sampled tokens from their logits, which are the largest array that PPO makes.

`samples.jsonl`: some answers of each rollout with their scores, so that a reader sees what was rewarded, and when.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from llmmod.models.loading.structure import base_model
from llmmod.trainers.efficient import tiles


def selected_log_probs(logits: torch.Tensor, tokens: torch.Tensor, *, temperature: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Each token's log-probability, and the entropy of what it was sampled from, both float32 [rows] (float64 of float64).

    Beside the logits themselves only their gradient is ever made.

    Args:
        logits: [rows, vocabulary].
        tokens: int64 [rows].
        temperature: that was sampled with.
    """
    return _LogProbs.apply(logits, tokens, temperature)  # type: ignore[no-untyped-call,no-any-return]


class _LogProbs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, tokens: torch.Tensor, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
        dtype = torch.promote_types(logits.dtype, torch.float32)
        sums, entropy = logits.new_empty(len(logits), dtype=dtype), logits.new_empty(len(logits), dtype=dtype)
        for rows in tiles(len(logits)):
            tile = logits[rows].to(dtype) / temperature
            sums[rows] = tile.logsumexp(-1)
            entropy[rows] = sums[rows] - torch.linalg.vecdot((tile - sums[rows, None]).exp_(), tile)
        ctx.save_for_backward(logits, tokens, sums, entropy)
        ctx.temperature = temperature
        return logits.gather(1, tokens[:, None])[:, 0].to(dtype) / temperature - sums, entropy

    @staticmethod
    def backward(ctx: Any, of_log_probs: torch.Tensor, of_entropy: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        logits, tokens, sums, entropy = ctx.saved_tensors
        gradient = torch.empty_like(logits)
        for rows in tiles(len(logits)):
            log_p = logits[rows].to(sums.dtype) / ctx.temperature - sums[rows, None]
            p = log_p.exp()
            # d log p(token) / d z = 1[token] - p;  d H / d z = -p (log p + H)
            found = p * (-of_log_probs[rows, None] - of_entropy[rows, None] * (log_p + entropy[rows, None]))
            found.scatter_add_(1, tokens[rows, None], of_log_probs[rows, None])
            gradient[rows] = found / ctx.temperature
        return gradient, None, None


class PolicyOutputs(NamedTuple):
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


def score_completions(
    model: Any, batch: dict[str, torch.Tensor], *, value_head: nn.Module | None = None, temperature: float = 1.0
) -> PolicyOutputs:
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
    log_probs, entropy = selected_log_probs(logits, batch["answers"][mask].to(logits.device), temperature=temperature)
    values = None if value_head is None else _spread(_values(value_head, hidden[0]), mask)
    return PolicyOutputs(_spread(log_probs, mask), _spread(entropy, mask), values)


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
    return base_model(model)


FILE = "samples.jsonl"


class Samples:
    """The file of a training that lets the model answer.

    Args:
        directory: of the step.
        wanted: answers of each rollout; 0: there is no file.
    """

    def __init__(self, directory: Path, wanted: int) -> None:
        self._path, self._wanted = directory / FILE, wanted

    def forget_after(self, step: int) -> None:
        """Take out what was written after an optimizer step: a resumed run makes those answers anew."""
        if self._path.is_file():
            lines = self._path.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] < step]
            self._path.write_text("".join(kept), encoding="utf-8")

    def write(self, step: int, *, prompts: Sequence[str], answers: Sequence[str], **numbers: Sequence[float]) -> None:
        """Add the first answers of a rollout.

        Args:
            step: optimizer steps before it.
            prompts: texts.
            answers: texts.
            numbers: name -> one for each answer, NaN where there is none.
        """
        if not self._wanted:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            for place in range(min(self._wanted, len(prompts))):
                told = {"step": step, "prompt": prompts[place], "answer": answers[place]}
                told |= {name: None if math.isnan(values[place]) else round(values[place], 6) for name, values in numbers.items()}
                file.write(json.dumps(told, ensure_ascii=False) + "\n")
