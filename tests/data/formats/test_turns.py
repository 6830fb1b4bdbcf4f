"""The formats with a list of turns: sharegpt and messages."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmmod.data.formats import messages, sharegpt
from llmmod.data.rows.records import RowError, RowLocation
from llmmod.data.sources.read_files import read_parquet

COLUMNS = {"messages": "messages", "system": "system", "tools": "tools"}


def chat(*turns):
    return {"messages": [dict(zip(("role", "content"), turn, strict=True)) for turn in turns]}


def turns(conversation):
    return [(message.role, message.content) for message in conversation.messages]


def test_sharegpt_and_messages_read_the_same_conversation():
    said = [("system", "s"), ("human", "a"), ("gpt", "b"), ("human", "c"), ("gpt", "d")]
    row = {"conversations": [{"from": who, "value": what} for who, what in said]}
    expected = [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    assert turns(sharegpt.read(row, {"messages": "conversations"})) == expected
    assert turns(messages.read(chat(*expected), COLUMNS)) == expected


def test_the_system_column_is_used_if_the_turns_have_none():
    assert messages.read({**chat(("user", "a"), ("assistant", "b")), "system": "column"}, COLUMNS).system == "column"
    own = {**chat(("system", "turn"), ("user", "a"), ("assistant", "b")), "system": "column"}
    assert messages.read(own, COLUMNS).system == "turn"


def test_what_follows_the_last_answer_is_left_out():
    assert turns(messages.read(chat(("user", "a"), ("assistant", "b"), ("user", "c")), COLUMNS)) == [("user", "a"), ("assistant", "b")]


def test_train_false_and_weight_zero_keep_a_turn_out_of_the_loss():
    row = chat(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"), ("user", "e"), ("assistant", "f"))
    row["messages"][1]["train"] = False
    row["messages"][3]["weight"] = 0
    row["messages"][5]["weight"] = 1
    answers = [message for message in messages.read(row, COLUMNS).messages if message.role == "assistant"]
    assert [message.train for message in answers] == [False, False, True]


def test_parts_of_text_are_joined_and_tool_calls_kept():
    call = {"type": "function", "function": {"name": "now", "arguments": "{}"}}
    row = {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "What time "}, {"type": "text", "text": "is it?"}]},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "12:00"},
            {"role": "assistant", "content": "Noon."},
        ],
        "tools": [{"name": "now"}],
    }
    conversation = messages.read(row, COLUMNS)
    assert turns(conversation) == [("user", "What time is it?"), ("assistant", ""), ("tool", "12:00"), ("assistant", "Noon.")]
    assert conversation.messages[1].tool_calls == [{"type": "function", "function": {"name": "now", "arguments": {}}}]
    assert conversation.tools == [{"name": "now"}]


CALL = {"type": "function", "function": {"name": "weather", "arguments": {"town": "Bergen"}}}
BARE = {"name": "weather", "arguments": {"town": "Bergen"}}


def asked(answer):
    """A row of messages with a tool call."""
    return {"messages": [{"role": "user", "content": "Rain?"}, answer, {"role": "tool", "content": "Yes."}, said("It rains.")]}


def said(text, **more):
    return {"role": "assistant", "content": text, **more}


@pytest.mark.parametrize(
    "answer",
    [
        said(None, tool_calls=[CALL]),
        said("", tool_calls=[BARE]),
        said(None, tool_calls=json.dumps([CALL])),
        said(None, tool_calls=[json.dumps(BARE)]),
        said(None, tool_calls=[{"type": "function", "function": {"name": "weather", "arguments": '{"town": "Bergen"}'}}]),
        said(None, tool_calls=None, function_call={"name": "weather", "arguments": '{"town": "Bergen"}'}),
        {"role": "tool_call", "content": json.dumps(BARE)},
        {"role": "function_call", "content": json.dumps([BARE])},
        # In a parquet struct, each call has the fields of all calls.
        said(None, tool_calls=[{**CALL, "id": None, "function": {"name": "weather", "arguments": {"town": "Bergen", "day": None}}}]),
        said(None, tool_calls=[{"name": None, "type": "function", "function": {**BARE, "parameters": None}}]),
    ],
    ids=["openai", "function", "json", "json-item", "json-arguments", "old-openai", "tool_call", "list-as-text", "struct", "struct-name"],
)
def test_every_way_to_write_a_call_is_the_same_call(answer):
    conversation = messages.read(asked(answer), COLUMNS)
    assert turns(conversation)[1] == ("assistant", "")
    assert conversation.messages[1].tool_calls == [CALL]


def test_a_function_call_turn_adds_a_call_to_the_answer_before_it():
    call = json.dumps(BARE)
    row = {
        "conversations": [
            {"from": "human", "value": "Rain?"},
            {"from": "gpt", "value": "I look."},
            {"from": "function_call", "value": call},
            {"from": "function_call", "value": call.replace("Bergen", "Cadiz")},
            {"from": "observation", "value": "Yes."},
            {"from": "observation", "value": "No."},
            {"from": "gpt", "value": "In Bergen."},
        ],
    }
    found = sharegpt.read(row, {"messages": "conversations"})
    assert turns(found) == [
        ("user", "Rain?"), ("assistant", "I look."), ("tool", "Yes."), ("tool", "No."), ("assistant", "In Bergen."),
    ]  # fmt: skip
    assert [call["function"]["arguments"]["town"] for call in found.messages[1].tool_calls] == ["Bergen", "Cadiz"]


def test_nulls_in_json_text_are_kept():
    (call,) = messages.read(asked(said(None, tool_calls='[{"name": "f", "arguments": {"a": null}}]')), COLUMNS).messages[1].tool_calls
    assert call["function"]["arguments"] == {"a": None}


def test_null_fields_of_parquet_are_removed_from_calls_and_tools(tmp_path):
    def row(name, arguments):
        properties = {argument: {"type": "string"} for argument in arguments}
        call = {"function": {"name": name, "arguments": arguments}}
        tool = {"name": name, "parameters": {"type": "object", "properties": properties}}
        return {**asked(said(None, tool_calls=[call])), "tools": [tool]}

    pq.write_table(pa.Table.from_pylist([row("weather", {"town": "Bergen"}), row("clock", {"zone": "UTC"})]), tmp_path / "x.parquet")
    found = [messages.read(one, COLUMNS) for _, one in read_parquet(tmp_path / "x.parquet")]
    assert [one.messages[1].tool_calls[0]["function"]["arguments"] for one in found] == [{"town": "Bergen"}, {"zone": "UTC"}]
    assert [list(one.tools[0]["parameters"]["properties"]) for one in found] == [["town"], ["zone"]]


@pytest.mark.parametrize("name", ["reasoning_content", "thinking", "reasoning"])
def test_reasoning_is_separate_from_content(name):
    conversation = messages.read({"messages": [{"role": "user", "content": "a", name: None}, said("b", **{name: "Hm."})]}, COLUMNS)
    assert [(m.content, m.reasoning) for m in conversation.messages] == [("a", ""), ("b", "Hm.")]


@pytest.mark.parametrize("part", [{"type": "text", "text": "x"}, {"type": "text", "value": "x"}, {"text": None, "value": "x"}], ids=str)
def test_a_part_has_its_text_under_either_name(part):
    assert turns(messages.read(chat(("user", [part, part]), ("assistant", "b")), COLUMNS))[0] == ("user", "xx")


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ({"text": "x"}, "missing; the row has text."),
        ({"messages": None}, "null where a list of turns is expected."),
        ({"messages": []}, "an empty list where a list of turns is expected."),
        (chat(("user", "a"), ("assistant", None)), "turn 2, content: null where a text is expected."),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": None, "tool_calls": "f()"}]},
            "turn 2, tool_calls: the text 'f()' where a call of a tool, an object with name and arguments, is expected.",
        ),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": None, "tool_calls": ["f()"]}]},
            "turn 2, tool_calls: item 1 is the text 'f()' where a call of a tool, an object with name and arguments, is expected.",
        ),
        (
            chat(("user", "a"), ("function_call", "f()")),
            "turn 2, content: the text 'f()' where a call of a tool, an object with name and arguments, is expected.",
        ),
        (
            chat(("user", "a"), ("tool_call", '{"name": "f", "arguments": "x"}')),
            "turn 2, content: the arguments of 'f' are the text 'x' where an object, or JSON text of one, is expected.",
        ),
        (
            {"messages": [{"role": "user", "content": "a", "thinking": "hm"}, {"role": "assistant", "content": "b"}]},
            "turn 1, of user, has reasoning, which only an answer can.",
        ),
        (
            chat(("user", [{"type": "image", "text": "x"}]), ("assistant", "b")),
            "turn 1 has a list of 1 where a text is expected.",
        ),
        ({"messages": "hello"}, "the text 'hello' where a list is expected."),
        ({"messages": ["hello"]}, "turn 1 is the text 'hello' where an object with role and content is expected."),
        (chat(("user", "a")), "it doesn't have a turn of the assistant to train on."),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "train": False}]},
            "all turns of the assistant have train: false or weight: 0, so none would be trained.",
        ),
        (chat(("assistant", "b"), ("user", "a")), "turn 1 is a turn of assistant at the beginning."),
        (chat(("user", "a"), ("assistant", "b"), ("assistant", "c")), "turn 3 is a turn of assistant after a turn of assistant."),
        (chat(("user", "a"), ("system", "b"), ("assistant", "c")), "turn 2 is a turn of system after a turn of user."),
        (chat(("user", "a"), ("assistant", "")), "turn 2, of assistant, is empty."),
        (chat(("user", " "), ("assistant", "b")), "turn 1, of user, is empty."),
        (
            chat(("human", "a"), ("assistant", "b")),
            "turn 1 has the role 'human'; known are user, assistant, system, developer, tool, function, function_call, tool_call, "
            "tool_calls, tool_response.",
        ),
        (chat(("user", 3), ("assistant", "b")), "turn 1 has the number 3 where a text is expected."),
        ({"messages": [{"from": "human", "value": "a"}]}, "turn 1 doesn't have role and content; it is an object with from, value."),
        (
            {"messages": [{"role": "user", "content": "a", "train": "no"}]},
            "turn 1 has train or weight 'no'; allowed are true, false, 0 and 1.",
        ),
    ],
    ids=[
        "missing", "null", "empty", "null-answer", "calls", "no-calls", "call-turn", "arguments", "reasoning", "image",
        "text", "texts", "no-answer", "untrained", "answer-first", "two-answers", "late-system", "empty-answer", "empty-question",
        "role", "number", "sharegpt-fields", "train",
    ],
)  # fmt: skip
def test_a_bad_row_says_what_was_found(row, found):
    with pytest.raises(RowError) as bad:
        messages.read(row, COLUMNS)
    assert str(bad.value.at(RowLocation("x.json", 17))) == f"x.json, row 17, column 'messages': {found}"


@pytest.mark.parametrize(
    ("tools", "found"),
    [
        ([1], "item 1 is the number 1 where an object is expected."),
        ({"name": "now"}, "an object with name where a list is expected."),
        (0, "the number 0 where a list is expected."),
        ("now", "the text 'now' where a list is expected."),
        ("[" * 100_000, f"the text '{'[' * 37}…' where a list is expected."),
    ],
    ids=["numbers", "object", "zero", "text", "brackets"],
)
def test_tools_of_a_wrong_type_are_a_bad_row(tools, found):
    with pytest.raises(RowError) as bad:
        messages.read({**chat(("user", "a"), ("assistant", "b")), "tools": tools}, COLUMNS)
    assert str(bad.value.at(RowLocation("x.json", 17))) == f"x.json, row 17, column 'tools': {found}"


@pytest.mark.parametrize("tools", [None, "", " ", [], "[]"], ids=repr)
def test_a_row_may_have_no_tools(tools):
    assert messages.read({**chat(("user", "a"), ("assistant", "b")), "tools": tools}, COLUMNS).tools == []
