"""ROUGE: computed by hand, equal to rouge_score called by hand, and 0 for an answer without words."""

from __future__ import annotations

import statistics
import tracemalloc

import jieba
import pytest
from rouge_score.rouge_scorer import RougeScorer

from llmmod.metrics import Rouge

ENGLISH = [
    ("Exit code 2 means that a path is wrong.", "Exit code 2 means that the configuration, the data or a path is wrong."),
    ("the the the", "the cat"),
    ("The run's loss_curve isn't there", "The loss curve is train/training_loss.png."),
    ("", "All metrics are in metrics.json, one flat object."),
]
CHINESE = [
    ("退出码 2 表示数据有错。", "退出码 2 表示配置、数据或路径有错。"),
    ("默认是 GPT2", "默认模型是 SmolLM2。"),
    ("", "开启时只训练回答。"),
]


def rouge(pairs: list[tuple[str, str]]) -> dict[str, float]:
    metric = Rouge()
    for predict, label in pairs:
        metric.update(predict, label)
    return metric.compute()


class CutByJieba:
    def tokenize(self, text: str) -> list[str]:
        return [word for word in jieba.lcut(text.lower()) if word.isalnum()]


def by_hand(pairs: list[tuple[str, str]], **arguments: object) -> dict[str, float]:
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], **arguments)
    scores = [scorer.score(label, predict) for predict, label in pairs]
    return {
        "rouge-1": 100 * statistics.mean(score["rouge1"].fmeasure for score in scores),
        "rouge-2": 100 * statistics.mean(score["rouge2"].fmeasure for score in scores),
        "rouge-l": 100 * statistics.mean(score["rougeL"].fmeasure for score in scores),
    }


@pytest.mark.parametrize(
    ("predict", "label", "expected"),
    [
        # 3 of 3 words and 3 of 4: 2·1·0.75/1.75; bigrams 2 of 2 and 2 of 3: 2·1·(2/3)/(5/3); the common subsequence has 3 words
        pytest.param("the cat sat", "The cat sat down.", {"rouge-1": 600 / 7, "rouge-2": 80, "rouge-l": 600 / 7}, id="shorter"),
        # the words are right, their order is not: a common subsequence of 1 of 2
        pytest.param("cat the", "the cat", {"rouge-1": 100, "rouge-2": 0, "rouge-l": 50}, id="wrong order"),
        # 默认 模型 against 默认 的 模型: 2 of 2 and 2 of 3 words; 默认模型 against 默认的 and 的模型: no bigram
        pytest.param("默认模型", "默认的模型", {"rouge-1": 80, "rouge-2": 0, "rouge-l": 80}, id="Chinese"),
        pytest.param("llmmod 靠配置训练。", "llmmod 靠配置训练。", {"rouge-1": 100, "rouge-2": 100, "rouge-l": 100}, id="right"),
        pytest.param("", "the cat", {"rouge-1": 0, "rouge-2": 0, "rouge-l": 0}, id="nothing but eos"),
        pytest.param("...", "the cat", {"rouge-1": 0, "rouge-2": 0, "rouge-l": 0}, id="no word"),
        pytest.param("", "", {"rouge-1": 0, "rouge-2": 0, "rouge-l": 0}, id="both empty"),
    ],
)
def test_values_worked_out_by_hand(predict: str, label: str, expected: dict[str, float]) -> None:
    assert rouge([(predict, label)]) == pytest.approx(expected)


def test_english_equals_the_library_with_its_own_tokenizer() -> None:
    assert rouge(ENGLISH) == pytest.approx(by_hand(ENGLISH), abs=1e-9)


def test_mixed_languages_equal_the_library_with_words_cut_by_hand() -> None:
    english = {name: value * len(ENGLISH) for name, value in by_hand(ENGLISH).items()}
    chinese = {name: value * len(CHINESE) for name, value in by_hand(CHINESE, tokenizer=CutByJieba()).items()}
    expected = {name: (english[name] + chinese[name]) / len(ENGLISH + CHINESE) for name in english}
    assert rouge(CHINESE + ENGLISH) == pytest.approx(expected, abs=1e-9)
    assert expected["rouge-2"] > 0


def test_an_empty_answer_lowers_the_average() -> None:
    assert rouge([("the cat", "the cat"), ("", "the cat")]) == pytest.approx({"rouge-1": 50, "rouge-2": 50, "rouge-l": 50})


def test_without_answers_there_are_no_values() -> None:
    assert Rouge().compute() == {}


def test_memory_does_not_grow_with_the_number_of_answers() -> None:
    metric = Rouge()
    metric.update("warm up", "warm up")
    tracemalloc.start()
    for number in range(500):
        metric.update(f"{number} " * 50, f"{number} {number + 1} " * 25)
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert grown < 50_000  # bytes; the texts alone have 200,000
