"""Examples as readable text, in which every character is visible; and how the terminal shows them.

A token of a byte-level or byte-fallback tokenizer may be part of a character. Tokens that together make whole characters are shown as one
piece. Where they don't (an example that was cut), their bytes are shown. A terminal without colours gets brackets around the trained text.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby, pairwise
from typing import Any, NamedTuple, TextIO

from rich.console import Console
from rich.text import Text
from transformers.convert_slow_tokenizer import bytes_to_unicode

from llmmod.render.encode import IGNORED
from llmmod.render.findings import Finding

_HALF = "\N{REPLACEMENT CHARACTER}"  # decoders write it for bytes that are not a character
_LONGEST = 8  # tokens tried together; a character has at most 4 bytes, and a token at least one
_BYTES = {character: byte for byte, character in bytes_to_unicode().items()}
_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")  # SentencePiece's byte fallback

# Control characters would act on a terminal and vanish on a page. Invisible ones are hard to find in data.
_CONTROLS = {code: chr(0x2400 + code) for code in range(0x20)} | {0x7F: "\N{SYMBOL FOR DELETE}"}
_NO_INK = (*range(0x80, 0xA0), 0xAD, 0x200B, *range(0x202A, 0x202F), 0x2060, *range(0x2066, 0x206A), 0xFEFF)  # joiners are left alone
_INVISIBLE = {code: f"⟨U+{code:04X}⟩" for code in _NO_INK}
_VISIBLE = {**_CONTROLS, **_INVISIBLE, ord("\n"): "↵\n", ord("\t"): "⇥\t"}

_EACH_SIDE = 150  # pieces that the terminal shows of an example's beginning and of its end; the page shows all
_STYLES = {(False, False): "bright_black", (False, True): "bold magenta", (True, False): "green", (True, True): "bold green reverse"}
# Around trained text, around special tokens, and for the verdict; the second row is for a terminal without the first.
_SIGNS = ("⟦", "⟧", "‹", "›", "✓", "✗")
_ASCII_SIGNS = ("[[", "]]", "<", ">", "+", "x")


class Shown(NamedTuple):
    """One or more neighbouring tokens, shown as one.

    Args:
        text: their text, with every character visible.
        at: the position of the first.
        ids: their ids.
        names: each as the vocabulary spells it.
        trained: whether they have labels.
        special: whether this is a special token, so that `text` is its name.
        label: the label as the vocabulary spells it, where it differs from the token; else empty.
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
        tokenizer: decodes ids, and knows the names of tokens.
        special: ids of more tokens to show by name, besides the tokenizer's special ones.
    """

    def __init__(self, tokenizer: Any, special: Iterable[int] = ()) -> None:
        self._tokenizer = tokenizer
        added = {int(token) for token in getattr(tokenizer, "added_tokens_decoder", {})}
        self._special = frozenset([*tokenizer.all_special_ids, *special]) | added
        # Tokens are decoded after another one, because SentencePiece's decoders drop the space of the first token.
        self._anchor: list[int] = list(tokenizer.encode("a", add_special_tokens=False))
        self._anchored = self._decoded(self._anchor)
        self._texts: dict[tuple[int, ...], str] = {}

    def shown(self, ids: Sequence[int], labels: Sequence[int]) -> list[Shown]:
        """The tokens of an example in order, each in one piece."""
        return list(self._shown(ids, labels))

    def text(self, ids: Sequence[int]) -> str:
        """The example's text, with its special tokens."""
        return self._decoded(ids)

    def name(self, token: int) -> str:
        """A token as the vocabulary spells it, on one line. A token that the vocabulary has as bytes is written in hexadecimal."""
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
        """How many tokens from a position on are one piece, and their text."""
        if ids[at] in self._special:
            return 1, self.name(ids[at])
        for stop in range(at + 1, min(at + _LONGEST, len(ids)) + 1):
            if ids[stop - 1] in self._special or (labels[stop - 1] == IGNORED) != (labels[at] == IGNORED):
                break
            if _HALF not in (text := self._text(tuple(ids[at:stop]))):
                return stop - at, visible(text)
        return 1, self._bytes(ids[at])

    def _text(self, ids: tuple[int, ...]) -> str:
        if ids not in self._texts:
            text = self._decoded([*self._anchor, *ids])
            self._texts[ids] = text.removeprefix(self._anchored) if text.startswith(self._anchored) else self._decoded(ids)
        return self._texts[ids]

    def _decoded(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    def _bytes(self, token: int) -> str:
        """The bytes of a token that is only part of a character, or its name where the bytes aren't known."""
        name = self._tokenizer.convert_ids_to_tokens(token)
        if isinstance(name, bytes):
            return _hex(name)
        if match := _BYTE_TOKEN.fullmatch(name):
            return f"⟨{match[1]}⟩"
        if all(character in _BYTES for character in name):
            return _hex(bytes(_BYTES[character] for character in name))
        return visible(str(name))


def visible(text: str) -> str:
    """The text with signs for control and invisible characters. A line break stays, after its sign."""
    return text.translate(_VISIBLE)


def _hex(content: bytes) -> str:
    return f"⟨{content.hex(' ').upper()}⟩"


class IdRow(NamedTuple):
    """A line of the table of ids. `text` is the token's text; where several tokens make a character, the first line has it."""

    at: int
    id: int
    name: str
    text: str
    label: int


@dataclass(frozen=True)
class Example:
    """An example as the page shows it.

    Args:
        number: from 1 on.
        name: its heading.
        shown: its tokens.
        rows: the lines of its table of ids.
    """

    number: int
    name: str
    shown: Sequence[Shown]
    rows: Sequence[IdRow]

    @property
    def tokens(self) -> int:
        """The number of tokens."""
        return len(self.rows)

    @property
    def trained(self) -> int:
        """The number of positions with a label."""
        return sum(row.label != IGNORED for row in self.rows)

    @property
    def runs(self) -> list[tuple[bool, list[Shown]]]:
        """Its tokens, in runs that are trained or masked."""
        return [(trained, list(run)) for trained, run in groupby(self.shown, lambda piece: piece.trained)]


class Verdict(NamedTuple):
    """The result of the certificate."""

    refused: bool
    headline: str
    explanation: str
    findings: Sequence[Finding]


def show(examples: Sequence[Example], verdict: Verdict, out: TextIO) -> None:
    """Write the examples and the certificate's verdict, with colours on a terminal that has them."""
    if out.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb":
        _show_coloured(examples, verdict, Console(file=out, highlight=False, soft_wrap=True))
    else:
        out.write(plain(examples, verdict, ascii_only=not _can_write("".join(_SIGNS), out)))
        out.flush()


def plain(examples: Sequence[Example], verdict: Verdict, *, ascii_only: bool = False) -> str:
    """The examples and the verdict as text without colours."""
    opens, closes, left, right, good, bad = _ASCII_SIGNS if ascii_only else _SIGNS
    lines = [f"{opens}trained{closes} masked {left}special token{right}"]
    for example in examples:
        runs = groupby(elided(example.shown), lambda piece: piece.trained)
        written = (
            (opens if trained else "")
            + "".join(f"{left}{piece.text}{right}" if piece.special else piece.text for piece in run)
            + (closes if trained else "")
            for trained, run in runs
        )
        lines += ["", heading(example), "".join(written)]
    lines += ["", f"{bad if verdict.refused else good} {verdict.headline}", *map(str, verdict.findings), ""]
    text = "\n".join(lines)
    return text.encode("ascii", "backslashreplace").decode() if ascii_only else text


def heading(example: Example) -> str:
    """The line above an example."""
    return f"{example.name}: {example.tokens} tokens, {example.trained} trained"


def elided(shown: Sequence[Shown]) -> Iterator[Shown]:
    """The pieces; of a long example, its beginning and its end."""
    left_out = len(shown) - 2 * _EACH_SIDE
    if left_out <= 0:
        yield from shown
        return
    yield from shown[:_EACH_SIDE]
    yield Shown(f" … {left_out} tokens that the page shows … ", 0, (), (), trained=False)
    yield from shown[-_EACH_SIDE:]


def _show_coloured(examples: Sequence[Example], verdict: Verdict, console: Console) -> None:
    legend = [("trained", True, False), ("masked", False, False), ("special token", False, True)]
    console.print(Text(" ").join(Text(name, _STYLES[trained, special]) for name, trained, special in legend))
    for example in examples:
        console.print(Text(f"\n{heading(example)}", style="bold"))
        console.print(Text.assemble(*((piece.text, _STYLES[piece.trained, piece.special]) for piece in elided(example.shown))))
    sign, colour = ("✗", "bold red") if verdict.refused else ("✓", "bold green")
    console.print(Text(f"\n{sign} {verdict.headline}", style=colour))
    for finding in verdict.findings:
        console.print(Text(str(finding), style="red" if finding.fatal else "yellow"))


def _can_write(text: str, out: TextIO) -> bool:
    try:
        text.encode(out.encoding or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


class LabelledSequence(NamedTuple):
    """A sequence of ids as a model sees it.

    Args:
        part: of the row: `chosen`, `rejected`, `wanted`, `unwanted`, `prompt`; empty for the whole row.
        input_ids: the model's input.
        labels: the trained tokens, -100 elsewhere; for compared or judged answers, their tokens.
    """

    part: str
    input_ids: list[int]
    labels: list[int]


def labelled_sequences(row: Mapping[str, Any]) -> list[LabelledSequence]:
    """The sequences of a row of any kind: one for an example, two for a pair, one for each example in a packed row."""
    if "prompt_ids" not in row:
        ends = pairwise([0, *accumulate(row.get("seq_lengths") or [len(row["input_ids"])])])
        return [LabelledSequence("", row["input_ids"][start:end], row["labels"][start:end]) for start, end in ends]
    prompt = row["prompt_ids"]
    masked = [IGNORED] * len(prompt)
    if "chosen_ids" in row:
        answers = {name: row[f"{name}_ids"] for name in ("chosen", "rejected")}
    elif "completion_ids" in row:
        answers = {"wanted" if row["label"] else "unwanted": row["completion_ids"]}
    else:
        return [LabelledSequence("prompt", prompt, masked)]
    return [LabelledSequence(part, [*prompt, *answer], masked + list(answer)) for part, answer in answers.items()]
