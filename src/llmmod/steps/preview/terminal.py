"""Examples in the terminal: in colours where there are any, else with brackets around what is trained.

The figures of a preview in words: a tile each.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TextIO

from rich.console import Console
from rich.text import Text

from llmmod.data.dataset.splits import DataReport
from llmmod.steps.preview.figures import Figures, Measured, Packs, Plan
from llmmod.steps.preview.page import Example, Tile, Verdict
from llmmod.steps.preview.tokens import Shown

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


def tiles(report: DataReport, measured: Measured) -> list[Tile]:
    """What there is to know of the data and of the training it makes.

    Args:
        report: the data's account.
        measured: the data's numbers.
    """
    figures, packs, plan = measured
    of_data = [_examples(report, figures), _tokens(figures), _lengths(report, figures)]
    return [
        *of_data,
        *([_fitting(report)] if figures.complete else []),
        *([_packs(packs, figures)] if packs else []),
        _steps(plan),
        _run(figures, plan),
    ]


def counted(number: int, noun: str) -> str:
    """The number and the noun, in the plural where it isn't 1."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _examples(report: DataReport, figures: Figures) -> Tile:
    held = f"{report.eval.examples:,} held out to validate with"
    value, note = (f"{figures.examples:,}", f"from {counted(report.rows, 'row')}; {held}") if figures.complete else ("a stream", held)
    bad = [f"{counted(report.skipped, 'bad row')} left out; the first: {report.reasons[0]}"] if report.skipped else []
    return Tile("Examples to train on", value, [note, *bad], warns=bool(bad))


def _tokens(figures: Figures) -> Tile:
    of = "" if figures.complete else f" of the first {counted(figures.examples, 'example')}"
    if not figures.trained_tokens:
        return Tile("Tokens" + of, f"{figures.tokens:,}", ["of prompts, whose answers are made while training"])
    trained = f"{figures.trained_share:.0%} of them trained: {figures.trained_tokens:,}"
    return Tile("Tokens" + of, f"{figures.tokens:,}", [trained], share=figures.trained_share)


def _lengths(report: DataReport, figures: Figures) -> Tile:
    shortest, longest = min(figures.lengths), max(figures.lengths)
    note = f"from {shortest:,} to {longest:,} tokens; cutoff_len is {report.cutoff_len:,}"
    return Tile("Median length", f"{figures.median:,}", [note])


def _fitting(report: DataReport) -> Tile:
    cut, dropped, ends = report.train.cut, report.train.dropped, report.train.ends_lost
    notes = [f"longer than cutoff_len={report.cutoff_len:,}"] if cut else []
    if dropped:
        notes.append(f"{dropped:,} left out as longer than cutoff_len={report.cutoff_len:,}")
    if ends:
        notes.append(f"{ends:,} of them lost the end of their answer")
    if report.eval.cut or report.eval.dropped:
        notes.append(f"of those to validate with, {report.eval.cut:,} cut and {report.eval.dropped:,} left out")
    if not cut and not dropped:
        notes.append("every example fits into cutoff_len")
    return Tile("Examples cut", f"{cut:,}", notes, warns=bool(cut or dropped))


def _steps(plan: Plan) -> Tile:
    parts = [counted(plan.per_device, "row")]
    parts += [f"{plan.accumulation} accumulated"] if plan.accumulation > 1 else []
    parts += [f"{plan.devices} devices"] if plan.devices > 1 else []
    batch = f" = {plan.batch:,} rows a step" if len(parts) > 1 else " a step"
    epochs = [] if plan.epochs is None else [f"{plan.epochs:.3g} {'epoch' if plan.epochs == 1 else 'epochs'}"]
    return Tile("Optimizer steps", "unknown" if plan.steps is None else f"{plan.steps:,}", [*epochs, " × ".join(parts) + batch])


def _run(figures: Figures, plan: Plan) -> Tile:
    if plan.rows is None:  # the first examples of a stream, which nobody has packed
        a_step = figures.tokens / max(1, figures.examples) * plan.batch
    else:
        a_step = figures.tokens / max(1, plan.rows) * min(plan.batch, plan.rows)
    total = figures.tokens * plan.epochs if plan.epochs is not None else None if plan.steps is None else a_step * plan.steps
    shown = "unknown" if total is None else f"{total:,.0f}"
    return Tile("Tokens in the whole run", shown, [f"about {a_step:,.0f} a step, padding not counted"])


def _packs(packs: Packs, figures: Figures) -> Tile:
    each = figures.examples / packs.rows
    notes = [f"of {counted(packs.rows, 'row')} of {packs.capacity:,} tokens; {each:.1f} examples a row, apart from each other"]
    return Tile("Packs are full to", f"{packs.fill:.1%}", notes, share=packs.fill)
