"""Segments to ids and labels: every text of many examples in one call of the tokenizer, each distinct text once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from llmmod.render.segment import Segment
from llmmod.render.text import TextEncoder

IGNORED = -100  # the label of a position where nothing is trained (torch's cross-entropy ignores it)


class Encoded(NamedTuple):
    """An example as training sees it; the two lists have the same length."""

    input_ids: list[int]
    labels: list[int]  # the id where it is trained, else IGNORED


def encode(examples: Sequence[Sequence[Segment]], tokenizer: Any) -> list[Encoded]:
    """Ids and labels of each example."""
    ids = _TextIds(examples, tokenizer)
    return [_encoded(example, ids) for example in examples]


def encode_prompt(prompt: Sequence[Segment], tokenizer: Any) -> list[int]:
    """Ids of a prompt."""
    return encode([prompt], tokenizer)[0].input_ids


class _TextIds:
    """Ids of every text in some examples, by the text and what it stands behind."""

    def __init__(self, examples: Sequence[Sequence[Segment]], tokenizer: Any) -> None:
        self._encoder = TextEncoder(tokenizer)
        texts: dict[bool, dict[str, None]] = {False: {}, True: {}}
        for example in examples:
            previous: str | int | None = None
            for text, token, *_ in example:
                if text is not None:
                    texts[self._encoder.continues(previous)][text] = None
                previous = token if text is None else text
        self._ids = {
            continuing: dict(zip(distinct, self._encoder.encode(list(distinct), continuing=continuing), strict=True))
            for continuing, distinct in texts.items()
            if distinct
        }

    def of(self, text: str, previous: str | int | None) -> list[int]:
        return self._ids[self._encoder.continues(previous)][text]


def _encoded(example: Sequence[Segment], ids: _TextIds) -> Encoded:
    input_ids: list[int] = []
    labels: list[int] = []
    previous: str | int | None = None
    for text, token, trained, first_label in example:
        if text is None:
            assert token is not None
            found, previous = [token], token
        else:
            found, previous = ids.of(text, previous), text
        at = len(labels)
        input_ids += found
        labels += found if trained else [IGNORED] * len(found)
        if first_label is not None and found:
            labels[at] = first_label
    return Encoded(input_ids, labels)
