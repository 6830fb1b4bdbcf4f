"""llmmod.rewards.brevity, by hand."""

from __future__ import annotations

from llmmod.rewards.brevity import brevity


def test_the_share_of_the_limit_that_is_left():
    assert brevity([[1, 2], [1] * 8, [1] * 9, []], limit=8, prompts=None) == [0.75, 0.0, 0.0, 1.0]
