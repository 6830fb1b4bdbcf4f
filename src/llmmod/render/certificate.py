"""The certificate: it shows on examples, before training, that training and inference use the same tokens.

It checks each answer of some conversations. Training must see the ids of the prompt that `chat` and `predict` use, followed by the answer's
ids. Only the answer and its terminator may be trained. Generation must stop at that terminator and not earlier. A text must not turn into a
special token or lose a word. The exported chat template, encoded as one string, must give the prompt's ids.
The certificate can't know which format the model was trained with. It reports where the tokenizer's own template differs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import takewhile
from typing import Any, NamedTuple

from llmmod.config.schema.base import TrainOn
from llmmod.errors import DataError
from llmmod.render.chat_template import as_dict, reasoning_names
from llmmod.render.conversation import Conversation, tool_names
from llmmod.render.encode import IGNORED, Encoded, TextEncoder, encode
from llmmod.render.export import exported
from llmmod.render.findings import Finding, neutral, seam, spelling, synthetic_conversations
from llmmod.render.segments import Piece, Render, Segment, segments


def certify(render: Render, tokenizer: Any, conversations: Mapping[str, Conversation] | Iterable[Conversation] = ()) -> list[Finding]:
    """The first finding of each check that fails; empty if all checks pass.

    Args:
        render: the render to check.
        tokenizer: the tokenizer to check it with.
        conversations: the first ones of the data, checked in addition to the synthetic ones; by name, or numbered from 1.
    """
    given = conversations if isinstance(conversations, Mapping) else {f"row {n}": c for n, c in enumerate(conversations, start=1)}
    proof = _Proof(render, tokenizer)
    found: dict[str, Finding] = {}
    for name, conversation in synthetic_conversations(proof.spellings).items():
        for finding in proof.findings(conversation):
            found.setdefault(finding.check, replace(finding, conversation=name))
    for name, conversation in given.items():
        for finding in proof.findings(conversation):
            # A chat template may treat some texts specially (thoughts), or two texts of a row may merge. The render is not at fault.
            fatal = finding.fatal and finding.check not in ("texts", "exported")
            found.setdefault(finding.check, replace(finding, conversation=name, fatal=fatal))
    if not proof.answers:
        found["nothing"] = Finding("nothing", "the render refuses every conversation", "all of them")
    return list(found.values())


class _Answer(NamedTuple):
    """The last answer of a conversation, as training and as inference see it."""

    conversation: Conversation
    asked: list[Segment]
    written: list[Segment]
    prompt: list[int]
    example: Encoded
    neutral: list[int]  # the example's ids if all of its texts were empty

    @property
    def ids(self) -> list[int]:
        return self.example.input_ids[len(self.prompt) :]

    @property
    def labels(self) -> list[int]:
        return self.example.labels[len(self.prompt) :]


class _Proof:
    """The checks, for one render and tokenizer."""

    def __init__(self, render: Render, tokenizer: Any) -> None:
        self.render, self.tokenizer = render, tokenizer
        self.encoder = TextEncoder(tokenizer)
        self.added = dict(tokenizer.added_tokens_decoder)
        self.answers = 0  # the number of answers checked
        asked = render.prompt(neutral(synthetic_conversations([])["one question"]))
        written = [segment.token for segment in asked if segment.token is not None]
        self.special = frozenset([*tokenizer.all_special_ids, *render.stop_ids, *written]) - {tokenizer.unk_token_id}
        self.spellings: list[str] = list(tokenizer.convert_ids_to_tokens(sorted(self.special)))

    def findings(self, conversation: Conversation) -> Iterator[Finding]:
        """The faults of each answer, then of the whole conversation."""
        try:
            answers = self._answers(conversation)
        except DataError:  # a template may refuse a role or an empty text; such a row isn't trained either
            return
        self.answers += len(answers)
        for answer in answers:
            if answer.example.input_ids[: len(answer.prompt)] != answer.prompt:
                where = seam(self.tokenizer, training=answer.example.input_ids, inference=answer.prompt)
                yield Finding("prompt", "training sees another prompt than inference asks with", seam=where)
                return
            for check in (self._labels, self._terminator, self._pieces, self._special_tokens, self._texts, self._exported, self._space):
                yield from check(answer)
        yield from self._whole(conversation, answers)

    def _answers(self, conversation: Conversation) -> list[_Answer]:
        upto = [_ending(conversation, index) for index, message in enumerate(conversation.messages) if message.role == "assistant"]
        written = [self.render.examples(one)[-1] for one in upto]
        asked = [self.render.prompt(one) for one in upto]
        plain = [self.render.examples(neutral(one))[-1] for one in upto]
        ids = encode([*written, *asked, *plain], self.tokenizer)
        count = len(upto)
        columns = zip(upto, asked, written, ids[count : 2 * count], ids[:count], ids[2 * count :], strict=True)
        return [_Answer(one, a, w, prompt.input_ids, example, n.input_ids) for one, a, w, prompt, example, n in columns]

    def _labels(self, answer: _Answer) -> Iterator[Finding]:
        if answer.labels == answer.ids:
            return
        found = "an answer's labels are not its ids"
        if set(answer.labels) <= {IGNORED}:
            found = "an answer isn't trained"
        elif answer.labels[:-1] == answer.ids[:-1]:
            found = f"the terminator {self._spelt(answer.ids[-1:])} isn't trained, so generation won't learn to stop"
        yield Finding("labels", found, seam=seam(self.tokenizer, ids=answer.ids, labels=answer.labels))

    def _terminator(self, answer: _Answer) -> Iterator[Finding]:
        stops = set(self.render.stop_ids)
        if answer.ids[-1:] and answer.ids[-1] not in stops:
            found = f"an answer ends with {self._spelt(answer.ids[-1:])}, where generation doesn't stop"
            yield Finding("terminator", f"{found}; it stops at {self._spelt(self.render.stop_ids)}")
        elif early := stops.intersection(answer.ids[:-1]):
            yield Finding("terminator", f"generation stops at {self._spelt(sorted(early))}, before an answer's end")

    def _pieces(self, answer: _Answer) -> Iterator[Finding]:
        """An answer must be encoded as one text, as the tokenizer encodes it."""
        trained = list(takewhile(lambda segment: segment.trained, reversed(answer.written)))[::-1]
        if any(spelling in (segment.text or "") for segment in _joined(trained) for spelling in self.spellings):
            return
        previous = _content(answer.asked[-1]) if answer.asked else None
        expected: list[int] = []
        for segment in _joined(trained):
            continuing = self.encoder.continues(previous)
            previous = _content(segment)
            expected += self.encoder.encode([previous], continuing=continuing)[0] if isinstance(previous, str) else [previous]
        if expected != answer.ids:
            where = seam(self.tokenizer, training=answer.ids, whole=expected)
            yield Finding("pieces", "an answer isn't encoded as the tokenizer encodes its text", seam=where)

    def _special_tokens(self, answer: _Answer) -> Iterator[Finding]:
        ids = answer.example.input_ids
        found, expected = ([token for token in one if token in self.special] for one in (ids, answer.neutral))
        if found != expected:
            yield Finding("injection", "a text became a special token", seam=seam(self.tokenizer, found=found, expected=expected))
        if len(ids) > 1 and ids[0] == ids[1] == self.tokenizer.bos_token_id:
            yield Finding("bos", f"the beginning token stands twice: {self._spelt(ids[:3])}")

    def _texts(self, answer: _Answer) -> Iterator[Finding]:
        written = "".join(segment.text or "" for segment in answer.written)
        messages = list(answer.conversation.messages)
        asked = list(takewhile(lambda message: message.role != "assistant", reversed(messages[:-1])))
        for message in [*asked, messages[-1]]:
            if message.content.strip() not in written and message.role != "system":
                yield Finding("texts", f"a text of the {message.role} isn't written as it is: {message.content.strip()[:80]!r}")
        system = answer.conversation.system
        if system and system.strip() not in written:
            yield Finding("system", "this render leaves a system text out", fatal=False)
        if any(name not in written for name in tool_names(answer.conversation.tools)):
            yield Finding("tools", "this render leaves the definitions of tools out", fatal=False)

    def _exported(self, answer: _Answer) -> Iterator[Finding]:
        """The exported chat template, and the tokenizer's own."""
        texts = [message.content for message in answer.conversation.messages[:-1]]
        history = [message.content for message in answer.conversation.messages[:-1] if message.role == "assistant"]
        if any(spelling in text for text in texts for spelling in self.spellings) or any(text != text.strip() for text in history):
            return  # in one string these can't be told apart, see llmmod.render.export
        asked = list(map(_content, answer.asked))
        tokens = [token for token in dict.fromkeys(asked) if isinstance(token, int)]
        swallows = self._swallowing(asked)
        tokenizer, template = self._to_export
        unwritable = [token for token in tokens if token in swallows or not _writable(tokenizer, token)]
        if unwritable:
            found = f"a chat template can't write {self._spelt(unwritable)}: programs that use the exported one must add it"
            yield Finding("unwritable", found, fatal=False)
        else:
            yield from self._compared(answer, tokenizer, template, "exported", "the exported chat template gives", fatal=True)
        if self.tokenizer.chat_template and self.tokenizer.chat_template != self.render.chat_template():
            yield from self._compared(answer, self.tokenizer, None, "own", "the tokenizer's own chat template gives", fatal=False)

    @cached_property
    def _to_export(self) -> tuple[Any, str]:
        return exported(self.render, self.tokenizer)

    def _compared(self, answer: _Answer, tokenizer: Any, template: str | None, check: str, what: str, *, fatal: bool) -> Iterator[Finding]:
        from jinja2 import TemplateError

        names = reasoning_names(template or str(tokenizer.chat_template))
        messages = [as_dict(message, names) for message in answer.conversation.messages[:-1]]
        tools = list(answer.conversation.tools) or None
        named = {"tools": tools, "chat_template": template, "add_generation_prompt": True, "return_dict": False}
        try:
            ids = list(tokenizer.apply_chat_template(messages, **named))
        except (TemplateError, TypeError, ValueError) as error:
            yield Finding(check, f"{what} an error: {error}", fatal=fatal)
            return
        if ids != answer.prompt:
            yield Finding(
                check, f"{what} other ids than the prompt", seam=seam(self.tokenizer, render=answer.prompt, template=ids), fatal=fatal
            )

    def _space(self, answer: _Answer) -> Iterator[Finding]:
        """If a prompt ends with a space, the tokenizer must not merge that space with the answer."""
        tail, first = answer.asked[-1].text if answer.asked else None, _joined(answer.written[len(answer.asked) :])[:1]
        text = first[0].text if first else None
        if not tail or not text or not tail.endswith(" ") or text[0].isspace():
            return
        apart, together = self.encoder.encode([tail, tail + text])
        if together[: len(apart)] != apart:
            where = seam(self.tokenizer, prompt=apart, together=together)
            yield Finding("space", "the space that ends the prompt belongs to the answer's first token", seam=where)

    def _whole(self, conversation: Conversation, answers: Sequence[_Answer]) -> Iterator[Finding]:
        """In a whole conversation, exactly the answers that should be trained are trained."""
        conf = getattr(self.render, "conf", None)
        flags = [message.train for message in conversation.messages if message.role == "assistant"]
        if conf is None or not flags:
            return
        if conf.train_on == TrainOn.last:
            flags = [False] * (len(flags) - 1) + flags[-1:]
        expected = [token for answer, trained in zip(answers, flags, strict=True) if trained for token in answer.ids]
        if not expected:
            return
        examples = encode(self.render.examples(conversation), self.tokenizer)
        found = [label for example in examples for label in example.labels if label != IGNORED]
        if found != expected:
            where = seam(self.tokenizer, trained=found, answers=expected)
            yield Finding("answers", "what is trained of a conversation is not its answers", seam=where)

    def _swallowing(self, pieces: Sequence[Piece]) -> set[int]:
        """Tokens next to white space that they absorb when both are in one string: `lstrip` and `rstrip` of an AddedToken."""
        found = set()
        for before, token, after in zip(["", *pieces], pieces, [*pieces[1:], ""], strict=False):
            added = self.added.get(token) if isinstance(token, int) else None
            left = added is not None and added.lstrip and isinstance(before, str) and before[-1:].isspace()
            right = added is not None and added.rstrip and isinstance(after, str) and after[:1].isspace()
            if isinstance(token, int) and (left or right):
                found.add(token)
        return found

    def _spelt(self, ids: Sequence[int]) -> str:
        return " ".join(spelling(self.tokenizer, token) for token in ids)


def _writable(tokenizer: Any, token: int) -> bool:
    """Whether a tokenizer reads the token's spelling, inside a longer string, as that token."""
    ids = tokenizer(str(tokenizer.convert_ids_to_tokens(token)), add_special_tokens=False)["input_ids"]
    return list(ids) == [token]


def _ending(conversation: Conversation, index: int) -> Conversation:
    """A conversation up to one of its answers; that answer is trained."""
    messages = list(conversation.messages[: index + 1])
    return Conversation([*messages[:-1], replace(messages[-1], train=True)], conversation.tools)


def _content(segment: Segment) -> Piece:
    content = segment.token if segment.text is None else segment.text
    assert content is not None
    return content


def _joined(found: Sequence[Segment]) -> list[Segment]:
    """The same segments with neighbouring texts joined."""
    return segments(map(_content, found), trained=True)
