from __future__ import annotations

import pytest

from llmmod.data.rows.records import RowError
from llmmod.data.sources.choose import choose_format
from llmmod.errors import ConfigError
from llmmod.render.conversation import Conversation, Message

ALPACA = {"instruction": "q", "input": "", "output": "a", "text": "q a"}
SHAREGPT = {"id": 1, "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}
OPENAI = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}


def choose(asked, head, given=None, kind="conversation"):
    return choose_format(asked, kind=kind, given=given or {}, head=head, file="x.json")


def turns(conversation):
    return [(message.role, message.content) for message in conversation.messages]


@pytest.mark.parametrize(
    ("row", "kind", "said"),
    [
        (ALPACA, "conversation", "alpaca (found by the columns): prompt=instruction, query=input, response=output"),
        (SHAREGPT, "conversation", "sharegpt (found by the columns): messages=conversations"),
        (OPENAI, "conversation", "messages (found by the columns): messages=messages"),
        ({"conversations": OPENAI["messages"]}, "conversation", "messages (found by the columns): messages=conversations"),
        ({"messages": SHAREGPT["conversations"]}, "conversation", "sharegpt (found by the columns): messages=messages"),
        ({"text": "once"}, "document", "text (found by the columns): text=text"),
        (ALPACA, "document", "text (found by the columns): text=text"),
    ],
    ids=["alpaca", "sharegpt", "messages", "messages-in-conversations", "sharegpt-in-messages", "text", "text-beside-alpaca"],
)
def test_auto_looks_at_the_columns_and_says_what_it_decided(row, kind, said):
    assert str(choose("auto", [row], kind=kind)) == said


def test_auto_looks_past_rows_that_are_broken():
    assert choose("auto", [{"conversations": None}, {"conversations": "x"}, SHAREGPT]).name == "sharegpt"


def test_auto_with_given_columns_takes_a_format_that_reads_them():
    head = [{"q": "1", "a": "2", "messages": OPENAI["messages"]}]
    assert choose("auto", head, {"prompt": "q", "response": "a"}).name == "alpaca"


@pytest.mark.parametrize(
    ("asked", "head", "given", "messages"),
    [
        (
            "alpacca",
            [ALPACA],
            {},
            ["dataset.format: 'alpacca' is not a format. Did you mean 'alpaca'? For your own function, write {_target_: my.function}."],
        ),
        (
            "alpaca",
            [ALPACA],
            {"prompt": "question", "response": "answer"},
            [
                "dataset.columns.prompt: 'question' is not a column of x.json. Its columns: instruction, input, output, text.",
                "dataset.columns.response: 'answer' is not a column of x.json. Its columns: instruction, input, output, text.",
            ],
        ),
        (
            "sharegpt",
            [SHAREGPT],
            {"chosen": "id"},
            ["dataset.columns.chosen: the format sharegpt doesn't read this column. It reads messages, system, tools."],
        ),
        (
            "text",
            [ALPACA],
            {},
            ["dataset.format: the records of 'text' are of kind document, not conversation. Allowed: auto, alpaca, messages, sharegpt."],
        ),
        (
            "sharegpt",
            [ALPACA],
            {},
            [
                "dataset.columns: the format sharegpt needs a column for 'messages' (usually conversations or conversation); "
                "the columns of x.json are instruction, input, output, text. Name the data's columns, e.g. dataset.columns.messages=…."
            ],
        ),
        (
            "auto",
            [{**OPENAI, "prompt": "q", "response": "a"}],
            {},
            [
                "dataset.format: 'auto' can't decide: the columns of x.json are messages, prompt, response. "
                "alpaca and messages fit. Set the one you mean."
            ],
        ),
        (
            "alpaca",
            [{"\ufeffquestion": "q", "answer ": "a"}],
            {"prompt": "question", "response": "answer"},
            [
                f"dataset.columns.{role}: '{name}' is not a column of x.json. Its columns: '\\ufeffquestion' (with a byte order mark "
                "at the beginning), 'answer ' (with a space at the end)."
                for role, name in (("prompt", "question"), ("response", "answer"))
            ],
        ),
    ],
    ids=["name", "columns", "role", "kind", "needs", "two-fit", "unseen"],
)
def test_what_does_not_fit_is_refused_by_its_key(asked, head, given, messages):
    with pytest.raises(ConfigError) as error:
        choose(asked, head, given)
    assert [str(problem) for problem in error.value.problems] == messages


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, ["'auto' can't find a conversation", "of x.json are prompt, chosen, rejected"]),
        ({"text": "once"}, ["columns of x.json are text, which fits the format text, a document a row"]),
        ({}, ["the columns of x.json are none"]),
    ],
    ids=["preference", "text", "none"],
)
def test_auto_says_what_it_saw_where_nothing_fits(row, words):
    with pytest.raises(ConfigError) as error:
        choose("auto", [row])
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize(
    "made",
    [
        [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
        Conversation([Message("user", "q"), Message("assistant", "a")]),
    ],
    ids=["list", "conversation"],
)
def test_a_function_of_the_users_own_reads_rows(made):
    assert turns(choose(lambda row: made, [{}]).read({})) == [("user", "q"), ("assistant", "a")]


@pytest.mark.parametrize(
    ("function", "found"),
    [
        (lambda row: row["nope"], "failed on it: KeyError: 'nope'"),
        (lambda row: "text", "returned the text 'text' where a Conversation or a list of {role, content} is expected"),
        (lambda row: [{"role": "user", "content": "q"}], "doesn't have a turn of the assistant"),
    ],
    ids=["raises", "type", "no-answer"],
)
def test_an_error_of_a_users_function_is_an_error_of_the_row(function, found):
    with pytest.raises(RowError) as bad:
        choose(function, [{}]).read({})
    assert found in str(bad.value)


def test_a_users_function_is_named_by_its_target_with_arguments(tmp_path, monkeypatch):
    code = "def read(row, who): return [{'role': 'user', 'content': who}, {'role': 'assistant', 'content': row['a']}]"
    (tmp_path / "my_rows.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("LLMMOD_ALLOW", "my_rows")
    made = choose({"_target_": "my_rows.read", "who": "Ann"}, [{}])
    assert turns(made.read({"a": "hi"})) == [("user", "Ann"), ("assistant", "hi")]
