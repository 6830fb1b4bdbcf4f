"""A tokenizer's chat template: the text that it writes for messages, and the position of each answer in that text.

`{% generation %}` tags mark the answers, if the template has them. Otherwise the template renders the messages twice, without an answer and
with it: the first text must be the beginning of the second, and the answer is the rest.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from llmmod.errors import ConfigError, DataError, Problem
from llmmod.render.conversation import Message
from llmmod.render.findings import parting
from llmmod.render.segments import SpecialTokens
from llmmod.upstream import require_upstream

Span = tuple[int, int]
MessageDict = dict[str, Any]  # a message as chat templates read it
_BARE = {"role", "content"}
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_PROBE = "llmmod's probe"  # an answer that is easy to find in rendered text


class RenderedChat(NamedTuple):
    """The text that a template rendered.

    Args:
        text: the whole text.
        answers: start and end of each answer with its terminator; None if the template writes an answer differently once more messages
            follow it.
    """

    text: str
    answers: list[Span] | None


class Frame(NamedTuple):
    """The text that a template writes around an answer.

    Args:
        before: the text between the prompt and the answer's own text.
        after: the text between the answer's own text and the terminator.
        terminator: the special token that ends an answer, or None.
        is_written: whether the template writes the terminator after the last answer too. GLM-4's doesn't: the first token of the next turn
            ends an answer.
    """

    before: str
    after: str
    terminator: str | None
    is_written: bool


class ChatTemplate:
    """A chat template with its tokenizer.

    Args:
        tokenizer: gives the template its special tokens.
        template: the jinja text.
        special: the tokenizer's special tokens.

    Raises:
        ConfigError: the template fails on a simple conversation, or the position of an answer in its text is ambiguous.
    """

    def __init__(self, tokenizer: Any, template: str, special: SpecialTokens) -> None:
        self._tokenizer, self.text, self._special = tokenizer, template, special
        self._tokens = _plain(tokenizer.special_tokens_map)
        self._reasoning = reasoning_names(template)
        self._has_tags = _GENERATION.search(template) is not None
        try:
            self.frame = self._probe()
        except DataError as error:
            raise ConfigError(Problem("render.template", error.problem.found, do="Choose a render instead: render=chatml, …")) from error

    def write(self, messages: Sequence[Message], *, asks: bool, tools: Sequence[Any] = ()) -> RenderedChat:
        """The text of messages; with `asks`, the generation prompt of the next answer follows them.

        Raises:
            DataError: the template refuses the messages.
            ConfigError: the beginning of an answer is ambiguous.
        """
        if self._has_tags:
            text, spans = self._tagged(messages, asks, tools)
            return RenderedChat(text, spans)
        dicts = self._dicts(messages)
        text = self._string(dicts, asks, tools)
        answers: list[Span] = []
        for index, message in enumerate(messages):
            if message.role == "assistant":
                is_whole = index + 1 == len(messages) and not asks  # saves a third of the time with one question
                upto, span = self._last_answer(dicts[: index + 1], tools, text if is_whole else None)
                if not text.startswith(upto):
                    return RenderedChat(text, None)
                answers.append((span[0], self._with_terminator(text, span[1])))
        return RenderedChat(text, answers)

    def last_answer(self, messages: Sequence[Message], *, tools: Sequence[Any] = ()) -> tuple[str, Span]:
        """The text of messages up to the end of the last one, which is an answer, and that answer's start and end."""
        if self._has_tags:
            text, spans = self._tagged(messages, False, tools)
            return text[: spans[-1][1]], spans[-1]
        return self._last_answer(self._dicts(messages), tools)

    def _last_answer(self, dicts: Sequence[MessageDict], tools: Sequence[Any], text: str | None = None) -> tuple[str, Span]:
        text = self._string(dicts, False, tools) if text is None else text
        start = self._prompt_length(dicts, tools, text)
        end = self._end(text, start)
        return text[:end], (start, end)

    def _prompt_length(self, dicts: Sequence[MessageDict], tools: Sequence[Any], text: str) -> int:
        """The length of the prompt in `text`, the text of messages that end with an answer."""
        before = self._string(dicts[:-1], True, tools)
        if not text.startswith(before):
            raise ConfigError(_undecided(before, text))
        return len(before)

    def _end(self, text: str, start: int) -> int:
        """The end of the answer that begins at `start`: after its terminator, or the end of the text."""
        found = self._special.first(text, start) if self.frame.is_written else None
        while found and found[2] != self.frame.terminator:
            found = self._special.first(text, found[1])
        return found[1] if found else len(text)

    def _with_terminator(self, text: str, end: int) -> int:
        """The end of an answer. It includes the next turn's first token if that token is the terminator."""
        name = self.frame.terminator or ""
        return end + len(name) if not self.frame.is_written and name and text.startswith(name, end) else end

    def _probe(self) -> Frame:
        question, answer = Message("user", "Hello"), Message("assistant", _PROBE)
        asked = [question, answer]
        dicts = self._dicts([question, answer, question])
        whole = self._string(dicts[:2], False, ())
        start = self._tagged(asked, False, ())[1][0][0] if self._has_tags else self._prompt_length(dicts[:2], (), whole)
        at = whole.find(_PROBE, start)
        if at < 0:
            raise DataError(Problem("render.template", "the chat template doesn't write answers as they are"))
        after = at + len(_PROBE)
        if found := self._special.first(whole, after):
            return Frame(whole[start:at], whole[after : found[0]], found[2], True)
        longer = self._string(dicts, False, ())
        found = self._special.first(longer, longer.find(_PROBE) + len(_PROBE))
        follows = found is not None and longer[: found[0]] == whole
        return Frame(whole[start:at], whole[after:], found[2] if found and follows else None, not follows)

    def _tagged(self, messages: Sequence[Message], asks: bool, tools: Sequence[Any]) -> tuple[str, list[Span]]:
        """The text of messages, and the start and end of each `{% generation %}` block."""
        from transformers.utils.chat_template_utils import render_jinja_template

        texts, spans = self._guarded(
            render_jinja_template,
            conversations=[self._dicts(messages)],
            tools=list(tools) or None,
            chat_template=self.text,
            return_assistant_tokens_mask=True,
            add_generation_prompt=asks,
            **self._tokenizer.special_tokens_map,
        )
        answers = [message for message in messages if message.role == "assistant"]
        if len(spans[0]) != len(answers):
            found = f"the chat template has {len(spans[0])} {{% generation %}} blocks for {len(answers)} answers"
            raise ConfigError(Problem("render.template", found, do="Put the tags around each answer with its terminator"))
        return texts[0], [(int(start), int(end)) for start, end in spans[0]]

    def _string(self, dicts: Sequence[MessageDict], asks: bool, tools: Sequence[Any]) -> str:
        if dicts and not tools and all(message.keys() == _BARE for message in dicts):
            # apply_chat_template renders such messages in the same way, but copies all of them each time. This takes half the time.
            named = {"messages": list(dicts), "tools": None, "documents": None, "add_generation_prompt": asks, **self._tokens}
            written: str = self._guarded(self._guarded(_compiler(), self.text).render, **named)
            return written
        text: str = self._guarded(
            self._tokenizer.apply_chat_template,
            list(dicts),
            tools=list(tools) or None,
            chat_template=self.text,
            add_generation_prompt=asks,
            tokenize=False,
        )
        return text

    def _guarded(self, call: Any, *args: Any, **named: Any) -> Any:
        from jinja2 import TemplateError

        try:
            return call(*args, **named)
        except (TemplateError, TypeError, ValueError) as error:
            raise DataError(Problem("a conversation", f"the chat template refuses it: {error}")) from error

    def _dicts(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        return [self._special.hide_all(as_dict(message, self._reasoning)) for message in messages]


def as_dict(message: Message, reasoning: Sequence[str]) -> MessageDict:
    """A message as chat templates read it.

    Args:
        message: the message.
        reasoning: the names under which the template reads reasoning.
    """
    calls = {"tool_calls": list(message.tool_calls)} if message.tool_calls else {}
    thoughts = dict.fromkeys(reasoning, message.reasoning) if message.reasoning else {}
    return {"role": message.role, "content": message.content, **calls, **thoughts}


def reasoning_names(template: str) -> list[str]:
    """The names under which a template reads a message's reasoning; empty if it never writes reasoning."""
    return [name for name in ("reasoning_content", "thinking", "reasoning") if re.search(rf"\b{name}\b", template)]


@functools.cache
def _compiler() -> Callable[[str], Any]:
    """The cached function with which `apply_chat_template` compiles a template."""
    from transformers.utils import chat_template_utils

    require_upstream(__name__)
    compiler: Callable[[str], Any] = chat_template_utils._compile_jinja_template
    return compiler


def _plain(tokens: Mapping[str, Any]) -> dict[str, Any]:
    """Special tokens as templates read them: strings, and lists of them."""
    return {name: list(map(str, found)) if isinstance(found, list | tuple) else str(found) for name, found in tokens.items()}


def _undecided(before: str, after: str) -> Problem:
    same = parting(before, after)
    return Problem(
        "render=auto",
        f"the beginning of an answer is ambiguous: the chat template ends a prompt with {before[same:][-60:]!r}"
        f" but writes {after[same:][:60]!r} there once the answer follows",
        do="Put {% generation %} … {% endgeneration %} around the answer (render.template=my.jinja), or choose a render",
    )
