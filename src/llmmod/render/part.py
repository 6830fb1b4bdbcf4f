"""A render's parts, from the items that a YAML file lists: texts with placeholders, and tokens."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from llmmod.errors import Problem, did_you_mean
from llmmod.render.segment import Piece
from llmmod.render.tokens import token_id

_PLACEHOLDER = re.compile(r"\{\{(\w+)\}\}")


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
