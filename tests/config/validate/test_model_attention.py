"""Attention implementations that don't work on this machine are refused before torch is imported."""

from __future__ import annotations

import pytest

from llmmod.config.validate import model as attention


@pytest.fixture
def have(monkeypatch):
    """A function that sets which modules count as installed."""
    return lambda *names: monkeypatch.setattr(attention, "find_module", lambda name: object() if name in names else None)


@pytest.mark.parametrize(("chosen", "package"), [("flash_attention_2", "flash-attn"), ("flash_attention_3", "flash-attn-3")])
def test_one_that_is_not_installed(told, have, chosen, package):
    have()
    (line,) = told("smoke=true", f"model.attn_implementation={chosen}")
    assert line.startswith(f"model.attn_implementation: {chosen} needs {package}, which isn't installed. Install it: pip install {package}")


@pytest.mark.parametrize("module", ["flash_attn", "kernels"])
def test_one_that_is_installed_or_comes_from_the_hub(told, have, module):
    have(module)
    assert told("smoke=true", "model.attn_implementation=flash_attention_2", "model.dtype=bfloat16") == []


def test_one_that_computes_only_in_16_bits(told, have):
    have("flash_attn")
    (line,) = told("smoke=true", "model.attn_implementation=flash_attention_2", "model.dtype=float32")
    assert line.startswith("model.attn_implementation: flash_attention_2 with model.dtype=float32, but its kernels compute only in 16 bits")


@pytest.mark.parametrize("chosen", ["null", "sdpa", "eager", "flex_attention"])
def test_those_of_torch_itself(told, have, chosen):
    have()
    assert told("smoke=true", f"model.attn_implementation={chosen}") == []
