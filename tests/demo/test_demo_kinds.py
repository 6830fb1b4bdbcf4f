"""The demonstration data of the other kinds: pairs, judged answers, prompts and texts about the same questions."""

from __future__ import annotations

import json
from collections import Counter
from importlib import resources

import pytest


def read(name: str) -> list[dict[str, object]]:
    text = resources.files("llmmod.demo").joinpath(f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def is_chinese(text: object) -> bool:
    return any("一" <= c <= "鿿" for c in str(text))


def asked(name: str) -> list[tuple[object, object]]:
    return [(row["topic"], row["instruction"]) for row in read(name)]


RIGHT = {row["topic"]: row["output"] for row in read("llmmod_qa")}


def wrong_answers(name: str) -> set[object]:
    if "pairs" in name:
        return {row["rejected"] for row in read(name)}
    return {row["completion"] for row in read(name) if not row["label"]}


@pytest.mark.parametrize("name", ["pairs", "judged"])
def test_questions_are_those_of_the_questions_and_answers(name: str) -> None:
    for part in ("", "_heldout"):
        rows = list(dict.fromkeys((row["topic"], row["prompt"]) for row in read(f"llmmod_{name}{part}")))
        assert rows == asked(f"llmmod_qa{part}")


@pytest.mark.parametrize("name", ["llmmod_pairs", "llmmod_pairs_heldout"])
def test_the_better_answer_is_the_right_one_and_the_other_is_not(name: str) -> None:
    for row in read(name):
        assert row["chosen"] == RIGHT[row["topic"]]
        assert row["rejected"] not in RIGHT.values()
        assert is_chinese(row["rejected"]) == str(row["topic"]).endswith("_zh"), row


@pytest.mark.parametrize("name", ["llmmod_judged", "llmmod_judged_heldout"])
def test_only_the_right_answer_has_a_true_label(name: str) -> None:
    rows = read(name)
    assert all(row["label"] is (row["completion"] == RIGHT[row["topic"]]) for row in rows)
    assert sum(bool(row["label"]) for row in rows) == len(rows) / 2
    assert set(Counter(row["topic"] for row in rows).values()) in ({6}, {2})


@pytest.mark.parametrize("name", ["llmmod_pairs", "llmmod_judged"])
def test_wrong_answers_are_many_and_those_held_out_are_never_trained(name: str) -> None:
    trained, held_out = wrong_answers(name), wrong_answers(f"{name}_heldout")
    assert (len(trained), len(held_out)) == (2 * len(RIGHT), len(RIGHT))
    assert not trained & held_out


def test_wrong_answers_are_no_longer_than_right_ones_on_the_whole() -> None:
    """Otherwise a model could recognise them by their length."""
    right, wrong = (sum(len(str(row[name])) for row in read("llmmod_pairs")) for name in ("chosen", "rejected"))
    assert 0.8 <= wrong / right <= 1.25


def test_texts_have_two_versions_to_learn_from_and_one_that_is_held_out() -> None:
    train, held_out = read("llmmod_text"), read("llmmod_text_heldout")
    assert set(Counter(row["topic"] for row in train).values()) == {2}
    assert [row["topic"] for row in held_out] == list(dict.fromkeys(row["topic"] for row in train))
    texts = [row["text"] for row in train + held_out]
    assert len(set(texts)) == len(texts)
    for row in train + held_out:
        assert is_chinese(row["text"]) == str(row["topic"]).endswith("_zh")
