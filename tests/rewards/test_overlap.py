"""llmmod.rewards.overlap, by hand."""

from __future__ import annotations

import pytest

from llmmod.rewards.overlap import overlap


@pytest.mark.parametrize(
    ("completion", "answer", "reward"),
    [
        ("Woof!", "woof", 1.0),
        ("the dog says woof", "woof", 2 / 5),
        ("woof woof", "woof", 2 / 3),  # a word counts as often as it is in both
        ("meow", "woof", 0.0),
        ("", "woof", 0.0),
        ("woof", "", 0.0),
        ("", "", 0.0),
    ],
)
def test_f1_of_words(completion, answer, reward):
    assert overlap([completion], [answer], prompts=None) == [pytest.approx(reward)]
    assert overlap([[{"role": "assistant", "content": completion}]], [answer]) == [pytest.approx(reward)]
