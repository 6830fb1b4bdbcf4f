"""Segments to ids and labels: one call of the tokenizer encodes the texts of many examples, each distinct text once.

Special tokens are not recognised in texts, and a text's ids depend on its place: at the beginning, after a token, or after another text.
Tokenizers with a dummy prefix (SentencePiece's `▁` in front of a text: LLaMA, ChatGLM2) would insert a space wherever two texts meet. A
text that continues another one is therefore encoded after a short text that it can't merge with, and the ids of that text are cut off.
ChatGLM2's own `stream_chat` does the same with a line break.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from llmmod.render.segments import Segment

IGNORED = -100  # the label of a position where nothing is trained (torch's cross-entropy ignores it)
_FORERUNNERS = ("\n", "a", "0", ".")  # tried in this order until one doesn't merge with the text after it


class Encoded(NamedTuple):
    """An example as training sees it; the two lists have the same length."""

    input_ids: list[int]
    labels: list[int]  # the id where it is trained, else IGNORED

    @property
    def is_trained(self) -> bool:
        """Whether a label is predicted; the first position never is, since nothing precedes it."""
        later = self.labels[1:]
        return later.count(IGNORED) < len(later)

    @property
    def end(self) -> int:
        """The position after the last label; 0 without labels."""
        return next((at for at in range(len(self.labels), 0, -1) if self.labels[at - 1] != IGNORED), 0)

    def cut_right(self, limit: int) -> Encoded:
        """The first `limit` tokens."""
        return Encoded(self.input_ids[:limit], self.labels[:limit])

    def cut_left(self, limit: int) -> Encoded:
        """The last `limit` tokens up to the last label; nothing after it is trained."""
        stop = self.end
        start = max(0, stop - limit)
        return Encoded(self.input_ids[start:stop], self.labels[start:stop])


def encode(examples: Sequence[Sequence[Segment]], tokenizer: Any) -> list[Encoded]:
    """Ids and labels of each example."""
    encoder = TextEncoder(tokenizer)
    texts: dict[bool, dict[str, None]] = {False: {}, True: {}}  # by whether they continue a text
    for example in examples:
        previous: str | int | None = None
        for text, token, *_ in example:
            if text is not None:
                texts[encoder.continues(previous)][text] = None
            previous = token if text is None else text
    ids = {
        continuing: dict(zip(distinct, encoder.encode(list(distinct), continuing=continuing), strict=True))
        for continuing, distinct in texts.items()
        if distinct
    }
    return [_labelled(example, ids, encoder) for example in examples]


def _labelled(example: Sequence[Segment], ids: dict[bool, dict[str, list[int]]], encoder: TextEncoder) -> Encoded:
    input_ids: list[int] = []
    labels: list[int] = []
    previous: str | int | None = None
    for text, token, trained, first_label in example:
        if text is None:
            assert token is not None
            found, previous = [token], token
        else:
            found, previous = ids[encoder.continues(previous)][text], text
        at = len(labels)
        input_ids += found
        labels += found if trained else [IGNORED] * len(found)
        if first_label is not None and found:
            labels[at] = first_label
    return Encoded(input_ids, labels)


def encode_prompt(prompt: Sequence[Segment], tokenizer: Any) -> list[int]:
    """Ids of a prompt."""
    return encode([prompt], tokenizer)[0].input_ids


class TextEncoder:
    """Encodes texts with one tokenizer, many at a time.

    Args:
        tokenizer: a fast tokenizer (its Rust `encode_batch` does the work), or a slow one.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._special = frozenset(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
        self._has_dummy_prefix = self._encode_after(["a"], "\n") != self._raw(["a"])
        self._continues_tokens = self._has_dummy_prefix and self._is_continued_by_tokens()

    def continues(self, previous: str | int | None) -> bool:
        """Whether a text after `previous` (a text, a token's id, or None at the beginning) is encoded as a continuation."""
        if not self._has_dummy_prefix or previous is None:
            return False
        return isinstance(previous, str) or self._continues_tokens

    def encode(self, texts: Sequence[str], *, continuing: bool = False) -> list[list[int]]:
        """Ids of each text; `continuing`: each is the continuation of another text."""
        found = self._continued(texts) if continuing else self._raw(texts)
        for index, ids in enumerate(found):
            if not self._special.isdisjoint(ids):
                found[index] = self._broken_up(texts[index], ids, continuing)
        return found

    def tokens_in_text(self, names: Sequence[str]) -> list[str]:
        """Those of the given tokens that are recognised in any text that spells them: user-defined pieces of a SentencePiece model."""
        names = [name for name in names if len(name) > 1]  # a single character can't be broken up
        known = self._tokenizer.convert_tokens_to_ids(names) if names else []
        return [name for name, token, ids in zip(names, known, self.encode(names), strict=True) if token in ids]

    def _raw(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        backend = getattr(self._tokenizer, "backend_tokenizer", None) if self._tokenizer.is_fast else None
        if backend is None:
            ids: list[list[int]] = self._tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)["input_ids"]
            return ids
        with _plain(backend):
            # The `_fast` variant (tokenizers 0.20) keeps no offsets: a fifth less time.
            return [encoding.ids for encoding in backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def _continued(self, texts: Sequence[str]) -> list[list[int]]:
        if not self._has_dummy_prefix:
            return self._raw(texts)
        found: dict[int, list[int]] = {}
        for forerunner in _FORERUNNERS:
            left = [index for index in range(len(texts)) if index not in found]
            if not left:
                break
            encoded = self._encode_after([texts[index] for index in left], forerunner)
            found.update((index, ids) for index, ids in zip(left, encoded, strict=True) if ids is not None)
        left = [index for index in range(len(texts)) if index not in found]
        found.update(zip(left, self._raw([texts[index] for index in left]), strict=True))
        return [found[index] for index in range(len(texts))]

    def _encode_after(self, texts: Sequence[str], forerunner: str) -> list[list[int] | None]:
        """Ids of each text after another one; None if the two merge."""
        head, *encoded = self._raw([forerunner, *(forerunner + text for text in texts)])
        return [ids[len(head) :] if ids[: len(head)] == head else None for ids in encoded]

    def _is_continued_by_tokens(self) -> bool:
        """Whether this tokenizer omits the dummy prefix after a special token in the same string."""
        special = next(iter(self._tokenizer.all_special_tokens), None)
        if special is None:
            return False
        ids = self._tokenizer(special + "a", add_special_tokens=False)["input_ids"]
        return list(ids) == [self._tokenizer.convert_tokens_to_ids(special), *(self._continued(["a"])[0])]

    def _broken_up(self, text: str, ids: Sequence[int], continuing: bool) -> list[int]:
        """Ids of a text that spells a special token, broken up inside the spelling so that the token is not recognised."""
        names = self._tokenizer.convert_ids_to_tokens(list(self._special.intersection(ids)))
        first, *rest = break_up(text, names)
        encoded = [*(self._continued([first]) if continuing else self._raw([first])), *(self._continued(rest))]
        return [token for piece in encoded for token in piece]


def break_up(text: str, names: Collection[str]) -> list[str]:
    """The text in pieces, broken after the first character of each occurrence of a name."""
    pieces = [text]
    for name in names:
        broken: list[str] = []
        for piece in pieces:
            start = 0
            while (at := piece.find(name, start)) >= 0:
                broken.append(piece[start : at + 1])
                start = at + 1
            broken.append(piece[start:])
        pieces = broken
    return pieces


@contextmanager
def _plain(backend: Any) -> Iterator[None]:
    """The Rust tokenizer, reading special tokens as text, without the truncation and padding that an earlier call set."""
    special, truncation, padding = backend.encode_special_tokens, backend.truncation, backend.padding
    backend.encode_special_tokens = True
    backend.no_truncation()
    backend.no_padding()
    try:
        yield
    finally:
        backend.encode_special_tokens = special
        if truncation is not None:
            backend.enable_truncation(**truncation)
        if padding is not None:
            backend.enable_padding(**padding)
