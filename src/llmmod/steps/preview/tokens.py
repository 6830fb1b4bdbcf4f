"""An example's tokens as a person reads them: text, with special tokens, line breaks and halves of characters made visible.

A token of a byte-level or byte-fallback tokenizer may be a part of a character. Neighbours that make whole characters together are shown
as one; where nothing makes them whole (an example that was cut), their bytes are shown.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from transformers.convert_slow_tokenizer import bytes_to_unicode

from llmmod.render.encode import IGNORED

_HALF = "\N{REPLACEMENT CHARACTER}"  # what decoders write for bytes that are no character
_LONGEST = 8  # tokens tried together; a character has at most 4 bytes, and a token at least one
_BYTES = {character: byte for byte, character in bytes_to_unicode().items()}
_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")  # SentencePiece's byte fallback

# Control characters would act on a terminal and be lost on a page; invisible ones are what nobody finds in data.
_CONTROLS = {code: chr(0x2400 + code) for code in range(0x20)} | {0x7F: "\N{SYMBOL FOR DELETE}"}
_NO_INK = (*range(0x80, 0xA0), 0xAD, 0x200B, *range(0x202A, 0x202F), 0x2060, *range(0x2066, 0x206A), 0xFEFF)  # joiners have their use
_INVISIBLE = {code: f"⟨U+{code:04X}⟩" for code in _NO_INK}
_VISIBLE = {**_CONTROLS, **_INVISIBLE, ord("\n"): "↵\n", ord("\t"): "⇥\t"}


class Shown(NamedTuple):
    """One or more neighbouring tokens, shown as one.

    Args:
        text: what they say, nothing in it invisible.
        at: the position of the first.
        ids: theirs.
        names: as the vocabulary spells each.
        trained: whether they are.
        special: whether this is a special token, so that `text` is its name.
        label: what is trained instead of the token itself, as the vocabulary spells it; empty where it is the token.
    """

    text: str
    at: int
    ids: tuple[int, ...]
    names: tuple[str, ...]
    trained: bool
    special: bool = False
    label: str = ""

    @property
    def hint(self) -> str:
        """Position, ids and names on one line."""
        ids = " + ".join(f"{token} {name}" for token, name in zip(self.ids, self.names, strict=True))
        return f"{ids} · position {self.at}" + (f" · trained as {self.label}" if self.label else "")


class TokenTexts:
    """Reads tokens with one tokenizer.

    Args:
        tokenizer: gives texts and names.
        special: ids of further tokens that are shown by name, besides the tokenizer's own.
    """

    def __init__(self, tokenizer: Any, special: Iterable[int] = ()) -> None:
        self._tokenizer = tokenizer
        added = {int(token) for token in getattr(tokenizer, "added_tokens_decoder", {})}
        self._special = frozenset([*tokenizer.all_special_ids, *special]) | added
        # A token is decoded behind another: SentencePiece's decoders take the space from the token that comes first.
        self._anchor: list[int] = list(tokenizer.encode("a", add_special_tokens=False))
        self._anchored = self._decoded(self._anchor)
        self._texts: dict[tuple[int, ...], str] = {}

    def shown(self, ids: Sequence[int], labels: Sequence[int]) -> list[Shown]:
        """The tokens of an example, in order, each once."""
        return list(self._shown(ids, labels))

    def text(self, ids: Sequence[int]) -> str:
        """The example's text, special tokens written out."""
        return self._decoded(ids)

    def name(self, token: int) -> str:
        """A token as the vocabulary spells it, on one line; the bytes of one that is spelt in bytes."""
        name = self._tokenizer.convert_ids_to_tokens(token)
        return _hex(name) if isinstance(name, bytes) else visible(str(name)).replace("\n", "").replace("\t", "")

    def _shown(self, ids: Sequence[int], labels: Sequence[int]) -> Iterator[Shown]:
        at = 0
        while at < len(ids):
            count, text = self._together(ids, labels, at)
            tokens = tuple(ids[at : at + count])
            label = self.name(labels[at]) if labels[at] not in (IGNORED, ids[at]) else ""
            names = tuple(map(self.name, tokens))
            yield Shown(text, at, tokens, names, labels[at] != IGNORED, tokens[0] in self._special, label)
            at += count

    def _together(self, ids: Sequence[int], labels: Sequence[int], at: int) -> tuple[int, str]:
        """How many tokens from a position on are shown as one, and their text."""
        if ids[at] in self._special:
            return 1, self.name(ids[at])
        for stop in range(at + 1, min(at + _LONGEST, len(ids)) + 1):
            apart = ids[stop - 1] in self._special or (labels[stop - 1] == IGNORED) != (labels[at] == IGNORED)
            if apart:
                break
            if _HALF not in (text := self._text(tuple(ids[at:stop]))):
                return stop - at, visible(text)
        return 1, self._bytes(ids[at])

    def _text(self, ids: tuple[int, ...]) -> str:
        if ids not in self._texts:
            text = self._decoded([*self._anchor, *ids])
            behind = text.startswith(self._anchored)
            self._texts[ids] = text[len(self._anchored) :] if behind else self._decoded(ids)
        return self._texts[ids]

    def _decoded(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    def _bytes(self, token: int) -> str:
        """The bytes of a token that is no text alone, its name where they aren't known."""
        name = self._tokenizer.convert_ids_to_tokens(token)
        if isinstance(name, bytes):
            return _hex(name)
        if match := _BYTE_TOKEN.fullmatch(name):
            return f"⟨{match[1]}⟩"
        if all(character in _BYTES for character in name):
            return _hex(bytes(_BYTES[character] for character in name))
        return visible(str(name))


def visible(text: str) -> str:
    """The text with control and invisible characters as signs for them; line breaks stay behind their sign."""
    return text.translate(_VISIBLE)


def _hex(content: bytes) -> str:
    return f"⟨{content.hex(' ').upper()}⟩"
