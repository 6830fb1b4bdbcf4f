"""The training examples before a training: a few in the terminal, a page, and a file with ids and labels.

The step doesn't load a model. Its examples are those of the train step: the same splits, rendered and tokenized by the same code.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from llmmod.config.schema.steps import PreviewConf
from llmmod.data.dataset.load import certify_data, load_splits, open_builders
from llmmod.distributed import rank
from llmmod.files.paths import atomic_write
from llmmod.instantiate import locate
from llmmod.pages.page import write_page
from llmmod.protocols import StepReport
from llmmod.render.certificate import certify
from llmmod.render.findings import Finding
from llmmod.steps.preview.examples import Example, IdRow, LabelledSequence, TokenTexts, Verdict, labelled_sequences, show
from llmmod.steps.preview.figures import STREAMED, Figures, Measured, examples_of, measured
from llmmod.steps.preview.page import Contents, counted, page, tiles
from llmmod.upstream import installed

_LINES, _PAGE = "preview.jsonl", "preview.html"
_AS_ABOVE = "″"  # for a token whose text is part of the piece above it
_PACKS = 16  # packed rows to draw


class Preview:
    """The step `preview`.

    Args:
        conf: `steps.<name>`.
        name: the step's name, and the name of its directory.
    """

    def __init__(self, conf: PreviewConf, name: str) -> None:
        self.conf, self.name = conf, name

    def run(self, session: Any) -> StepReport:
        """Print examples, and write `<run>/<name>/preview.html` and `preview.jsonl`: `input_ids`, `labels` and `text`, a line an example.

        Raises:
            ConfigError: the data or the render is wrong, with the message that training gives.
        """
        splits = session.splits(self.name)
        if rank() != 0:
            return StepReport()
        tokenizer, render = session.tokenizer(self.name), session.render(self.name)
        texts, rows = TokenTexts(tokenizer, render.stop_ids), examples_of(splits.train, streamed=max(STREAMED, self.conf.max_samples))
        numbers = measured(splits.train, rows, session.conf(self.name, "training"), smoke=session.root.smoke, packs=_PACKS)
        judged = self._verdict(session, render, tokenizer)
        examples = [_examples(number, row, texts) for number, row in spread(rows, self.conf.on_page)]
        directory = session.step_dir(self.name)
        with atomic_write(directory / _LINES) as partial, partial.open("w", encoding="utf-8") as file:
            file.writelines(_line(one, texts) for row in islice(rows, self.conf.max_samples) for one in labelled_sequences(row))
        write_page(directory / _PAGE, page(self._contents(session, splits.report, numbers, judged, examples)))
        show([example for _, of_row in spread(examples, self.conf.in_terminal) for example in of_row], judged, sys.stdout)
        artifacts = {"page": f"{self.name}/{_PAGE}", "examples": f"{self.name}/{_LINES}"}
        return StepReport(artifacts=artifacts, summary=self._summary(numbers, directory))

    def _verdict(self, session: Any, render: Any, tokenizer: Any) -> Verdict:
        """The certificate's verdict. It includes the first rows of each dataset, unless the user's own code makes the data."""
        conf, root, kind = session.conf(self.name, "dataset"), session.root, session.conf(self.name, "training").data_kind
        if locate(conf._target_) is not load_splits:
            return verdict(certify(render, tokenizer), rows=0, mask_prompt=conf.mask_prompt)
        builders = open_builders(conf, render=render, tokenizer=tokenizer, seed=root.seed, hub=root.hub, kind=kind, smoke=root.smoke)
        findings, rows = certify_data(builders)
        return verdict(findings, rows=rows, mask_prompt=conf.mask_prompt or kind != "conversation", kind=kind)

    def _contents(self, session: Any, report: Any, numbers: Measured, judged: Verdict, examples: Sequence[Sequence[Example]]) -> Contents:
        parts = [(part, session.conf(self.name, part).name) for part in ("model", "render", "finetune")]
        rehearsal = [("smoke", "true: a rehearsal, with a few rows and a small tokenizer")] if session.root.smoke else []
        return Contents(
            title=report.name,
            lines=[report.lines()[0].removeprefix(f"{report.name}: ")],
            choices=[*parts, ("stage", session.conf(self.name, "training").stage), *rehearsal],
            verdict=judged,
            tiles=tiles(report, numbers),
            lengths=numbers.figures.lengths,
            cutoff_len=report.cutoff_len,
            packs=numbers.packs,
            examples=[example for of_row in examples for example in of_row],
            examples_title=_which(len(examples), numbers.figures),
            footer=f"Written by llmmod {installed('llmmod')}. The same ids and labels, for programs: {_LINES}, beside this file.",
            plan=session.get("plan_picture") or "",
        )

    def _summary(self, numbers: Measured, directory: Path) -> list[str]:
        figures, steps = numbers.figures, numbers.plan.steps
        text = f"{counted(figures.examples, 'example')}, {figures.tokens:,} tokens"
        if figures.trained_tokens:
            text += f", {figures.trained_share:.0%} of them trained"
        if not figures.complete:
            text = f"the first {text}"
        if steps is not None:
            text += f"; {counted(steps, 'optimizer step')}"
        return [f"{self.name}: {text}", f"{self.name}: the page is {directory / _PAGE}"]


def verdict(findings: Sequence[Finding], *, rows: int, mask_prompt: bool = True, kind: str = "conversation") -> Verdict:
    """The verdict on the certificate's findings.

    Args:
        findings: the certificate's.
        rows: how many rows of the data it checked.
        mask_prompt: whether prompts have no labels.
        kind: the kind of examples that rows become.
    """
    if wrong := sum(finding.fatal for finding in findings):
        headline = f"Not certified: {counted(wrong, 'check')} failed, so training would use wrong tokens"
        return Verdict(True, headline, "A run stops here, unless render.verify=false is set.", findings)
    of_data = f" and the first {counted(rows, 'row')} of the data" if rows else ""
    if kind == "document":
        explanation = (
            f"Checked on made-up texts{of_data}: a document has the ids that the tokenizer gives its text, every one of them is trained, "
            f"and so is the token that ends it; no text became a special token."
        )
        return Verdict(False, "Certified: training sees each text as the tokenizer writes it", explanation, findings)
    prompts = "" if mask_prompt else " (and, with dataset.mask_prompt=false, the prompts)"
    explanation = (
        f"Checked on made-up conversations{of_data}: prompts have the ids that chat and predict feed, answers and the token that ends "
        f"them are trained{prompts} and nothing else is, generation stops there, and no text became a special token."
    )
    return Verdict(False, "Certified: training and inference use the same tokens", explanation, findings)


def spread(items: Any, wanted: int) -> list[tuple[int, Any]]:
    """Up to `wanted` items with their numbers, from 1 on. They are evenly spread, since neighbours are often alike."""
    count = min(wanted, len(items))
    return [(place * len(items) // count + 1, items[place * len(items) // count]) for place in range(count)]


def _which(shown: int, figures: Figures) -> str:
    if not figures.complete:
        return f"{shown} of the first {figures.examples:,} examples of a stream"
    return f"All {shown} examples" if shown == figures.examples else f"{shown} of {figures.examples:,} examples, evenly spread"


def _examples(number: int, row: dict[str, Any], texts: TokenTexts) -> list[Example]:
    """The examples of a row; a pair has two, with one number."""
    found = []
    for part, ids, labels in labelled_sequences(row):
        shown = texts.shown(ids, labels)
        said = {piece.at: piece.text.replace("\n", "").replace("\t", "") for piece in shown}
        pairs = enumerate(zip(ids, labels, strict=True))
        rows = [IdRow(at, token, texts.name(token), said.get(at, _AS_ABOVE), label) for at, (token, label) in pairs]
        name = f"Example {number:,}, {part}" if part else f"Example {number:,}"
        found.append(Example(number, name, shown, rows))
    return found


def _line(one: LabelledSequence, texts: TokenTexts) -> str:
    part = {"part": one.part} if one.part else {}
    written = {"input_ids": one.input_ids, "labels": one.labels, "text": texts.text(one.input_ids), **part}
    return json.dumps(written, ensure_ascii=False) + "\n"
