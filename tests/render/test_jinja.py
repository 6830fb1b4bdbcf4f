"""For every shipped render, the exported chat template writes the same string as the render."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmmod.render.conversation import Conversation, Message
from llmmod.render.template import Template

RENDERS = sorted(path.stem for path in (Path(__file__).parents[2] / "conf" / "render").glob("*.yaml") if path.stem != "auto")
USER, ANSWER = Message("user", " 你好\n"), Message("assistant", " 你好！\n")
LAST = Message("user", "{{ ns.round }} {{idx}} 1+1=? 😀")
CALL = Message("assistant", "", tool_calls=[{"type": "function", "function": {"name": "clock", "arguments": {"zone": "上海"}}}])
CONVERSATIONS = {
    "one-question": [LAST],
    "two-rounds": [USER, ANSWER, LAST],
    "system": [Message("system", "You are a {{system}}.\n"), USER, ANSWER, LAST],
    "empty-system": [Message("system", ""), USER, ANSWER, LAST],
    "three-rounds": [USER, ANSWER, USER, ANSWER, LAST],
    "tool": [Message("system", "S"), USER, CALL, Message("tool", "12:00"), Message("user", "Well?")],
}
TOOLS = [{"type": "function", "function": {"name": "clock", "description": "The time of a zone", "parameters": {}}}]


def as_string(segments, tokenizer):
    return "".join(tokenizer.convert_ids_to_tokens(token) if text is None else text for text, token, *_ in segments)


def as_dicts(conversation):
    calls = [{"tool_calls": list(message.tool_calls)} if message.tool_calls else {} for message in conversation.messages]
    return [{"role": m.role, "content": m.content, **call} for m, call in zip(conversation.messages, calls, strict=True)]


@pytest.mark.parametrize("said", CONVERSATIONS.values(), ids=CONVERSATIONS)
@pytest.mark.parametrize("name", RENDERS)
def test_the_chat_template_writes_the_prompt(name, said, shipped, byte_level):
    template = Template(tokenizer=byte_level, **shipped(name))
    conversation = Conversation(said, tools=TOOLS if said[-2:-1] and said[-2].role == "tool" else ())
    own = byte_level.apply_chat_template(
        as_dicts(conversation),
        tools=list(conversation.tools) or None,
        chat_template=template.chat_template(),
        add_generation_prompt=True,
        tokenize=False,
    )
    assert own == as_string(template.prompt(conversation), byte_level)


@pytest.mark.parametrize("name", RENDERS)
def test_the_chat_template_writes_an_answered_conversation(name, shipped, byte_level, two_turns):
    template = Template(tokenizer=byte_level, **shipped(name))
    own = byte_level.apply_chat_template(as_dicts(two_turns), chat_template=template.chat_template(), tokenize=False)
    assert own == as_string(template.examples(two_turns)[-1], byte_level)


def test_texts_of_the_render_are_kept_whatever_they_hold(byte_level):
    text = "\"'\\ {{ x }} {% if %} {# #} $question \u2028 é 😀\n\n"
    template = Template(tokenizer=byte_level, name="mine", prompt=[text, "{{query}}"], system=text)
    own = byte_level.apply_chat_template([{"role": "user", "content": "q"}], chat_template=template.chat_template(), tokenize=False)
    assert own == "<s>" + text + "q"
