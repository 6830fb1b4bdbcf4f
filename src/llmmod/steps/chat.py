"""The step `chat`: a conversation in the terminal with the run's model: the base model, an adapter, or what was just trained.

A person gets a prompt, a line of help and line editing. A pipe gets the answers and nothing else, so that a program can read the output
of `llmmod 'pipeline=[chat]' < questions.txt`. Notes about the conversation go to stderr. The conversation forgets its oldest turns when
they no longer fit into the model's context.

Prompts are the render's, encoded by the function that prediction uses, so the model sees what it was trained on. Each prompt is computed
from its first token: a cache kept between turns would have to match the encoding of the answer's text, and it need not.
"""

from __future__ import annotations

import contextlib
import copy
import io
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TextIO

from transformers import GenerationConfig

from llmmod.config.schema.steps import ChatConf
from llmmod.distributed import rank
from llmmod.instantiate import build
from llmmod.models.generation.generate import Answer, stream_answer
from llmmod.models.generation.settings import Reader, context_length, generation_config
from llmmod.protocols import StepReport
from llmmod.render.conversation import Conversation, Message
from llmmod.render.encode import encode_prompt
from llmmod.trainers.build import prepare_for_inference

# Tokens an answer may have where neither generation.max_new_tokens, generation.max_length nor the architecture sets a limit.
_LONGEST = 4096
_HELP = "`clear` forgets the conversation. Ctrl-C ends an answer. `exit`, `quit` or the end of input ends the chat."
# If stdin is not a terminal, two Ctrl-C within this number of seconds end the run, not only two answers.
_TWICE_S = 1.0
_LONE = re.compile("[\ud800-\udfff]")
_HALF = re.compile("[\ud800-\udc7f\udd00-\udfff]")  # surrogates that don't stand for a byte


class Chat:
    """The step `chat`.

    Args:
        conf: `steps.<name>`.
        name: the step's name.
        terminal: None: the process's own.
    """

    def __init__(self, conf: ChatConf, name: str, terminal: Terminal | None = None) -> None:
        self.conf, self.name = conf, name
        self.terminal = terminal or Terminal()
        self.answers = self.tokens = 0
        self.seconds = 0.0

    def run(self, session: Any) -> StepReport:
        """Answer questions until the input or the user ends it."""
        if rank() != 0:
            return StepReport(conversed=True)
        chat_model = _chat_model(session, self.name)
        render, tokenizer = session.render(self.name), chat_model.reader.tokenizer
        turns = Turns(
            lambda conversation: encode_prompt(render.prompt(conversation), tokenizer),
            limit=chat_model.prompt_limit,
            system=self.conf.system,
            keep=self.conf.history,
        )
        self.terminal.greet(session.conf(self.name, "model").name)
        for question in self.terminal.questions():
            if question.lower() == "clear":
                turns.clear()
                self.terminal.note("The conversation is forgotten.")
            else:
                self._answer(question, turns, chat_model)
        return self._report()

    def _answer(self, question: str, turns: Turns, chat_model: _ChatModel) -> None:
        """One turn. Ctrl-C ends it and keeps what was said so far.

        Raises:
            KeyboardInterrupt: at a second Ctrl-C in a row where no person types.
        """
        try:
            ids, forgotten = turns.ask(question)
            if forgotten:
                oldest = "oldest turn is" if forgotten == 1 else f"{forgotten} oldest turns are"
                self.terminal.note(f"(All of it no longer fits into {chat_model.limit} tokens: the {oldest} forgotten.)")
            begun = time.perf_counter()
            answer = chat_model.say(ids, self.terminal.write)
            self.answers, self.tokens = self.answers + 1, self.tokens + answer.tokens
            self.seconds += time.perf_counter() - begun
            if answer.text:
                turns.answered(question, answer.text)
            interrupted = answer.interrupted
        except QuestionTooLongError as error:
            most = f"at most {chat_model.prompt_limit} leave room for an answer"
            self.terminal.note(f"(With its prompt this question has {error.tokens} tokens; {most}. It was left unanswered.)")
            return
        except KeyboardInterrupt:
            interrupted = True
        self.terminal.write("\n")
        if interrupted and self.terminal.second_interrupt():
            raise KeyboardInterrupt

    def _report(self) -> StepReport:
        speed = f", {self.tokens / self.seconds:.1f} tokens/s" if self.seconds else ""
        questions = f"{self.answers} question{'s' * (self.answers != 1)}"
        return StepReport(summary=[f"{self.name}: {questions} answered, {self.tokens} tokens{speed}"], conversed=True)


@dataclass(frozen=True)
class _ChatModel:
    """A model with its reader, settings and limits.

    Args:
        reader: decodes its answers.
        limit: tokens of prompt and answer together; None: no limit.
        longest: tokens of an answer.
    """

    model: Any
    reader: Reader
    config: GenerationConfig
    limit: int | None
    longest: int

    @property
    def prompt_limit(self) -> int | None:
        """Tokens a prompt may have: an answer gets its full length, or half of everything where that is less."""
        return None if self.limit is None else self.limit - min(self.longest, self.limit // 2)

    def say(self, prompt_ids: list[int], write: Callable[[str], object]) -> Answer:
        """Answer one prompt, handing each piece to `write`."""
        config = copy.deepcopy(self.config)
        config.max_length = None
        config.max_new_tokens = self.longest if self.limit is None else min(self.longest, self.limit - len(prompt_ids))
        return stream_answer(self.model, prompt_ids, self.reader, config=config, write=write)


def _chat_model(session: Any, step: str) -> _ChatModel:
    """The session's model, prepared for inference."""
    tokenizer, render, training = session.tokenizer(step), session.render(step), session.conf(step, "training")
    model = prepare_for_inference(session.model(step).model, use_cpu=bool(getattr(training, "use_cpu", False)))
    config = generation_config(
        build(session.root.generation),
        model,
        stop_ids=render.stop_ids,
        pad_id=tokenizer.pad_token_id,
        bos_id=tokenizer.bos_token_id,
    )
    limits = [context_length(model), session.conf(step, "model").model_max_length, config.max_length]
    limit = min((tokens for tokens in limits if tokens is not None), default=None)
    return _ChatModel(model, Reader.of(render, tokenizer), config, limit, config.max_new_tokens or limit or _LONGEST)


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
