"""Scaling and shifting of rotary positions are refused for a model without them, before it is loaded."""

from __future__ import annotations

import json

import pytest

SCALED = ("model.rope_scaling.type=linear", "model.rope_scaling.factor=2")
NOT_SCALED = "model.rope_scaling.type: 'linear', but a model of type {} doesn't have rotary positions to scale. Leave it null."
NOT_SHIFTED = "model.shift_attn: true, but LongLoRA needs rotary positions, and a model of type {} doesn't have any. Leave it false."


@pytest.mark.parametrize(("option", "family"), [("baichuan_13b", "baichuan"), ("baichuan2_13b", "baichuan"), ("bloomz", "bloom")])
def test_families_without_rotary_positions(told, option, family):
    assert told("smoke=true", f"model={option}", *SCALED) == [NOT_SCALED.format(family)]
    assert told("smoke=true", f"model={option}", "model.shift_attn=true") == [NOT_SHIFTED.format(family)]


@pytest.mark.parametrize("option", ["baichuan", "baichuan2", "internlm", "chatglm2", "falcon"])
def test_families_with_them(told, option):
    assert told("smoke=true", f"model={option}", *SCALED) == []
    assert told("smoke=true", f"model={option}", "model.shift_attn=true") == []


def test_a_checkpoint_on_the_disk_says_what_it_is(told, tmp_path):
    raw = {"model_type": "baichuan", "hidden_size": 5120, "num_attention_heads": 40, "vocab_size": 125696, "model_max_length": 4096}
    (tmp_path / "config.json").write_text(json.dumps(raw), encoding="utf-8")
    for name in ("model.safetensors", "tokenizer.model"):
        (tmp_path / name).touch()
    path = f"model.pretrained_model_name_or_path={tmp_path}"
    assert told("model=llama2", path, *SCALED) == [NOT_SCALED.format("baichuan")]
    assert told("model=llama2", path, "model.shift_attn=true") == [NOT_SHIFTED.format("baichuan")]
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}), encoding="utf-8")
    assert told("model=baichuan_13b", path, *SCALED) == []
