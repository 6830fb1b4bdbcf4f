"""Conversations that this project wrote for the certificate: each has something in it that has gone wrong somewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from llmmod.render.conversation import Conversation, Message


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
