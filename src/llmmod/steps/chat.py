"""The step `chat`: a conversation in the terminal with the run's model: the base model, an adapter, or what was just trained.

Prompts are the render's, encoded by the function that prediction uses, so the model sees what it was trained on. Each prompt is computed
from its first token: a cache kept between turns would have to match the encoding of the answer's text, and it need not.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import GenerationConfig

from llmmod.config.schema.steps import ChatConf
from llmmod.distributed import rank
from llmmod.instantiate import build
from llmmod.models.generation.generate import Answer, stream_answer
from llmmod.models.generation.settings import Reader, context_length, generation_config
from llmmod.protocols import StepReport
from llmmod.render.encode import encode_prompt
from llmmod.steps.terminal import QuestionTooLongError, Terminal, Turns
from llmmod.trainers.build import prepare_for_inference

# Tokens an answer may have where neither generation.max_new_tokens, generation.max_length nor the architecture sets a limit.
_LONGEST = 4096


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
