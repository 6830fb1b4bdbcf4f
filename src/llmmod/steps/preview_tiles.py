"""The figures of a preview in words: a tile each."""

from __future__ import annotations

from llmmod.data.splits import DataReport
from llmmod.steps.preview_figures import Figures, Measured, Packs, Plan
from llmmod.steps.preview_page import Tile


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
