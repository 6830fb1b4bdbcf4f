"""Segments: the unit between a conversation and its tokens, a text or a single token; and the parts of a render.

A render from a YAML file fills in the items of its parts: texts with placeholders, and tokens. A token is exactly one id; an unknown one
is an error. A chat template writes one string. In it, special tokens that the template wrote are tokens, and those that a user spelt are
text.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from llmmod.config.schema.data import RenderConf
from llmmod.errors import Problem, did_you_mean, nearest
from llmmod.render.conversation import Conversation

Piece = str | int  # a text, or the id of a token

# ChatGLM2's names of tokens -> GLM-4's names, which a saved ChatGLM2 also has (`llmmod.render.export`).
RESPELT = {"sop": "<sop>", "eop": "<eop>"}
# Names that stand for a tokenizer's own tokens.
OWN = ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token")
_PLACEHOLDER = re.compile(r"\{\{(\w+)\}\}")
# While a template works on a text, private-use code points replace the spelling of a token that a user wrote.
_HIDDEN = re.compile("\ue000([0-9]+)\ue001")


class Segment(NamedTuple):
    """A text that is encoded on its own, or one token. Exactly one of `text` and `token` is set.

    The boundaries of a text affect its ids. A prompt's text between two tokens is one segment. An answer is always a segment of its own,
    since generation starts there.

    Args:
        text: encoded without adding or recognising special tokens.
        token: the id of a token.
        trained: whether its ids are labels.
        first_label: the label of its first position, if it is neither the id nor -100: renders without a terminator between rounds train
            the terminator in place of the token that follows.
    """

    text: str | None = None
    token: int | None = None
    trained: bool = False
    first_label: int | None = None


def segments(pieces: Iterable[Piece], *, trained: bool) -> list[Segment]:
    """A segment for each token and one for each run of texts, joined; empty texts are dropped."""
    found: list[Segment] = []
    texts: list[str] = []
    for piece in pieces:
        if isinstance(piece, str):
            texts.append(piece)
            continue
        if text := "".join(texts):
            found.append(Segment(text, None, trained))
        texts.clear()
        found.append(Segment(None, piece, trained))
    if text := "".join(texts):
        found.append(Segment(text, None, trained))
    return found


class Render(Protocol):
    """A conversation's written form."""

    @property
    def stop_ids(self) -> list[int]:
        """Token ids at which generation stops, eos included."""

    def examples(self, conversation: Conversation, *, mask_prompt: bool = True) -> list[list[Segment]]:
        """The training examples of a conversation, each a list of segments; without `mask_prompt`, the prompt is trained too."""

    def prompt(self, conversation: Conversation) -> list[Segment]:
        """Everything up to the beginning of the next answer."""

    def read_answer(self, text: str, *, ended: bool = True) -> str:
        """The answer in text generated after `prompt`; of unfinished text, the part that later text can't change."""

    def chat_template(self) -> str:
        """A jinja chat template that renders the same."""


def token_id(name: str, tokenizer: Any, *, key: str, render: str) -> int | Problem:
    """The id of a token, or a Problem.

    Args:
        name: a token as the vocabulary spells it, or one of `OWN`.
        tokenizer: looks it up.
        key: the key that names it, as a user would type it.
        render: the render's name, for the message.
    """
    if name in OWN:
        own = getattr(tokenizer, f"{name}_id", None)
        return own if own is not None else Problem(key, f"this tokenizer doesn't have a {name}", do=f"Set tokenizer.kwargs.{name}='…'")
    for spelling in (name, RESPELT.get(name, name)):
        known = tokenizer.convert_tokens_to_ids(spelling)
        if known is not None and (known != tokenizer.unk_token_id or spelling == tokenizer.unk_token):
            return int(known)
    close = nearest(name, _special_tokens(tokenizer))
    instead = "leave it out" if "stop_words" in key else f"write it as text: '{name}' in place of {{token: '{name}'}}"
    return Problem(
        key,
        f"render={render} needs the token '{name}', which this tokenizer doesn't know",
        f"Its nearest is '{close[0]}'" if close else "",
        f"Choose a render made for this tokenizer (render=auto: its own), or {instead}",
    )


def named_tokens(conf: RenderConf) -> list[str]:
    """The tokens that a render names, each once, in order, without the tokenizer's own (`eos_token`, …)."""
    items = [*conf.prefix, *(conf.empty_prefix or ()), *conf.prompt, *conf.response, *conf.sep]
    named = [item["token"] for item in items if isinstance(item, Mapping) and "token" in item]
    return [name for name in dict.fromkeys([*named, *conf.stop_words]) if name not in OWN]


def own_beginning(tokenizer: Any) -> int | None:
    """The token with which the tokenizer itself begins a text, or None (GPT-2, Qwen, SmolLM2)."""
    bos = tokenizer.bos_token_id
    return bos if bos is not None and list(tokenizer("a")["input_ids"])[:1] == [bos] else None


def _special_tokens(tokenizer: Any) -> list[str]:
    return [*tokenizer.all_special_tokens, *(str(token) for token in tokenizer.added_tokens_decoder.values())]


class Slot(NamedTuple):
    """A placeholder for a value of a conversation: `system`, `query`, `response` or `idx`."""

    name: str


Part = Sequence[Piece | Slot]


def read_part(
    items: Sequence[Any], slots: Collection[str], tokenizer: Any, *, key: str, render: str, needs: str = ""
) -> tuple[Part, list[Problem]]:
    """A part, and its problems.

    Args:
        items: texts and `{token: …}` items.
        slots: the placeholders that may stand in its texts.
        tokenizer: looks up its tokens.
        key: the part's key, as a user would type it.
        render: the render's name, for messages.
        needs: the placeholder that it must have.
    """
    part: list[Piece | Slot] = []
    problems: list[Problem] = []
    for number, item in enumerate(items):
        where = f"{key}[{number}]"
        if isinstance(item, str):
            _read_text(item, slots, where, part, problems)
        elif isinstance(item, Mapping) and list(item) == ["token"] and isinstance(item["token"], str):
            found = token_id(item["token"], tokenizer, key=where, render=render)
            (problems if isinstance(found, Problem) else part).append(found)  # type: ignore[arg-type]
        else:
            problems.append(Problem(where, f"found {item!r}", "Allowed: a text, or {token: <one token>}"))
    if needs and Slot(needs) not in part and not problems:
        problems.append(Problem(key, f"lacks {{{{{needs}}}}}, so that text would be left out", do=f"Write {{{{{needs}}}}} in it"))
    return part, problems


def fill(part: Part, values: Mapping[str, str]) -> list[Piece]:
    """The pieces of a part, its placeholders replaced. Placeholders inside a value stay text."""
    return [values[piece.name] if isinstance(piece, Slot) else piece for piece in part]


def move_spaces(before: Part, after: Part) -> tuple[Part, Part]:
    """The two parts with the spaces at the end of the first moved to the beginning of the second, if both have text there.

    Tokenizers join a space with the word after it. At the end of a prompt it would be a token of its own, which the model has never seen
    before a word.
    """
    last = before[-1] if before else None
    if not isinstance(last, str) or not last.endswith(" ") or not after or isinstance(after[0], int):
        return before, after
    text = last.rstrip(" ")
    return [*before[:-1], *[text] * bool(text)], [last[len(text) :], *after]


def _read_text(text: str, slots: Collection[str], where: str, part: list[Piece | Slot], problems: list[Problem]) -> None:
    for number, piece in enumerate(_PLACEHOLDER.split(text)):
        if number % 2 == 0:
            part.extend([piece] if piece else [])
        elif piece in slots:
            part.append(Slot(piece))
        else:
            problems.append(Problem(where, f"'{{{{{piece}}}}}' is not a placeholder of this part", did_you_mean(piece, slots)))


class SpecialTokens:
    """The special tokens of a tokenizer, and their spellings in strings."""

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
        """Start, end and name of the first special token from `start` on, or None."""
        found = self._pattern.search(text, start)
        return (found.start(), found.end(), found.group()) if found else None

    def id(self, name: str) -> int:
        """The id of a token."""
        return self._ids[name]

    def hide(self, text: str) -> str:
        """A user's text, with spellings of special tokens hidden from the tokenizer."""
        return self._pattern.sub(lambda found: f"\ue000{self._names.index(found.group())}\ue001", text)

    def hide_all(self, value: Any) -> Any:
        """`hide` applied to every text in nested objects and lists."""
        if isinstance(value, Mapping):
            return {name: self.hide_all(item) for name, item in value.items()}
        return [self.hide_all(item) for item in value] if isinstance(value, list) else self.hide(value) if isinstance(value, str) else value

    def split(self, text: str) -> list[Piece]:
        """The texts and tokens in rendered text, hidden spellings restored.

        Some tokens absorb the white space next to them (`lstrip`, `rstrip` of an AddedToken), here as in one string.
        """
        pieces = self._pattern.split(text)
        for index in range(1, len(pieces), 2):
            if pieces[index] in self._strips_left:
                pieces[index - 1] = pieces[index - 1].rstrip()
            if pieces[index] in self._strips_right:
                pieces[index + 1] = pieces[index + 1].lstrip()
        return [self._ids[piece] if index % 2 else self.shown(piece) for index, piece in enumerate(pieces) if piece]

    def shown(self, text: str) -> str:
        """A text with the spellings that `hide` replaced."""
        return _HIDDEN.sub(lambda found: self._names[int(found.group(1))], text) if "\ue000" in text else text
