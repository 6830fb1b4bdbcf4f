"""The unit between a conversation and its tokens, a piece of text or one token, and what renders make segments of.

A render made of parts fills in its YAML file's items: texts with placeholders, and tokens, each of which is exactly one id or an error that
says which is missing. A chat template writes one string, in which its own special tokens are tokens and those that a user spelt are text.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from llmmod.config.schema.data import RenderConf
from llmmod.errors import Problem, did_you_mean, nearest
from llmmod.render.conversation import Conversation

Piece = str | int  # a text, or the id of a token

# ChatGLM2's names of tokens -> those of GLM-4, which a saved ChatGLM2 has too (`llmmod.render.export`).
RESPELT = {"sop": "<sop>", "eop": "<eop>"}
# Names that stand for whatever the tokenizer has in that place.
OWN = ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token")
_PLACEHOLDER = re.compile(r"\{\{(\w+)\}\}")
# Code points for private use stand for a token that a user spelt, while the template works on the text.
_HIDDEN = re.compile("\ue000([0-9]+)\ue001")


class Segment(NamedTuple):
    """A text that is encoded on its own, or one token. Exactly one of `text` and `token` is set.

    Where a text begins and ends is part of what the model learns: a prompt's text between two tokens is one segment, an answer is always
    one of its own, since generation starts there.

    Args:
        text: encoded without special tokens, and with nothing in it read as one.
        token: the id of a token.
        trained: whether its ids are labels.
        first_label: the label of its first position, where that is neither its id nor nothing: renders without a terminator between
            rounds train it in the place of the token that follows.
    """

    text: str | None = None
    token: int | None = None
    trained: bool = False
    first_label: int | None = None


def segments(pieces: Iterable[Piece], *, trained: bool) -> list[Segment]:
    """A segment for each token and for each run of texts, which are joined; empty texts leave no trace."""
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
        """The training examples of a conversation, each a list of segments; the prompt is trained too without `mask_prompt`."""

    def prompt(self, conversation: Conversation) -> list[Segment]:
        """Everything up to where the next answer begins."""

    def read_answer(self, text: str, *, ended: bool = True) -> str:
        """The answer in text that was generated after `prompt`; of text that goes on, as much of it as nothing can take back."""

    def chat_template(self) -> str:
        """A jinja chat template that renders the same."""


def token_id(name: str, tokenizer: Any, *, key: str, render: str) -> int | Problem:
    """The id of a token, or what is wrong with it.

    Args:
        name: a token as the vocabulary spells it, or one of `OWN`.
        tokenizer: where it is looked up.
        key: where the render names it, as a user would type it.
        render: the render's name, for the message.
    """
    if name in OWN:
        own = getattr(tokenizer, f"{name}_id", None)
        return own if own is not None else Problem(key, f"this tokenizer has no {name}", do=f"Set tokenizer.kwargs.{name}='…'")
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
        f"Take a render made for this tokenizer (render=auto: its own), or {instead}",
    )


def named_tokens(conf: RenderConf) -> list[str]:
    """The tokens that a render names, each once, in order; the tokenizer's own (`eos_token`, …) left out."""
    items = [*conf.prefix, *(conf.empty_prefix or ()), *conf.prompt, *conf.response, *conf.sep]
    named = [item["token"] for item in items if isinstance(item, Mapping) and "token" in item]
    return [name for name in dict.fromkeys([*named, *conf.stop_words]) if name not in OWN]


def own_beginning(tokenizer: Any) -> int | None:
    """The beginning token, where the tokenizer itself starts a text with it; GPT-2, Qwen and SmolLM2 don't: None."""
    bos = tokenizer.bos_token_id
    return bos if bos is not None and list(tokenizer("a")["input_ids"])[:1] == [bos] else None


def _special_tokens(tokenizer: Any) -> list[str]:
    return [*tokenizer.all_special_tokens, *(str(token) for token in tokenizer.added_tokens_decoder.values())]


class Slot(NamedTuple):
    """Where a value of a conversation goes: `system`, `query`, `response` or `idx`."""

    name: str


Part = Sequence[Piece | Slot]


def read_part(
    items: Sequence[Any], slots: Collection[str], tokenizer: Any, *, key: str, render: str, needs: str = ""
) -> tuple[Part, list[Problem]]:
    """A part, and everything that is wrong with it.

    Args:
        items: texts and `{token: …}` items.
        slots: the placeholders that may stand in its texts.
        tokenizer: where its tokens are looked up.
        key: the part's key, as a user would type it.
        render: the render's name, for messages.
        needs: the placeholder without which it makes no sense.
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
        problems.append(Problem(key, f"has no {{{{{needs}}}}}, so what it stands for would be left out", do=f"Write {{{{{needs}}}}} in it"))
    return part, problems


def fill(part: Part, values: Mapping[str, str]) -> list[Piece]:
    """The pieces of a part, its placeholders replaced. A value is never searched for placeholders."""
    return [values[piece.name] if isinstance(piece, Slot) else piece for piece in part]


def move_spaces(before: Part, after: Part) -> tuple[Part, Part]:
    """The same two parts, with the spaces that end the first at the beginning of the second, if both have text there.

    Tokenizers write a space with the word that follows it. A prompt that ends with one would have it as a token of its own, which the
    model has never seen before a word.
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
            problems.append(Problem(where, f"'{{{{{piece}}}}}' stands for nothing here", did_you_mean(piece, slots)))


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
