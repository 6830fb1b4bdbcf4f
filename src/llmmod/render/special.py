"""Special tokens in a string that a chat template wrote: those of the template are tokens, those that a user spelt are text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from llmmod.render.segment import Piece

# Code points for private use stand for a token that a user spelt, while the template works on the text.
_HIDDEN = re.compile("\ue000([0-9]+)\ue001")


class SpecialTokens:
    """The special tokens of a tokenizer, as they stand in strings."""

    def __init__(self, tokenizer: Any) -> None:
        added = {str(token): token for token in tokenizer.added_tokens_decoder.values() if token.special}
        self._ids: dict[str, int] = {
            name: tokenizer.convert_tokens_to_ids(name) for name in sorted({*added, *tokenizer.all_special_tokens}, key=len, reverse=True)
        }
        self._names = list(self._ids)
        self._strips_left = {name for name, token in added.items() if token.lstrip}
        self._strips_right = {name for name, token in added.items() if token.rstrip}
        self._pattern = re.compile(f"({'|'.join(map(re.escape, self._names))})" if self._names else r"(?!)()")

    def first(self, text: str, start: int = 0) -> tuple[int, int, str] | None:
        """Where the first special token from `start` on begins and ends, and its name; None where there is none."""
        found = self._pattern.search(text, start)
        return (found.start(), found.end(), found.group()) if found else None

    def id(self, name: str) -> int:
        """The id of a token."""
        return self._ids[name]

    def hide(self, text: str) -> str:
        """The text of a user, what spells a special token hidden from the tokenizer."""
        return self._pattern.sub(lambda found: f"\ue000{self._names.index(found.group())}\ue001", text)

    def hide_all(self, value: Any) -> Any:
        """The same of every text in a value of objects and lists."""
        if isinstance(value, Mapping):
            return {name: self.hide_all(item) for name, item in value.items()}
        return [self.hide_all(item) for item in value] if isinstance(value, list) else self.hide(value) if isinstance(value, str) else value

    def split(self, text: str) -> list[Piece]:
        """Texts and tokens of what a template wrote, hidden spellings shown again.

        Some tokens swallow the white space beside them (`lstrip`, `rstrip` of an AddedToken), here as in one string.
        """
        pieces = self._pattern.split(text)
        for index in range(1, len(pieces), 2):
            if pieces[index] in self._strips_left:
                pieces[index - 1] = pieces[index - 1].rstrip()
            if pieces[index] in self._strips_right:
                pieces[index + 1] = pieces[index + 1].lstrip()
        return [self._ids[piece] if index % 2 else self.shown(piece) for index, piece in enumerate(pieces) if piece]

    def shown(self, text: str) -> str:
        """A text with the spellings that `hide` hid."""
        return _HIDDEN.sub(lambda found: self._names[int(found.group(1))], text) if "\ue000" in text else text
