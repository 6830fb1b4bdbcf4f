from __future__ import annotations

import pytest

from llmmod.data.formats.prompt import find_columns, read
from llmmod.data.rows.records import RowError, RowLocation


def said(role, text):
    return {"role": role, "content": text}


def asked(row, given=None):
    record = read(row, find_columns(list(row), given or {}))
    return [(m.role, m.content) for m in record.prompt.messages], record.values


@pytest.mark.parametrize(
    ("row", "answer"),
    [
        ({"prompt": "q"}, ""),
        ({"prompt": "q", "answer": "a"}, "a"),
        ({"question": "q", "answer": 42}, "42"),
        ({"instruction": "q", "output": "a"}, "a"),
        ({"prompt": "q", "answer": None}, ""),
        ({"prompt": [said("user", "q")], "answer": "a"}, "a"),
        ({"messages": [said("user", "q"), said("assistant", "a")]}, "a"),
        ({"conversations": [{"from": "human", "value": "q"}]}, ""),
    ],
    ids=["alone", "answer", "number", "alpaca", "null", "messages", "answered-turns", "sharegpt"],
)
def test_the_answer_is_kept_and_is_not_part_of_the_prompt(row, answer):
    assert asked(row) == ([("user", "q")], {"answer": answer})


def test_history_stays_in_the_prompt():
    messages = [said("system", "s"), said("user", "a"), said("assistant", "b"), said("user", "c"), said("assistant", "d")]
    prompt, values = asked({"messages": messages})
    assert prompt == [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c")]
    assert values == {"answer": "d"}


def test_other_columns_are_kept_if_they_are_texts_or_numbers():
    _, values = asked({"prompt": "q", "level": 3, "topic": "t", "tests": ["x"], "weight": 0.5, "easy": True, "nothing": None})
    assert values == {"answer": "", "level": 3, "topic": "t", "weight": 0.5, "easy": True}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": ""}, "x.json, row 17, column 'prompt': empty."),
        ({"prompt": [said("system", "s")]}, "column 'prompt': it ends with a turn of system, where a question is expected."),
        ({"prompt": "q", "answer": ["a"]}, "column 'answer': a list of 1 where a text or a number is expected."),
        ({"prompt": 3}, "column 'prompt': the number 3 where a text or a list of turns is expected."),
    ],
)
def test_a_row_that_is_not_a_prompt_is_refused_with_its_location(row, message):
    with pytest.raises(RowError) as error:
        asked(row)
    assert message in str(error.value.at(RowLocation("x.json", 17)))
