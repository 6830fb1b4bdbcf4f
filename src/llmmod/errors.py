"""The errors that a user can cause, each with its exit code.

A message has four parts: the key as the user typed it, what was found, what is allowed (nearest name first), what to do.
Any other error is a defect of ours or of a library, and ends a run with exit code 1.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

EXIT_FAILED = 1
EXIT_CONFIG = 2


@dataclass(frozen=True)
class Problem:
    """One mistake in the user's configuration, paths or data.

    Args:
        key: the key as typed, e.g. `training.learning_ratee`, or a place such as `data.json, row 17`.
        found: what was found there, as a clause without a full stop.
        allowed: what is allowed, nearest first; empty if `found` says it.
        do: what to do about it; empty if it is plain.
    """

    key: str
    found: str
    allowed: str = ""
    do: str = ""

    def __str__(self) -> str:
        sentences = [s.rstrip(".") if not s.endswith("?") else s for s in (self.found, self.allowed, self.do) if s]
        text = " ".join(s if s.endswith("?") else f"{s}." for s in sentences)
        return f"{self.key}: {text}"


class LlmmodError(Exception):
    """An error that the user can fix."""

    exit_code = EXIT_FAILED


class ConfigError(LlmmodError):
    """The configuration or a path is wrong; has every problem that was found."""

    exit_code = EXIT_CONFIG

    def __init__(self, problems: Problem | Iterable[Problem]) -> None:
        self.problems = [problems] if isinstance(problems, Problem) else list(problems)
        super().__init__("\n".join(str(p) for p in self.problems))


class DataError(LlmmodError):
    """A file or a row of data is wrong; the message names file, row number and column."""

    exit_code = EXIT_CONFIG

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        super().__init__(str(problem))


class RunError(LlmmodError):
    """The run failed while running: the loss became NaN, the disk is full."""


class Pruned(BaseException):
    """A search ended the run, since others were better at this evaluation.

    It is not an Exception, so that `except Exception` doesn't catch it.

    Args:
        message: a sentence about the reason.
        metrics: of the last evaluation.
    """

    exit_code = 0

    def __init__(self, message: str, metrics: dict[str, float] | None = None) -> None:
        super().__init__(message)
        self.metrics = metrics or {}


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its class without a message; at most 200 characters."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def one_line(error: BaseException, most: int = 300) -> str:
    """An error's message in one line, or its class without a message; at most `most` characters."""
    return " ".join(str(error).split())[:most] or type(error).__name__


def nearest(name: str, choices: Iterable[str], count: int = 1) -> list[str]:
    """The `count` choices closest to `name` in spelling, best first; empty if none is close."""
    return difflib.get_close_matches(name, list(choices), n=count, cutoff=0.6)


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """`Did you mean 'x'?` for the nearest choice, else the list of all choices, else an empty text."""
    known = list(choices)
    close = nearest(name, known)
    if close:
        return f"Did you mean '{close[0]}'?"
    return f"Allowed: {', '.join(sorted(known))}" if 0 < len(known) <= 40 else ""
