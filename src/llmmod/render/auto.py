"""The tokenizer's own chat template as a render: `render=auto`.

Some templates write an answer differently once more messages follow it (Qwen3 drops its thoughts). Then each answer becomes an example of
its own, with the prompt that inference would use.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llmmod.config.schema.base import TrainOn
from llmmod.config.schema.data import RenderConf
from llmmod.errors import ConfigError, DataError, Problem
from llmmod.render.chat_template import ChatTemplate, Span
from llmmod.render.conversation import Conversation, Message, left_out
from llmmod.render.segments import Segment, SpecialTokens, segments, token_id
from llmmod.render.template import deciding_fields, inner_text

_READ = frozenset({"_target_", "name", "system", "stop_words", "use_history", "train_on", "verify", "template"})

# As `AutoTemplate._without_history`: keeps system messages, and what follows the last answer that is not the final message.
_WITHOUT_HISTORY = (
    "{% set before = namespace(count=0) %}{% for message in messages %}"
    "{% if message['role'] == 'assistant' and not loop.last %}{% set before.count = loop.index %}{% endif %}{% endfor %}"
    "{% set messages = messages[:before.count] | selectattr('role', 'equalto', 'system') | list + messages[before.count:] %}{{ '' }}"
)


class AutoTemplate:
    """A render by chat template.

    Args:
        tokenizer: its chat template is used, unless `template` gives another: a jinja text, or a path that ends in .jinja.
        conf: the fields of RenderConf; those that describe how a conversation is written must not be set.

    Raises:
        ConfigError: a missing or unusable chat template, or a field that it doesn't read.
    """

    def __init__(self, *, tokenizer: Any, **conf: Any) -> None:
        self.conf = RenderConf(**conf)
        problems = [
            Problem(f"render.{name}", "isn't read by render=auto, which writes what the chat template says", do="Choose another render")
            for name, default in asdict(RenderConf()).items()
            if name not in _READ and getattr(self.conf, name) != default
        ]
        stops = [token_id(word, tokenizer, key="render.stop_words", render="auto") for word in self.conf.stop_words]
        problems += [stop for stop in stops if isinstance(stop, Problem)]
        if problems:
            raise ConfigError(problems)
        self._special = SpecialTokens(tokenizer)
        self._chat = ChatTemplate(tokenizer, _template_text(tokenizer, self.conf.template), self._special)
        self._before, self._after = (self._text(part) for part in (self._chat.frame.before, self._chat.frame.after))
        name = self._chat.frame.terminator
        self.terminator = None if name is None else self._special.id(name)
        self.stop_ids: list[int] = list(dict.fromkeys(s for s in (self.terminator, tokenizer.eos_token_id, *stops) if isinstance(s, int)))

    def examples(self, conversation: Conversation, *, mask_prompt: bool = True) -> list[list[Segment]]:
        """The training examples of a conversation: one; or one for each answer without `use_history` or if the template rewrites history.

        Raises:
            DataError: none of its answers is trained, or the template refuses the messages.
            ConfigError: the beginning of an answer is ambiguous.
        """
        messages = self._messages(conversation)
        trained = [index for index, message in enumerate(messages) if message.role == "assistant" and message.train]
        if self.conf.train_on == TrainOn.last:
            last = max((index for index, message in enumerate(messages) if message.role == "assistant"), default=-1)
            trained = [index for index in trained if index == last]
        if not trained:
            do = "Leave such rows out, or set `train` of an answer"
            raise DataError(Problem("a conversation", "none of its answers is trained", do=do))
        if self.conf.use_history:
            return self._with_history(messages, trained, conversation.tools, mask_prompt)
        without_history = (self._without_history(messages, index) for index in trained)
        return [self._of_last_answer(group, conversation.tools, mask_prompt) for group in without_history]

    def prompt(self, conversation: Conversation) -> list[Segment]:
        """Everything up to the beginning of the next answer. An answer at the end is dropped, so that the model writes it."""
        messages = self._messages(conversation)
        if messages and messages[-1].role == "assistant":
            messages = messages[:-1]
        if not self.conf.use_history:
            messages = self._without_history(messages, len(messages))
        text, answers = self._chat.write(messages, asks=True, tools=conversation.tools)
        return self._segments(text, [(span, span[0]) for span in answers or ()], [False] * (len(answers or ()) + 1))

    def read_answer(self, text: str, *, ended: bool = True) -> str:
        """The answer in generated text, without the text that the template writes around an answer."""
        return inner_text(text, before=self._before, after=self._after, ended=ended)

    def chat_template(self) -> str:
        """The chat template; without `use_history`, statements in front of it remove the history."""
        return self._chat.text if self.conf.use_history else _WITHOUT_HISTORY + self._chat.text

    def identity(self) -> dict[str, Any]:
        """Every field that affects the tokens, and the text of the chat template."""
        return {"fields": deciding_fields(self.conf), "template": self.chat_template()}

    def _with_history(self, messages: Sequence[Message], trained: Sequence[int], tools: Sequence[Any], mask: bool) -> list[list[Segment]]:
        ends = [index for index, message in enumerate(messages) if message.role == "assistant"]
        messages = messages[: ends[-1] + 1]
        text, answers = self._chat.write(messages, asks=False, tools=tools)
        if answers is None:
            return [self._of_last_answer(messages[: index + 1], tools, mask) for index in trained]
        for (start, end), index in zip(answers, ends, strict=True):
            _check_written(messages[index], self._special.shown(text[start:end]))
        stops = [
            self._stop(messages[index], text, span) if index in trained else span[0] for span, index in zip(answers, ends, strict=True)
        ]
        example = self._segments(text[: answers[-1][1]], list(zip(answers, stops, strict=True)), _prompts(messages, mask))
        return [self._ended(example, ends[-1] in trained and not messages[-1].cut)]

    def _of_last_answer(self, messages: Sequence[Message], tools: Sequence[Any], mask: bool) -> list[Segment]:
        """An example with one trained answer, the last, after the prompt that inference would use."""
        before, history = self._chat.write(messages[:-1], asks=True, tools=tools)
        text, span = self._chat.last_answer(messages, tools=tools)
        _check_written(messages[-1], self._special.shown(text[span[0] : span[1]]))
        spans = [(answer, answer[0]) for answer in history or ()] if text.startswith(before) else []
        prompts = _prompts(messages, mask)
        all_spans = [*spans, (span, self._stop(messages[-1], text, span))]
        example = self._segments(text, all_spans, [*prompts[: len(spans)], all(prompts[len(spans) :])])
        return self._ended(example, not messages[-1].cut)

    def _stop(self, answer: Message, text: str, span: Span) -> int:
        """The end of the trained part of an answer: its own end, or the place where it was cut off."""
        start, end = span
        if not answer.cut:
            return end
        said = self._special.hide(answer.content.strip() or answer.reasoning.strip())
        at = text.rfind(said, start, end)
        rest = f"{self._chat.frame.after}{self._chat.frame.terminator or ''}"  # if the template changes the text
        return at + len(said) if at >= 0 else start + len(text[start:end].removesuffix(rest))

    def _segments(self, text: str, answers: Sequence[tuple[Span, int]], prompts: Sequence[bool]) -> list[Segment]:
        """Segments of a text: each answer up to the end of its trained part, and the text before each, which may be trained too."""
        found: list[Segment] = []
        at = 0
        for ((start, end), stop), before in zip(answers, prompts, strict=False):
            found += segments(self._special.split(text[at:start]), trained=before)
            found += segments(self._special.split(text[start:stop]), trained=True)
            found += segments(self._special.split(text[stop:end]), trained=False)
            at = end
        return found + segments(self._special.split(text[at:]), trained=False)

    def _text(self, written: str) -> str:
        """Rendered text as a decoded answer has it: without special tokens."""
        return "".join(piece for piece in self._special.split(written) if isinstance(piece, str))

    def _ended(self, example: list[Segment], trained: bool) -> list[Segment]:
        """An example with its terminator, also if the template writes it only as a part of the next turn."""
        unwritten = self.terminator is not None and not self._chat.frame.is_written
        return [*example, Segment(token=self.terminator, trained=trained)] if unwritten else example

    def _messages(self, conversation: Conversation) -> list[Message]:
        system = [Message("system", self.conf.system)] if self.conf.system and conversation.system is None else []
        return [*system, *conversation.messages]

    def _without_history(self, messages: Sequence[Message], answer: int) -> list[Message]:
        """The messages that an answer needs without history: the system message, the messages after the answer before, and itself."""
        before = max((index for index in range(answer) if messages[index].role == "assistant"), default=-1)
        return [m for m in messages[: before + 1] if m.role == "system"] + list(messages[before + 1 : answer + 1])


def _check_written(answer: Message, written: str) -> None:
    """Refuse an answer if the template leaves out one of its calls or its reasoning: training would see a different answer."""
    if missing := left_out(answer, written):
        do = "Choose a render that writes it, or leave such rows out"
        raise DataError(Problem("a conversation", f"the chat template leaves out {missing}", do=do))


def _prompts(messages: Sequence[Message], mask: bool) -> list[bool]:
    """Whether the text before each answer is trained: not if prompts are masked or one of its messages must not be trained."""
    return [not mask and all(message.train and message.role != "tool" for message in asked) for asked in _asked(messages)]


def _asked(messages: Sequence[Message]) -> Iterator[list[Message]]:
    asked: list[Message] = []
    for message in messages:
        if message.role == "assistant":
            yield asked
            asked = []
        else:
            asked.append(message)


def _template_text(tokenizer: Any, given: str | None) -> str:
    if given is not None and given.endswith(".jinja"):
        path = Path(given)
        if not path.is_file():
            raise ConfigError(Problem("render.template", f"no such file: {given}", do="Give a .jinja file, or the template's text"))
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            found = f"{given} is not UTF-8 text: byte 0x{error.object[error.start]:02x} can't be read"
            raise ConfigError(Problem("render.template", found, do="Save it as UTF-8")) from error
    if given is not None:
        return given
    if not tokenizer.chat_template:
        do = "Choose the render that the model was trained with (render=chatml, …), or give one: render.template=my.jinja"
        raise ConfigError(Problem("render=auto", "this tokenizer has no chat template", do=do))
    text: str = tokenizer.get_chat_template()
    return text
