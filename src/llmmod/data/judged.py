"""Judged answers to one batch: each behind its prompt, and once more behind another's prompt, which kto's estimate of the KL takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from llmmod.data.collate import PadRight, padded_answers


class PadJudged:
    """Pads a batch of judged answers on the right; mismatched pairs are made as trl (1.16) makes them, each answer with the next prompt.

    trl pairs examples before training and so needs them in a fixed order; pairs made within the batch allow any order.

    Args:
        tokenizer, pad_to_multiple_of: as of PadRight.
    """

    def __init__(self, tokenizer: Any, pad_to_multiple_of: int | None = None) -> None:
        self._pad = PadRight(tokenizer, pad_to_multiple_of)

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """`input_ids`, `attention_mask` and `completion_mask` (1 for an answer's tokens), each int64 [examples, longest].

        The same three of the mismatched pairs, their names after `KL_`; `label`, bool [examples]; and where they are known, `ref_logps` and
        `weight`, float32 [examples].
        """
        prompts, answers = ([example[name] for example in examples] for name in ("prompt_ids", "completion_ids"))
        batch: dict[str, Any] = padded_answers(self._pad, prompts, answers)
        mismatched = padded_answers(self._pad, prompts, [answers[-1], *answers[:-1]])
        batch |= {f"KL_{name}": values for name, values in mismatched.items()}
        batch["label"] = torch.tensor([bool(example["label"]) for example in examples])
        known = [name for name in ("ref_logps", "weight") if name in examples[0]]
        return batch | {name: torch.tensor([example[name] for example in examples]) for name in known}
