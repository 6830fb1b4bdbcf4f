"""A command as a user types it, run in this process: its exit code, and all that was said."""

from __future__ import annotations

import logging
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO


@dataclass
class Typed:
    """How a command ended.

    Args:
        code: the exit code.
        said: what stood on stdout and stderr.
    """

    code: int
    said: str


def typed(*arguments):
    """`llmmod *arguments`; a traceback is an error of the test."""
    from llmmod.app import run_command

    said, argv, root = StringIO(), sys.argv, logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        with redirect_stdout(said), redirect_stderr(said):
            code = run_command(["llmmod", *map(str, arguments)])
    finally:
        sys.argv = argv
        root.handlers[:], root.level = handlers, level
    assert "Traceback (most recent call last)" not in said.getvalue(), said.getvalue()
    return Typed(code, said.getvalue())
