from __future__ import annotations

import pytest

from llmmod.data.formats.alpaca import find_columns, read
from llmmod.data.rows.records import RowError, RowLocation

USUAL = {"prompt": "instruction", "query": "input", "response": "output", "history": "history", "system": "system"}


def turns(conversation):
    return [(message.role, message.content) for message in conversation.messages]


def test_prompt_and_query_are_one_question():
    row = {"instruction": "Translate.", "input": "Guten Tag", "output": "Good day"}
    assert turns(read(row, USUAL)) == [("user", "Translate.\nGuten Tag"), ("assistant", "Good day")]


@pytest.mark.parametrize("query", ["", None], ids=["empty", "null"])
def test_a_row_may_lack_a_query(query):
    assert turns(read({"instruction": "Hi", "input": query, "output": "Hello"}, USUAL)) == [("user", "Hi"), ("assistant", "Hello")]
    assert turns(read({"instruction": "Hi", "output": "Hello"}, USUAL)) == [("user", "Hi"), ("assistant", "Hello")]


def test_history_comes_before_the_question_and_system_before_all():
    row = {"instruction": "c", "output": "d", "history": [["a", "b"]], "system": "Be brief."}
    assert turns(read(row, USUAL)) == [("system", "Be brief."), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]


def test_history_may_be_json_text_as_in_a_csv_file():
    row = {"instruction": "c", "output": "d", "history": '[["a", "b"]]'}
    assert turns(read(row, USUAL))[:2] == [("user", "a"), ("assistant", "b")]


def test_each_row_has_its_own_system_text_alone():
    rows = [{"instruction": "q", "output": "a", "system": system} for system in ("one", "two", "", None)]
    assert [read(row, USUAL).system for row in rows] == ["one", "two", None, None]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"instruction": "q"}, "x.json, row 17, column 'output': missing; the row has instruction."),
        ({"output": "a", "topic": "t"}, "x.json, row 17, column 'instruction': missing; the row has output, topic."),
        ({"instruction": "q", "output": ""}, "x.json, row 17, column 'output': empty."),
        ({"instruction": "q", "output": " \n"}, "x.json, row 17, column 'output': empty."),
        ({"instruction": " ", "input": "", "output": "a"}, "x.json, row 17, column 'instruction': empty."),
        ({"instruction": "q", "output": None}, "x.json, row 17, column 'output': null where a text is expected."),
        ({"instruction": "q", "output": 42}, "x.json, row 17, column 'output': the number 42 where a text is expected."),
        ({"instruction": ["q"], "output": "a"}, "x.json, row 17, column 'instruction': a list of 1 where a text is expected."),
        (
            {"instruction": "q", "input": {"k": 1}, "output": "a"},
            "x.json, row 17, column 'input': an object with k where a text is expected.",
        ),
        (
            {"instruction": "q", "output": ["good", "bad"]},
            "x.json, row 17, column 'output': a list of 2 where a text is expected. "
            "For answers to compare, use dataset.format=preference.",
        ),
        (
            {"instruction": "q", "output": "a", "history": "before"},
            "x.json, row 17, column 'history': the text 'before' where a list is expected.",
        ),
        (
            {"instruction": "q", "output": "a", "history": [["b", "c"], ["d"]]},
            "x.json, row 17, column 'history': item 2 is a list of 1 where a pair of texts, [query, response], is expected.",
        ),
        (
            {"instruction": "q", "output": "a", "history": [["b", None]]},
            "x.json, row 17, column 'history': item 1, response: null where a text is expected.",
        ),
        ({"instruction": "q", "output": "a", "history": 0}, "x.json, row 17, column 'history': the number 0 where a list is expected."),
    ],
    ids=lambda value: None if isinstance(value, str) else "-".join(value),
)
def test_a_bad_row_names_file_row_column_and_what_was_found(row, message):
    with pytest.raises(RowError) as bad:
        read(row, USUAL)
    assert str(bad.value.at(RowLocation("x.json", 17))) == message


@pytest.mark.parametrize(
    ("available", "given", "expected"),
    [
        (["instruction", "input", "output"], {}, {"prompt": "instruction", "query": "input", "response": "output"}),
        (["question", "answer", "id"], {}, {"prompt": "question", "response": "answer"}),
        (["input", "output"], {}, {"prompt": "input", "response": "output"}),
        (["q", "input", "output"], {"prompt": "q"}, {"prompt": "q", "response": "output"}),
        (["q", "input", "a"], {"query": "input", "prompt": "q", "response": "a"}, {"prompt": "q", "query": "input", "response": "a"}),
        (["prompt", "chosen", "rejected"], {}, None),
        (["text"], {}, None),
        (
            ["instruction", "context", "response", "category"],
            {},
            {"prompt": "instruction", "query": "context", "response": "response"},
        ),
        (
            ["id", "system_prompt", "question", "response"],
            {},
            {"system": "system_prompt", "prompt": "question", "response": "response"},
        ),
    ],
    ids=["usual", "question-answer", "input-output", "no-stray-input", "given", "preference", "text", "dolly", "openorca"],
)
def test_columns_are_found_by_their_usual_names(available, given, expected):
    assert find_columns(available, given) == expected
