"""Examples in a terminal: with colours if supported, with brackets otherwise."""

from __future__ import annotations

import io

import pytest

from llmmod.render.findings import Finding
from llmmod.steps.preview.examples import Example, IdRow, Shown, Verdict, elided, plain, show

PIECES = [
    Shown("<s>", 0, (1,), ("<s>",), trained=False, special=True),
    Shown("[bold]你", 1, (2,), ("x",), trained=False),
    Shown("ok", 2, (3,), ("ok",), trained=True),
    Shown("</s>", 3, (4,), ("</s>",), trained=True, special=True),
]
EXAMPLE = Example(1, "Example 1", PIECES, [IdRow(at, at + 1, "x", "x", -100 if at < 2 else at + 1) for at in range(4)])
GOOD, BAD = Verdict(False, "Certified", "", []), Verdict(True, "Not certified", "", [Finding("labels", "an answer isn't trained", "row 1")])


class Tty(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def colours(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


def test_plain():
    expected = "⟦trained⟧ masked ‹special token›\n\nExample 1: 4 tokens, 2 trained\n‹<s>›[bold]你⟦ok‹</s>›⟧\n\n✓ Certified\n"
    assert plain([EXAMPLE], GOOD) == expected


def test_findings_follow_the_verdict():
    assert plain([], BAD).splitlines()[-2:] == ["✗ Not certified", "an answer isn't trained (seen in: row 1)"]


def test_where_only_ascii_can_be_written():
    text = plain([EXAMPLE], GOOD, ascii_only=True)
    assert "<<s>>[bold]\\u4f60[[ok<</s>>]]" in text
    assert text.isascii()


def test_a_terminal_has_colours():
    out = Tty()
    show([EXAMPLE], GOOD, out)
    assert "\x1b[32mok\x1b[0m" in out.getvalue()  # green
    assert "\x1b[90m[bold]你\x1b[0m" in out.getvalue()  # bright black, and nothing read as rich's markup
    assert "⟦" not in out.getvalue()


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_where_no_colours_are_wanted(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    out = Tty()
    show([EXAMPLE], GOOD, out)
    assert "⟦ok‹</s>›⟧" in out.getvalue()
    assert "\x1b" not in out.getvalue()


def test_the_middle_of_a_long_example_is_left_out():
    pieces = [Shown(str(at), at, (at,), ("x",), trained=False) for at in range(1000)]
    shown = [piece.text for piece in elided(pieces)]
    assert shown == [*map(str, range(150)), " … 700 tokens that the page shows … ", *map(str, range(850, 1000))]
    assert list(elided(pieces[:300])) == pieces[:300]
