"""Adapters with contradicting settings are refused before anything is loaded; others pass."""

from __future__ import annotations

import pytest

from llmmod.config.validate import model as low_rank

QLORA, INT8 = "finetune=qlora", "quantization@model.quantization=int8"
REFUSED = {
    "DoRA on 8 bits": ([QLORA, INT8, "finetune.use_dora=true"], "finetune.use_dora: true with model.quantization.bits=8, "),
    "PiSSA on 4 bits": ([QLORA, "finetune.init_lora_weights=pissa"], "finetune.init_lora_weights: 'pissa' with model.quantization.bits=4"),
    "PiSSA by iterations on 8 bits": (
        [QLORA, INT8, "finetune.init_lora_weights=pissa_niter_4"],
        "finetune.init_lora_weights: 'pissa_niter_4' with model.quantization.bits=8: ",
    ),
    "OLoRA on 4 bits": ([QLORA, "finetune.init_lora_weights=olora"], "finetune.init_lora_weights: 'olora' with "),
    "LoftQ on 4 bits": ([QLORA, "finetune.init_lora_weights=loftq"], "finetune.init_lora_weights: 'loftq' with "),
    "quantized lora": (
        ["finetune=lora", "model.quantization.bits=4", "finetune.init_lora_weights=olora"],
        "finetune.init_lora_weights: 'olora' with ",
    ),
    "DoRA and PiSSA": (["finetune.use_dora=true", "finetune.init_lora_weights=pissa"], "finetune.use_dora: true with "),
    "EVA": (["finetune.init_lora_weights=eva"], "finetune.init_lora_weights: 'eva' needs a pass over examples"),
    "CorDA": (["finetune.init_lora_weights=corda"], "finetune.init_lora_weights: 'corda' needs a pass"),
    "LoftQ of 2 bits": (
        ["finetune.init_lora_weights=loftq", "+finetune.loftq_config.loftq_bits=2"],
        "finetune.loftq_config.loftq_bits: found 2. Allowed: 4, 8.",
    ),
    "odd rank": (["finetune.init_lora_weights=orthogonal", "finetune.r=3"], "finetune.r: 3, but init_lora_weights=orthogonal needs pairs"),
    "odd rank of a module": (
        ["finetune.init_lora_weights=orthogonal", "+finetune.rank_pattern.q_proj=5"],
        "finetune.rank_pattern.q_proj: 5, but init_lora_weights=orthogonal",
    ),
    "layers of all-linear": (
        ["finetune.target_modules=all-linear", "finetune.layers_to_transform=[1]"],
        "finetune.layers_to_transform: set with finetune.target_modules=all-linear",
    ),
    "a pattern without layers": (["finetune.layers_pattern=layers"], "finetune.layers_pattern: set, but finetune.layers_to_transform"),
    "a layer before the first": (["finetune.layers_to_transform=[0,-1]"], "finetune.layers_to_transform: found -1. Allowed: numbers of"),
    "biases of adapters": (
        ["finetune.lora_bias=true"],
        "finetune.lora_bias: true, but an export can't store a bias in layers without one. Leave it false.",
    ),
    "layers that share weights": (["finetune.layer_replication=[[0,2],[1,2]]"], "finetune.layer_replication: [[0, 2], [1, 2]], but layers"),
    "Activated LoRA": (["finetune.alora_invocation_tokens=[5,6]"], "finetune.alora_invocation_tokens: [5, 6], but such an adapter is off"),
    "QALoRA": (["finetune.use_qalora=true"], "finetune.use_qalora: true, but it only works with GPTQ weights"),
    "Megatron": (["+finetune.megatron_config.a=1"], "finetune.megatron_config: {'a': 1}, but llmmod doesn't use Megatron's layers"),
    "an adapter on the head": (
        ["finetune.target_modules=[q_proj,lm_head]"],
        "finetune.target_modules: names lm_head, but the loss is computed from the head's own weight, so an adapter on it would never be "
        "trained. Train all of it: finetune.modules_to_save=[lm_head].",
    ),
    "an adapter on ChatGLM2's head": (["model=chatglm2", "finetune.target_modules=output_layer"], "finetune.target_modules: names output_"),
}  # fmt: skip
PASSES = {
    "DoRA on 4 bits": [QLORA, "finetune.use_dora=true"],
    "PiSSA and rsLoRA": ["finetune.init_lora_weights=pissa", "finetune.use_rslora=true"],
    "LoftQ": ["finetune.init_lora_weights=loftq", "+finetune.loftq_config.loftq_bits=8"],
    "even ranks": ["finetune.init_lora_weights=orthogonal", "finetune.r=4"],
    "one layer": ["finetune.target_modules=[q_proj]", "finetune.layers_to_transform=1", "finetune.layers_pattern=layers"],
    "the whole head": ["finetune.modules_to_save=[lm_head]"],
    "a reward model's": ["stage=rm", "finetune.target_modules=[q_proj,lm_head]"],
    "settings that are not read": ["finetune=full", "model.quantization.bits=null"],
}


@pytest.fixture(autouse=True)
def installed(monkeypatch):
    """Every package counts as installed."""
    monkeypatch.setattr(low_rank, "find_module", lambda name: object())


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_one_line(told, name):
    overrides, line = REFUSED[name]
    lines = told("smoke=true", *overrides)
    assert len(lines) == 1, lines
    assert lines[0].startswith(line)


@pytest.mark.parametrize("name", PASSES)
def test_passes(told, name):
    assert told("smoke=true", *PASSES[name]) == []


@pytest.mark.parametrize("package", ["scipy", "bitsandbytes"])
def test_loftq_names_the_package_that_is_missing(told, monkeypatch, package):
    monkeypatch.setattr(low_rank, "find_module", lambda name: None if name == package else object())
    (line,) = told("smoke=true", "finetune.init_lora_weights=loftq")
    assert line.startswith(f"finetune.init_lora_weights: 'loftq' needs {package} (")
    assert line.endswith("which isn't installed. Install it: pip install 'llmmod[loftq]'.")


def test_a_step_s_own_adapters_are_looked_at_with_its_own_model(told):
    own = ["+finetune@steps.train.finetune=qlora", "steps.train.finetune.init_lora_weights=pissa", "model.quantization.bits=4"]
    (line,) = told("smoke=true", "pipeline=[train]", *own)
    assert line.startswith("steps.train.finetune.init_lora_weights: 'pissa' with model.quantization.bits=4")
