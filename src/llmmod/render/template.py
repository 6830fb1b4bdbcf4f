"""A render from its YAML file: conversations in, segments out.

The names and the order of the parts are those of LLaMA-Efficient-Tuning 0.2 (src/llmtuner/extras/template.py). Differences: rounds count
from 1, BOS stands where the tokenizer itself puts it, an answer's terminator can be any token, the prompt's text between two tokens is one
piece, and placeholders in a text of the conversation are not replaced.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from llmmod.config.schema.base import Bos, TrainOn
from llmmod.config.schema.data import RenderConf
from llmmod.errors import ConfigError, DataError, Problem
from llmmod.render.conversation import Conversation, Turn
from llmmod.render.encode import TextEncoder, break_up
from llmmod.render.segments import Part, Piece, Segment, Slot, fill, move_spaces, own_beginning, read_part, segments, token_id

_SLOTS: Mapping[str, tuple[tuple[str, ...], str]] = {  # part -> placeholders it may have, and the one it needs
    "prefix": (("system", "idx"), ""),
    "empty_prefix": (("idx",), ""),
    "prompt": (("query", "system", "idx"), "query"),
    "response": (("response", "idx"), "response"),
    "sep": (("idx",), ""),
}


def deciding_fields(conf: RenderConf) -> dict[str, Any]:
    """The fields of a render that affect the tokens."""
    return {name: value for name, value in asdict(conf).items() if name not in ("name", "verify")}


class Template:
    """A render made of parts.

    Args:
        tokenizer: looks up the tokens that the render names.
        conf: the fields of RenderConf.

    Raises:
        ConfigError: with every token that the tokenizer doesn't know, every invalid item and every unknown placeholder.
    """

    def __init__(self, *, tokenizer: Any, **conf: Any) -> None:
        self.conf = RenderConf(**conf)
        problems: list[Problem] = []
        parts = {name: self._read(name, tokenizer, problems) for name in _SLOTS}
        self.prefix, self.empty_prefix, self.sep = parts["prefix"], parts["empty_prefix"], parts["sep"]
        self.prompt_part, self.response = move_spaces(parts["prompt"], parts["response"])
        if self.conf.template is not None:
            problems.append(Problem("render.template", "only render=auto reads it", do="Set render=auto, or leave it out"))
        self.terminator = self._terminator(problems)
        self.stop_ids = self._stop_ids(tokenizer, problems)
        if problems:
            raise ConfigError(problems)
        self.bos_id = _beginning(self.conf.bos, tokenizer)
        self.token_texts = dict(zip(self._tokens(), tokenizer.convert_ids_to_tokens(self._tokens()), strict=True))
        self._spelt = TextEncoder(tokenizer).tokens_in_text(list(self.token_texts.values()))

    def examples(self, conversation: Conversation, *, mask_prompt: bool = True) -> list[list[Segment]]:
        """The training examples of a conversation: one, or one for each turn without `use_history`, up to the last answer.

        Args:
            conversation: at least one answer in it must be trained.
            mask_prompt: false trains the prompt too, except tool results and messages marked as not to be trained.

        Raises:
            DataError: none of its answers is trained, or the messages don't alternate.
        """
        if any(message.reasoning and message.train for message in conversation.messages):
            do = "Choose render=auto with a chat template that writes it, put it into the answers' texts, or leave such rows out"
            raise DataError(Problem("a conversation", f"render={self.conf.name} leaves out the reasoning of an answer", do=do))
        turns = [turn for turn in conversation.turns() if turn.answer is not None]
        if self.conf.train_on == TrainOn.last:
            turns = [turn._replace(train_answer=False) for turn in turns[:-1]] + turns[-1:]
        groups = [turns] if self.conf.use_history else [[turn] for turn in turns]
        trained = [group for group in groups if any(turn.train_answer for turn in group)]
        if not trained:
            do = "Leave such rows out, or set `train` of an answer"
            raise DataError(Problem("a conversation", "none of its answers is trained", do=do))
        return [self._write(group, self._system(conversation), mask_prompt) for group in trained]

    def prompt(self, conversation: Conversation) -> list[Segment]:
        """Everything up to the beginning of the next answer. An answer at the end is dropped, so that the model writes it."""
        turns = list(conversation.turns()) or [Turn("", None)]
        turns[-1] = turns[-1]._replace(answer=None)
        return self._write(turns if self.conf.use_history else turns[-1:], self._system(conversation), True)

    def read_answer(self, text: str, *, ended: bool = True) -> str:
        """The answer in generated text, without the text that the render writes around an answer."""
        at = self.response.index(Slot("response"))
        before = "".join(piece for piece in self.response[:at] if isinstance(piece, str))
        after = "".join(piece for piece in self.response[at + 1 :] if isinstance(piece, str))
        return inner_text(text, before=before, after=after, ended=ended)

    def chat_template(self) -> str:
        """A jinja chat template that writes the same text, tokens spelt out."""
        from llmmod.render.export import write_chat_template

        return write_chat_template(self)

    def identity(self) -> dict[str, Any]:
        """Every field that affects the tokens."""
        return {"fields": deciding_fields(self.conf)}

    def _write(self, turns: Sequence[Turn], system: str, mask_prompt: bool) -> list[Segment]:
        found: list[Segment] = []
        for index, turn in enumerate(turns):
            values = {"idx": str(self.conf.first_round + index), "system": system}
            values |= self._texts(turn, values if index == 0 else None)
            asked = segments(self._question(values, first=index == 0), trained=turn.train_query and not mask_prompt)
            if asked and index and self.conf.efficient_eos and turns[index - 1].train_answer and turns[index - 1].after_cut is None:
                asked[0] = asked[0]._replace(first_label=self.terminator)
            found += asked
            if turn.answer is not None:
                ends_here = not self.conf.efficient_eos or index + 1 == len(turns)
                response = self.response if ends_here else self.response[:-1]
                found += self._answer(fill(response, values), turn)
        return [piece for segment in found for piece in self._kept_text(segment)] if self._spelt else found

    def _answer(self, pieces: Sequence[Piece], turn: Turn) -> list[Segment]:
        """The segments of an answer. If it was cut off, nothing after its text is trained."""
        if turn.after_cut is None:
            return segments(pieces, trained=turn.train_answer)
        end = self.response.index(Slot("response")) + 1
        said, untrained = pieces[:end], [turn.after_cut, *pieces[end:]]
        if not turn.train_answer:
            return segments([*said, *untrained], trained=False)
        return segments(said, trained=True) + segments(untrained, trained=False)

    def _kept_text(self, segment: Segment) -> list[Segment]:
        """The segment, split if its text spells a token that the tokenizer would recognise."""
        if segment.text is None:
            return [segment]
        first, *rest = break_up(segment.text, self._spelt)
        return [segment._replace(text=first), *(segment._replace(text=text, first_label=None) for text in rest)]

    def _texts(self, turn: Turn, first: Mapping[str, str] | None) -> dict[str, str]:
        """Query and response as they are written; `first`: the values of the first turn, whose query may begin with the prefix."""
        query, answer = turn.query, turn.answer or ""
        if self.conf.system_in_query and first is not None:
            query = "".join(str(piece) for piece in self._prefix(first)) + query
        return {"query": query.strip(), "response": answer.strip()} if self.conf.strip else {"query": query, "response": answer}

    def _question(self, values: Mapping[str, str], *, first: bool) -> list[Piece]:
        """The pieces between two answers."""
        pieces = fill(self.prompt_part, values)
        if not first:
            return fill(self.sep, values) + self._begin(pieces, self.conf.bos == Bos.each_turn)
        prefix = [] if self.conf.system_in_query else self._prefix(values)
        return self._begin([*prefix, *pieces], True)

    def _prefix(self, values: Mapping[str, str]) -> list[Piece]:
        """The pieces before the first turn."""
        if not values["system"] and self.conf.empty_prefix is not None:
            return fill(self.empty_prefix, values)
        prefix = [piece for piece in fill(self.prefix, values) if piece != ""]
        return [*prefix, *fill(self.sep, values)] if prefix and not self.conf.system_in_query else prefix

    def _begin(self, pieces: list[Piece], wanted: bool) -> list[Piece]:
        """The pieces with the beginning token in front, unless it is there already."""
        return [self.bos_id, *pieces] if wanted and self.bos_id is not None and pieces[:1] != [self.bos_id] else pieces

    def _system(self, conversation: Conversation) -> str:
        """The conversation's system text, else the render's; definitions of tools follow it, a line of JSON each."""
        text = self.conf.system if conversation.system is None else conversation.system
        return "\n".join([text] * bool(text) + [json.dumps(tool, ensure_ascii=False) for tool in conversation.tools])

    def _read(self, name: str, tokenizer: Any, problems: list[Problem]) -> Part:
        slots, needs = _SLOTS[name]
        items = getattr(self.conf, name) or []
        part, found = read_part(items, slots, tokenizer, key=f"render.{name}", render=self.conf.name, needs=needs)
        problems += found
        return part

    def _terminator(self, problems: list[Problem]) -> int | None:
        """The token that ends an answer; None if the response ends with a text, and the certificate then refuses the render."""
        last = self.response[-1] if self.response else None
        if self.conf.efficient_eos and not isinstance(last, int) and not problems:
            problems.append(Problem("render.response", "efficient_eos needs a token at its end", do="End it with {token: eos_token}"))
        if self.conf.system_in_query and any(isinstance(piece, int) for piece in [*self.prefix, *self.empty_prefix]):
            problems.append(Problem("render.prefix", "has a token, but system_in_query turns it into a text", do="Write texts only"))
        return last if isinstance(last, int) else None

    def _stop_ids(self, tokenizer: Any, problems: list[Problem]) -> list[int]:
        found = [self.terminator, tokenizer.eos_token_id]
        for number, word in enumerate(self.conf.stop_words):
            stop = token_id(word, tokenizer, key=f"render.stop_words[{number}]", render=self.conf.name)
            (problems if isinstance(stop, Problem) else found).append(stop)  # type: ignore[arg-type]
        return list(dict.fromkeys(stop for stop in found if stop is not None))

    def _tokens(self) -> list[int]:
        """Every token that the render writes or stops at."""
        written = [*self.prefix, *self.empty_prefix, *self.prompt_part, *self.response, *self.sep, self.bos_id, *self.stop_ids]
        return list(dict.fromkeys(piece for piece in written if isinstance(piece, int)))


def _beginning(where: Bos, tokenizer: Any) -> int | None:
    """The token that texts begin with, or None."""
    if where == Bos.never:
        return None
    bos: int | None = own_beginning(tokenizer) if where == Bos.auto else tokenizer.bos_token_id
    return bos


def inner_text(text: str, *, before: str = "", after: str = "", ended: bool = True) -> str:
    """The answer in `text`, without `before`, `after` and white space at either end.

    Other text that a model writes there (thoughts, if the template has none) is part of its answer.

    Args:
        text: generated so far.
        before: the text that the render writes before an answer's own text, e.g. Qwen3's `<think>\\n\\n</think>\\n\\n`.
        after: the text that it writes between the answer's own text and the terminator.
        ended: false: more text may follow. The result is then a beginning of the final answer, whatever follows.
    """
    # A tokenizer may drop a space at the beginning of a text, so white space isn't compared.
    before, after, text = before.strip(), after.strip(), text.lstrip()
    if not ended and before.startswith(text):
        return ""
    text = text.removeprefix(before).strip()
    if ended:
        return text.removesuffix(after).rstrip()
    begun = next((size for size in range(min(len(after), len(text)), 0, -1) if text.endswith(after[:size])), 0)
    return text[: len(text) - begun].rstrip()
