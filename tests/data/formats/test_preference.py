from __future__ import annotations

import json

import pytest

from llmmod.data.formats.preference import find_columns, read
from llmmod.data.rows.records import RowError, RowLocation

ORIGINAL = {"prompt": "instruction", "query": "input", "response": "output", "history": "history", "system": "system"}
TRL = {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"}
WHOLE = {"chosen": "chosen", "rejected": "rejected"}


def said(role, text):
    return {"role": role, "content": text}


def texts(record):
    return [(m.role, m.content) for m in record.prompt.messages], [(m.role, m.content) for m in record.answers]


EXPECTED = ([("user", "q")], [("assistant", "good"), ("assistant", "bad")])


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "q", "output": ["good", "bad"]},
        {"instruction": "q", "output": '["good", "bad"]'},
        {"prompt": "q", "chosen": "good", "rejected": "bad"},
        {"prompt": [said("user", "q")], "chosen": [said("assistant", "good")], "rejected": [said("assistant", "bad")]},
        {"chosen": [said("user", "q"), said("assistant", "good")], "rejected": [said("user", "q"), said("assistant", "bad")]},
        {
            "prompt": "q",
            "chosen": [said("user", "q"), said("assistant", "good")],
            "rejected": [said("user", "q"), said("assistant", "bad")],
        },
        {"chosen": "\n\nHuman: q\n\nAssistant: good", "rejected": "\n\nHuman: q\n\nAssistant: bad"},
        {
            "conversations": [{"from": "human", "value": "q"}],
            "chosen": {"from": "gpt", "value": "good"},
            "rejected": {"from": "gpt", "value": "bad"},
        },
    ],
    ids=["original", "csv", "trl", "trl-messages", "implicit-prompt", "ultrafeedback", "hh-rlhf", "llama-factory-ranking"],
)
def test_every_way_to_write_a_pair_is_the_same_pair(row):
    assert texts(read(row, find_columns(list(row), {}))) == EXPECTED


def test_a_list_may_rank_more_than_two_answers():
    row = {"instruction": "q", "output": ["best", "good", "fair", "bad"]}
    assert texts(read(row, ORIGINAL)) == ([("user", "q")], [("assistant", text) for text in row["output"]])


def test_the_prompt_is_all_that_two_conversations_share():
    shared = [said("system", "s"), said("user", "a"), said("assistant", "b"), said("user", "c")]
    row = {"chosen": [*shared, said("assistant", "good")], "rejected": [*shared, said("assistant", "bad")]}
    prompt, answers = texts(read(row, WHOLE))
    assert prompt == [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c")]
    assert answers == EXPECTED[1]


def test_the_original_tool_s_query_history_and_system_make_the_prompt():
    row = {"instruction": "c", "input": "d", "output": ["good", "bad"], "history": [["a", "b"]], "system": "Be kind."}
    prompt, _ = texts(read(row, find_columns(list(row), {})))
    assert prompt == [("system", "Be kind."), ("user", "a"), ("assistant", "b"), ("user", "c\nd")]


@pytest.mark.parametrize(
    ("available", "given", "columns"),
    [
        (["question", "chosen", "rejected"], {}, {"prompt": "question", **WHOLE}),
        (["prompt", "messages", "chosen", "rejected", "score_chosen"], {}, {"prompt": "prompt", **WHOLE}),
        (
            ["q", "better", "worse"],
            {"prompt": "q", "chosen": "better", "rejected": "worse"},
            {"prompt": "q", "chosen": "better", "rejected": "worse"},
        ),
        (["instruction", "both"], {"response": "both"}, {"response": "both", "prompt": "instruction"}),
        (["instruction", "output", "chosen"], {}, {"prompt": "instruction", "response": "output"}),
        (["prompt", "chosen"], {}, None),
        (["prompt", "better", "rejected"], {"chosen": "better", "response": "better"}, None),
        (["text"], {}, None),
    ],
)
def test_columns(available, given, columns):
    assert find_columns(available, given) == columns


@pytest.mark.parametrize(
    ("row", "columns", "message"),
    [
        (
            {"instruction": "q", "output": "good"},
            ORIGINAL,
            "x.json, row 17, column 'output': the text 'good' where at least two answers, best first, are expected.",
        ),
        ({"instruction": "q", "output": ["good"]}, ORIGINAL, "'output': a list of 1 where at least two answers, best first, are expected."),
        (
            {"instruction": "q", "output": ["a", "b", "a"]},
            ORIGINAL,
            "'output': answers 1 and 3 are the same, so neither is the better one.",
        ),
        ({"instruction": "q", "output": ["good", ""]}, ORIGINAL, "'output': an empty text where the text of an answer is expected."),
        ({"instruction": "q", "output": ["same", "same"]}, ORIGINAL, "'output': answers 1 and 2 are the same, so neither"),
        ({"prompt": "q", "chosen": "good"}, TRL, "x.json, row 17, column 'rejected': missing; the row has prompt, chosen."),
        ({"prompt": "q", "chosen": "good", "rejected": ""}, TRL, "column 'rejected': empty."),
        ({"prompt": "q", "chosen": "good", "rejected": None}, TRL, "column 'rejected': null where a text or a list of turns is expected."),
        (
            {"prompt": "q", "chosen": 1, "rejected": "bad"},
            TRL,
            "column 'chosen': the number 1 where a text or a list of turns is expected.",
        ),
        (
            {"prompt": "q", "chosen": "same", "rejected": "same"},
            TRL,
            "column 'rejected': the same as 'chosen', so they can't be compared.",
        ),
        ({"prompt": " ", "chosen": "good", "rejected": "bad"}, TRL, "column 'prompt': empty."),
        (
            {"prompt": "q", "chosen": [said("user", "q"), said("assistant", "a")], "rejected": "bad"},
            TRL,
            "column 'chosen': a conversation, but",
        ),
        (
            {"chosen": "good", "rejected": "bad"},
            WHOLE,
            "column 'chosen': an answer without a prompt. Name its column: dataset.columns.prompt=….",
        ),
        (
            {
                "chosen": [said("user", "q"), said("assistant", "a"), said("user", "r"), said("assistant", "b")],
                "rejected": [said("user", "q"), said("assistant", "x")],
            },
            WHOLE,
            "column 'chosen': turns of assistant, user, assistant where one answer is expected.",
        ),
        (
            {"chosen": [said("user", "q"), said("assistant", "a")], "rejected": [said("user", "other"), said("assistant", "b")]},
            WHOLE,
            "column 'rejected': it begins differently from 'chosen', so the two don't answer the same prompt.",
        ),
    ],
)
def test_a_row_that_is_not_a_pair_is_refused_with_its_location(row, columns, message):
    with pytest.raises(RowError) as error:
        read(row, columns)
    assert message in str(error.value.at(RowLocation("x.json", 17)))


def test_the_answers_first_letters_are_not_two_answers():
    """The original tool took the first two letters, "g" and "o", as chosen and rejected."""
    for answer in ("good", "go", json.dumps("go")):
        with pytest.raises(RowError, match="two answers"):
            read({"instruction": "q", "output": answer}, ORIGINAL)
