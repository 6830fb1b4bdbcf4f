"""The errors a user can cause, each with the exit code it leads to.

A message has four parts: the key as the user typed it, what was found, what is allowed (nearest name first), what to do.
Anything that is not an `LlmmodError` is a defect of ours or of a library, and ends a run with exit code 1.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

EXIT_FAILED = 1
EXIT_CONFIG = 2


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with what the user asked for.

    Args:
        key: the key as typed, e.g. `training.learning_ratee`, or a place such as `data.json, row 17`.
        found: what was found there, as a clause without a full stop.
        allowed: what would be right, nearest first; empty where `found` says it.
        do: what to do about it; empty where it is plain.
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
    """Something went wrong that the user can do something about."""

    exit_code = EXIT_FAILED


class ConfigError(LlmmodError):
    """The configuration or a path is wrong; carries every problem that was found, not the first alone."""

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

    Not an Exception, so that no `except Exception` on the way takes it for an error of its own.

    Args:
        message: a sentence on what it was.
        metrics: of the last evaluation.
    """

    exit_code = 0

    def __init__(self, message: str, metrics: dict[str, float] | None = None) -> None:
        super().__init__(message)
        self.metrics = metrics or {}


def first_line(error: BaseException) -> str:
    """The first line of what an error says, its class where it says nothing; at most 200 characters."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def one_line(error: BaseException, most: int = 300) -> str:
    """What an error says in one line, its class where it says nothing; at most `most` characters."""
    return " ".join(str(error).split())[:most] or type(error).__name__


def nearest(name: str, choices: Iterable[str], count: int = 1) -> list[str]:
    """The `count` choices closest to `name` in spelling, best first; empty where none is close."""
    return difflib.get_close_matches(name, list(choices), n=count, cutoff=0.6)


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """`Did you mean 'x'?` for the nearest choice, else the list of all choices, else nothing."""
    known = list(choices)
    close = nearest(name, known)
    if close:
        return f"Did you mean '{close[0]}'?"
    return f"Allowed: {', '.join(sorted(known))}" if 0 < len(known) <= 40 else ""
