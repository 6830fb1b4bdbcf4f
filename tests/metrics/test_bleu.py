"""BLEU: computed by hand, equal to sacrebleu called by hand, and 0 for an answer without words."""

from __future__ import annotations

import math
import tracemalloc

import pytest
import sacrebleu
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a
from sacrebleu.tokenizers.tokenizer_zh import TokenizerZh

from llmmod.metrics import Bleu

ENGLISH = [
    ("Exit code 2 means that a path is wrong.", "Exit code 2 means that the configuration, the data or a path is wrong."),
    ("A run is “done”, isn't it?", "Exit code 0 means that the run is “done”."),
    ("Set training.learning_rate to 1e-4.", "Set training.learning_rate, for example training.learning_rate=1e-4."),
    ("", "All metrics are in metrics.json, one flat object."),
]
CHINESE = [
    ("退出码 2 表示数据或路径有错。", "退出码 2 表示配置、数据或路径有错。"),
    ("默认是 GPT2", "默认模型是 SmolLM2。"),
    ("", "开启时只训练回答。"),
]


def bleu(pairs: list[tuple[str, str]]) -> float:
    metric = Bleu()
    for predict, label in pairs:
        metric.update(predict, label)
    return metric.compute()["bleu-4"]


def by_hand(pairs: list[tuple[str, str]], **arguments: object) -> float:
    return sacrebleu.corpus_bleu([predict for predict, _ in pairs], [[label for _, label in pairs]], **arguments).score


@pytest.mark.parametrize(
    ("predict", "label", "expected"),
    [
        # n-grams 5/5, 3/4, 2/3, 1/2: product 1/4; five tokens for six: brevity penalty exp(1 - 6/5)
        pytest.param("the cat sat on mat", "the cat sat on the mat", 100 * math.exp(-0.2) * 0.25**0.25, id="English"),
        # characters 4/4, 3/3, 2/2, 1/1; four for five: exp(1 - 5/4)
        pytest.param("默认模型", "默认模型是", 100 * math.exp(-0.25), id="Chinese characters"),
        pytest.param("yes", "yes", 100, id="shorter than four tokens"),
        pytest.param("llmmod 靠配置训练。", "llmmod 靠配置训练。", 100, id="right"),
        pytest.param("dogs", "the cat", 0, id="nothing in common"),
        pytest.param("", "the cat", 0, id="nothing but eos"),
        pytest.param("", "", 0, id="both empty"),
    ],
)
def test_values_worked_out_by_hand(predict: str, label: str, expected: float) -> None:
    assert bleu([(predict, label)]) == pytest.approx(expected)


def test_english_equals_the_library_with_its_defaults() -> None:
    assert bleu(ENGLISH) == pytest.approx(by_hand(ENGLISH), abs=1e-9)
    assert by_hand(ENGLISH) > 10


def test_chinese_equals_the_library_with_its_tokenizer_for_chinese() -> None:
    assert bleu(CHINESE) == pytest.approx(by_hand(CHINESE, tokenize="zh"), abs=1e-9)
    assert by_hand(CHINESE, tokenize="zh") > 10


def test_mixed_languages_equal_the_library_with_each_cut_by_its_own() -> None:
    cut = [(latin(predict), latin(label)) for latin in [Tokenizer13a()] for predict, label in ENGLISH]
    cut += [(han(predict), han(label)) for han in [TokenizerZh()] for predict, label in CHINESE]
    assert bleu(CHINESE + ENGLISH) == pytest.approx(by_hand(cut, tokenize="none", force=True), abs=1e-9)


def test_is_of_the_corpus_not_an_average_of_sentences() -> None:
    pairs = [("the cat sat on the mat", "the cat sat on the mat"), ("", "the cat sat on the mat")]
    assert bleu(pairs) == pytest.approx(100 * math.exp(1 - 12 / 6))


def test_without_answers_there_are_no_values() -> None:
    assert Bleu().compute() == {}


def test_compute_may_be_asked_in_between() -> None:
    metric = Bleu()
    metric.update("the cat sat down", "the cat sat down")
    assert metric.compute() == metric.compute() == pytest.approx({"bleu-4": 100})


def test_memory_does_not_grow_with_the_number_of_answers() -> None:
    metric = Bleu()
    metric.update("warm up", "warm up")
    tracemalloc.start()
    for number in range(500):
        metric.update(f"{number} " * 50, f"{number} {number + 1} " * 25)
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert grown < 50_000  # bytes; the texts alone have 200,000
