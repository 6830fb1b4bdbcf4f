"""The shipped small tokenizer: the script's output for the data, lossless, and accepting a render's tokens."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from devtools import tiny_tokenizer


def load(folder: Path = tiny_tokenizer.FOLDER) -> Any:
    return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load()


def test_generating_it_again_gives_the_same_bytes() -> None:
    made = {name: text.encode() for name, text in tiny_tokenizer.files().items()}
    shipped = {path.name: path.read_bytes() for path in tiny_tokenizer.FOLDER.iterdir()}
    assert made == shipped, "the demonstration data changed: run `python -m devtools.tiny_tokenizer`"


def test_check_names_the_file_that_differs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(tiny_tokenizer, "FOLDER", tmp_path / "tiny_tokenizer")
    assert tiny_tokenizer.main([]) == 0
    assert tiny_tokenizer.main(["--check"]) == 0
    capsys.readouterr()
    config = tmp_path / "tiny_tokenizer" / "tokenizer_config.json"
    config.write_text(config.read_text() + " ")
    assert tiny_tokenizer.main(["--check"]) == 1
    assert capsys.readouterr().out == "tiny_tokenizer/tokenizer_config.json: differs from what the data gives\n"


def test_it_is_part_of_the_package_and_small() -> None:
    folder = resources.files("llmmod.models.loading").joinpath("tiny_tokenizer")
    assert sum(len(entry.read_bytes()) for entry in folder.iterdir()) < 100_000


def test_special_tokens_and_size(tokenizer: Any) -> None:
    assert [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id] == [0, 1, 2]
    assert tokenizer.unk_token is None
    assert len(tokenizer) == 1000
    assert set(tokenizer("Exit code 2.").input_ids).isdisjoint(tokenizer.all_special_ids)


@pytest.mark.parametrize(
    "text", ["Exit code 2 means …", "默认模型是什么？", "😀 👩‍👩‍👧 e\u0301", " two  spaces\n\n\tand tabs ", "\ufeff\x00\x7f", "مرحبا"]
)
def test_texts_come_back_unchanged(tokenizer: Any, text: str) -> None:
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text


def test_any_text_comes_back_unchanged(tokenizer: Any) -> None:
    @settings(max_examples=200, deadline=None)
    @given(text=st.text())
    def comes_back(text: str) -> None:
        ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
        assert tokenizer.decode(ids) == text

    comes_back()


def test_tokens_of_a_render_are_added_whole_and_survive_saving(tmp_path: Path) -> None:
    tokenizer = load()
    tokens = ["<|im_start|>", "<|im_end|>", "<|end_of_turn|>", "<reserved_102>"]
    assert tokenizer.add_tokens(tokens, special_tokens=True) == len(tokens)
    tokenizer.save_pretrained(str(tmp_path))
    for each in (tokenizer, load(tmp_path)):
        assert each.convert_tokens_to_ids(tokens) == [1000, 1001, 1002, 1003]
        text = "<|im_start|>user\n你好 llmmod<|im_end|>"
        ids = each(text, add_special_tokens=False).input_ids
        assert (ids[0], ids[-1]) == (1000, 1001)
        assert each.decode(ids) == text


def test_demonstration_questions_take_about_as_many_tokens_as_with_a_real_tokenizer(tokenizer: Any) -> None:
    """SmolLM2's tokenizer makes 7,700 tokens of the training file."""
    text = resources.files("llmmod.demo").joinpath("llmmod_qa.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    assert 5_000 < sum(len(tokenizer(row[field]).input_ids) for row in rows for field in ("instruction", "output")) < 8_000


def test_its_chat_template_ends_each_turn_and_opens_the_answer(tokenizer: Any) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert (
        tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        == "<s>system\nBe brief.</s>\n<s>user\nHi</s>\n<s>assistant\n"
    )
