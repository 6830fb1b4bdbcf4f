"""The terminal of a chat, and the turns of its conversation.

A person gets a prompt, a line of help and line editing. A pipe gets the answers and nothing else, so that a program can read the output
of `llmmod 'pipeline=[chat]' < questions.txt`. Notes about the conversation go to stderr. The conversation forgets its oldest turns when
they no longer fit into the model's context.
"""

from __future__ import annotations

import contextlib
import io
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TextIO

from llmmod.render.conversation import Conversation, Message

_HELP = "`clear` forgets the conversation. Ctrl-C ends an answer. `exit`, `quit` or the end of input ends the chat."
# If stdin is not a terminal, two Ctrl-C within this number of seconds end the run, not only two answers.
_TWICE_S = 1.0


class Terminal:
    """Reads questions and writes answers.

    Args:
        stdin, stdout, stderr: the process's own where None.
    """

    def __init__(self, stdin: TextIO | None = None, stdout: TextIO | None = None, stderr: TextIO | None = None) -> None:
        self._in, self._out, self._err = stdin or sys.stdin, stdout or sys.stdout, stderr or sys.stderr
        # Whatever the locale is: undecodable bytes don't end a chat, and every answer can be printed.
        _reconfigure(self._in, errors="surrogateescape")
        _reconfigure(self._out, errors="replace")
        self.interactive = self._in.isatty() and self._out.isatty()
        self._interrupted_at: float | None = None

    def greet(self, who: str) -> None:
        """Tell a person who answers, and how to leave."""
        if self.interactive:
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401  # gives `input` its line editing and history; Windows has none
            self.note(f"Chat with {who}. {_HELP}")

    def questions(self) -> Iterator[str]:
        """Each line that is not empty, stripped, until `exit`, `quit`, the end of input, or a second Ctrl-C while waiting for one.

        Raises:
            KeyboardInterrupt: at the second Ctrl-C if stdin is not a terminal, so that the run counts as interrupted.
        """
        warned = False
        while True:
            try:
                question = self._line()
            except EOFError:
                return
            except KeyboardInterrupt:
                if warned and self.interactive:
                    return
                if warned or self.second_interrupt():
                    raise
                warned = True
                self.note("\nCtrl-C once more, `exit` or the end of input ends the chat.")
                continue
            if question.lower() in ("exit", "quit"):
                return
            if question:
                yield question
                warned = False

    def second_interrupt(self) -> bool:
        """Register a Ctrl-C; whether it ends the run, as a second one within a second does if stdin is not a terminal."""
        before, self._interrupted_at = self._interrupted_at, time.monotonic()
        return not self.interactive and before is not None and self._interrupted_at - before < _TWICE_S

    def write(self, piece: str) -> None:
        """Print a piece of an answer at once."""
        self._out.write(piece)
        self._out.flush()

    def note(self, text: str) -> None:
        """Print a note about the conversation to stderr."""
        print(text, file=self._err, flush=True)

    def _line(self) -> str:
        line = input("> ") if self.interactive else self._in.readline()
        if not line and not self.interactive:
            raise EOFError
        # Bytes outside of the terminal's encoding arrive as lone surrogates, which tokenizers refuse.
        if not _LONE.search(line):
            return line.strip()
        # With an ASCII locale, they are usually UTF-8.
        line = _HALF.sub("\ufffd", line).encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        if count := line.count("\ufffd"):
            self.note(f"({count} {'byte' if count == 1 else 'bytes'} of it can't be read as UTF-8; the model gets \ufffd instead.)")
        return line.strip()


_LONE = re.compile("[\ud800-\udfff]")
_HALF = re.compile("[\ud800-\udc7f\udd00-\udfff]")  # surrogates that don't stand for a byte


def _reconfigure(stream: TextIO, *, errors: str) -> None:
    """Set a process stream's error handler for decoding or encoding; other kinds of streams don't change."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors=errors)


class QuestionTooLongError(Exception):
    """A question that doesn't fit even alone; carries its prompt's `tokens`."""

    def __init__(self, tokens: int) -> None:
        super().__init__(tokens)
        self.tokens = tokens


@dataclass
class Turns:
    """A conversation in progress that forgets its oldest turns if necessary.

    Args:
        encode: a conversation that ends with a question -> the prompt's token ids.
        limit: tokens a prompt may have; None: no limit.
        system: the system text, which is always kept; None: the render's.
        keep: whether earlier turns are part of the next prompt.
    """

    encode: Callable[[Conversation], list[int]]
    limit: int | None = None
    system: str | None = None
    keep: bool = True
    _turns: list[tuple[str, str]] = field(default_factory=list)

    def ask(self, question: str) -> tuple[list[int], int]:
        """The prompt's token ids, and how many of the oldest turns were forgotten for them to fit.

        Raises:
            QuestionTooLongError: the question alone has more tokens than fit; nothing was forgotten.
        """
        for forgotten in range(len(self._turns) + 1):
            ids = self.encode(self._conversation(self._turns[forgotten:], question))
            if self.limit is None or len(ids) <= self.limit:
                del self._turns[:forgotten]
                return ids, forgotten
        raise QuestionTooLongError(len(ids))

    def answered(self, question: str, answer: str) -> None:
        """Remember a turn, if turns are kept."""
        if self.keep:
            self._turns.append((question, answer))

    def clear(self) -> None:
        """Forget every turn."""
        self._turns.clear()

    def _conversation(self, turns: list[tuple[str, str]], question: str) -> Conversation:
        messages = [] if self.system is None else [Message("system", self.system)]
        for asked, answer in turns:
            messages += [Message("user", asked), Message("assistant", answer)]
        return Conversation([*messages, Message("user", question)])
