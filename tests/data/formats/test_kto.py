from __future__ import annotations

import pytest

from llmmod.data.formats.kto import find_columns, read, recognises
from llmmod.data.rows.records import RowError, RowLocation

TRL = {"prompt": "prompt", "response": "completion", "label": "label"}


def said(role, text):
    return {"role": role, "content": text}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "completion": "a", "label": False},
        {"prompt": [said("user", "q")], "completion": [said("assistant", "a")], "label": False},
        {"messages": [said("user", "q"), said("assistant", "a")], "label": False},
        {"instruction": "q", "input": "", "output": "a", "kto_tag": False},
        {"prompt": "q", "completion": "a", "label": "False"},
        {"prompt": "q", "completion": "a", "label": 0},
        {"prompt": "q", "completion": "a", "label": 0.0},
    ],
    ids=["trl", "trl-messages", "turns", "llama-factory", "csv", "number", "float"],
)
def test_every_way_to_write_a_judgement_is_the_same(row):
    record = read(row, find_columns(list(row), {}))
    assert [(m.role, m.content) for m in record.prompt.messages] == [("user", "q")]
    assert [m.content for m in record.answers] == ["a"]
    assert record.values == {"label": False}


def test_the_label_says_whether_the_answer_is_wanted():
    known = [read({"prompt": "q", "completion": "a", "label": label}, TRL).known() for label in (True, False)]
    assert [[m.content for m in one.messages] for one in known] == [["q", "a"], ["q"]]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "q", "completion": "a"}, "x.json, row 17, column 'label': missing; the row has prompt, completion."),
        ({"prompt": "q", "completion": "a", "label": "yes"}, "column 'label': the text 'yes' where true or false is expected."),
        ({"prompt": "q", "completion": "a", "label": None}, "column 'label': null where true or false is expected."),
        ({"prompt": "q", "completion": "a", "label": 0.5}, "column 'label': the number 0.5 where true or false is expected."),
        ({"prompt": "q", "completion": "", "label": True}, "column 'completion': empty."),
        (
            {"prompt": "q", "completion": ["a", "b"], "label": True},
            "turn 1 is the text 'a' where an object with role and content is expected",
        ),
    ],
)
def test_a_row_that_is_not_a_judgement_is_refused_with_its_location(row, message):
    with pytest.raises(RowError) as error:
        read(row, TRL)
    assert message in str(error.value.at(RowLocation("x.json", 17)))


@pytest.mark.parametrize(
    ("available", "given", "columns"),
    [
        (["prompt", "completion", "label"], {}, TRL),
        (["q", "a", "good"], {"prompt": "q", "response": "a", "label": "good"}, {"prompt": "q", "response": "a", "label": "good"}),
        # Ranked answers don't need a label; only the rows show whether the column contains rankings.
        (["prompt", "completion"], {}, {"prompt": "prompt", "response": "completion"}),
        (["prompt", "label"], {}, None),
    ],
)
def test_columns(available, given, columns):
    assert find_columns(available, given) == columns


def test_answers_without_a_label_are_ranked_in_a_list_or_none():
    columns = {"prompt": "prompt", "response": "output"}
    row = {"prompt": "q", "output": ["best", "fair", "bad"]}
    assert recognises([row], columns)
    record = read(row, columns)
    assert ([m.content for m in record.answers], record.values) == (["best", "fair", "bad"], {})
    assert not recognises([{"prompt": "q", "output": "a"}], columns)
    with pytest.raises(RowError) as error:
        read({"prompt": "q", "output": "a"}, columns)
    assert str(error.value.at(RowLocation("x.json", 1))) == (
        "x.json, row 1, column 'output': an answer without a label. Name its column: dataset.columns.label=…; a list of answers, best "
        "first, doesn't need one."
    )
