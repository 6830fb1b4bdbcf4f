"""`model=auto` loads a checkpoint of an architecture that doesn't have an option; benchmarks/architectures.py runs many of them."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from cells import FILE, matrix

import llmmod
from llmmod.errors import ConfigError

sys.path.insert(0, str(FILE.parent))
architectures = __import__("architectures")
PATH = "model.pretrained_model_name_or_path"


@pytest.fixture
def checkpoint(tmp_path):
    """A model_type -> the directory of a tiny checkpoint of it."""
    return lambda model_type: architectures.write_checkpoint(model_type, tmp_path / "checkpoint")


@pytest.mark.parametrize(("model_type", "way"), [("phimoe", "full"), ("gpt2", "qlora"), ("llama4_text", "lora")])
def test_a_rehearsal_of_any_architecture(checkpoint, tmp_path, model_type, way):
    path = f"{PATH}={checkpoint(model_type)}"
    assert matrix.run_cell("auto", way, tmp_path, overrides=(path, "training.learning_rate=5e-3")) <= matrix.MAX_LOSS_DIFFERENCE[way]


def run(tmp_path, path, *overrides):
    chosen = ["model=auto", f"{PATH}={path}", f"output_dir={tmp_path}/run", "training.use_cpu=true", "training.max_steps=1"]
    return llmmod.run(llmmod.compose([*chosen, *overrides]))


def test_a_real_run_needs_only_the_path(checkpoint, tmp_path):
    """The checkpoint's chat template and tokenizer, adapters on all linear layers, packed rows, cached answers of experts, an export."""
    path = checkpoint("qwen2_moe")
    more = ["dataset.packing=true", "dataset.max_samples=12", "dataset.val_size=2", "generation.max_new_tokens=3", "dataset.val_files=null"]
    metrics = run(tmp_path, path, *more)
    assert {"train_loss", "eval_loss", "predict_rouge-l"} <= metrics.keys()
    adapter = json.loads((tmp_path / "run/train/adapter_config.json").read_text())
    assert {"model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.o_proj"} <= set(adapter["target_modules"])
    assert "lm_head" not in adapter["target_modules"]
    exported = json.loads((tmp_path / "run/export/config.json").read_text())
    assert (exported["model_type"], exported["output_router_logits"]) == ("qwen2_moe", False)
    model = llmmod.load_model(str(tmp_path / "run/export"))
    assert model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=2, do_sample=False, pad_token_id=0).shape[1] > 3


def test_packing_is_refused_if_a_state_leaks_between_examples(checkpoint, tmp_path):
    with pytest.raises(ConfigError, match=r"dataset.packing: true, and MambaForCausalLM can't .* differ by up to \d[.\d]* nats a token"):
        run(tmp_path, checkpoint("mamba"), "dataset.packing=true", "pipeline=[train]")


def test_a_weight_that_the_model_multiplies_by_itself_is_not_quantized(checkpoint, tmp_path):
    with pytest.raises(ConfigError, match=r"llm_int8_skip_modules: MambaForCausalLM .* Set it to \[dt_proj,lm_head\]"):
        run(tmp_path, checkpoint("mamba"), "finetune=qlora", "pipeline=[train]")


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ([], f"{PATH}: is not set, and train needs a model"),
        ([f"{PATH}=/no/such/directory"], f"{PATH}: '/no/such/directory' does not exist"),
        (
            [f"{PATH}=some/model"],
            "config.json of 'some/model', which has the architecture, isn't on this machine",
        ),
    ],
    ids=["none", "no-directory", "on-a-hub"],
)
def test_nothing_to_rehearse(tmp_path, overrides, told):
    with pytest.raises(ConfigError) as raised:
        llmmod.run(llmmod.compose(["model=auto", "smoke=true", f"output_dir={tmp_path}/run", "pipeline=[train]", *overrides]))
    assert told in str(raised.value)
