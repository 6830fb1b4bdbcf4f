"""Examples in the terminal: in colours where there are any, else with brackets around what is trained."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TextIO

from rich.console import Console
from rich.text import Text

from llmmod.steps.preview_page import Example, Verdict
from llmmod.steps.preview_tokens import Shown

_EACH_SIDE = 150  # pieces of an example that are shown at its beginning and at its end; the page has all of it
_STYLES = {(False, False): "bright_black", (False, True): "bold magenta", (True, False): "green", (True, True): "bold green reverse"}
# Around what is trained, around special tokens, and for the verdict; where a terminal has none of these, what it has.
_SIGNS = ("⟦", "⟧", "‹", "›", "✓", "✗")
_ASCII_SIGNS = ("[[", "]]", "<", ">", "+", "x")


def show(examples: Sequence[Example], verdict: Verdict, out: TextIO) -> None:
    """Write examples and the certificate's verdict."""
    if out.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb":
        _show_coloured(examples, verdict, Console(file=out, highlight=False, soft_wrap=True))
    else:
        out.write(plain(examples, verdict, ascii_only=not _can_write("".join(_SIGNS), out)))
        out.flush()


def plain(examples: Sequence[Example], verdict: Verdict, *, ascii_only: bool = False) -> str:
    """The same as text without colours."""
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
    """The pieces, without the middle of many."""
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
