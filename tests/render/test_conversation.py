from __future__ import annotations

import pytest

from llmmod.errors import DataError
from llmmod.render.conversation import Conversation, Message, Turn, tool_names


def test_turns_pair_questions_with_answers_and_leave_the_last_question_open():
    messages = [Message("system", "S"), Message("user", "a"), Message("assistant", "b", train=False), Message("user", "c")]
    assert list(Conversation(messages).turns()) == [Turn("a", "b", True, False), Turn("c", None, True, False)]


def test_a_tool_result_is_part_of_the_question_and_keeps_it_from_being_trained():
    call = {"name": "clock", "arguments": {"zone": "上海"}}
    messages = [
        Message("user", "How late is it?"),
        Message("assistant", "", tool_calls=[call]),
        Message("tool", "12:00"),
        Message("user", "Well?"),
        Message("assistant", "Noon."),
    ]
    asked, told = Conversation(messages).turns()
    assert asked == Turn("How late is it?", '{"name": "clock", "arguments": {"zone": "上海"}}')
    assert told == Turn("12:00\nWell?", "Noon.", train_query=False)


def test_an_empty_system_text_is_a_system_text():
    assert Conversation([Message("system", ""), Message("user", "a")]).system == ""
    assert Conversation([Message("user", "a")]).system is None


@pytest.mark.parametrize(
    ("roles", "says"),
    [
        (["assistant"], "a conversation: message 1 is an answer without a question before it"),
        (["user", "assistant", "assistant"], "a conversation: message 3 is an answer without a question before it"),
        (["user", "system"], "a conversation: message 2 is a system message, but not the first message. Put it first."),
        (["user", "human"], "a conversation: message 2 has the role 'human'. Known are system, user, assistant, tool."),
    ],
    ids=["answer-first", "two-answers", "late-system", "unknown-role"],
)
def test_messages_that_do_not_take_turns_are_refused(roles, says):
    with pytest.raises(DataError) as error:
        list(Conversation([Message(role, "x") for role in roles]).turns())
    assert str(error.value).startswith(says)


def test_the_names_of_tools():
    assert tool_names([{"type": "function", "function": {"name": "a"}}, {"name": "b"}, {"function": "c"}, {"function": {}}]) == ["a", "b"]
