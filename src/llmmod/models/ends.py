"""Where generated answers end: at a token, with a string, or where they became too long.

In a batch, an answer that has ended is filled up until the others have, too, with a token that the model may write as well. Where a token
ended the answer, the first such token tells where. Where a string did, nothing tells: what `generate` asked of each token (transformers'
StopStringCriteria) is asked once more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig, StopStringCriteria


class Ends:
    """The ends that generation settings name.

    Args:
        config: `eos_token_id` and `stop_strings` are read.
        tokenizer: needed where there are stop strings.
    """

    def __init__(self, config: GenerationConfig, tokenizer: Any = None) -> None:
        tokens = config.eos_token_id
        self._tokens = frozenset(tokens if isinstance(tokens, list) else [tokens])
        self._strings = StopStringCriteria(tokenizer, config.stop_strings) if config.stop_strings else None

    def answers(self, output: torch.Tensor, start: int) -> list[list[int]]:
        """Each row's answer without what fills it up, its end included.

        Args:
            output: of `generate`, [batch, prompt + answer].
            start: where the answers begin.
        """
        rows: list[list[int]] = output[:, start:].tolist()
        ends = [next((place for place, token in enumerate(row, start=1) if token in self._tokens), len(row)) for row in rows]
        if self._strings is not None:
            for place in range(1, max(ends, default=0)):
                ended = self._strings(output[:, : start + place], None).tolist()
                ends = [min(end, place) if done else end for end, done in zip(ends, ended, strict=True)]
        return [row[:end] for row, end in zip(rows, ends, strict=True)]

    def ended(self, prompt: Sequence[int], answer: Sequence[int]) -> bool:
        """Whether an answer came to its end, rather than being cut off."""
        if not answer or answer[-1] in self._tokens:
            return bool(answer)
        return self._strings is not None and bool(self._strings(torch.tensor([[*prompt, *answer]]), None))
