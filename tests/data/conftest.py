"""A render, an empty cache and a decoder of labels for the tests of data."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The cache directory of examples; it is empty at the start of each test."""
    monkeypatch.setenv("LLMMOD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "examples"


@pytest.fixture
def chatml(tiny_tokenizer):
    """ChatML without a default system text."""
    from llmmod.render.template import Template

    return Template(
        tokenizer=tiny_tokenizer,
        name="chatml",
        prefix=[{"token": "<|im_start|>"}, "system\n{{system}}", {"token": "<|im_end|>"}],
        empty_prefix=[],
        sep=["\n"],
        prompt=[{"token": "<|im_start|>"}, "user\n{{query}}", {"token": "<|im_end|>"}, "\n", {"token": "<|im_start|>"}, "assistant\n"],
        response=["{{response}}", {"token": "<|im_end|>"}],
    )


@pytest.fixture
def trained_text(tiny_tokenizer):
    """An example -> the text of its labelled tokens."""
    return lambda example: tiny_tokenizer.decode([label for label in example["labels"] if label != -100])
