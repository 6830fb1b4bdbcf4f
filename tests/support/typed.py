"""A user's command, run in this process: its exit code and its output."""

from __future__ import annotations

import json
import logging
import sys
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from byte_llama import END, text


@dataclass
class Typed:
    """The result of a command.

    Args:
        code: the exit code.
        said: the text on stdout and stderr.
    """

    code: int
    said: str


def typed(*arguments):
    """Run `llmmod *arguments` with the whole of Hydra; a traceback is an error of the test."""
    from llmmod.app import run_command

    argv = sys.argv
    try:
        with _listening() as said:
            code = run_command(["llmmod", *map(str, arguments)])
    finally:
        sys.argv = argv
    assert "Traceback (most recent call last)" not in said.getvalue(), said.getvalue()
    return Typed(code, said.getvalue())


def asked(*overrides):
    """The same with `llmmod.run`, without Hydra's flags, in a third of the time. An error that isn't the user's is an error of the test."""
    import llmmod
    from llmmod.errors import LlmmodError

    with _listening() as said:
        logging.getLogger().addHandler(logging.StreamHandler(said))
        logging.getLogger().setLevel(logging.INFO)
        try:
            llmmod.run(llmmod.compose([*map(str, overrides)]))
        except LlmmodError as error:
            return Typed(error.exit_code, f"{said.getvalue()}\n{error}")
    return Typed(0, said.getvalue())


@contextmanager
def _listening():
    """A context that records the output and restores logging at its end.

    Hydra and the end of a command close every handler of the process (logging.shutdown). absl's, which rouge_score adds, then also
    closes its stream unless that is the current sys.stderr. While stderr is redirected, that stream is pytest's own file, so it's left out.
    """
    said, root = StringIO(), logging.getLogger()
    handlers, level = root.handlers[:], root.level
    closed_at_the_end = logging._handlerList[:]
    logging._handlerList.clear()
    try:
        with redirect_stdout(said), redirect_stderr(said):
            yield said
    finally:
        logging._handlerList[:] = closed_at_the_end
        root.handlers[:] = handlers
        root.setLevel(level)


def lines(path):
    """The lines of a file of JSON lines."""
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def write_lines(path, rows):
    """Write rows as JSON lines; returns the path."""
    Path(path).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def trained(line):
    """The trained text of a line of preview.jsonl, without the answer's end token."""
    return text(token for token, label in zip(line["input_ids"], line["labels"], strict=True) if label not in (-100, END))


def masked(line):
    """The masked text of a line of preview.jsonl."""
    return text(token for token, label in zip(line["input_ids"], line["labels"], strict=True) if label == -100)
