"""`trainable_dtype=checkpoint` is refused for float16, and where it would not have an effect."""

from __future__ import annotations

import json

import pytest

KEY = "finetune.trainable_dtype"
AS_IT_IS = f"{KEY}=checkpoint"
DESTROYED = (
    f"{KEY}: checkpoint, but the weights are in float16, in which Adam's epsilon is 0 and steps become huge. "
    f"Use {KEY}=float32, or model.dtype=bfloat16."
)


def checkpoint(directory, **config):
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    (directory / "model.safetensors").touch()
    return f"model.pretrained_model_name_or_path={directory}"


@pytest.mark.parametrize("finetune", ["full", "freeze", "lora finetune.modules_to_save=[lm_head]", "lora finetune.bias=all"])
def test_float16_is_refused_where_the_configuration_says_it(told, finetune):
    assert told("smoke=true", *f"finetune={finetune}".split(), AS_IT_IS, "model.dtype=float16") == [DESTROYED]


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
def test_float16_is_refused_where_the_checkpoint_says_it(told, tmp_path, name):
    path = checkpoint(tmp_path / "model", **{name: "float16"})
    assert told("model=llama", "finetune=full", AS_IT_IS, path, "pipeline=[train]") == [DESTROYED]
    assert told("model=llama", "finetune=full", AS_IT_IS, path, "pipeline=[train]", "model.dtype=bfloat16") == []
    assert told("model=llama", "finetune=full", path, "pipeline=[train]") == []


def test_a_step_of_its_own_is_named(told):
    own = ["+finetune@steps.train.finetune=full", "steps.train.finetune.trainable_dtype=checkpoint", "training.learning_rate=1e-5"]
    (line,) = told("smoke=true", *own, "pipeline=[train]", "model.dtype=float16")
    assert line.startswith("steps.train.finetune.trainable_dtype: checkpoint, but the weights are in float16")


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        ("finetune=lora model.dtype=bfloat16", "only adapters are trained, which are always in float32"),
        ("finetune=qlora finetune.modules_to_save=[lm_head] model.dtype=bfloat16", "the weights that aren't quantized are in float32"),
        ("finetune=full model.dtype=float32", "the weights are in float32"),
    ],
)
def test_what_would_change_nothing_is_refused(told, overrides, why):
    assert told("smoke=true", AS_IT_IS, *overrides.split()) == [f"{KEY}: checkpoint, but {why}. Leave it out."]


def test_bfloat16_passes(told):
    assert told("smoke=true", "finetune=full", AS_IT_IS, "model.dtype=bfloat16") == []
