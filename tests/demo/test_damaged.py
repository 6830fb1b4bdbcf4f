"""The demonstration pairs with damaged answers: rules make them, and with the hand-written pairs, length doesn't show the better answer."""

from __future__ import annotations

import json
from importlib import resources

import pytest

from devtools.damage import KINDS, damaged, rows


def read(name: str) -> list[dict[str, str]]:
    text = resources.files("llmmod.demo").joinpath(f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_the_file_matches_the_rules() -> None:
    assert read("llmmod_damaged") == list(rows())


@pytest.mark.parametrize(
    ("kind", "made"),
    [
        (0, "one two three four"),
        (1, "a b c three four"),
        (2, "a b c d e one two three four"),
        (3, "a two c d one"),
        (4, "one two d e"),
        (5, "a b c three four d e"),
    ],
    ids=["another", "its end", "both", "words", "its beginning", "within"],
)
def test_damage(kind: int, made: str) -> None:
    assert damaged("a b c d e", "one two three four", kind) == made


def test_chinese_is_damaged_character_by_character() -> None:
    assert damaged("用 llmmod 训练", "只看配置", 1) == "用 llmmod配置"  # halves of 6 and of 4 pieces


def test_questions_and_right_answers_are_those_of_the_pairs() -> None:
    pairs, made = read("llmmod_pairs"), read("llmmod_damaged")
    assert [{**row, "rejected": ""} for row in made] == [{**row, "rejected": ""} for row in pairs]
    assert all(row["rejected"] not in (row["chosen"], "") for row in made)
    assert len(made) % KINDS == 0


def test_with_the_wrong_answers_length_does_not_tell_which_answer_is_better() -> None:
    """With the hand-written pairs alone it does: a reward model of these went by length, and ppo made answers longer and worse."""
    both = [*read("llmmod_pairs"), *read("llmmod_damaged")]
    longer, shorter = (sum((len(row["chosen"]) - len(row["rejected"])) * sign > 0 for row in both) for sign in (1, -1))
    assert 0.45 <= longer / (longer + shorter) <= 0.6
    right, other = (sum(len(row[name]) for row in both) for name in ("chosen", "rejected"))
    assert other / right == pytest.approx(1, abs=0.05)
