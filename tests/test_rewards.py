"""llmmod.rewards, by hand."""

from __future__ import annotations

import pytest

from llmmod.rewards import brevity, overlap


@pytest.mark.parametrize(
    ("completion", "answer", "reward"),
    [
        ("Woof!", "woof", 1.0),
        ("the dog says woof", "woof", 2 / 5),
        ("woof woof", "woof", 2 / 3),  # a word counts as often as it occurs in both
        ("meow", "woof", 0.0),
        ("", "woof", 0.0),
        ("woof", "", 0.0),
        ("", "", 0.0),
    ],
)
def test_f1_of_words(completion, answer, reward):
    assert overlap([completion], [answer], prompts=None) == [pytest.approx(reward)]
    assert overlap([[{"role": "assistant", "content": completion}]], [answer]) == [pytest.approx(reward)]


def test_the_share_of_the_limit_that_is_left():
    assert brevity([[1, 2], [1] * 8, [1] * 9, []], limit=8, prompts=None) == [0.75, 0.0, 0.0, 1.0]
