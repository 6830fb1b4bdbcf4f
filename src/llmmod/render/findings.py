"""Findings of the certificate, the error that they become, and the synthetic conversations that it checks.

A seam shows the first difference between two lists of ids: the tokens before it, and how each list continues. The synthetic conversations
were written for this project; each contains something that has gone wrong in some tool.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from llmmod.errors import ConfigError, Problem
from llmmod.render.conversation import Conversation, Message

_BEFORE, _AFTER = 4, 6  # tokens shown on each side of a seam


@dataclass(frozen=True)
class Finding:
    """A check of the certificate that failed.

    Args:
        check: which of its checks failed.
        found: what was found, as a clause without a full stop.
        conversation: what is special about the conversation, or its row.
        seam: the tokens at the first difference, a line for each side; may be empty.
        fatal: whether training would be wrong; otherwise it is a warning.
    """

    check: str
    found: str
    conversation: str = ""
    seam: str = ""
    fatal: bool = True

    def __str__(self) -> str:
        return "\n".join([f"{self.found} (seen in: {self.conversation})", self.seam]).rstrip()


@dataclass(frozen=True)
class Refusal(Problem):
    """A finding as a problem of the configuration, with the tokens at the seam below it."""

    seam: str = ""

    def __str__(self) -> str:
        return "\n".join([super().__str__(), self.seam] if self.seam else [super().__str__()])


def refuse(findings: Iterable[Finding], key: str) -> None:
    """Raise an error if a finding is fatal.

    Args:
        findings: of the certificate.
        key: `render=<name>` or `tokenizer`.

    Raises:
        ConfigError: with every fatal finding.
    """
    do = f"Fix the {key.partition('=')[0]}, choose another, or train anyway: render.verify=false"
    fatal = [
        Refusal(key, f"{finding.found} (seen in: {finding.conversation})", do=do, seam=finding.seam)
        for finding in findings
        if finding.fatal
    ]
    if fatal:
        raise ConfigError(fatal)


def seam(tokenizer: Any, **ids: Sequence[int]) -> str:
    """A line for each list, from a few tokens before their first difference.

    Args:
        tokenizer: gives the tokens' spellings.
        ids: name -> ids, or labels; two lists that are not equal.
    """
    one, other = ids.values()
    at = parting(one, other)
    width = max(map(len, ids))
    return "\n".join(f"  {name:>{width}}: {_shown(tokenizer, list(found), at)}" for name, found in ids.items())


def parting(one: Sequence[Any], other: Sequence[Any]) -> int:
    """The first position at which two sequences differ; the length of the shorter one if the longer one begins with it."""
    return next((index for index, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def spelling(tokenizer: Any, token: int) -> str:
    """A token and its id on one line: its text in quotes, or its spelling in the vocabulary if the token is not a whole text."""
    name, text = str(tokenizer.convert_ids_to_tokens(token)), tokenizer.decode([token])
    is_text = text and text != name and "\ufffd" not in text and not name.startswith("▁")
    return f"{repr(text) if is_text else name}({token})"


def _shown(tokenizer: Any, ids: list[int], at: int) -> str:
    start, end = max(0, at - _BEFORE), at + _AFTER
    spelt = ["masked" if token < 0 else spelling(tokenizer, token) for token in ids[start:end]]
    before, after = " ".join(spelt[: at - start]), " ".join(spelt[at - start :]) or "the end"
    return f"{'… ' if start else ''}{before} ▶ {after}{' …' if end < len(ids) else ''}"


def synthetic_conversations(tokens: Sequence[str]) -> Mapping[str, Conversation]:
    """What is special about a conversation -> the conversation.

    Args:
        tokens: spellings of special tokens, which no text may become.
    """
    spelt = " ".join(tokens)
    return {
        "one question": _talk("What is 2 + 2?", "It is 4."),
        "three rounds": _talk("Hello", "Hi! How can I help?", "Count to three.", "1, 2, 3.", "Thanks!", "You are welcome."),
        "a system text": _talk("Who are you?", "A test.", "Sure?", "Yes.", system="You answer in few words."),
        "an empty system text": _talk("Who are you?", "A test.", "Sure?", "Yes.", system=""),
        "Chinese": _talk("一加一等于几？", "等于二。", "再加一呢？", "等于三。", system="你是一个乐于助人的助手。"),
        "emoji": _talk("🙂 or 🙃?", "🙃, of course 👩‍🔬", "Why? 🇨🇳", "🤷"),
        "white space at the seams": _talk("  two spaces \n", " one space ", "\n\na break\n", "\ta tab\n\n", system=" S \n"),
        "placeholders in the text": _talk("{{idx}} {{query}} {{system}}", "{{response}} {{idx}}", "{{response}}", "{{query}}"),
        "special tokens in the text": _talk(f"Is {spelt} text?", f"{spelt} is text.", f"{spelt}", "Yes.", system=f"Say {spelt}."),
    }


def synthetic_texts(tokens: Sequence[str]) -> Mapping[str, str]:
    """What is special about a text -> the text, for documents.

    Args:
        tokens: spellings of special tokens, which no text may become.
    """
    texts = {name: "\n".join(m.content for m in talk.messages) for name, talk in synthetic_conversations(tokens).items()}
    return {name: text for name, text in texts.items() if text.strip()}


def neutral(conversation: Conversation) -> Conversation:
    """The same conversation with nothing in its texts, but empty where they were."""
    messages = [replace(message, content="x" if message.content else "") for message in conversation.messages]
    return Conversation(messages, conversation.tools)


def _talk(*texts: str, system: str | None = None) -> Conversation:
    said = [Message("user" if index % 2 == 0 else "assistant", text) for index, text in enumerate(texts)]
    return Conversation(said if system is None else [Message("system", system), *said])
