from __future__ import annotations

import pytest

from llmmod.render.segments import Slot, fill, move_spaces, read_part


def read(items, tokenizer, slots=("query", "idx"), needs=""):
    return read_part(items, slots, tokenizer, key="render.prompt", render="mine", needs=needs)


def test_texts_are_split_at_placeholders_and_tokens_are_looked_up(byte_level):
    part, problems = read(["[{{idx}}] {{query}}", {"token": "<|im_end|>"}], byte_level)
    assert (part, problems) == (["[", Slot("idx"), "] ", Slot("query"), byte_level.convert_tokens_to_ids("<|im_end|>")], [])


def test_a_value_is_never_searched_for_placeholders(byte_level):
    part, _ = read(["{{idx}}: {{query}}"], byte_level)
    assert fill(part, {"idx": "1", "query": "what is {{idx}} and {{query}}?"}) == ["1", ": ", "what is {{idx}} and {{query}}?"]


@pytest.mark.parametrize(
    ("items", "says"),
    [
        (["{{qeury}}"], "render.prompt[0]: '{{qeury}}' is not a placeholder of this part. Did you mean 'query'?"),
        ([3], "render.prompt[0]: found 3. Allowed: a text, or {token: <one token>}."),
        ([{"tokn": "x"}], "render.prompt[0]: found {'tokn': 'x'}. Allowed: a text, or {token: <one token>}."),
        (["x"], "render.prompt: lacks {{query}}, so that text would be left out. Write {{query}} in it."),
    ],
    ids=["placeholder", "number", "key", "missing"],
)
def test_what_is_wrong_with_an_item_is_said(byte_level, items, says):
    assert [str(problem) for problem in read(items, byte_level, needs="query")[1]] == [says]


def test_all_problems_of_a_part_are_found(byte_level):
    assert len(read([3, "{{x}}", {"token": "<none>"}], byte_level)[1]) == 3


@pytest.mark.parametrize(
    ("before", "after", "moved"),
    [
        (["A: "], [Slot("response")], (["A:"], [" ", Slot("response")])),
        (["A:\n"], [Slot("response")], (["A:\n"], [Slot("response")])),
        ([Slot("query"), "  "], ["x"], ([Slot("query")], ["  ", "x"])),
        (["A: "], [7], (["A: "], [7])),
        ([7], [Slot("response")], ([7], [Slot("response")])),
    ],
    ids=["space", "newline", "only-spaces", "token-after", "token-before"],
)
def test_spaces_at_the_end_go_to_the_text_that_follows(before, after, moved):
    assert move_spaces(before, after) == moved
