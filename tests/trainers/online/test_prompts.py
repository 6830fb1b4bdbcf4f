"""The order of prompts."""

from __future__ import annotations

from llmmod.trainers.online.base import RolloutSampler, columns


def test_each_rollout_comes_as_often_as_it_is_taken():
    """5 prompts, 2 per rollout, each used 3 times: 3 rollouts, the last of which is filled up from the beginning."""
    sampler = RolloutSampler(5, size=2, times=3, seed=0, shuffle=False)
    assert list(sampler) == [0, 1] * 3 + [2, 3] * 3 + [4, 0] * 3
    assert len(sampler) == 18


def test_each_prompt_comes_as_often_as_it_is_answered():
    sampler = RolloutSampler(3, size=2, times=2, seed=0, shuffle=False, each=3)
    assert list(sampler) == [0, 0, 0, 1, 1, 1] * 2 + [2, 2, 2, 0, 0, 0] * 2
    assert len(sampler) == 24


def test_a_rollout_larger_than_the_dataset():
    assert list(RolloutSampler(3, size=8, times=1, seed=0, shuffle=False)) == [0, 1, 2, 0, 1, 2, 0, 1]


def test_the_order_is_the_epoch_s():
    one, other = (RolloutSampler(50, size=10, times=1, seed=7) for _ in range(2))
    one.set_epoch(3)
    list(one)
    other.set_epoch(3)
    assert list(one) == list(one) == list(other)
    assert sorted(one) == list(range(50))
    other.set_epoch(4)
    assert list(one) != list(other)


def test_columns():
    rows = [{"prompt_ids": [1], "answer": "a"}, {"prompt_ids": [2, 3], "answer": "b"}]
    assert columns(rows) == {"prompt_ids": [[1], [2, 3]], "answer": ["a", "b"]}
