"""The page that shows what training sees: one HTML file with all it needs in it, written by a template that escapes every value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import groupby
from typing import NamedTuple

from jinja2 import Environment, StrictUndefined

from llmmod.render.encode import IGNORED
from llmmod.render.finding import Finding
from llmmod.steps.preview_figures import Packs
from llmmod.steps.preview_histogram import histogram
from llmmod.steps.preview_tokens import Shown

_TEMPLATE = "preview_page.html"  # beside this module


class Tile(NamedTuple):
    """A figure with what there is to say about it.

    Args:
        name: of what.
        value: the figure.
        notes: a line each.
        share: a bar below it, 0 to 1; None: no bar.
        warns: whether it is one that nobody hopes for.
    """

    name: str
    value: str
    notes: Sequence[str] = ()
    share: float | None = None
    warns: bool = False


class Verdict(NamedTuple):
    """What the certificate says."""

    refused: bool
    headline: str
    explanation: str
    findings: Sequence[Finding]


class IdRow(NamedTuple):
    """A line of the table of ids; `text` is what its token says, with those below it where only several make a character."""

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
        name: what it is called.
        shown: its tokens.
        rows: of its table of ids.
    """

    number: int
    name: str
    shown: Sequence[Shown]
    rows: Sequence[IdRow]

    @property
    def tokens(self) -> int:
        """Tokens there are."""
        return len(self.rows)

    @property
    def trained(self) -> int:
        """Positions with a label."""
        return sum(row.label != IGNORED for row in self.rows)

    @property
    def runs(self) -> list[tuple[bool, list[Shown]]]:
        """Its tokens in runs of trained and masked ones."""
        return [(trained, list(run)) for trained, run in groupby(self.shown, lambda piece: piece.trained)]


@dataclass(frozen=True)
class Contents:
    """All that the page says.

    Args:
        title: the dataset's name.
        lines: where the data comes from and how it was read.
        choices: (part, option).
        verdict: the certificate's.
        tiles: figures.
        lengths: tokens, one an example.
        cutoff_len: tokens.
        packs: how examples share rows; None: they don't.
        examples: the shown ones.
        examples_title: which they are.
        footer: a line.
    """

    title: str
    lines: Sequence[str]
    choices: Sequence[tuple[str, str]]
    verdict: Verdict
    tiles: Sequence[Tile]
    lengths: Sequence[int]
    cutoff_len: int
    packs: Packs | None
    examples: Sequence[Example]
    examples_title: str
    footer: str


def page(contents: Contents) -> str:
    """The page as HTML."""
    text = files("llmmod.steps").joinpath(_TEMPLATE).read_text(encoding="utf-8")
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(text)
    return template.render(vars(contents), histogram=histogram(contents.lengths, contents.cutoff_len), ignored=IGNORED)
