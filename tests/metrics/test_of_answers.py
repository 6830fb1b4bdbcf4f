"""The small metrics of answers, computed by hand."""

from __future__ import annotations

import pytest

from llmmod.metrics import Exact, Length, Repetition


def measured(metric, *pairs):
    for predict, label in pairs:
        metric.update(predict=predict, label=label)
    return metric.compute()


def test_exact_answers():
    pairs = [("It is 2.", "it is  2"), ("It is 2", "2"), ("默认模型是 SmolLM2。", "默认模型是SmolLM2"), ("", "no")]
    assert measured(Exact(), *pairs) == {"exact": 50.0}


def test_words_of_an_answer():
    assert measured(Length(), ("It is two.", ""), ("No", ""), ("", "")) == {"words": pytest.approx(4 / 3)}


def test_repeated_4_grams():
    """`a b c d a b c d` has five 4-grams, and the last repeats the first: 20 %. Six times `a` has three, and two repeat the first."""
    assert measured(Repetition(), ("a b c d a b c d", "")) == {"repeated-4-grams": pytest.approx(20.0)}
    assert measured(Repetition(), ("a a a a a a", "")) == {"repeated-4-grams": pytest.approx(200 / 3)}
    assert measured(Repetition(), ("a b c d a b c d", ""), ("a a a", "")) == {"repeated-4-grams": pytest.approx(10.0)}


@pytest.mark.parametrize("metric", [Exact, Length, Repetition])
def test_without_answers_there_are_no_values(metric):
    assert metric().compute() == {}
