"""Words: rouge_score's own for ASCII text, jieba's for Chinese, and all of the text in other scripts."""

from __future__ import annotations

import subprocess
import sys

import jieba
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score import tokenize

from llmmod.metrics import has_chinese, words


@given(st.text(alphabet=st.characters(max_codepoint=127)))
def test_ascii_words_are_those_of_rouge_score(text: str) -> None:
    assert words(text) == tokenize.tokenize(text, None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("", [], id="empty"),
        pytest.param(" .!？。😀", [], id="no words"),
        pytest.param("Exit code 2.", ["exit", "code", "2"], id="English"),
        pytest.param("默认模型是 SmolLM2。", ["默认", "模型", "是", "smollm2"], id="Chinese with a Latin name"),
        pytest.param("SmolLM2模型", ["smollm2", "模型"], id="no space between the scripts"),
        pytest.param("Café naïve, déjà-vu", ["café", "naïve", "déjà", "vu"], id="accents"),
        pytest.param("Модель обучена!", ["модель", "обучена"], id="Cyrillic"),
        pytest.param("मॉडल तैयार है।", ["मॉडल", "तैयार", "है"], id="Hindi keeps its vowel signs"),
        pytest.param("snake_case=1e-4", ["snake", "case", "1e", "4"], id="as rouge_score splits names"),
    ],
)
def test_words(text: str, expected: list[str]) -> None:
    assert words(text) == expected


@pytest.mark.parametrize(
    "text", ["退出码表示配置、数据或路径有错。", "开启选项时只训练回答，不训练问题", "先安装依赖，再训练 LoRA 适配器！"]
)
def test_chinese_words_are_those_of_jieba_without_punctuation(text: str) -> None:
    assert words(text) == [word for word in jieba.lcut(text.lower()) if word.isalnum()]


@pytest.mark.parametrize(("text", "expected"), [("model", False), ("模型", True), ("a 模", True), ("，。", False), ("\U00020000", True)])
def test_has_chinese(text: str, expected: bool) -> None:
    assert has_chinese(text) is expected


def test_jieba_is_imported_late_and_stays_silent() -> None:
    program = (
        "import sys; from llmmod.metrics import words\n"
        "words('no Chinese'); assert 'jieba' not in sys.modules\n"
        "words('模型'); assert 'jieba' in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
